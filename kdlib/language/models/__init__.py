"""Checkpoints: the six of R1-Distill, any other, and tiny ones."""
