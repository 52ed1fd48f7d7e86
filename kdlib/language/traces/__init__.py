"""What a model writes when it is asked: collected, verified, kept."""
