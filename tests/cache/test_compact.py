"""The compact format: indices come back, probabilities within the bound, in the bytes it says."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kdlib.cache.compact import compact_bytes, pack, unpack
from kdlib.losses.kd import soft_target_loss
from kdlib.losses.top_k import TopK, top_k_loss, top_k_of


def size(packed):
    """Bytes of one row."""
    return sum(tensor[0].numel() * tensor.element_size() for tensor in packed.values())


@st.composite
def rows(draw):
    """Some rows of k of `width` classes, at the borders of the code too, and width."""
    width = draw(st.integers(1, 200_000) | st.integers(0, 17).map(lambda power: 2**power))
    k = draw(st.integers(1, min(width, 80)))
    one = st.sampled_from([
        range(k), range(width - k, width), range(0, width - width % k, width // k)[:k],
        sorted(draw(st.randoms(use_true_random=False)).sample(range(width), k)),
    ])  # fmt: skip
    indices = torch.tensor([list(draw(one)) for _ in range(draw(st.integers(1, 3)))])
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    logits = torch.randn(*indices.shape, generator=generator) * draw(st.sampled_from([0.0, 1.0, 9.0]))
    values, order = logits.sort(dim=-1, descending=True)
    tail = torch.full(indices.shape[:1], draw(st.sampled_from([-math.inf, -30.0, -3.0, 0.0])))
    total = torch.logaddexp(values.logsumexp(-1), tail)
    shuffled = indices.gather(-1, order)
    return TopK(values - total.unsqueeze(-1), shuffled, tail - total), width


@given(rows())
def test_each_index_comes_back_with_its_probability_in_the_bytes_it_says(drawn):
    top, width = drawn
    packed = pack(top, width)
    found = unpack(packed, width)
    assert size(packed) == compact_bytes(top.indices.shape[-1], width)
    assert [part.dtype for part in found] == [torch.float32, torch.int64, torch.float32]
    assert (found.values.diff(dim=-1) <= 0).all()

    def by_class(one):
        indices, order = one.indices.sort(dim=-1)
        return indices, one.values.gather(-1, order).double().exp()

    (indices, p), (found_indices, q) = by_class(top), by_class(found)
    assert torch.equal(found_indices, indices)
    # Half a step of p^¼ is 1/510; a step is 4 · p^¾ / 255 of p, and at least one step is left.
    assert ((q**0.25 - p**0.25).abs() <= (0.5 + (p**0.25 < 1 / 255)) / 255 + 1e-6).all()
    assert torch.equal(found.log_tail.isinf(), top.log_tail.isinf())
    finite = top.log_tail.isfinite()
    torch.testing.assert_close(found.log_tail[finite], top.log_tail[finite], rtol=2**-11, atol=1e-6)


def test_what_is_ruled_out_stays_so_and_what_is_nearly_nothing_does_not():
    values = torch.tensor([[0.0, -40.0, -65504.0, -math.inf]])
    top = TopK(values, torch.tensor([[7, 3, 59, 0]]), torch.tensor([-80_000.0]))
    found = unpack(pack(top, 60), 60)
    assert found.indices[0].tolist() == [7, 3, 59, 0] or found.indices[0, :1].tolist() == [7]
    least = 4 * math.log(1 / 255)
    expected = {7: 0.0, 3: least, 59: least, 0: -math.inf}
    found_values = dict(zip(found.indices[0].tolist(), found.values[0].tolist(), strict=True))
    assert found_values == pytest.approx(expected, abs=1e-4)
    assert found.log_tail.item() == -65504


@pytest.mark.parametrize(("k", "width", "expected"), [
    (64, 151_665, 172), (46, 151_665, 127), (47, 151_665, 129), (50, 49_152, 127), (64, 49_152, 158),
])  # fmt: skip
def test_bytes_of_a_token(k, width, expected):
    assert compact_bytes(k, width) == expected


def test_the_loss_is_off_by_little_and_in_expectation_by_less():
    """Half a percent of a probability here and there, to both sides; committed figures are of real text."""
    generator = torch.Generator().manual_seed(0)
    ranks = torch.arange(1, 5001, dtype=torch.float32)
    teacher = -1.2 * ranks.log() + torch.randn(400, 5000, generator=generator)
    student = teacher * 0.8 + 0.8 * torch.randn(400, 5000, generator=generator)
    exact = top_k_of(teacher, 50)
    total = exact.log_total.unsqueeze(-1)
    logs = TopK(exact.values - total, exact.indices, exact.log_tail - total.squeeze(-1))
    packed = unpack(pack(logs, 5000), 5000)
    for divergence in ("forward", "reverse"):
        off = top_k_loss(student, packed, divergence=divergence, reduction="none") - top_k_loss(
            student, exact, divergence=divergence, reduction="none"
        )
        assert off.abs().max() < 0.02 and off.mean().abs() < 1e-3
    assert soft_target_loss(student, teacher, temperature=1.0) > 0.1
