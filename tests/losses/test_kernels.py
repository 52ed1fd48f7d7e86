"""The Triton kernels of the loss: against `plain_kd_loss` in float64, in Triton's interpreter and on a GPU.

Triton decides when it is imported whether it interprets, so all checks run once in a process of their own.
This file is its program (`TRITON_INTERPRET=1 python tests/losses/test_kernels.py`); each test looks at what
its check said. Ordinary settings are combined in pairs: each two values of two settings meet at least once.
The interpreter lets types change in a loop and knows nothing of loads: `test_kernels_compiled.py` does.
"""

import contextlib
import itertools
import json
import math
import os
import subprocess
import sys
import traceback
import warnings
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from unittest.mock import MagicMock, patch

import numpy as np
import pytest
import torch
from torch.autograd import forward_ad

from kdlib.losses.divergences import LossSettings
from kdlib.losses.kd import kd_loss, soft_target_loss
from kdlib.losses.top_k import top_k_of

needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="needs Triton")
DIVERGENCES = ("forward", "reverse", "jsd")
IGNORED = -100


# --- one case -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    rows: int = 2
    classes: int = 300
    divergence: str = "forward"
    alpha: float = 0.0
    temperature: float = 2.0
    beta: float = 0.3
    dtype: torch.dtype = torch.bfloat16
    teacher_dtype: torch.dtype | None = None
    teacher_classes: int | None = None
    width: int | None = None
    spread: float = 3.0
    offset: float = 0.0  # of all of the teacher's logits
    apart: float | None = None  # teacher = student + apart · noise
    ignored: tuple[int, ...] = ()
    labelled: bool = True
    ruled_out: float | None = None  # what stands in a fifth of the classes, of either model
    nothing_left: bool = False  # the first row has no class that both allow
    layout: str = "contiguous"
    in_place: bool = False
    scaled: float | None = None
    loss_tolerance: float = 1e-5  # relative; ten times tighter than what is promised
    rounding: float = 3e-6  # of the gradient, relative to what cancels in it, at logits of the usual spread


def draw(case: Case, seed: int):
    """Logits and labels in float64 values that the dtypes hold exactly."""
    random = torch.Generator().manual_seed(seed)

    def normal(classes):
        return torch.randn(case.rows, classes, generator=random, dtype=torch.float64)

    student = (case.spread * normal(case.classes)).to(case.dtype)
    teacher = case.spread * normal(case.teacher_classes or case.classes) + case.offset
    if case.apart is not None:
        teacher = student.double() + case.apart * normal(case.classes)
    teacher = teacher.to(case.teacher_dtype or case.dtype)
    labels = torch.randint(case.classes, (case.rows,), generator=random)
    if case.ruled_out is not None:
        for logits in (student, teacher):
            chosen = torch.rand(logits.shape, generator=random) < 0.2
            chosen.scatter_(-1, labels[:, None].clamp(max=logits.shape[1] - 1), False)
            lowest = -math.inf if logits.dtype == torch.float16 else case.ruled_out
            logits.masked_fill_(chosen, lowest)
    if case.nothing_left:
        half = torch.arange(case.classes) % 2 == 0
        student[0, half] = -math.inf
        teacher[0, ~half] = -math.inf
        labels[0] = 1
    if case.width:
        teacher[:, case.width :] = math.nan  # not to be looked at
    for row in case.ignored:
        labels[row] = IGNORED
        student[row], teacher[row] = math.nan, math.inf
    return student, teacher, labels if case.labelled else None


def exact(case: Case, student, teacher, labels):
    """(n,) losses and (n, V) gradients in float64, by autograd of `kdlib.losses.kd`; and what cancels."""
    counted = torch.ones(case.rows, dtype=torch.bool) if labels is None else labels != IGNORED
    z = student.double().masked_fill(~counted[:, None], 0.0).requires_grad_()
    y = teacher.double().masked_fill(~counted[:, None], 0.0)
    width = case.width or case.classes
    options = {"temperature": case.temperature, "divergence": case.divergence, "beta": case.beta}
    if width == case.classes == y.shape[1]:
        loss = kd_loss(z, y, labels, alpha=case.alpha, reduction="none", **options)
    else:
        soft = soft_target_loss(z[:, :width], y[:, :width], mask=counted, reduction="none", **options)
        hard = kd_loss(z, None, labels, alpha=1.0, reduction="none") if case.alpha else 0.0
        loss = case.alpha * hard + (1 - case.alpha) * soft
    (gradient,) = torch.autograd.grad(loss.sum(), z)
    z = z.detach()
    both = (z[:, :width] > -1e30) & (y[:, :width] > -1e30)
    p, q = (
        torch.softmax((x[:, :width] / case.temperature).masked_fill(~both, -1e30), -1) for x in (y, z)
    )
    ratio = (p.clamp(min=1e-300) / q.clamp(min=1e-300)).log().abs().clamp(max=50)
    size = torch.zeros_like(z)
    size[:, :width] = (1 - case.alpha) * case.temperature * (p + q) * (1 + ratio)
    size += case.alpha * torch.softmax(z, -1)
    if case.alpha:  # at the label the hard term may cancel the soft one
        size.scatter_add_(-1, labels.clamp(min=0)[:, None], torch.full_like(z, case.alpha))
    return loss.detach(), gradient, size, counted


