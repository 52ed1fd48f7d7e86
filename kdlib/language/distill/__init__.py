"""A language model that learns from another."""
