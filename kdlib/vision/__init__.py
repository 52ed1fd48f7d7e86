"""Images: data sets, networks and loaders."""
