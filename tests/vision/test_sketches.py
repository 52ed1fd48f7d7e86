"""Drawn cats and dogs: the truth is true, the pictures show it, and what is no clue is none."""

import math
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from scipy import stats

from kdlib.data import Examples
from kdlib.losses.kd import kd_loss
from kdlib.vision import drawing, sketches
from kdlib.vision.sketches import (
    ATTRIBUTES,
    NUISANCES,
    draw_sketches,
    load_sketches,
    log_odds,
    morph,
    sample_attributes,
    sample_nuisances,
)

SLOPES = dict(ATTRIBUTES)
# Looking straight ahead: ginger, green-eyed, before light blue.
PLAIN = torch.tensor([0.5 if name in sketches.CENTRED else 0.0 for name in NUISANCES])


def generator(seed):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def many():
    """Labels, attributes and nuisances of 20,000 faces, as `load_sketches` draws them, and tiny pictures."""
    return load_sketches(20_000, 0, 0, size=8, seed=1).train


@pytest.fixture(scope="module")
def clean():
    """Twelve faces of all colours without pose, noise or anything in front."""
    return sample_nuisances(12, generator(5), strength=0)


def columns(values, names):
    return dict(zip(names, values.unbind(1), strict=True))


# The truth


def test_faces_of_each_log_odds_are_dogs_as_often_as_the_posterior_says(many):
    probability = many.posterior[:, 1]
    dog = many.labels.double()
    below_half = [0.0, 0.005, 0.02, 0.05, 0.1, 0.2, 0.35, 0.5]
    edges = below_half + [1 - edge for edge in below_half[-2::-1]]
    counted = 0
    for low, high in pairwise(edges):
        inside = (probability > low) & (probability <= high)
        expected = probability[inside]
        error = (expected * (1 - expected)).sum().sqrt()
        assert inside.sum() > 50
        assert abs(dog[inside].sum() - expected.sum()) < 3.5 * error + 0.5
        counted += inside.sum().item()
    assert counted == len(many)


def test_each_attribute_alone_has_the_likelihood_ratio_claimed():
    labels = torch.arange(60_000) % 2
    drawn = sample_attributes(labels, generator(3))
    edges = torch.linspace(-1, 1, 9)
    middle = (edges[:-1] + edges[1:]).double() / 2
    for column, (name, value) in enumerate(columns(drawn, ATTRIBUTES).items()):
        dogs = torch.histogram(value[labels == 1], edges).hist.double()
        cats = torch.histogram(value[labels == 0], edges).hist.double()
        # The integrals of exp(±λa/2) over a bin of centre m have the ratio exp(λm), whatever the bin's width.
        expected = SLOPES[name] * middle
        error = (1 / dogs + 1 / cats).sqrt()
        assert ((dogs / cats).log() - expected).abs().lt(4 * error).all(), name
        # And that is what log_odds adds for this attribute.
        only = torch.zeros(len(middle), len(ATTRIBUTES), dtype=torch.float64)
        only[:, column] = middle
        assert torch.allclose(log_odds(only), expected), name


@pytest.mark.parametrize("label", [0, 1])
def test_attributes_follow_their_distribution(label):
    drawn = sample_attributes(torch.full((4000,), label), generator(4))
    assert drawn.dtype == torch.float32
    assert drawn.abs().max() <= 1
    for name, value in columns(drawn, ATTRIBUTES).items():
        s = (2 * label - 1) * SLOPES[name] / 2

        def below(a, s=s):
            return (math.e ** (s * a) - math.exp(-s)) / (math.exp(s) - math.exp(-s))

        assert stats.kstest(value.double().numpy(), below).pvalue > 1e-3


def test_attributes_are_independent_within_a_class(many):
    for label in (0, 1):
        rank = many.attributes[many.labels == label].argsort(0).argsort(0).double()
        off = torch.corrcoef(rank.T) - torch.eye(len(ATTRIBUTES), dtype=torch.float64)
        assert off.abs().max() < 4.5 / math.sqrt(len(rank))


def test_both_classes_are_equally_likely(many):
    assert abs(many.labels.sum().item() - 10_000) < 4 * math.sqrt(5_000)


def test_bayes_accuracy_is_what_the_bayes_classifier_reaches(many):
    right = (many.posterior.argmax(1) == many.labels).double().mean().item()
    expected = many.bayes_accuracy
    assert abs(right - expected) < 4 * math.sqrt(expected * (1 - expected) / len(many))
    # The difficulty that the course is tuned to.
    assert 0.85 < expected < 0.88


