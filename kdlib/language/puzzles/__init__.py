"""Chickens and rabbits in one cage: puzzles, their solutions, their words."""
