"""Knowledge distillation in PyTorch: the tested utilities behind the course."""

from kdlib.cost import Cost, measure_cost
from kdlib.losses import kd_loss, soft_target_loss, soften
from kdlib.metrics import Scores, Verdict, compare
from kdlib.training import History, evaluate, fit
from kdlib.vision.digits import load_digits

__all__ = [
    "Cost", "History", "Scores", "Verdict", "compare", "evaluate", "fit", "kd_loss",
    "load_digits", "measure_cost", "soft_target_loss", "soften",
]
__version__ = "0.1.0"
