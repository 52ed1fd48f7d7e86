"""Images: data sets, networks and loaders."""

from kdlib.extras import require

require("vision", "PIL", "sklearn", "torchvision")
