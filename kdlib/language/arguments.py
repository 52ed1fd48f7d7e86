"""What functions of this room refuse in common: counts that are none, and seeds that are none."""

from numbers import Real


def check_counts(least: int = 1, **counts: object) -> None:
    """Refuse, by the name of the argument, what is no whole number of at least so many; None passes."""
    for name, value in counts.items():
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int):
            raise ValueError(f"{name} must be a whole number, at least {least}; got {value!r}")
        if value < least:
            raise ValueError(f"{name} must be at least {least}; got {value!r}")


def check_seed(seed: object) -> None:
    """Refuse what is no whole number."""
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise ValueError(f"seed must be a whole number; got {seed!r}")


def is_number(value: object) -> bool:
    """Whether a value is a real number, NaN and infinities among them."""
    return isinstance(value, Real) and not isinstance(value, bool)
