"""The arms of a comparison: their losses against torch's own, and what they share."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from kdlib.course.studies.cat_or_dog_arms import (
    SKETCHES,
    Training,
    arms,
    cut,
    hard_labels,
    hide_labels,
    photo_recipe,
    pseudo_labels,
    smoothed_labels,
    soft_targets,
    train,
)
from kdlib.data import Examples
from kdlib.losses.kd import kd_loss
from kdlib.vision.nets import convnet


@pytest.fixture
def batch():
    """Student and teacher logits (9, 3) in double precision, and labels of which three are missing."""
    random = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(9, 3, generator=random, dtype=torch.float64) for _ in range(2))
    labels = torch.randint(3, (9,), generator=random)
    labels[[1, 4, 8]] = -100
    return student.requires_grad_(), teacher, labels


def examples(count, classes=2):
    random = torch.Generator().manual_seed(count)
    images = torch.randint(256, (count, 3, 8, 8), generator=random, dtype=torch.uint8)
    return Examples(images, torch.arange(count) % classes, torch.arange(count))


def gradient(loss, student):
    return torch.autograd.grad(loss, student)[0]


@pytest.mark.parametrize(("temperature", "alpha"), [(1.0, 0.0), (4.0, 0.1), (8.0, 0.5), (2.0, 1.0)])
def test_with_every_label_there_soft_targets_are_kd_loss(batch, temperature, alpha):
    student, teacher, labels = batch
    labels = labels.clamp(min=0)
    ours = soft_targets(student, teacher, labels, temperature=temperature, alpha=alpha)
    theirs = kd_loss(student, teacher, labels, temperature=temperature, alpha=alpha)
    # The hard term is float32, as in training; the soft one is double.
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(gradient(ours, student), gradient(theirs, student), rtol=1e-5, atol=1e-7)


def test_missing_labels_leave_the_soft_term_to_all_and_the_hard_term_to_the_labelled(batch):
    student, teacher, labels = batch
    known = labels >= 0
    hard = F.cross_entropy(student[known], labels[known])
    soft = F.kl_div(
        (student / 3).log_softmax(-1), (teacher / 3).log_softmax(-1), reduction="batchmean", log_target=True
    )
    ours = soft_targets(student, teacher, labels, temperature=3.0, alpha=0.25)
    torch.testing.assert_close(ours, 0.25 * hard + 0.75 * 9 * soft, rtol=1e-6, atol=1e-7)


def test_hard_and_smoothed_labels_count_the_labelled_only(batch):
    student, _, labels = batch
    known = labels >= 0
    plain = F.cross_entropy(student[known].float(), labels[known])
    smooth = F.cross_entropy(student[known].float(), labels[known], label_smoothing=0.1)
    torch.testing.assert_close(hard_labels(student, None, labels), plain)
    torch.testing.assert_close(smoothed_labels(student, None, labels), smooth)
    smoother = F.cross_entropy(student[known].float(), labels[known], label_smoothing=0.4)
    torch.testing.assert_close(arms(1.0, smoothing=0.4)["smoothed"](student, None, labels), smoother)


@pytest.mark.parametrize("loss", [hard_labels, smoothed_labels])
def test_a_batch_without_a_label_teaches_nothing(batch, loss):
    student, _, labels = batch
    value = loss(student, None, torch.full_like(labels, -100))
    assert value.item() == 0
    assert not gradient(value, student).any()


def test_pseudo_labels_are_the_teachers_first_choice_whatever_the_labels_say(batch):
    student, teacher, labels = batch
    expected = -student.float().log_softmax(-1)[torch.arange(9), teacher.argmax(-1)].mean()
    torch.testing.assert_close(pseudo_labels(student, teacher, labels), expected)


def test_arms_without_labels_do_not_look_at_them(batch):
    student, teacher, labels = batch
    loss = arms(4.0, 0.3)["distilled, no labels"]
    assert loss(student, teacher, labels) == loss(student, teacher, labels.roll(1))
    assert arms(4.0, 0.3)["distilled"](student, teacher, labels) != loss(student, teacher, labels)


@given(count=st.integers(6, 60), classes=st.integers(2, 3), seed=st.integers(0, 5), data=st.data())
def test_hidden_labels_are_the_others_and_each_class_keeps_its_share(count, classes, seed, data):
    everything = examples(count, classes)
    keep = data.draw(st.integers(classes, count - count % classes))
    few, hidden = hide_labels(everything, keep, seed=seed)
    assert len(few) == keep and len(hidden) == count
    counts = torch.bincount(few.labels, minlength=classes)
    assert counts.max() - counts.min() <= 1
    assert torch.equal(hidden.images, everything.images)
    shown = hidden.labels >= 0
    assert torch.equal(hidden.index[shown], few.index)
    assert torch.equal(hidden.labels[shown], everything.labels[shown])
    assert (hidden.labels[~shown] == -100).all()


@given(count=st.integers(8, 60), seed=st.integers(0, 5), data=st.data())
def test_the_cut_gives_every_picture_to_one_side_and_each_class_to_both(count, seed, data):
    everything = examples(count)
    own, other = cut(everything, data.draw(st.integers(2, count - count % 2 - 2)), seed=seed)
    assert sorted(own.index.tolist() + other.index.tolist()) == list(range(count))
    counts = torch.bincount(own.labels, minlength=2)
    assert counts.max() - counts.min() <= 1
    assert (other.labels >= 0).all()  # known to the study, hidden from students by `hide_labels`


def test_the_seed_chooses_which_labels_are_kept():
    everything = examples(60)
    first, again, other = (hide_labels(everything, 10, seed=seed)[0].index for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("keep", [1, 61])
def test_an_impossible_number_of_labels_is_refused(keep):
    with pytest.raises(ValueError, match=rf"keep must be 2 to 60 labels; got {keep}"):
        hide_labels(examples(60), keep)


def test_a_class_with_too_few_examples_is_refused():
    data = examples(20)
    data.labels[:] = 0
    data.labels[:3] = 1
    with pytest.raises(ValueError, match="class 1 has 3 examples, keep=10 asks for 5"):
        hide_labels(data, 10)


def test_arms_start_from_the_same_weights_and_take_the_same_steps():
    starts = []
    tiny = Training(lambda: convnet((4,)), epochs=2, lr=1e-2, batch_size=8)

    def spy(student_logits, teacher_logits, labels):
        starts.append(student_logits.detach().clone())
        return F.cross_entropy(student_logits, labels)

    histories = [
        train(tiny, examples(20), seed=3, loss=spy, teacher=teacher)[1]
        for teacher in (None, torch.zeros(20, 2))
    ]
    half = len(starts) // 2
    assert half == histories[0].steps == histories[1].steps == 6
    assert torch.equal(starts[0], starts[half])  # the first batch, before any step


@pytest.mark.parametrize(
    ("recipe", "size"), [(SKETCHES, 32), (photo_recipe(64), 64), (photo_recipe(32), 32)],
    ids=["sketches", "photographs", "small photographs"],
)  # fmt: skip
def test_the_student_is_at_least_fifteen_times_smaller(recipe, size):
    teacher, student = (
        sum(p.numel() for p in t.build().parameters()) for t in (recipe.teacher, recipe.student)
    )
    assert teacher >= 15 * student
    pictures = torch.rand(2, 3, size, size)
    assert recipe.student.build()(pictures).shape == recipe.teacher.build()(pictures).shape == (2, 2)
