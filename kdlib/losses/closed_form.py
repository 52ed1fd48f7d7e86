"""Loss and gradient of given logits in PyTorch, by formula and in place: what the kernels do, on any device.

Autograd would hold a dozen float32 tensors of the size of the logits. But the gradient has a closed form:
that of the hard term is softmax(s) − onehot, that of T² · D

    T · (q · Σ g − g),  g = −q · ∂D/∂q

    forward        g = p                          so that it is T · (q − p)
    reverse        g = q · log(p/q)                T · q · (log(q/p) − KL(q‖p))
    JSD            g = (1 − β) · q · h             h = log(m/q)
    skew-forward   g = w · (p − m)                 w = (1 − β) · q/m, the student's share of the mixture
    skew-reverse   g = q · h + w · (q − m)
    TV             g = ½ · q · sign(p − q)
    AKL            g = a · p + (1 − a) · q · log(p/q), a being a constant

so that four such tensors do for the KL divergences and TV, seven for the others, each overwritten as soon as
what it held is used up; and as a row needs no other row, some rows at a time (`kdlib.losses.backend`).
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from kdlib.losses.divergences import OF_MIXTURE, RULED_OUT, Divergence, LossSettings, head, share_in


def kd_terms_and_gradient(
    student_logits: Tensor, teacher_logits: Tensor | None, labels: Tensor | None,
    settings: LossSettings, width: int | None = None, *, scale: float | Tensor = 1.0,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Both terms of each row, CE(label, student) and T²·D(teacher, student), and the gradient of its loss.

    Args:
        student_logits, teacher_logits: (n, V) and (n, W), any floating dtype; both may be overwritten. The
            teacher's are None where alpha is 1.
        labels: (n,) int64 in [0, V); None where alpha is 0.
        width: how many of the first classes the soft term compares; None means V.
        scale: a number, or a tensor of one, that multiplies the gradient before it is rounded.

    Returns:
        (2, n) in float32 or better: hard terms in nats and soft terms in nats times T², not weighted, 0 where
        a term has no weight; and (n, V) derivatives of α · hard + (1 − α) · soft, times scale, in the
        student's dtype.
    """
    temperature, alpha, divergence, beta = settings
    precise = torch.promote_types(student_logits.dtype, torch.float32)
    student = student_logits.detach().to(precise)
    terms = student.new_zeros(2, len(student))
    slope = None
    if alpha > 0:
        log_q = torch.log_softmax(student, dim=-1)
        terms[0] = -log_q.gather(-1, labels.unsqueeze(-1)).squeeze(-1)
        slope = log_q.exp_()
        slope.scatter_add_(-1, labels.unsqueeze(-1), slope.new_full((len(slope), 1), -1.0))
        slope.mul_(alpha * scale)
    if alpha < 1:
        student, teacher = student[:, :width], teacher_logits.detach()[:, :width].to(precise)
        distances, of_soft = _soft(student, teacher, temperature, divergence, beta)
        terms[1] = temperature**2 * distances
        of_soft.mul_((1 - alpha) * temperature * scale)
        beyond = student_logits.shape[1] - of_soft.shape[1]
        if slope is not None:
            slope[:, :width] += of_soft
        else:
            slope = F.pad(of_soft, (0, beyond)) if beyond else of_soft
    return terms, slope.to(student_logits.dtype)


def _soft(
    student: Tensor, teacher: Tensor, temperature: float, divergence: Divergence, beta: float
) -> tuple[Tensor, Tensor]:
    """(n,) divergences, and (n, C) their derivatives by the student's logits, times T. Overwrites both."""
    ruled_out = None
    # Seldom so, and on a CPU a look at the lowest is cheaper than two masks; elsewhere it would have to wait.
    if student.device.type != "cpu" or (student.numel() and min(student.min(), teacher.min()) <= RULED_OUT):
        ruled_out = (student <= RULED_OUT) | (teacher <= RULED_OUT)
    for logits in (student, teacher):
        logits.div_(temperature)
        if ruled_out is not None:
            logits.masked_fill_(ruled_out, RULED_OUT)
    log_q, log_p = torch.log_softmax(student, dim=-1), torch.log_softmax(teacher, dim=-1)
    if divergence in OF_MIXTURE:
        return _to_mixture(log_p, log_q, divergence, beta, student, teacher)
    if divergence in ("tvd", "akl"):
        return (_total_variation if divergence == "tvd" else _adaptive)(log_p, log_q, student, teacher)
    # KL(x‖y) for the two directions; what is written lies where nothing is needed any more.
    log_x, log_y = (log_q, log_p) if divergence == "reverse" else (log_p, log_q)
    u = torch.sub(log_y, log_x, out=student)
    x, y = log_x.exp_(), log_y.exp_()
    difference = _difference(x, y, u, teacher, y)
    distances = torch.addcmul(difference, x, u, value=-1, out=y).sum(dim=-1)
    if divergence == "forward":
        return distances, difference
    return distances, u.add_(distances.unsqueeze(-1)).mul_(x).neg_()


