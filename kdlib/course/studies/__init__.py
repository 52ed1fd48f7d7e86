"""The experiments behind the committed results."""
