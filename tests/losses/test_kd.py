"""The distillation loss against formulas and libraries that kdlib did not write."""

import math
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.spatial.distance import jensenshannon
from scipy.special import expit, rel_entr
from torch.autograd import gradcheck

from kdlib.losses import (
    backend,
    jensen_shannon_divergence,
    kd_loss,
    kl_divergence,
    soft_target_loss,
    soften,
)
from kdlib.losses.divergences import DIVERGENCES

TEMPERATURES = (0.5, 1.0, 4.0, 20.0)


def logits(*shape, seed, scale=3.0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


@pytest.fixture
def pair():
    """Logits of a student and of a teacher, (12, 7), and labels of which three do not count."""
    labels = torch.arange(12) % 7
    labels[[2, 3, 9]] = -100
    return logits(12, 7, seed=1), logits(12, 7, seed=2), labels


# --- soften ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_soften_is_exp_of_z_over_t_divided_by_its_sum(temperature):
    z = logits(5, 6, seed=3)
    weights = np.exp(z.numpy() / temperature)
    expected = weights / weights.sum(-1, keepdims=True)
    np.testing.assert_allclose(soften(z, temperature).numpy(), expected, rtol=1e-12)


def test_soften_matches_a_table_worked_by_hand():
    # exp(log 8) = 8 against exp(0) = 1 twice; at T = 3 the cube root of 8 is 2.
    z = torch.tensor([math.log(8), 0.0, 0.0], dtype=torch.float64)
    torch.testing.assert_close(soften(z), torch.tensor([0.8, 0.1, 0.1], dtype=torch.float64))
    torch.testing.assert_close(soften(z, 3), torch.tensor([0.5, 0.25, 0.25], dtype=torch.float64))


def test_soften_has_a_default_temperature_of_one():
    z = logits(4, 3, seed=4)
    assert torch.equal(soften(z), soften(z, 1.0))


def test_soften_computes_half_precision_in_float32_and_keeps_float64():
    z = logits(4, 9, seed=5, dtype=torch.bfloat16)
    assert soften(z, 2.0).dtype == torch.float32
    assert torch.equal(soften(z, 2.0), soften(z.float(), 2.0))
    assert soften(z.double()).dtype == torch.float64


def test_soften_gives_a_ruled_out_class_probability_zero():
    z = torch.tensor([0.0, -math.inf, 0.0])
    assert soften(z, 7.0).tolist() == [0.5, 0.0, 0.5]


# --- divergences against scipy and against closed forms --------------------------------------------


def test_kl_divergence_equals_the_sum_of_scipy_relative_entropies():
    p, q = soften(logits(20, 11, seed=6)), soften(logits(20, 11, seed=7))
    expected = rel_entr(p.numpy(), q.numpy()).sum(-1)
    np.testing.assert_allclose(kl_divergence(p.log(), q.log()).numpy(), expected, rtol=1e-12)


def test_jensen_shannon_equals_the_square_of_scipy_distance_at_one_half():
    p, q = soften(logits(20, 11, seed=8)), soften(logits(20, 11, seed=9))
    expected = jensenshannon(p.numpy(), q.numpy(), axis=-1) ** 2
    ours = jensen_shannon_divergence(p.log(), q.log())
    np.testing.assert_allclose(ours.numpy(), expected, rtol=1e-10)


@pytest.mark.parametrize("beta", [0.1, 0.5, 0.8])
def test_jensen_shannon_equals_scipy_relative_entropies_to_the_mixture(beta):
    p, q = soften(logits(9, 5, seed=10)).numpy(), soften(logits(9, 5, seed=11)).numpy()
    m = beta * p + (1 - beta) * q
    expected = beta * rel_entr(p, m).sum(-1) + (1 - beta) * rel_entr(q, m).sum(-1)
    ours = jensen_shannon_divergence(torch.tensor(p).log(), torch.tensor(q).log(), beta)
    np.testing.assert_allclose(ours.numpy(), expected, rtol=1e-10)


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_two_classes_reduce_to_the_sigmoid(divergence, temperature):
    z_student, z_teacher = logits(30, seed=12).numpy(), logits(30, seed=13).numpy()
    q, p = expit(z_student / temperature), expit(z_teacher / temperature)

    def binary_kl(a, b):
        return a * np.log(a / b) + (1 - a) * np.log((1 - a) / (1 - b))

    m = 0.3 * p + 0.7 * q
    expected = temperature**2 * {
        "forward": binary_kl(p, q),
        "reverse": binary_kl(q, p),
        "jsd": 0.3 * binary_kl(p, m) + 0.7 * binary_kl(q, m),
        "skew-forward": binary_kl(p, m),
        "skew-reverse": binary_kl(q, m),
        "tvd": abs(p - q),
        "akl": (binary_kl(p, q) + binary_kl(q, p)) / 2,  # one class is the head, and both have the same gap
    }[divergence]
    ours = soft_target_loss(
        torch.stack([torch.zeros(30), torch.tensor(z_student)], -1),
        torch.stack([torch.zeros(30), torch.tensor(z_teacher)], -1),
        temperature=temperature, divergence=divergence, beta=0.3, reduction="none",
    )  # fmt: skip
    np.testing.assert_allclose(ours.numpy(), expected, rtol=1e-9)


def test_jensen_shannon_reaches_its_bound_on_models_that_exclude_each_other():
    sure = torch.tensor([[60.0, 0.0]], dtype=torch.float64)
    for beta in (0.2, 0.5, 0.9):
        entropy = -beta * math.log(beta) - (1 - beta) * math.log(1 - beta)
        loss = soft_target_loss(sure, -sure, temperature=1.0, divergence="jsd", beta=beta)
        assert loss.item() == pytest.approx(entropy, rel=1e-12)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize(("beta", "limit"), [(1e-7, "forward"), (1 - 1e-7, "reverse")])
def test_jensen_shannon_over_its_small_weight_tends_to_kl(beta, limit, temperature):
    student, teacher = logits(12, 7, seed=31, scale=1.0), logits(12, 7, seed=32, scale=1.0)
    kl = soft_target_loss(student, teacher, temperature=temperature, divergence=limit)
    jsd = soft_target_loss(
        student, teacher, temperature=temperature, divergence="jsd", beta=beta
    )
    assert (jsd / min(beta, 1 - beta)).item() == pytest.approx(kl.item(), rel=1e-5)


# --- the terms against torch -----------------------------------------------------------------------


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_forward_is_t_squared_times_torch_kl_div_batchmean(pair, temperature):
    student, teacher, _ = pair
    expected = temperature**2 * F.kl_div(
        F.log_softmax(student / temperature, -1),
        F.softmax(teacher / temperature, -1),
        reduction="batchmean",
    )
    torch.testing.assert_close(
        soft_target_loss(student, teacher, temperature=temperature), expected, rtol=1e-12, atol=0
    )


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_reverse_is_t_squared_times_torch_kl_div_with_the_models_exchanged(pair, temperature):
    student, teacher, _ = pair
    expected = temperature**2 * F.kl_div(
        F.log_softmax(teacher / temperature, -1),
        F.softmax(student / temperature, -1),
        reduction="batchmean",
    )
    ours = soft_target_loss(student, teacher, temperature=temperature, divergence="reverse")
    torch.testing.assert_close(ours, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_the_hard_term_is_torch_cross_entropy_at_temperature_one(pair, reduction):
    student, teacher, labels = pair
    ours = kd_loss(student, teacher, labels, temperature=9.0, alpha=1, reduction=reduction)
    torch.testing.assert_close(ours, F.cross_entropy(student, labels, reduction=reduction))


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_alpha_weights_the_hard_label_and_its_complement_the_teacher(pair, divergence):
    student, teacher, labels = pair
    settings = {"temperature": 3.0, "divergence": divergence, "beta": 0.3}
    counted = labels != -100
    hard = F.cross_entropy(student[counted], labels[counted])
    soft = soft_target_loss(student[counted], teacher[counted], **settings)
    for alpha in (0.0, 0.3, 1.0):
        ours = kd_loss(student, teacher, labels, alpha=alpha, **settings)
        torch.testing.assert_close(ours, alpha * hard + (1 - alpha) * soft, rtol=1e-12, atol=0)


def test_the_defaults_are_temperature_four_equal_weights_and_forward_kl(pair):
    student, teacher, labels = pair
    spelled_out = kd_loss(
        student, teacher, labels, temperature=4.0, alpha=0.5, divergence="forward",
        ignore_index=-100, reduction="mean",
    )  # fmt: skip
    assert torch.equal(kd_loss(student, teacher, labels), spelled_out)
    default = soft_target_loss(student, teacher)
    assert torch.equal(default, soft_target_loss(student, teacher, temperature=4.0))


# --- the gradient ----------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_the_gradient_of_the_soft_term_is_t_times_q_minus_p(temperature):
    student, teacher = logits(8, 5, seed=14).requires_grad_(), logits(8, 5, seed=15)
    soft_target_loss(student, teacher, temperature=temperature, reduction="sum").backward()
    q, p = F.softmax(student / temperature, -1), F.softmax(teacher / temperature, -1)
    torch.testing.assert_close(student.grad, (temperature * (q - p)).detach(), rtol=1e-9, atol=1e-12)


def test_the_gradient_of_the_hard_term_is_q_minus_the_one_hot_label_at_temperature_one():
    student, labels = logits(8, 5, seed=16).requires_grad_(), torch.arange(8) % 5
    kd_loss(student, None, labels, alpha=1, temperature=11.0, reduction="sum").backward()
    expected = F.softmax(student, -1) - F.one_hot(labels, 5)
    torch.testing.assert_close(student.grad, expected.detach(), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_the_gradient_agrees_with_finite_differences(divergence, alpha, weights_stand_still):
    student, teacher = logits(2, 3, 5, seed=17, scale=1.5), logits(2, 3, 5, seed=18, scale=1.5)
    labels = torch.tensor([[0, -100, 2], [3, 1, -100]])
    student[0, 0, 4] = teacher[0, 2, 0] = student[1, 0, 1] = teacher[1, 0, 1] = -math.inf
    for temperature in (0.7, 3.0):
        assert gradcheck(
            lambda z, t=temperature: kd_loss(
                z, teacher, labels, temperature=t, alpha=alpha, divergence=divergence, beta=0.3
            ),
            student.clone().requires_grad_(),
            rtol=1e-5,
            atol=1e-8,
        )


# --- high temperatures -----------------------------------------------------------------------------


def textbook(student, teacher, temperature):
    """T² Σ p (log p − log q), as it is usually typed."""
    log_q = F.log_softmax(student / temperature, -1)
    log_p = F.log_softmax(teacher / temperature, -1)
    return temperature**2 * (log_p.exp() * (log_p - log_q)).sum(-1)


def largest_relative_error(found, expected):
    return ((found.double() - expected).abs() / expected).max().item()


@pytest.mark.parametrize("temperature", [1e3, 1e4])
@pytest.mark.parametrize(
    ("divergence", "factor"),
    [("forward", 0.5), ("reverse", 0.5), ("jsd", 0.3 * 0.7 / 2), ("skew-forward", 0.7**2 / 2),
     ("skew-reverse", 0.3**2 / 2), ("akl", 0.5)],
)  # fmt: skip
def test_in_float32_the_loss_reaches_its_limit_in_the_variance_of_the_logit_differences(
    divergence, factor, temperature
):
    student, teacher = (logits(64, 10, seed=s, dtype=torch.float32) for s in (19, 20))
    settings = {"temperature": temperature, "divergence": divergence, "beta": 0.3}
    single = soft_target_loss(student, teacher, reduction="none", **settings)
    double = soft_target_loss(student.double(), teacher.double(), reduction="none", **settings)
    assert single.dtype == torch.float32
    # One part in 10,000 at T = 1,000; rounding grows in proportion to T.
    assert largest_relative_error(single, double) < 2e-7 * temperature
    variance = (teacher - student).double().var(-1, unbiased=False)
    # The next term of the expansion in z / T is smaller by a factor of about max|z| / T.
    assert largest_relative_error(double, factor * variance) < 10 / temperature


@pytest.mark.parametrize(("temperature", "textbook_error"), [(1e3, 0.03), (1e4, 3.0)])
def test_the_textbook_sum_is_noise_where_kdlib_is_accurate(temperature, textbook_error):
    student, teacher = (logits(64, 10, seed=s, dtype=torch.float32) for s in (19, 20))
    exact = textbook(student.double(), teacher.double(), temperature)
    ours = soft_target_loss(student, teacher, temperature=temperature, reduction="none")
    error = largest_relative_error(ours, exact)
    typed_error = largest_relative_error(textbook(student, teacher, temperature), exact)
    assert typed_error > textbook_error
    assert typed_error > 300 * error


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_the_float32_gradient_at_high_temperature_matches_float64(divergence):
    found = {}
    for dtype in (torch.float32, torch.float64):
        student, teacher = (logits(64, 10, seed=s, dtype=torch.float32) for s in (21, 22))
        student = student.to(dtype).requires_grad_()
        soft_target_loss(student, teacher.to(dtype), temperature=1e3, divergence=divergence).backward()
        found[dtype] = student.grad.double()
    error = (found[torch.float32] - found[torch.float64]).abs().max() / found[torch.float64].abs().max()
    assert error.item() < 2e-4


# --- the conventions of other libraries ------------------------------------------------------------


def trl_generalized_jsd(student, teacher, labels, beta, temperature):
    """The formula that TRL publishes as generalized_jsd_loss, reduction "batchmean"."""
    log_q = F.log_softmax(student / temperature, -1)
    log_p = F.log_softmax(teacher / temperature, -1)
    if beta == 0:
        jsd = F.kl_div(log_q, log_p, reduction="none", log_target=True)
    elif beta == 1:
        jsd = F.kl_div(log_p, log_q, reduction="none", log_target=True)
    else:
        log_m = torch.logsumexp(
            torch.stack([log_q + math.log(1 - beta), log_p + math.log(beta)]), dim=0
        )
        of_teacher = F.kl_div(log_m, log_p, reduction="none", log_target=True)
        of_student = F.kl_div(log_m, log_q, reduction="none", log_target=True)
        jsd = beta * of_teacher + (1 - beta) * of_student
    mask = labels != -100
    return jsd[mask].sum() / mask.sum()


@pytest.mark.parametrize("temperature", [0.9, 1.0, 2.0])
@pytest.mark.parametrize("beta", [0, 0.1, 0.5, 0.9, 1])
def test_trl_generalized_jsd_is_ours_without_t_squared(beta, temperature):
    student, teacher = logits(3, 6, 11, seed=23), logits(3, 6, 11, seed=24)
    labels = torch.arange(18).view(3, 6) % 11
    labels[:, -2:] = -100
    ours = kd_loss(
        student, teacher, labels, alpha=0, temperature=temperature,
        divergence={0: "forward", 1: "reverse"}.get(beta, "jsd"), beta=beta or 0.5,
    )  # fmt: skip
    expected = trl_generalized_jsd(student, teacher, labels, beta, temperature)
    torch.testing.assert_close(ours / temperature**2, expected, rtol=1e-10, atol=0)


def test_the_pytorch_tutorial_weights_soft_a_quarter_and_hard_three_quarters():
    student, teacher, labels = logits(16, 10, seed=25), logits(16, 10, seed=26), torch.arange(16) % 10
    T = 2
    soft_targets, soft_prob = F.softmax(teacher / T, -1), F.log_softmax(student / T, -1)
    soft = torch.sum(soft_targets * (soft_targets.log() - soft_prob)) / soft_prob.size(0) * T**2
    tutorial = 0.25 * soft + 0.75 * F.cross_entropy(student, labels)
    torch.testing.assert_close(kd_loss(student, teacher, labels, temperature=T, alpha=0.75), tutorial)


def test_the_keras_example_gives_alpha_to_the_label_as_we_do():
    student, teacher, labels = logits(16, 10, seed=27), logits(16, 10, seed=28), torch.arange(16) % 10
    alpha, T = 0.1, 10
    p, q = (np.exp(z.numpy() / T) for z in (teacher, student))
    p, q = p / p.sum(1, keepdims=True), q / q.sum(1, keepdims=True)
    distillation_loss = np.mean(np.sum(p * np.log(p / q), axis=1)) * T**2
    weights = np.exp(student.numpy())
    chosen = (weights / weights.sum(1, keepdims=True))[np.arange(16), labels.numpy()]
    keras = alpha * np.mean(-np.log(chosen)) + (1 - alpha) * distillation_loss
    ours = kd_loss(student, teacher, labels, temperature=T, alpha=alpha)
    assert ours.item() == pytest.approx(keras, rel=1e-10)


def test_distilbert_takes_the_batchmean_over_the_positions_of_its_mask():
    student, teacher = logits(3, 6, 11, seed=29), logits(3, 6, 11, seed=30)
    attended = torch.arange(6) < torch.tensor([[6], [4], [2]])
    chosen = attended.unsqueeze(-1).expand_as(student)
    log_q = F.log_softmax(torch.masked_select(student, chosen).view(-1, 11) / 2.0, -1)
    p = F.softmax(torch.masked_select(teacher, chosen).view(-1, 11) / 2.0, -1)
    distilbert = F.kl_div(log_q, p, reduction="batchmean") * 2.0**2
    ours = soft_target_loss(student, teacher, temperature=2.0, mask=attended)
    torch.testing.assert_close(ours, distilbert, rtol=1e-12, atol=0)
    labels = torch.where(attended, 0, -100)
    torch.testing.assert_close(
        kd_loss(student, teacher, labels, temperature=2.0, alpha=0), distilbert, rtol=1e-12, atol=0
    )


# --- compilers and transforms ----------------------------------------------------------------------


@pytest.mark.parametrize("divergence", ["forward", "jsd"])
def test_one_graph_holds_the_whole_loss_under_torch_compile(pair, divergence):
    student, teacher, labels = pair
    torch.compiler.reset()
    compiled = torch.compile(kd_loss, fullgraph=True, backend="aot_eager")
    for temperature in (2.0, 5.0):  # the second call must not reuse the first temperature
        gradients, losses = [], []
        for function in (kd_loss, compiled):
            z = student.clone().requires_grad_()
            loss = function(z, teacher, labels, temperature=temperature, divergence=divergence)
            loss.backward()
            losses.append(loss.detach())
            gradients.append(z.grad)
        torch.testing.assert_close(*losses)
        torch.testing.assert_close(*gradients)


def test_torch_func_grad_gives_the_gradient_of_backward(pair):
    student, teacher, labels = pair
    functional = torch.func.grad(lambda z: kd_loss(z, teacher, labels))(student)
    student = student.requires_grad_()
    kd_loss(student, teacher, labels).backward()
    torch.testing.assert_close(functional, student.grad)


# PyTorch's forward mode compiles some of its formulas with what it calls deprecated itself.
@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:FutureWarning")
def test_torch_func_hessian_is_that_of_autograd(pair):
    student, teacher, labels = (x[:2] for x in pair)

    def loss(z):
        return kd_loss(z, teacher, labels)

    expected = torch.autograd.functional.hessian(loss, student)
    assert expected.abs().max() > 0.01
    torch.testing.assert_close(torch.func.hessian(loss)(student), expected)
    batched = torch.func.vmap(kd_loss)(*(x.unsqueeze(1) for x in (student, teacher, labels)))
    torch.testing.assert_close(batched, kd_loss(student, teacher, labels, reduction="none"))


@pytest.mark.parametrize("wrong", [None, 1.5])
def test_an_ignore_index_that_is_no_label_is_refused(pair, wrong):
    with pytest.raises(ValueError, match=f"ignore_index must be a whole number.*; got {wrong}"):
        kd_loss(*pair, ignore_index=wrong)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("temperature", [0.1, 4.0, 1e4])
@pytest.mark.parametrize("divergence", ["forward", "reverse", "jsd"])
def test_the_lowest_number_of_a_dtype_rules_a_class_out_like_minus_infinity(divergence, temperature, dtype):
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 4, 6).to(dtype)
    options = {"temperature": temperature, "divergence": divergence}
    found = []
    for lowest in (-torch.inf, torch.finfo(dtype).min):
        masked = student.clone()
        masked[:, 2] = lowest
        masked.requires_grad_()
        loss = soft_target_loss(masked, teacher, **options)
        found.append((loss.detach(), *torch.autograd.grad(loss, masked)))
    for other, reference in zip(found[1], found[0], strict=True):
        assert torch.isfinite(other).all()
        assert torch.equal(other, reference)


# --- where something faster is --------------------------------------------------------------------


def gpu_logits(dtype=torch.float32, cuda=True):
    return SimpleNamespace(is_cuda=cuda, dtype=dtype, device=torch.device("cuda", 0))


@pytest.fixture
def a_gpu(monkeypatch):
    """One that Triton may run on; how often that is tried is counted."""
    tried = []
    monkeypatch.delenv("KDLIB_KERNELS", raising=False)
    monkeypatch.setattr(backend, "_RUN_ON", {})
    monkeypatch.setattr(backend, "kernels_run", lambda device: tried.append(device) or True)
    monkeypatch.setattr(backend, "find_spec", lambda name: name)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    return tried


def test_kernels_are_tried_once_and_on_gpus_only(monkeypatch, a_gpu):
    student, teacher = gpu_logits(), gpu_logits(torch.bfloat16)
    assert backend.on_kernels(student, teacher) and backend.on_kernels(student, None)
    assert a_gpu == [torch.device("cuda", 0)]
    assert not backend.on_kernels(gpu_logits(cuda=False), teacher)
    assert not backend.on_kernels(student, gpu_logits(torch.float64))
    monkeypatch.setenv("KDLIB_KERNELS", "0")
    assert not backend.on_kernels(student, teacher)


def test_old_gpus_others_than_nvidias_and_no_triton_leave_it_to_pytorch(monkeypatch, a_gpu):
    for owner, name, value in (
        (torch.cuda, "get_device_capability", lambda device: (7, 5)), (torch.version, "cuda", None),
        (backend, "find_spec", lambda name: None),
    ):  # fmt: skip
        with monkeypatch.context() as patched:
            patched.setattr(owner, name, value)
            assert not backend.on_kernels(gpu_logits())
        backend._RUN_ON.clear()
    assert not a_gpu


def test_compiled_code_asks_once(a_gpu):
    function = lambda z: 2 * z if backend._kernels_run_on(0) else z  # noqa: E731
    compiled = torch.compile(function, backend="eager", fullgraph=True)
    assert compiled(torch.ones(1)) == function(torch.ones(1)) == 2


def test_only_the_kernels_and_what_chooses_them_name_triton():
    package = Path(backend.__file__).parents[1]
    naming = {
        path.name for path in package.rglob("*.py")
        if re.search(r"^\s*(import|from) triton|losses\.kernels import|losses import kernels",
                     path.read_text(encoding="utf-8"), re.MULTILINE)
    }  # fmt: skip
    assert naming == {"kernels.py", "backend.py"}


def test_the_losses_work_without_triton():
    code = """
        import sys
        sys.modules["triton"] = None  # importing it fails
        import torch
        from kdlib.losses import kd_loss, top_k_loss
        from kdlib.losses.linear import linear_kd_loss
        kd_loss(torch.zeros(2, 3), torch.ones(2, 3), None)
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True)