def _to_mixture(
    log_p: Tensor, log_q: Tensor, divergence: Divergence, beta: float, free: Tensor, other: Tensor
) -> tuple[Tensor, Tensor]:
    """Those made of KL(p‖m) and KL(q‖m), m = β·p + (1 − β)·q; all four tensors are overwritten."""
    torch.add(log_p, math.log(beta), out=free)
    torch.add(log_q, math.log1p(-beta), out=other)
    log_m = torch.logaddexp(free, other, out=other)
    m = log_m.exp()
    difference, spare = torch.empty_like(m), torch.empty_like(m)
    distances = 0
    weights = {"jsd": (beta, 1 - beta), "skew-forward": (1, 0), "skew-reverse": (0, 1)}[divergence]
    for weight, log_x in zip(weights, (log_p, log_q), strict=True):
        h = torch.sub(log_m, log_x, out=free)
        x = log_x.exp_()
        if weight:
            _difference(x, m, h, difference, spare)
            distances = distances + weight * torch.addcmul(difference, x, h, value=-1, out=spare).sum(dim=-1)
    # x is q and h is log(m/q) now; what has been subtracted from m is p for skew-forward, else q.
    w = torch.neg(h, out=spare).exp_().mul_(1 - beta)
    if divergence == "skew-forward":
        g = torch.mul(w, difference, out=difference).neg_()
    elif divergence == "skew-reverse":
        g = h.mul_(x).addcmul_(w, difference, value=-1)
    else:
        g = h.mul_(x).mul_(1 - beta)
    return distances, torch.mul(x, g.sum(dim=-1, keepdim=True), out=spare).sub_(g)


def _total_variation(log_p: Tensor, log_q: Tensor, free: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """½ Σ |p − q|; all four tensors are overwritten."""
    u = torch.sub(log_q, log_p, out=free)
    p, q = log_p.exp_(), log_q.exp_()
    difference = _difference(p, q, u, other, p)
    distances = torch.abs(difference, out=u).sum(dim=-1) / 2
    g = difference.sign_().mul_(q).div_(-2)
    return distances, torch.mul(q, g.sum(dim=-1, keepdim=True), out=u).sub_(g)


def _adaptive(log_p: Tensor, log_q: Tensor, free: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """a·KL(p‖q) + (1 − a)·KL(q‖p); all four tensors are overwritten."""
    u = torch.sub(log_q, log_p, out=free)
    p, q = log_p.exp_(), log_q.exp_()
    top = head(p)  # first: to sort takes most memory
    spare = torch.empty_like(p)
    difference = _difference(p, q, u, other, spare)
    a = share_in(top, torch.abs(difference, out=spare)).unsqueeze(-1)
    forward = torch.addcmul(difference, p, u, value=-1, out=spare).sum(dim=-1, keepdim=True)
    reverse = torch.mul(q, u, out=spare).sub_(difference).sum(dim=-1, keepdim=True)
    slope = u.sub_(reverse).mul_(q).mul_(1 - a).addcmul_(difference, a)
    return torch.lerp(reverse, forward, a).squeeze(-1), slope


def _difference(x: Tensor, y: Tensor, u: Tensor, out: Tensor, free: Tensor) -> Tensor:
    """y − x, where u = log y − log x: free from cancellation where they are close, as `kl_divergence` is."""
    torch.expm1(u, out=out).mul_(x)  # NaN where x is 0 and y is not
    return torch.where(u < 1, out, torch.sub(y, x, out=free), out=out)