def test_a_quarter_of_the_pictures_and_more_are_truly_uncertain(many):
    """Else the true posterior is nearly a hard label, and there is nothing for a soft label to say."""
    doubtful = ((many.posterior[:, 1] - 0.5).abs() < 0.3).double().mean()
    assert 0.25 < doubtful < 0.3
    # And of these every doubt is there: each tenth of [0.2, 0.8] has its part.
    share = torch.histc(many.posterior[:, 1], 6, 0.2, 0.8) / len(many)
    assert share.min() > 0.035


def test_posterior_and_true_logits_are_the_same_truth(many):
    some = many[:500]
    odds = log_odds(some.attributes)
    assert torch.allclose(some.log_odds.double(), odds, rtol=1e-6, atol=0)
    assert some.posterior.dtype == torch.float64
    assert torch.allclose(some.posterior.sum(1), torch.ones(500, dtype=torch.float64))
    assert torch.allclose(some.posterior[:, 1].logit(), odds, rtol=1e-4)
    assert some.true_logits.dtype == torch.float32
    assert torch.allclose(some.true_logits.double().exp(), some.posterior, atol=1e-6)


def test_a_student_equal_to_the_truth_has_no_distillation_loss(many):
    some = many[:100]
    shifted = some.true_logits + torch.randn(100, 1, generator=generator(0))
    loss = kd_loss(shifted, some.true_logits, None, temperature=1, alpha=0)
    assert loss.item() == pytest.approx(0, abs=1e-6)


# What carries no class information


def test_nuisances_have_the_same_distribution_in_both_classes(many):
    dogs, cats = many.nuisances[many.labels == 1].numpy(), many.nuisances[many.labels == 0].numpy()
    assert stats.ks_2samp(dogs, cats).pvalue.min() > 1e-3


def test_nuisances_are_unrelated_to_attributes_and_to_one_another(many):
    everything = torch.cat([many.nuisances, many.attributes * (2 * many.labels[:, None] - 1)], dim=1)
    rank = everything.argsort(0).argsort(0).double()
    related = torch.corrcoef(rank.T)
    related.fill_diagonal_(0)
    assert related.abs().max() < 5 / math.sqrt(len(many))


def test_other_labels_or_attributes_leave_the_nuisances_as_they_are(monkeypatch):
    before = load_sketches(50, 0, 0, size=8).train
    original = sketches.sample_attributes
    monkeypatch.setattr(sketches, "sample_attributes", lambda labels, *a, **k: original(1 - labels, *a, **k))
    after = load_sketches(50, 0, 0, size=8).train
    assert torch.equal(after.attributes, -before.attributes)
    assert torch.equal(after.nuisances, before.nuisances)
    assert not torch.equal(after.images, before.images)


def test_nuisances_lie_in_the_unit_interval_and_use_it():
    drawn = sample_nuisances(5000, generator(0))
    assert drawn.min() >= 0 and drawn.max() <= 1
    for name, value in columns(drawn, NUISANCES).items():
        assert value.min() < 0.01 and value.max() > 0.99, name
    share = (columns(drawn, NUISANCES)["occluder"] > 0).double().mean().item()
    assert abs(share - sketches.OCCLUDED) < 4 * math.sqrt(0.25 / 5000)


def test_strength_zero_is_a_clean_portrait_in_any_colour():
    clean, full = (columns(sample_nuisances(300, generator(2), strength=s), NUISANCES) for s in (0, 1))
    for name in sketches.CENTRED:
        assert clean[name].eq(0.5).all()
    for name in sketches.AMOUNTS:
        assert clean[name].eq(0).all()
    for name in sketches.CHOICES:
        assert torch.equal(clean[name], full[name])


# The pictures


def test_only_the_face_depends_on_the_attributes():
    """Cat and dog with the same nuisances agree in every pixel beyond the reach of a face."""
    size, nuisances = 48, sample_nuisances(20, generator(6))
    cat, dog = (draw_sketches(torch.full((20, 7), a), nuisances, size).int() for a in (-1.0, 1.0))
    centre = (torch.arange(size) + 0.5) * 2 / size - 1
    free = columns(nuisances, NUISANCES)
    x = centre[None, None, :] - 0.24 * (free["right"] - 0.5)[:, None, None]
    y = centre[None, :, None] - 0.24 * (free["down"] - 0.5)[:, None, None]
    scale = 0.92 + 0.28 * (free["scale"] - 0.5)
    outside = (x**2 + y**2).sqrt() > (0.95 * scale)[:, None, None]
    changed = (cat != dog).any(1)
    assert outside.flatten(1).any(1).all()
    assert not (changed & outside).any()
    assert (changed.flatten(1).double().mean(1) > 0.1).all()


