"""The peers: the same loss as others compute it, each behind one signature.

A contender is given a setting and gives a function of the student's tensors, the teacher's and the labels,
to a scalar loss; or says why it does not compute that loss. All take the mean over the tokens whose label is
not IGNORED. Peers are imported when they are asked for, and none is needed to use the package.

Whatever a peer leaves out is added as its user would add it: log-probabilities before a kernel that wants
those, T² behind a loss without it (at T = 1 that costs nothing).
"""

import importlib
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.problems import IGNORED, Problem, Setting
from kdlib.losses.kd import kd_loss
from kdlib.losses.linear import linear_kd_loss

__all__ = ["CONTENDERS", "Contender", "NotComparable", "contenders", "versions_of_peers"]

Loss = Callable[[tuple[Tensor, ...], tuple[Tensor, ...], Tensor], Tensor]
_BETA_OF = {"forward": 0.0, "reverse": 1.0}  # of peers whose JSD stands for a KL divergence at each end


class NotComparable(Exception):
    """A contender does not compute this loss here; the message is why."""


@dataclass(frozen=True)
class Contender:
    """One way to compute the loss.

    Attributes:
        name: as tables show it.
        kind: "linear" from hidden states and weights, or "logits".
        make: (setting, device) to the function; raises `NotComparable`, or ImportError.
    """

    name: str
    kind: str
    make: Callable[[Setting, torch.device], Loss]

    def run(self, loss: Loss, problem: Problem) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Loss and the gradients of `problem.inputs`."""
        value = loss(problem.inputs, problem.teacher, problem.labels)
        return value.detach(), torch.autograd.grad(value, problem.inputs)


def contenders(kind: str) -> list[Contender]:
    """Those of a kind of problem; the first is the one that others are compared with."""
    return [contender for contender in CONTENDERS if contender.kind == kind]


def versions_of_peers() -> dict[str, str]:
    """Of what the contenders are made of, "not installed" among them."""
    found = {}
    for name in ("liger_kernel", "triton", "trl"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


# --- PyTorch ----------------------------------------------------------------------------------------


def written_out(student: Tensor, teacher: Tensor, labels: Tensor, setting: Setting) -> Tensor:
    """The loss as careful people write it: in float32, from log_softmax and kl_div.

    Args:
        student, teacher: (n, V) logits; labels: (n).
    """
    counted = labels != IGNORED
    student = student.float()
    log_q = F.log_softmax(student / setting.temperature, -1)
    log_p = F.log_softmax(teacher.detach().float() / setting.temperature, -1)

    def kl(of: Tensor, against: Tensor) -> Tensor:
        return F.kl_div(against, of, reduction="none", log_target=True).sum(-1)

    if setting.divergence == "forward":
        distance = kl(log_p, log_q)
    elif setting.divergence == "reverse":
        distance = kl(log_q, log_p)
    else:
        beta = setting.beta
        log_m = torch.logaddexp(log_p + math.log(beta), log_q + math.log1p(-beta))
        distance = beta * kl(log_p, log_m) + (1 - beta) * kl(log_q, log_m)
    loss = (1 - setting.alpha) * setting.temperature**2 * distance
    if setting.alpha > 0:
        hard = F.cross_entropy(student, labels, ignore_index=IGNORED, reduction="none")
        loss = loss + setting.alpha * hard
    return (loss * counted).sum() / counted.sum().clamp(min=1)


def _logits(tensors: tuple[Tensor, ...]) -> Tensor:
    return F.linear(*tensors) if len(tensors) == 2 else tensors[0]


def _eager(setting: Setting, device: torch.device) -> Loss:
    def loss(student, teacher, labels):
        return written_out(_logits(student), _teacher_logits(teacher), labels, setting)

    return loss


@torch.no_grad()
def _teacher_logits(teacher: tuple[Tensor, ...]) -> Tensor:
    return _logits(teacher)


def _compiled(setting: Setting, device: torch.device) -> Loss:
    # What was compiled before counts against the number of times that one function may be compiled.
    torch.compiler.reset()
    return torch.compile(_eager(setting, device), dynamic=False)


# --- TRL --------------------------------------------------------------------------------------------


def _trl(setting: Setting, device: torch.device) -> Loss:
    _soft_only(setting)
    jsd = _find("trl", "GKDTrainer", ("trl.experimental.gkd", "trl")).generalized_jsd_loss
    beta = _BETA_OF.get(setting.divergence, setting.beta)

    def loss(student, teacher, labels):
        logits, teacher_logits = _logits(student), _teacher_logits(teacher)
        value = jsd(logits, teacher_logits, labels=labels, beta=beta, temperature=setting.temperature)
        return _times_square(value, setting)

    return loss


def _trl_chunked(setting: Setting, device: torch.device) -> Loss:
    _soft_only(setting)
    # What its DistillationTrainer calls, from version 1.16 on: trl/kernels/chunked_divergence.py.
    divergence = _find("trl", "_chunked_divergence_loss", ("trl.trainer.distillation_trainer",))
    beta = _BETA_OF.get(setting.divergence, setting.beta)

    def loss(student, teacher, labels):
        (hidden, weight), (teacher_hidden, teacher_weight) = student, teacher
        value, *_ = divergence(
            hidden, teacher_hidden, weight, teacher_weight, labels != IGNORED, beta,
            temperature=setting.temperature,
        )  # fmt: skip
        return _times_square(value, setting)

    return loss


# --- Liger-Kernel -----------------------------------------------------------------------------------


def _liger_chunked(setting: Setting, device: torch.device) -> Loss:
    torch.compiler.reset()
    soft = (1 - setting.alpha) * setting.temperature**2
    module = _find("liger_kernel", "LigerFusedLinearJSDLoss", ("liger_kernel.chunked_loss",))(
        weight_hard_loss=setting.alpha, weight_soft_loss=soft, ignore_index=IGNORED,
        beta=_BETA_OF.get(setting.divergence, setting.beta), temperature=setting.temperature,
        # As it comes, but on a CPU, where compiling takes longer than what it saves.
        compiled=device.type != "cpu",
    )  # fmt: skip
    return lambda student, teacher, labels: module(*student, *teacher, labels)


def _liger_linear_jsd(setting: Setting, device: torch.device) -> Loss:
    _soft_only(setting)
    _needs_triton(device)
    module = _find("liger_kernel", "LigerFusedLinearJSD", ("liger_kernel.transformers.fused_linear_jsd",))(
        jsd_beta=_BETA_OF.get(setting.divergence, setting.beta), ignore_index=IGNORED,
        temperature=setting.temperature,
    )  # fmt: skip
    return lambda student, teacher, labels: _times_square(module(*student, *teacher, labels), setting)


def _liger_linear_kl(setting: Setting, device: torch.device) -> Loss:
    _soft_only(setting)
    _forward_only(setting)
    _needs_triton(device)
    module = _find(
        "liger_kernel", "LigerFusedLinearKLDivLoss", ("liger_kernel.transformers.fused_linear_kl_div",)
    )(ignore_index=IGNORED, temperature=setting.temperature)

    def loss(student, teacher, labels):
        # It wants the teacher's probabilities, all of them: in the dtype of the logits, which is the leanest.
        target = torch.softmax(_teacher_logits(teacher).div_(setting.temperature), -1)
        return _times_square(module(*student, target, labels), setting)

    return loss


def _liger_jsd(setting: Setting, device: torch.device) -> Loss:
    _soft_only(setting)
    _needs_triton(device)
    module = _find("liger_kernel", "LigerJSD", ("liger_kernel.transformers.jsd",))(
        beta=_BETA_OF.get(setting.divergence, setting.beta), ignore_index=IGNORED
    )

    def loss(student, teacher, labels):
        log_q, log_p = (
            F.log_softmax(logits.float() / setting.temperature, -1)
            for logits in (student[0], teacher[0].detach())
        )
        return _times_square(module(log_q, log_p, labels), setting)

    return loss


def _liger_kl(setting: Setting, device: torch.device) -> Loss:
    _soft_only(setting)
    _forward_only(setting)
    _needs_triton(device)
    module = _find("liger_kernel", "LigerKLDIVLoss", ("liger_kernel.transformers.kl_div",))(
        reduction="batchmean", log_target=True
    )

    def loss(student, teacher, labels):
        counted = labels != IGNORED  # it knows no labels: rows that do not count are taken out first
        log_q, log_p = (
            F.log_softmax(logits[counted].float() / setting.temperature, -1)
            for logits in (student[0], teacher[0].detach())
        )
        return _times_square(module(log_q, log_p), setting)

    return loss


# --- ours -------------------------------------------------------------------------------------------


def _options(setting: Setting) -> dict:
    return {
        "temperature": setting.temperature, "alpha": setting.alpha, "divergence": setting.divergence,
        "beta": setting.beta, "ignore_index": IGNORED,
    }  # fmt: skip


def _ours_linear(setting: Setting, device: torch.device) -> Loss:
    return lambda student, teacher, labels: linear_kd_loss(*student, *teacher, labels, **_options(setting))


def _ours_logits(setting: Setting, device: torch.device) -> Loss:
    return lambda student, teacher, labels: kd_loss(*student, *teacher, labels, **_options(setting))


CONTENDERS = (
    Contender("eager PyTorch", "linear", _eager),
    Contender("torch.compile", "linear", _compiled),
    Contender("TRL", "linear", _trl),
    Contender("TRL chunked", "linear", _trl_chunked),
    Contender("Liger chunked JSD", "linear", _liger_chunked),
    Contender("Liger fused linear JSD", "linear", _liger_linear_jsd),
    Contender("Liger fused linear KL", "linear", _liger_linear_kl),
    Contender("kdlib", "linear", _ours_linear),
    Contender("eager PyTorch", "logits", _eager),
    Contender("torch.compile", "logits", _compiled),
    Contender("TRL", "logits", _trl),
    Contender("Liger JSD", "logits", _liger_jsd),
    Contender("Liger KL", "logits", _liger_kl),
    Contender("kdlib", "logits", _ours_logits),
)


def _soft_only(setting: Setting) -> None:
    if setting.alpha > 0:
        raise NotComparable("has no hard term")


def _forward_only(setting: Setting) -> None:
    if setting.divergence != "forward":
        raise NotComparable("forward KL only")


def _needs_triton(device: torch.device) -> None:
    if device.type == "cpu":
        raise NotComparable("needs a GPU")


def _times_square(value: Tensor, setting: Setting) -> Tensor:
    return value if setting.temperature == 1 else value * setting.temperature**2


def _find(package: str, name: str, modules: tuple[str, ...]) -> ModuleType:
    """The name from the first of the modules that has it: peers move things from version to version.

    Raises:
        ModuleNotFoundError: the package is not installed. NotComparable: it has no such thing.
    """
    importlib.import_module(package)
    for module in modules:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that something is experimental, or has moved
            try:
                return getattr(importlib.import_module(module), name)
            except (ModuleNotFoundError, AttributeError):
                continue
    raise NotComparable(f"{package} {version(package)} has no {name}")
