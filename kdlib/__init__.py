"""Knowledge distillation in PyTorch: the tested utilities behind the course.

The public names are loaded at first use, so that `python -m kdlib check` can say that torch is missing
instead of stopping for want of it.
"""

# ruff: noqa: F401  (the imports below are for type checkers)
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kdlib.cost import Cost, measure_cost
    from kdlib.language.answers.final_answer import verify_answer
    from kdlib.language.distill.distill import distill_language_model
    from kdlib.language.models.r1_distill import R1_DISTILL
    from kdlib.language.puzzles.make import make_puzzle
    from kdlib.language.puzzles.solve import solve
    from kdlib.language.traces.collect import collect_traces
    from kdlib.language.traces.select import filter_traces
    from kdlib.losses.cross_tokenizer import aligned_loss, uld_loss
    from kdlib.losses.kd import kd_loss, soft_target_loss, soften
    from kdlib.losses.linear import linear_kd_loss
    from kdlib.metrics import Scores, Verdict, compare
    from kdlib.training import History, evaluate, fit
    from kdlib.vision.digits import load_digits
    from kdlib.vision.photos import load_photos
    from kdlib.vision.sketches import load_sketches

__version__ = "0.1.0"

_HOMES = {
    "kdlib.cost": ("Cost", "measure_cost"),
    "kdlib.losses.cross_tokenizer": ("aligned_loss", "uld_loss"),
    "kdlib.losses.kd": ("kd_loss", "soft_target_loss", "soften"),
    "kdlib.losses.linear": ("linear_kd_loss",),
    "kdlib.metrics": ("Scores", "Verdict", "compare"),
    "kdlib.language.answers.final_answer": ("verify_answer",),
    "kdlib.language.models.r1_distill": ("R1_DISTILL",),
    "kdlib.language.distill.distill": ("distill_language_model",),
    "kdlib.language.puzzles.make": ("make_puzzle",),
    "kdlib.language.puzzles.solve": ("solve",),
    "kdlib.language.traces.select": ("filter_traces",),
    "kdlib.language.traces.collect": ("collect_traces",),
    "kdlib.training": ("History", "evaluate", "fit"),
    "kdlib.vision.digits": ("load_digits",),
    "kdlib.vision.photos": ("load_photos",),
    "kdlib.vision.sketches": ("load_sketches",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = sorted(_HOME_OF)


def __getattr__(name: str) -> object:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'kdlib' has no attribute {name!r}")
    return getattr(import_module(_HOME_OF[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