@pytest.mark.parametrize(
    ("name", "left", "top", "right", "bottom"),
    [
        ("ears", -1.0, -1.0, 1.0, 0.5),
        ("pupils", -0.36, -0.18, 0.36, 0.12),
        ("whiskers", -0.75, -0.05, 0.75, 0.65),
        ("nose", -0.25, 0.10, 0.25, 0.60),  # the mouth follows the tip of the nose
        ("tongue", -0.15, 0.25, 0.15, 0.80),
    ],
)
def test_an_attribute_changes_its_part_of_the_face(name, left, top, right, bottom):
    size, scale = 96, 0.92
    low, high = torch.zeros(1, 7), torch.zeros(1, 7)
    column = list(ATTRIBUTES).index(name)
    low[:, column], high[:, column] = -1, 1
    changed = (draw_sketches(low, PLAIN[None], size) != draw_sketches(high, PLAIN[None], size)).any(1)[0]
    at = ((torch.arange(size) + 0.5) * 2 / size - 1) / scale
    box = ((at > top) & (at < bottom))[:, None] & ((at > left) & (at < right))[None]
    assert changed.sum() > 20
    assert not (changed & ~box).any()


@pytest.mark.parametrize("name", ATTRIBUTES)
def test_a_clean_picture_shows_every_value_of_an_attribute(name, clean):
    """No two of 21 values give the same picture: with `nuisance=0` the truth can be read off."""
    attributes = torch.zeros(21, 7)
    attributes[:, list(ATTRIBUTES).index(name)] = torch.linspace(-1, 1, 21)
    images = draw_sketches(attributes, clean[:1].expand(21, -1), 64).flatten(1).float()
    apart = torch.cdist(images, images)
    apart.fill_diagonal_(math.inf)
    assert apart.min() > 5


def test_the_same_face_at_every_size(clean):
    """Anti-aliasing: a large picture, averaged down, is the small one."""
    attributes = sample_attributes(torch.arange(12) % 2, generator(7))
    small = draw_sketches(attributes, clean, 32).float()
    large = F.avg_pool2d(draw_sketches(attributes, clean, 128).float(), 4)
    assert (small - large).abs().mean() < 2.5
    assert (small.mean((2, 3)) - large.mean((2, 3))).abs().max() < 3


@pytest.mark.parametrize("size", [8, 33])
def test_any_size_from_eight(size, clean):
    images = draw_sketches(torch.zeros(3, 7), clean[:3], size)
    assert images.shape == (3, 3, size, size)
    assert images.dtype == torch.uint8
    assert (images.flatten(1).float().std(1) > 10).all()


def test_drawing_in_blocks_changes_nothing(clean, monkeypatch):
    attributes = sample_attributes(torch.arange(12) % 2, generator(8))
    nuisances = sample_nuisances(12, generator(9))
    together = draw_sketches(attributes, nuisances, 24).int()
    monkeypatch.setattr(sketches, "BLOCK", 5 * 24**2)
    assert (draw_sketches(attributes, nuisances, 24).int() - together).abs().max() <= 1
    alone = [draw_sketches(attributes[[k]], nuisances[[k]], 24) for k in range(12)]
    alone = torch.cat(alone)
    assert (alone.int() - together).abs().max() <= 1


def test_nothing_to_draw():
    empty = load_sketches(0, 0, 2, size=8)
    assert empty.train.images.shape == (0, 3, 8, 8)
    assert len(empty.train) == 0 and len(empty.test) == 2


def pixels(size):
    """Centres of the pixels of a picture over [−1, 1]², as (1, size²), and their width."""
    at = (torch.arange(size) + 0.5) * 2 / size - 1
    return at.repeat(size)[None], at.repeat_interleave(size)[None], 2 / size


