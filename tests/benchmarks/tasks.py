"""The tasks of `python -m kdlib bench`, each a function of what is asked to rows."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

import torch

from benchmarks.contenders import contenders
from benchmarks.measuring import copy_rate, matrix_rate, memory_let_go
from benchmarks.problems import Problem, Setting, Sizes, make_problem
from benchmarks.race import Rates, Row, arms_in_turn, race
from benchmarks.training import language_steps, loading, vision_steps, whole_notebooks
from kdlib.losses.divergences import Divergence

__all__ = ["TASKS", "Request", "measure_rates"]

SMALLEST = 256  # tokens, in `sizes`
PART = 0.25  # of the tokens, in `masked`


@dataclass(frozen=True)
class Request:
    """What is to be measured.

    Attributes:
        rounds: timed runs of everything.
        checked: tokens whose loss and gradients are compared with float64.
        on_done: called after each thing that takes a while.
    """

    device: torch.device
    sizes: Sizes
    rates: Rates
    divergences: Sequence[Divergence] = ("forward",)
    temperature: float = 1.0
    alpha: float = 0.0
    rounds: int = 3
    checked: int = 64
    on_done: Callable[[], object] = lambda: None

    def settings(self) -> list[Setting]:
        return [Setting(name, self.temperature, self.alpha) for name in self.divergences]


def measure_rates(device: torch.device, dtype: torch.dtype) -> Rates:
    """Of this machine, in about a second."""
    with memory_let_go(device):
        return Rates(matrix_rate(device, dtype), copy_rate(device))


def _races(kind: str, asked: Request) -> list[Row]:
    rows = []
    for setting in asked.settings():
        with memory_let_go(asked.device):
            problem = make_problem(kind, asked.sizes, asked.device)
            rows += race(
                kind, setting.divergence, contenders(kind), problem, setting, asked.rates,
                rounds=asked.rounds, checked=asked.checked, on_done=asked.on_done,
            )  # fmt: skip
            del problem
    return rows


def linear(asked: Request) -> list[Row]:
    """From hidden states to loss and gradients."""
    return _races("linear", asked)


def logits(asked: Request) -> list[Row]:
    """From given logits to loss and gradient."""
    return _races("logits", asked)


def shapes(asked: Request) -> list[Row]:
    """Ours on given logits with an odd number of classes, and on a view of wider ones."""
    rows = []
    ours = contenders("logits")[-1]
    whole = asked.sizes.vocabulary
    # At 151,936 logits the classes of GPT-2, and those of R1-Distill that belong to a token.
    odd, part = 50_257 * whole // 151_936 | 1, 151_665 * whole // 151_936
    cases = {f"{odd:,} classes": (odd, odd), f"logits[:, :{part}]": (whole, part)}
    for setting in asked.settings():
        for name, (row, classes) in cases.items():
            with memory_let_go(asked.device):
                problem = make_problem("logits", replace(asked.sizes, vocabulary=row), asked.device)
                problem = replace(
                    problem, sizes=replace(asked.sizes, vocabulary=classes),
                    inputs=tuple(x.detach()[:, :classes].requires_grad_() for x in problem.inputs),
                    teacher=tuple(x[:, :classes] for x in problem.teacher),
                    labels=problem.labels.where(problem.labels < classes, 0),
                )  # fmt: skip
                rows += race(
                    "shapes", f"{setting.divergence}, {name}", [ours], problem, setting, asked.rates,
                    rounds=asked.rounds, checked=min(asked.checked, 64),
                )  # fmt: skip
                del problem
            asked.on_done()
    return rows


def masked(asked: Request) -> list[Row]:
    """Ours with a quarter of the tokens counting, against all of them."""
    rows = []
    ours = contenders("linear")[-1]
    for setting in asked.settings():
        with memory_let_go(asked.device):
            loss = ours.make(setting, asked.device)

            def run(problem: Problem, loss=loss) -> Callable[[], object]:
                return lambda: ours.run(loss, problem)

            shares = {"all tokens": 1.0, f"{PART:.0%} of the tokens": PART}
            arms = {
                f"{ours.name}, {name}": run(
                    make_problem("linear", replace(asked.sizes, counted=share), asked.device)
                )
                for name, share in shares.items()
            }
            rows += arms_in_turn(
                "masked", setting.divergence, arms, asked.device, rounds=asked.rounds
            )
            del arms, loss
        asked.on_done()
    return rows


def sizes(asked: Request) -> list[Row]:
    """Ours and eager PyTorch from 256 tokens up to what is asked, doubling."""
    rows = []
    for kind in ("linear", "logits"):
        entrants = [contenders(kind)[0], contenders(kind)[-1]]
        tokens = min(SMALLEST, asked.sizes.tokens)
        while tokens <= asked.sizes.tokens:
            for setting in asked.settings():
                with memory_let_go(asked.device):
                    problem = make_problem(kind, replace(asked.sizes, tokens=tokens), asked.device)
                    rows += race(
                        "sizes", f"{kind}, {setting.divergence}, {tokens} tokens", entrants, problem, setting,
                        asked.rates, rounds=asked.rounds, checked=min(asked.checked, 64),
                    )  # fmt: skip
                    del problem
                asked.on_done()
            tokens *= 2
    return rows


def training(asked: Request) -> list[Row]:
    """A step of training with a cached and with a live teacher, against one without; pictures and texts."""
    rows = vision_steps(asked.device, rounds=asked.rounds)
    asked.on_done()
    rows += language_steps(asked.device, rounds=asked.rounds)
    asked.on_done()
    return rows


def loader(asked: Request) -> list[Row]:
    """Batches of pictures from memory on the device, against torch's DataLoader with worker processes."""
    rows = loading(asked.device, rounds=asked.rounds)
    asked.on_done()
    return rows


def notebooks(asked: Request) -> list[Row]:
    """Whole notebooks, each in a fresh kernel: minutes each."""
    return whole_notebooks(asked.on_done)


TASKS: Mapping[str, Callable[[Request], list[Row]]] = MappingProxyType(
    {
        task.__name__: task
        for task in (linear, logits, shapes, masked, sizes, training, loader, notebooks)
    }
)
