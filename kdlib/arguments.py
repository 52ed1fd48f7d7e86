"""What an argument may be: who refuses one names it, its value, and what was expected."""

import math
from numbers import Integral, Real

import psutil  # accelerate brings it
import torch
from torch import Tensor


def refuse(name: str, value: object, expected: str) -> None:
    """Raise the `ValueError` of an argument."""
    raise ValueError(f"{name} is {shortened(value)}; expected {expected}")


def shortened(value: object) -> str:
    """A value as a message shows it: short, and with its type where that is what went wrong."""
    if isinstance(value, Tensor):
        return f"a {value.dtype} tensor of shape {tuple(value.shape)}".replace("torch.", "")
    if isinstance(value, str):
        return repr(value if len(value) <= 80 else value[:77] + "…")
    if value is None or isinstance(value, Real):
        return str(value)
    kind = type(value).__name__
    return f"{'an' if kind[0].lower() in 'aeiou' else 'a'} {kind}"


def check_whole(name: str, value: object, *, least: int | None = None) -> None:
    """A whole number, no smaller than `least`; True and 2.0 are none."""
    if isinstance(value, bool) or not isinstance(value, Integral) or (least is not None and value < least):
        refuse(name, value, "a whole number" + ("" if least is None else f", at least {least}"))


def check_counts(least: int = 1, **counts: object) -> None:
    """Whole numbers by the names of their arguments; None passes."""
    for name, value in counts.items():
        if value is not None:
            check_whole(name, value, least=least)


def is_number(value: object) -> bool:
    """Whether a value is a real number, NaN and infinities among them."""
    return isinstance(value, Real) and not isinstance(value, bool)


def check_number(name: str, value: object, *, above: float = -math.inf, least: float = -math.inf) -> None:
    """A finite number, larger than `above`, no smaller than `least`."""
    if not is_number(value) or not math.isfinite(value) or value <= above or value < least:
        bounds = {f" above {above:g}": above, f", at least {least:g}": least}
        refuse(name, value, "a finite number" + "".join(text for text, b in bounds.items() if b > -math.inf))


def check_class_indices(name: str, labels: Tensor) -> None:
    """Class indices (N): their shape and dtype, no look at the values."""
    if labels.dim() != 1:
        hint = "; one-hot labels become indices by labels.argmax(-1)" if labels.dim() == 2 else ""
        refuse(name, labels, f"shape (N), one class index for each image{hint}")
    if labels.dtype == torch.bool or labels.is_floating_point() or labels.is_complex():
        refuse(name, labels, "class indices, whole numbers: labels.long() if they are")


def check_room(name: str, value: object, size: int) -> None:
    """That an argument asks for no more bytes than this machine's memory has in all."""
    if size > (total := psutil.virtual_memory().total):
        here = f"{total / 1e9:,.0f} GB of this machine"
        refuse(name, value, f"less: that takes {size / 1e9:,.0f} GB of memory, more than the {here}")