def laid_out(tensor: torch.Tensor, layout: str) -> torch.Tensor:
    """The same values, in another place of memory; what stands around them there is NaN."""
    if layout == "sliced":  # all rows begin at multiples of 16 bytes
        wide = torch.full((tensor.shape[0], tensor.shape[1] // 16 * 16 + 32), math.nan).to(tensor)
        wide[:, : tensor.shape[1]] = tensor
        return wide[:, : tensor.shape[1]]
    if layout == "strided rows":
        wide = torch.full((2 * tensor.shape[0], tensor.shape[1] + 5), math.nan).to(tensor)
        wide[::2, 3:-2] = tensor
        return wide[::2, 3:-2]
    if layout == "transposed":
        return tensor.t().contiguous().t()
    return tensor.clone()


def step(values: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The distance from one number of this dtype to the next."""
    exponent = torch.floor(torch.log2(values.abs().clamp(min=torch.finfo(dtype).tiny)))
    return torch.exp2(exponent) * torch.finfo(dtype).eps


def kd_loss_and_gradient(
    student, teacher, labels, *, temperature, alpha, divergence, beta=0.5, out=None, width=None, scale=1.0
):
    """(n,) losses, weighted, and gradients."""
    from kdlib.losses.kernels import kd_terms

    settings = LossSettings(temperature, alpha, divergence, beta)
    gradient = torch.empty_like(student, memory_format=torch.contiguous_format) if out is None else out
    hard, soft = kd_terms(
        student, teacher, labels, settings, width, gradient=gradient, gradient_scale=scale
    )
    weighted = [weight * term for weight, term in ((alpha, hard), (1 - alpha, soft)) if weight]
    for weight, term in ((alpha, hard), (1 - alpha, soft)):
        assert weight or term.eq(0).all()
    return sum(weighted), gradient


def check_case(case: Case, device: str, seed: int) -> None:
    student, teacher, labels = draw(case, seed)
    loss, gradient, size, counted = exact_of(case, student, teacher, labels)
    here = laid_out(student.to(device), case.layout)
    there = laid_out(teacher.to(device), case.layout)
    before = [here.clone(), there.clone()]
    scale = 1.0 if case.scaled is None else torch.tensor([case.scaled], device=device)
    place = "contiguous" if case.layout == "transposed" else case.layout
    out = here if case.in_place else laid_out(torch.full_like(student, math.nan, device=device), place)
    found_loss, found = kd_loss_and_gradient(
        here, there if case.alpha < 1 else None, None if labels is None else labels.to(device),
        temperature=case.temperature, alpha=case.alpha, divergence=case.divergence, beta=case.beta,
        width=case.width, scale=scale, out=out,
    )  # fmt: skip
    assert found is out
    assert found_loss.dtype == torch.float32
    assert found_loss.shape == (case.rows,)
    assert torch.equal(there.nan_to_num(), before[1].nan_to_num())
    if not case.in_place:
        assert torch.equal(here.nan_to_num(), before[0].nan_to_num())
    assert found_loss.isfinite().all()
    assert found.isfinite().all()
    if found._base is not None:
        assert found._base.isnan().sum() == found._base.numel() - found.numel(), "written around the rows"
    found_loss, found = found_loss.double().cpu(), found.double().cpu()
    assert found_loss[~counted].eq(0).all()
    assert found[~counted].eq(0).all()
    by = case.scaled or 1.0
    gradient, size = gradient * by, size * by
    # A GPU's exp2 and log2 are good to 2⁻²²: there, what is promised and four times the rounding.
    tolerance = case.loss_tolerance if device == "cpu" else max(case.loss_tolerance, 1e-4)
    torch.testing.assert_close(found_loss, loss, rtol=tolerance, atol=1e-12)
    # One rounding to the student's dtype (the interpreter cuts bf16 off, which is up to one step), that of
    # float32 arithmetic in what cancels, and numbers below the smallest normal one may be taken for 0.
    error = (found - gradient).abs()
    rounding = case.rounding * max(1, (case.spread + abs(case.offset)) / 3) * (1 if device == "cpu" else 4)
    allowed = step(gradient, case.dtype) + rounding * size + torch.finfo(torch.float32).tiny
    worst = (error / allowed).max().item() if error.numel() else 0.0
    assert worst <= 1.001, f"gradient off by {worst:.3g} of what is allowed, at most {error.max().item():.3g}"


def exact_of(case, student, teacher, labels):
    if case.rows == 0:
        nothing = torch.zeros(0, case.classes, dtype=torch.float64)
        return nothing[:, 0], nothing, nothing, torch.zeros(0, dtype=torch.bool)
    return exact(case, student, teacher, labels)


SETTINGS = {
    "divergence": DIVERGENCES,
    "alpha": (0.3, 0.0, 1.0),
    "temperature": (2.0, 0.5, 20.0),
    "dtypes": (
        (torch.bfloat16, None), (torch.float32, None), (torch.float16, None),
        (torch.bfloat16, torch.float32), (torch.float32, torch.float16),
    ),
    # classes of the student and of the teacher, and how many are compared
    "sizes": ((300, None, None), (32, None, None), (2049, None, None), (2300, 2090, 2045), (290, 333, 257)),
    "layout": ("contiguous", "strided rows", "transposed", "sliced"),
    "in_place": (False, True),
    "ignored": ((), (1,), (0, 1, 2)),
    "labelled": (True, False),
    "ruled_out": (None, -math.inf, torch.finfo(torch.bfloat16).min),
    "scaled": (None, 0.37),
}  # fmt: skip


def makes_sense(setting: dict) -> bool:
    if not setting.get("labelled", True) and (setting.get("alpha", 0) > 0 or setting.get("ignored")):
        return False
    # Transposed, a row is not in one piece.
    return not (setting.get("in_place") and setting.get("layout") == "transposed")


def pairwise(settings: dict[str, tuple]) -> list[dict]:
    """Combinations in which each two values of two settings that make sense together meet at least once."""
    missing = {
        frozenset(((a, x), (b, y)))
        for a, b in itertools.combinations(settings, 2)
        for x, y in itertools.product(range(len(settings[a])), range(len(settings[b])))
        if makes_sense({a: settings[a][x], b: settings[b][y]})
    }
    found = []
    while missing:
        chosen = dict(min(missing, key=sorted))
        for name, values in settings.items():
            if name not in chosen:
                possible = [
                    n for n in range(len(values))
                    if makes_sense({k: settings[k][v] for k, v in {**chosen, name: n}.items()})
                ]  # fmt: skip
                chosen[name] = max(
                    possible, key=lambda n: sum(frozenset(((name, n), p)) in missing for p in chosen.items())
                )
        missing -= {frozenset(pair) for pair in itertools.combinations(chosen.items(), 2)}
        found.append({name: settings[name][n] for name, n in chosen.items()})
    return found


def case_of(setting: dict) -> Case:
    setting = dict(setting)
    dtype, teacher_dtype = setting.pop("dtypes")
    classes, teacher_classes, width = setting.pop("sizes")
    return Case(
        rows=3, dtype=dtype, teacher_dtype=teacher_dtype, classes=classes, teacher_classes=teacher_classes,
        width=width, **setting,
    )  # fmt: skip


CASES = {
    f"pair {number}: {setting['divergence']}, {setting['alpha']}": case_of(setting)
    for number, setting in enumerate(pairwise(SETTINGS))
}
for each in DIVERGENCES:
    # δ, and so its rounding, cancels in the gradients of the reverse divergence and of JSD.
    rounding = 1e-7 if each == "forward" else 1e-9
    CASES |= {
        f"{each}, {name}": case
        for name, case in {
            "T 1000 in float32": Case(
                divergence=each, temperature=1000.0, dtype=torch.float32, classes=3000, rows=1, rounding=2e-7
            ),
            "close to the teacher": Case(divergence=each, apart=1e-3, dtype=torch.float32, rounding=rounding),
            "very close to the teacher": Case(
                divergence=each, apart=1e-5, dtype=torch.float32, loss_tolerance=1e-2, rounding=rounding
            ),
            "far from the teacher": Case(
                divergence=each, spread=40.0, temperature=1.0, loss_tolerance=1e-4
            ),
            "an offset between the models": Case(divergence=each, offset=100.0, loss_tolerance=1e-4),
            "classes ruled out, T 50": Case(divergence=each, ruled_out=-1e30, temperature=50.0),
            "odd widths, aligned rows": Case(
                divergence=each, alpha=0.3, classes=2349, teacher_classes=2362, width=2345, layout="sliced",
                in_place=True, rows=1,
            ),
            "odd widths, no row aligned": Case(
                divergence=each, alpha=0.3, classes=2349, teacher_classes=2362, width=2345, in_place=True,
                rows=1, layout="strided rows",
            ),
            "a row with nothing left": Case(
                divergence=each, nothing_left=True, alpha=0.3, classes=301, temperature=0.7
            ),
        }.items()
    }
for beta, apart in ((0.05, None), (0.5, 0.5), (0.95, 0.5)):  # 1/4 apart, where one formula takes over
    CASES[f"jsd, beta {beta}"] = Case(
        divergence="jsd", beta=beta, dtype=torch.float32, spread=3.0 if apart else 0.1, apart=apart
    )
CASES["no token"] = Case(rows=0, alpha=0.3)
CASES["151936 classes"] = Case(classes=151_936, rows=1, divergence="jsd", alpha=0.3)


# --- more than one case ---------------------------------------------------------------------------


def small(device: str, dtype=torch.float32, classes=70):
    random = torch.Generator().manual_seed(0)
    student, teacher = (3 * torch.randn(2, 2, 3, classes, generator=random)).to(device, dtype)
    labels = torch.randint(classes, (2, 3), generator=random)
    labels[0, 1] = labels[1, 2] = IGNORED
    return student, teacher, labels.to(device)


def in_pytorch(loss: Callable, *args, **options) -> torch.Tensor:
    """What the loss is without kernels, also on a GPU, where it would choose them."""
    with patch("kdlib.losses.backend.on_kernels", lambda *logits: False):
        return loss(*args, **options)


def in_kernels(loss: Callable, *args, **options) -> torch.Tensor:
    """What it is by the kernels, also in the interpreter."""
    with patch("kdlib.losses.backend.on_kernels", lambda *logits: True):
        return loss(*args, **options)


fused_kd_loss = partial(in_kernels, kd_loss)


@contextlib.contextmanager
def chosen(device: str):
    """Losses use the kernels: by themselves on a GPU, made to in the interpreter. The calls are counted."""
    from kdlib.losses import kernels

    launches = MagicMock(wraps=kernels.kd_terms)
    with contextlib.ExitStack() as stack:
        stack.enter_context(patch.object(kernels, "kd_terms", launches))
        if device == "cpu":
            stack.enter_context(patch("kdlib.losses.backend.on_kernels", lambda *logits: True))
        yield launches


def check_kd_loss_chooses_them(device: str) -> None:
    student, teacher, labels = small(device)
    mask = labels != IGNORED
    for loss, third, options in (
        (kd_loss, {"labels": labels}, {"alpha": 0.3}), (kd_loss, {"labels": labels}, {"alpha": 1.0}),
        (kd_loss, {"labels": None}, {"divergence": "jsd"}), (soft_target_loss, {"mask": mask}, {}),
        (soft_target_loss, {"mask": ~mask}, {"divergence": "reverse", "reduction": "none"}),
    ):  # fmt: skip
        options = {"temperature": 2.0, **third, **options}
        with chosen(device) as launches:
            z = student.clone().requires_grad_()
            found = loss(z, teacher, **options)
            found.sum().backward()
        assert launches.call_count == 1
        other = student.clone().requires_grad_()
        expected = in_pytorch(loss, other, teacher, **options)
        expected.sum().backward()
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(z.grad, other.grad, rtol=1e-4, atol=1e-6)


def in_torch():
    return patch("kdlib.losses.backend.on_kernels", lambda *logits: False)


def check_linear_kd_loss_chooses_them(device: str) -> None:
    from kdlib.losses.linear import linear_kd_loss

    random = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(shape, generator=random).to(device)

    # The teacher's padding is wider; some of what has a place in both belongs to no token.
    hidden, weight, bias = normal(2, 15, 8), normal(70, 8), normal(70)
    rest = (normal(2, 15, 12), normal(80, 12), torch.randint(70, (2, 15), generator=random).to(device))
    rest[2][torch.rand(2, 15, generator=random).to(device) < 0.3] = IGNORED
    for options in (
        {"alpha": 0.3, "divergence": "forward", "reduction": "sum"},
        {"alpha": 0.0, "divergence": "reverse", "chunk_tokens": 7, "classes": 65},
        {"alpha": 0.6, "divergence": "jsd", "beta": 0.2, "chunk_tokens": 16},
        {"alpha": 1.0},
    ):
        results = []
        for kernels, context in ((True, chosen(device)), (False, in_torch())):
            leaves = [x.clone().requires_grad_() for x in (hidden, weight, bias)]
            with context as launches:
                loss, hard, soft = linear_kd_loss(
                    *leaves[:2], *rest, temperature=2.0, student_bias=leaves[2], return_terms=True, **options
                )
                loss.backward()
            results.append((loss.detach(), hard, soft, *(leaf.grad for leaf in leaves)))
            if not kernels:
                continue
            counted = (rest[2] != IGNORED).sum().item()
            assert launches.call_count == -(-counted // options.get("chunk_tokens", 10_000))
        for found, expected in zip(*results, strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    halves = [x.bfloat16() for x in (hidden, weight, *rest[:2])]
    with chosen(device):
        leaves = [x.clone().requires_grad_() for x in halves[:2]]
        linear_kd_loss(*leaves, *halves[2:], rest[2], temperature=2.0, alpha=0.3).backward()
    exact = [x.double().requires_grad_() for x in halves[:2]]
    with in_torch():
        linear_kd_loss(
            *exact, *(x.double() for x in halves[2:]), rest[2], temperature=2.0, alpha=0.3
        ).backward()
    for leaf, right in zip(leaves, exact, strict=True):
        assert (leaf.grad.double() - right.grad).abs().max() <= 2**-6 * right.grad.abs().max()


def check_linear_kd_loss_where_nothing_counts(device: str) -> None:
    from kdlib.losses.linear import linear_kd_loss

    leaves = [torch.ones(shape, device=device, requires_grad=True) for shape in ((3, 8), (20, 8), (20,))]
    hidden, weight = torch.ones(3, 8, device=device), torch.ones(20, 8, device=device)
    labels = torch.full((3,), IGNORED, device=device)
    with chosen(device):
        loss = linear_kd_loss(*leaves[:2], hidden, weight, labels, student_bias=leaves[2])
        loss.backward()
    assert loss == 0
    assert all(leaf.grad.eq(0).all() for leaf in leaves)


def check_labels_that_nothing_has_looked_at(device: str) -> None:
    """Every label counts, and one is none of the classes: the same of all that computes the loss."""
    from kdlib.losses.linear import linear_kd_loss

    random = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(3, 8, generator=random), torch.randn(20, 8, generator=random)
    hidden, weight = hidden.to(device), weight.to(device)
    top = top_k_of(hidden @ weight.T, 5)
    for wrong, teacher, computed in itertools.product(
        (IGNORED, 20), ((hidden, weight), (top, None)), (partial(chosen, device), in_torch)
    ):
        labels = torch.tensor([3, wrong, 5], device=device)
        with computed(), patch("kdlib.losses.checks._may_look_at_values", lambda *_: False):
            terms = linear_kd_loss(hidden, weight, *teacher, labels, ignore_index=None, return_terms=True)
        assert all(term.isnan() for term in terms)


def check_linear_kd_loss_heeds_what_arrives(device: str) -> None:
    """Also in half precision, also in one chunk, of which the gradient is as good as there already."""
    from kdlib.losses.linear import linear_kd_loss

    random = torch.Generator().manual_seed(0)
    hidden, weight, other, last = (
        torch.randn(shape, generator=random) for shape in ((6, 8), (20, 8), (6, 8), (20, 8))
    )
    for dtype, chunk, computed in itertools.product(
        (torch.bfloat16, torch.float16), (None, 4), (partial(chosen, device), in_torch)
    ):
        found = []
        for factor in (1.0, 0.25):
            leaves = [x.to(device, dtype).requires_grad_() for x in (hidden, weight)]
            rest = [x.to(device, dtype) for x in (other, last)]
            with computed():
                (linear_kd_loss(*leaves, *rest, None, chunk_tokens=chunk) * factor).backward()
            found.append([leaf.grad for leaf in leaves])
        for whole, quarter in zip(*found, strict=True):
            assert whole.dtype == dtype
            torch.testing.assert_close(quarter, 0.25 * whole, rtol=0, atol=1e-6)


def check_a_gpu_that_does_not_run_them(device: str) -> None:
    from kdlib.losses import backend, kernels

    here = torch.device(device)
    with (
        patch.object(kernels, "kd_terms", side_effect=RuntimeError("Failed to find C compiler.\nMore")),
        pytest.warns(RuntimeWarning, match=r"\(RuntimeError: Failed to find C compiler.\), so .* PyTorch"),
    ):
        assert not backend.kernels_run(here)
    with (
        patch.object(kernels, "kd_terms", return_value=torch.ones(2, 2)),
        pytest.warns(RuntimeWarning, match=r"ArithmeticError: .* \[1.0, 1.0\]"),
    ):
        assert not backend.kernels_run(here)
    assert backend.kernels_run(here)


def check_autograd(divergence: str, reduction: str, device: str) -> None:
    """Value and gradient of kd_loss, with a factor of each position on the way back."""
    student, teacher, labels = small(device)
    teacher.requires_grad_()
    for factor, alpha in ((1.0, 0.4), (0.7, 0.0), (0.7, 1.0)):
        results = []
        for function in (fused_kd_loss, partial(in_pytorch, kd_loss)):
            z = student.clone().requires_grad_()
            loss = function(
                z, teacher, labels, temperature=3.0, alpha=alpha, divergence=divergence, beta=0.4,
                reduction=reduction,
            )  # fmt: skip
            weights = factor * torch.ones_like(loss)
            if reduction == "none":
                weights = weights * torch.arange(1, 7, device=device).view(2, 3)
            loss.backward(weights)
            results.append((loss.detach(), z.grad))
        (loss, gradient), (expected_loss, expected) = results
        torch.testing.assert_close(loss, expected_loss, rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-6)
    assert teacher.grad is None or teacher.grad.eq(0).all()


def check_without_gradient(device: str) -> None:
    student, teacher, labels = small(device)
    for divergence, alpha in (("forward", 0.0), ("reverse", 0.4), ("jsd", 0.4), ("forward", 1.0)):
        options = {"temperature": 3.0, "alpha": alpha, "divergence": divergence}
        expected = in_pytorch(kd_loss, student, teacher, labels, **options)
        leaf = student.clone().requires_grad_()
        for z, context in ((student, torch.enable_grad()), (leaf, torch.no_grad())):
            with context:
                loss = fused_kd_loss(z, teacher, labels, **options)
            assert not loss.requires_grad
            torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-7)


def check_nothing_counts(device: str) -> None:
    student, teacher, labels = small(device)
    for reduction in ("mean", "sum", "none"):
        z = torch.full_like(student, math.nan).requires_grad_()
        loss = fused_kd_loss(z, teacher, torch.full_like(labels, IGNORED), reduction=reduction)
        loss.sum().backward()
        assert loss.eq(0).all()
        assert z.grad.eq(0).all()


def check_labels_that_are_ignored(device: str) -> None:
    student, teacher, labels = small(device)
    usual = fused_kd_loss(student, teacher, labels)
    marked = fused_kd_loss(student, teacher, labels.masked_fill(labels == IGNORED, 255), ignore_index=255)
    assert torch.equal(usual, marked)


def check_mean_over_many_rows(device: str) -> None:
    """257 is no number of bf16. The rows' losses are given: in the interpreter they would take seconds."""
    logits = torch.zeros(257, 2, dtype=torch.bfloat16, device=device)
    with patch("kdlib.losses.kernels.kd_terms", return_value=torch.ones(2, 257, device=device)):
        torch.testing.assert_close(fused_kd_loss(logits, logits, None).item(), 1.0)


def check_float16_rounds_before_no_share_of_a_mean(device: str) -> None:
    """What 1/n would make too small for float16, a scaler's 65,536 makes large again."""
    random = torch.Generator().manual_seed(0)
    logits = 4 * torch.randn(2, 32, 40, generator=random)
    student, teacher = logits.to(device, torch.float16)
    exact = student.double().requires_grad_()
    in_pytorch(kd_loss, exact, teacher.double(), None, temperature=1.0).backward()
    z = student.clone().requires_grad_()
    (fused_kd_loss(z, teacher, None, temperature=1.0) * 65_536).backward()
    expected = exact.grad * 65_536
    # A step of the largest, and half of float16's smallest number in a gradient that 1/n has not met.
    allowed = 2**-9 * expected.abs() + 2**-24 * 65_536 / 32
    assert ((z.grad.double() - expected).abs() <= allowed).all()


def check_no_second_derivative(device: str) -> None:
    """It would lack the curvature of the loss itself, without a word where another term has one."""
    student, teacher, labels = small(device)
    z = student.requires_grad_()
    for loss in (lambda: fused_kd_loss(z, teacher, labels), lambda: fused_kd_loss(z, teacher, labels) ** 2):
        with pytest.raises(RuntimeError, match="no second derivative: .* create_graph"):
            torch.autograd.grad(loss() + z.square().sum(), z, create_graph=True)


def check_derivatives_that_take_the_formula(device: str) -> None:
    student, teacher, labels = small(device)
    direction = torch.randn(student.shape, generator=torch.Generator().manual_seed(1)).to(device)

    def loss(z):
        return kd_loss(z, teacher, labels, alpha=0.3)

    def forward_mode():
        with forward_ad.dual_level():
            return forward_ad.unpack_dual(loss(forward_ad.make_dual(student, direction))).tangent

    # PyTorch's forward mode compiles some of its formulas with what it calls deprecated itself.
    warnings.filterwarnings("ignore", ".torch.jit.script. is deprecated", FutureWarning)
    for call in (
        lambda: torch.func.grad(loss)(student), forward_mode,
        lambda: torch.func.jvp(loss, (student,), (direction,))[1],
        lambda: torch.func.vmap(kd_loss)(student, teacher, labels),
        lambda: torch.func.jvp(torch.func.grad(loss), (student,), (direction,))[1],
    ):  # fmt: skip
        torch.testing.assert_close(in_kernels(call), in_pytorch(call))


def check_second_backward(device: str) -> None:
    student, teacher, labels = small(device)
    for by in (1.0, 2.0):  # what was handed out is not written any more
        loss = fused_kd_loss(student.requires_grad_(), teacher, labels)
        loss.backward(torch.tensor(by, device=device), retain_graph=True)
        with pytest.raises(RuntimeError, match="in-?place"):
            loss.backward()


def check_labels_out_of_range(device: str) -> None:
    student, teacher, _ = small(device)
    for wrong in (70, -1, 2**40):
        labels = torch.tensor([3, wrong, 5], device=device)
        loss, _ = kd_loss_and_gradient(
            student[0], teacher[0], labels, temperature=1.0, alpha=0.5, divergence="forward"
        )
        assert loss.isnan().tolist() == [False, True, False]


def check_nan_is_seen(device: str) -> None:
    for divergence, where in itertools.product(DIVERGENCES, (0, 1)):
        pair = list(small(device)[:2])
        pair[where][0, 1, 40] = math.nan
        loss, _ = kd_loss_and_gradient(
            pair[0][0], pair[1][0], None, temperature=1.0, alpha=0.0, divergence=divergence
        )
        assert loss.isnan().tolist() == [False, True, False]


def check_equal_models(device: str) -> None:
    student, _, _ = small(device)
    for divergence in DIVERGENCES:
        loss, gradient = kd_loss_and_gradient(
            student[0], student[0], None, temperature=2.0, alpha=0.0, divergence=divergence
        )
        assert loss.eq(0).all()
        assert gradient.eq(0).all()


def check_rows_far_apart(device: str) -> None:
    """Row times stride beyond int32, which either alone is not; the memory between is never touched."""
    stride = 2**30 + 16
    if device == "cpu":
        memory = torch.from_numpy(np.zeros(2 * stride + 64, dtype=np.int16)).view(torch.bfloat16)
    else:
        memory = torch.zeros(2 * stride + 64, dtype=torch.bfloat16, device=device)
    far = memory.as_strided((3, 64), (stride, 1))
    near, teacher = (part[0, :, :64].bfloat16() for part in small(device)[:2])
    far.copy_(near)
    options = {"temperature": 2.0, "alpha": 0.0, "divergence": "forward"}
    expected = kd_loss_and_gradient(near, teacher, None, **options)
    found = kd_loss_and_gradient(far, teacher, None, out=far, **options)
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1], expected[1])
    far.copy_(teacher)
    assert torch.equal(kd_loss_and_gradient(near, far, None, **options)[1], expected[1])


def check_what_is_read_in_vectors(device: str) -> None:
    """Rows that begin at multiples of 16 bytes, whatever their width. Only a GPU would see a mistake."""
    from kdlib.losses import kernels

    def empty(stride, dtype=torch.bfloat16, start=0, classes=None):
        return torch.empty(2, stride, dtype=dtype, device=device)[:, start:][:, :classes]

    padded, odd, shifted = empty(160, classes=101), empty(101), empty(160, start=1, classes=101)
    for student, teacher, gradient, expected in (
        (padded, padded, padded, 8), (empty(1000), empty(1000), empty(1000), 8),
        (padded, empty(168, classes=111), None, 8), (padded, odd, None, 1), (odd, padded, None, 1),
        (padded, padded, odd, 1), (padded, padded, shifted, 1), (padded, shifted, padded, 1),
        (odd, odd, odd, 1), (padded, empty(104, torch.float32), padded, 4),
        (padded, empty(101, torch.float32), padded, 1),
    ):  # fmt: skip
        for alpha in (0.0, 1.0):
            with patch.object(kernels, "_loss_and_gradient") as kernel:
                settings = LossSettings(2.0, alpha, "forward", 0.5)
                kernels.kd_terms(student, teacher, None, settings, 101, gradient=gradient)
            launch = kernel.__getitem__.return_value.call_args
            if alpha == 0:
                assert launch.kwargs["VECTOR"] == expected
            else:  # blocks beyond n_compared are masked, and without a teacher none needs to be
                assert launch.args[10:12] == (student.shape[1], student.shape[1])


def check_compiled(device: str) -> None:
    """One graph, the same result, and what PyTorch asks of an operator."""
    from kdlib.losses.backend import kd_loss_with_gradient

    student, teacher, labels = small(device)

    def function(z):
        settings = LossSettings(3.0, 0.4, "jsd", 0.4)
        return kd_loss_with_gradient(2 * z, teacher, labels, settings, IGNORED, "mean", kernels=True)

    results = []
    for call in (function, torch.compile(function, backend="aot_eager", fullgraph=True)):
        z = student.clone().requires_grad_()
        loss = call(z)
        (3 * loss).backward()
        results.append((loss.detach(), z.grad))
    torch.testing.assert_close(*results, rtol=1e-6, atol=1e-7)
    for reduction, wanted in (("mean", True), ("none", True), ("sum", False)):
        torch.library.opcheck(
            torch.ops.kdlib.kd_loss_and_gradient.default,
            (student[0].clone().requires_grad_(), teacher[0], labels[0], 2.0, 0.3, "reverse", 0.5, IGNORED,
             reduction, wanted, True),
            test_utils=("test_schema", "test_faketensor", "test_autograd_registration"),
        )  # fmt: skip


def check_which_logits(device: str) -> None:
    from kdlib.losses.backend import on_kernels

    z, t, _ = small(device)
    on_gpu = device != "cpu" and torch.cuda.get_device_capability() >= (8, 0)
    assert on_kernels(z, t) == on_kernels(z, None) == on_kernels(z.half(), t.bfloat16()) == on_gpu
    assert not on_kernels(z.double(), t)
    assert not on_kernels(z, t.double())
    assert not on_kernels(z.cpu(), t)


CHECKS: dict[str, Callable[[str], None]] = {
    **{
        name: partial(check_case, case, seed=zlib.crc32(name.encode())) for name, case in CASES.items()
    },
    **{
        f"autograd, {divergence}, {reduction}": partial(check_autograd, divergence, reduction)
        for divergence, reduction in zip(DIVERGENCES, ("mean", "sum", "none"), strict=True)
    },
    **{
        name.removeprefix("check_").replace("_", " "): check
        for name, check in list(globals().items())
        if name.startswith("check_") and check not in (check_case, check_autograd)
    },
}


# --- the tests ------------------------------------------------------------------------------------


def outcomes_of(folder: Path) -> dict[str, str]:
    """What this file says when it is run as a program: for each name, its result or a traceback."""
    done = subprocess.run(
        [sys.executable, "-W", "error", __file__],
        env={**os.environ, "TRITON_CACHE_DIR": str(folder), "OMP_NUM_THREADS": "1", "TRITON_INTERPRET": "1"},
        capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def interpreted(tmp_path_factory):
    return outcomes_of(tmp_path_factory.mktemp("triton"))


@needs_triton
@pytest.mark.parametrize("name", CHECKS)
def test_in_the_interpreter(name, interpreted):
    assert interpreted[name] == "passed", interpreted[name]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", CHECKS)
def test_on_a_gpu(name):
    CHECKS[name]("cuda")


def outcome(call: Callable[[], str | None]) -> str:
    try:
        return call() or "passed"
    except Exception:
        return traceback.format_exc()


if __name__ == "__main__":
    torch.use_deterministic_algorithms(True)  # memory that PyTorch does not initialise then holds NaN
    # −3e38, which rules a class out, times log2(e): −inf is as good.
    warnings.filterwarnings("ignore", "overflow encountered in multiply", RuntimeWarning)
    results = {name: outcome(partial(check, device="cpu")) for name, check in CHECKS.items()}
    print(json.dumps(results))