def shapes(x, y):
    """A shape's distance as drawn, whether a point is inside by the shape's definition, and its area."""
    u, v = x - 0.1, y + 0.2
    yield drawing.ellipse(u, v, 0.6, 0.3), (u / 0.6) ** 2 + (v / 0.3) ** 2 <= 1, math.pi * 0.18
    capsule = drawing.tapered_capsule(u, v, torch.tensor(0.3), torch.tensor(0.5), 0.25, 0.25)
    inside = torch.zeros_like(x, dtype=torch.bool)
    for t in torch.linspace(0, 1, 41):
        inside |= (u - 0.3 * t) ** 2 + (v - 0.5 * t) ** 2 <= 0.25**2
    yield capsule, inside, math.pi * 0.25**2 + 0.5 * math.hypot(0.3, 0.5)
    taper = drawing.tapered_capsule(u, v, torch.tensor(0.0), torch.tensor(0.6), 0.3, 0.0)
    # A half disc below… above, with a triangle of the same base on it.
    triangle = (v >= 0) & (u.abs() <= 0.3 * (1 - v / 0.6))
    yield taper, triangle | ((v < 0) & (u**2 + v**2 <= 0.09)), math.pi * 0.045 + 0.18


@pytest.mark.parametrize("which", [0, 1, 2], ids=["ellipse", "capsule", "taper"])
@pytest.mark.parametrize("size", [16, 128])
def test_shapes_cover_their_area_at_every_resolution(which, size):
    x, y, width = pixels(size)
    distance, _, area = list(shapes(x, y))[which]
    covered = drawing.coverage(distance, width)
    assert (covered.sum() * width**2).item() == pytest.approx(area, rel=0.4 / size)


@pytest.mark.parametrize("which", [0, 1, 2], ids=["ellipse", "capsule", "taper"])
def test_coverage_is_the_share_of_a_pixel_inside_the_shape(which):
    size, fine = 32, 16
    x, y, width = pixels(size)
    distance, _, _ = list(shapes(x, y))[which]
    x, y, _ = pixels(size * fine)
    _, inside, _ = list(shapes(x, y))[which]
    share = F.avg_pool2d(inside.float().view(1, size * fine, size * fine), fine).view(1, -1)
    covered = drawing.coverage(distance, width)
    assert (covered - share).abs().max() < (0.3 if which == 2 else 0.1)  # at the tip of the taper
    assert (covered - share).abs().mean() < 0.004
    assert ((covered > 0) & (covered < 1)).sum() > 20


def test_grain_is_balanced_and_differs_between_faces_and_colours():
    grain = drawing._grain(torch.rand(200, 1, generator=generator(0)), 256)
    assert grain.shape == (200, 3, 256)
    assert abs(grain.mean().item()) < 4 / math.sqrt(6 * grain.numel())
    assert grain.var().item() == pytest.approx(1 / 6, rel=0.02)  # of a triangle over (−1, 1)
    assert grain.abs().max() <= 1
    related = torch.corrcoef(grain.flatten(0, 1))
    related.fill_diagonal_(0)
    assert related.abs().max() < 6 / math.sqrt(256)
    neighbours = (grain[..., 1:] * grain[..., :-1]).mean().item()
    assert abs(neighbours) < 4 / 6 / math.sqrt(grain.numel())


# The morph


def test_morph_goes_from_certain_cat_to_certain_dog():
    images, probability = morph(11, size=16)
    assert images.shape == (11, 3, 16, 16)
    assert probability.dtype == torch.float64
    assert probability.diff().gt(0).all()
    assert probability[0] < 1e-4 and probability[-1] > 1 - 1e-4
    # Neither do the steps jump over what is doubtful.
    assert ((probability > 0.2) & (probability < 0.8)).sum() >= 3
    assert probability[5].item() == pytest.approx(0.5)
    assert torch.allclose(probability + probability.flip(0), torch.ones(11, dtype=torch.float64))
    assert (images[1:].int() - images[:-1].int()).abs().flatten(1).max(1).values.gt(0).all()


def test_morph_draws_what_draw_sketches_draws():
    images, probability = morph(5, size=20)
    # t = (s + s³) / 2 at s = −1, −1/2, 0, 1/2, 1.
    attributes = torch.tensor([-1, -0.3125, 0, 0.3125, 1])[:, None].repeat(1, 7)
    assert torch.equal(images, draw_sketches(attributes, PLAIN.expand(5, -1), 20))
    assert torch.allclose(probability, torch.sigmoid(log_odds(attributes)))


# Parts, seeds and devices


def test_parts_are_those_asked_for():
    splits = load_sketches(5, 3, 4, size=12)
    assert splits.classes == ("cat", "dog")
    assert [len(p) for p in (splits.train, splits.validation, splits.test)] == [5, 3, 4]
    part = splits.train
    assert isinstance(part, Examples)
    assert part.images.dtype == torch.uint8 and part.images.shape == (5, 3, 12, 12)
    assert part.labels.dtype == torch.int64
    assert part.index.tolist() == [0, 1, 2, 3, 4]
    redrawn = draw_sketches(part.attributes, part.nuisances, 12)
    assert torch.equal(redrawn, part.images)


