"""What the notebooks need around the package."""
