"""How fast and how lean: kdlib beside its peers, measured in one run on one machine."""