def test_the_seed_decides_and_parts_have_streams_of_their_own():
    first, again, other = (load_sketches(20, 20, 20, size=8, seed=s) for s in (0, 0, 1))
    assert torch.equal(first.test.images, again.test.images)
    drawn = [s.attributes for split in (first, other) for s in (split.train, split.validation, split.test)]
    values = torch.cat(drawn).abs().flatten()
    assert len(values.unique()) == len(values)


@pytest.mark.parametrize("count", [1, 33])
def test_more_pictures_leave_the_first_and_the_other_parts_unchanged(count):
    small, large = load_sketches(count, 0, 12, size=8), load_sketches(100, 5, 12, size=8)
    for name in ("labels", "attributes", "nuisances", "images", "log_odds"):
        assert torch.equal(getattr(small.train, name), getattr(large.train, name)[:count])
        assert torch.equal(getattr(small.test, name), getattr(large.test, name))


@pytest.mark.parametrize("rows", [slice(1, 3), [4, 0], torch.tensor([2, 2]), torch.arange(6) > 3])
def test_the_truth_goes_with_the_rows(rows):
    part = load_sketches(6, 0, 0, size=8).train
    chosen = part[rows]
    positions = torch.arange(6)[rows]
    assert torch.equal(chosen.index, positions)
    for name in ("images", "labels", "attributes", "nuisances", "log_odds", "posterior", "true_logits"):
        assert torch.equal(getattr(chosen, name), getattr(part, name)[positions])


def test_the_truth_moves_to_the_device():
    moved = load_sketches(2, 0, 0, size=8).train.to("meta")
    for name in ("images", "labels", "index", "attributes", "nuisances", "log_odds"):
        assert getattr(moved, name).device.type == "meta"


# One line for each channel of each picture.
REFERENCE = (
    127, 117, 123, 129, 129, 86, 107, 114, 131, 105, 96, 107, 135, 129, 114, 127,
    139, 122, 133, 131, 138, 60, 101, 130, 138, 74, 66, 101, 148, 134, 123, 139,
    116, 102, 111, 116, 115, 36, 72, 105, 115, 53, 39, 82, 123, 108, 95, 116,
    138, 135, 110, 120, 130, 90, 62, 105, 112, 76, 72, 98, 126, 118, 104, 118,
    108, 105, 89, 95, 102, 72, 52, 86, 89, 64, 69, 80, 99, 94, 84, 93,
    97, 95, 81, 85, 91, 66, 48, 79, 80, 59, 71, 75, 88, 86, 76, 83,
    114, 132, 148, 166, 128, 91, 87, 151, 132, 89, 88, 182, 159, 170, 176, 212,
    111, 129, 145, 162, 125, 88, 81, 147, 127, 84, 82, 176, 156, 167, 171, 205,
    102, 117, 132, 149, 113, 81, 74, 134, 117, 77, 82, 162, 140, 152, 157, 186,
)  # fmt: skip


def test_pictures_are_the_same_on_every_machine():
    """Mean colours of the 4×4 parts of three pictures, to 1.5 levels of 255, all together to 0.2."""
    images = load_sketches(0, 0, 3, seed=0).test.images
    patches = F.avg_pool2d(images.float(), 8).flatten()
    apart = patches - torch.tensor(REFERENCE)
    assert apart.abs().max() <= 1.5
    assert apart.mean().abs() <= 0.2


# What is refused


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: load_sketches(1, 1, 1, size=4), "size is 4; expected a whole number, at least 8"),
        (lambda: load_sketches(1, 1, 1, size=8.5), "size is 8.5; expected a whole number, at least 8"),
        (lambda: load_sketches(1.5), "train is 1.5; expected a whole number, at least 0"),
        (lambda: load_sketches(1, 1, test=-1), "test is -1; expected a whole number, at least 0"),
        (lambda: load_sketches(10**12), "train is 1000000000000; expected less: that takes 3,072,000 GB"),
        (lambda: load_sketches(1, 1, 1, seed="a"), "seed is 'a'; expected a whole number"),
        (lambda: load_sketches(1, 1, 1, nuisance="1"), "nuisance is '1'; expected a finite number"),
        (lambda: load_sketches(1, 1, 1, nuisance=-0.1), "nuisance must be between 0 and 2; got -0.1"),
        (lambda: load_sketches(1, 1, 1, nuisance=3), "nuisance must be between 0 and 2; got 3"),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
