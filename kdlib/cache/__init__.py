"""A teacher's outputs on disk: computed once, learnt from as often as you like."""
