"""Every contender computes the same loss, and says so where it does not."""

import functools
import os
import subprocess
import sys
import textwrap

import pytest
import torch

from benchmarks import contenders as module
from benchmarks.contenders import NotComparable, contenders, versions_of_peers
from benchmarks.problems import IGNORED, Setting, Sizes, errors, make_problem
from kdlib.losses.kd import kd_loss

CPU = torch.device("cpu")
SIZES = Sizes(48, 160, 16, 24, torch.float32, counted=0.7)
SETTINGS = [
    pytest.param(Setting(divergence, temperature, alpha), id=f"{divergence}-{temperature}-{alpha}")
    for divergence in ("forward", "reverse", "jsd")
    for temperature, alpha in ((1.0, 0.0), (2.5, 0.0), (2.0, 0.3))
] + [pytest.param(Setting("jsd", 1.5, beta=0.2), id="jsd-uneven")]
NAMES = [
    (kind, name)
    for kind in ("linear", "logits")
    for name in ("eager PyTorch", "torch.compile", "TRL", "TRL chunked", "Liger chunked JSD", "kdlib")
    if kind == "linear" or "chunked" not in name
]
ON_GPU = [
    ("linear", "Liger fused linear JSD"), ("linear", "Liger fused linear KL"), ("logits", "Liger JSD"),
    ("logits", "Liger KL"),
]  # fmt: skip


def entrant(kind, name):
    return next(contender for contender in contenders(kind) if contender.name == name)


def expected(problem, setting):
    """Loss and gradients in float64, from kd_loss on whole logits."""
    inputs = [t.detach().double().requires_grad_() for t in problem.inputs]
    teacher = [t.double() for t in problem.teacher]
    if problem.kind == "linear":
        student, teacher = inputs[0] @ inputs[1].T, teacher[0] @ teacher[1].T
    else:
        (student,), (teacher,) = inputs, teacher
    loss = kd_loss(
        student, teacher, problem.labels, temperature=setting.temperature, alpha=setting.alpha,
        divergence=setting.divergence, beta=setting.beta, ignore_index=IGNORED,
    )  # fmt: skip
    return loss, torch.autograd.grad(loss, inputs)


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize(("kind", "name"), NAMES)
def test_loss_and_gradients_are_those_of_float64(monkeypatch, kind, name, setting):
    if "Liger" in name:
        pytest.importorskip("liger_kernel")
    # Without C++: a graph in one piece, run as it is.
    whole = functools.partial(torch.compile, backend="aot_eager", fullgraph=True)
    monkeypatch.setattr(torch, "compile", whole)
    problem = make_problem(kind, SIZES, CPU)
    contender = entrant(kind, name)
    if "TRL" in name and setting.alpha > 0:
        with pytest.raises(NotComparable, match="hard term"):
            contender.make(setting, CPU)
        return
    loss, gradients = contender.run(contender.make(setting, CPU), problem)
    right, exact = expected(problem, setting)
    assert loss.item() == pytest.approx(right.item(), rel=1e-6)
    for given, wanted in zip(gradients, exact, strict=True):
        torch.testing.assert_close(given.double(), wanted, rtol=0, atol=4e-6 * wanted.abs().max().item())
    found = errors(problem, setting, loss, gradients)
    assert found.loss < 1e-6 and found.gradient < 4e-6


@pytest.mark.parametrize("setting", [*SETTINGS[:1], *SETTINGS[3:4]])
@pytest.mark.parametrize(("kind", "name"), ON_GPU)
def test_what_needs_a_gpu_says_so_on_a_cpu(kind, name, setting):
    reason = "forward KL only" if name.endswith("KL") and setting.divergence != "forward" else "needs a GPU"
    with pytest.raises(NotComparable, match=reason):
        entrant(kind, name).make(setting, CPU)
    with pytest.raises(NotComparable, match="no hard term"):
        entrant(kind, name).make(Setting(alpha=0.5), CPU)


def test_ligers_kernels_give_the_same_in_tritons_interpreter():
    """In a process of its own: the interpreter is chosen when Triton is imported. (Liger's kernel behind
    LigerKLDIVLoss does not run in it.)"""
    pytest.importorskip("liger_kernel")
    pytest.importorskip("triton")
    code = """
        import torch
        from benchmarks import contenders as module
        from benchmarks.problems import Setting, Sizes, errors, make_problem

        module._needs_triton = lambda device: None
        for kind, name in (("linear", "Liger fused linear JSD"), ("linear", "Liger fused linear KL"),
                           ("logits", "Liger JSD")):
            for divergence in ("forward", "reverse", "jsd"):
                if name.endswith("KL") and divergence != "forward":
                    continue
                setting = Setting(divergence, 2.0)
                problem = make_problem(kind, Sizes(8, 64, 8, 12, torch.float32, 0.7), "cpu")
                contender = next(c for c in module.contenders(kind) if c.name == name)
                result = contender.run(contender.make(setting, torch.device("cpu")), problem)
                found = errors(problem, setting, *result)
                assert found.loss < 1e-6 and found.gradient < 2e-6, (name, setting, found)
                print("same")
    """
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True,
        env=os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-2000:]
    assert run.stdout.split() == ["same"] * 7


def test_a_missing_peer_is_missed_when_it_is_asked_for(monkeypatch):
    monkeypatch.setitem(sys.modules, "trl", None)
    with pytest.raises(ModuleNotFoundError, match="trl"):
        entrant("logits", "TRL").make(Setting(), CPU)


def test_a_peer_that_has_moved_something_is_found_or_named(monkeypatch):
    assert module._find("json", "JSONDecoder", ("json.nowhere", "json.decoder")) is not None
    monkeypatch.setattr(module, "version", lambda name: "9.9")
    with pytest.raises(NotComparable, match="json 9.9 has no Missing"):
        module._find("json", "Missing", ("json.nowhere", "json"))


def test_versions_of_peers_name_what_is_not_installed(monkeypatch):
    def version(name):
        if name == "trl":
            raise module.PackageNotFoundError
        return "1.2"

    monkeypatch.setattr(module, "version", version)
    assert versions_of_peers() == {"liger_kernel": "1.2", "triton": "1.2", "trl": "not installed"}
