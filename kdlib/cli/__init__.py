"""The commands of `python -m kdlib`, a module each."""
