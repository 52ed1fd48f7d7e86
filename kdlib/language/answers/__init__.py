"""The answer in a model's text, and whether it is right."""
