"""The training loop: what it repeats exactly, what the arms of a comparison share, what it leaves alone."""

import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from kdlib.data import Examples
from kdlib.losses.kd import kd_loss
from kdlib.training import best_device, evaluate, fit, out_of_fold, predict
from kdlib.vision.digits import load_digits
from kdlib.vision.nets import digit_cnn, mlp

SETTINGS = {"epochs": 2, "lr": 1e-2, "device": "cpu"}


@pytest.fixture(scope="module")
def data():
    """120 digits: two batches of 50 and one of 20."""
    return load_digits().train[:120]


def build(kind=mlp, *arguments, seed=0, **settings):
    torch.manual_seed(seed)
    return kind(*(arguments or ([16],)), **settings)


def dropout_student():
    return build(digit_cnn, 4, dropout=0.5)


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def trained(data, model=None, **changed):
    model = build() if model is None else model
    history = fit(model, data, **{**SETTINGS, "seed": 0, **changed})
    return weights(model), history


def order_of(data, model=None, **changed):
    """The labels that the loss saw, batch by batch."""
    seen = []

    def spy(student_logits, teacher_logits, labels):
        seen.append(labels.clone())
        return F.cross_entropy(student_logits, labels)

    trained(data, model, loss=spy, **changed)
    return seen


# --- repetition ------------------------------------------------------------------------------------


@pytest.mark.parametrize("student", [build, dropout_student], ids=["mlp", "dropout"])
def test_the_same_seed_gives_the_same_weights_bit_for_bit(data, student):
    first, history = trained(data, student())
    torch.rand(7)  # whatever was drawn in between
    second, again = trained(data, student())
    assert torch.equal(first, second)
    assert history == again


def test_another_seed_gives_other_weights_from_the_same_start(data):
    assert not torch.equal(trained(data)[0], trained(data, seed=1)[0])


@pytest.mark.parametrize("student", [build, dropout_student], ids=["mlp", "dropout"])
def test_arms_with_and_without_a_teacher_see_the_examples_in_the_same_order(data, student):
    teacher = dropout_student()
    plain = order_of(data, student())
    distilled = order_of(data, student(), teacher=teacher)
    tabled = order_of(data, student(), teacher=predict(teacher, data.images))
    for other in (distilled, tabled):
        assert all(torch.equal(a, b) for a, b in zip(plain, other, strict=True))


def test_each_epoch_sees_every_example_once_in_a_new_order(data):
    marked = Examples(data.images, torch.arange(120), data.index)
    model = build(mlp, [8], classes=120)
    batches = order_of(marked, model)
    assert [len(batch) for batch in batches] == [50, 50, 20] * 2
    first, second = torch.cat(batches[:3]), torch.cat(batches[3:])
    assert first.sort().values.tolist() == second.sort().values.tolist() == list(range(120))
    assert not torch.equal(first, second)
    assert not torch.equal(first, torch.arange(120))


def test_random_numbers_outside_are_as_if_nothing_had_been_drawn(data):
    model = dropout_student()
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    fit(model, data, teacher=dropout_teacher(), validation=data, seed=5, **SETTINGS)
    after = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    assert torch.equal(before[0], after[0])
    assert before[1:] == after[1:]


def dropout_teacher():
    state = torch.get_rng_state()
    teacher = dropout_student()
    torch.set_rng_state(state)
    return teacher


@pytest.mark.parametrize("clip", [None, 0.05])
def test_a_loop_written_by_hand_gives_the_same_weights_and_losses(data, clip):
    teacher = build(mlp, [32], seed=9)
    found, history = trained(data, teacher=teacher, clip=clip, weight_decay=0.1, seed=3)

    student = build()
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-2, weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1e-2, total_steps=6)
    torch.manual_seed(3)
    losses = []
    for _ in range(2):
        total = 0.0
        for rows in torch.randperm(120).split(50):
            with torch.no_grad():
                teacher_logits = teacher(data.images[rows])
            loss = kd_loss(student(data.images[rows]), teacher_logits, data.labels[rows])
            student.zero_grad()
            loss.backward()
            if clip is not None:
                nn.utils.clip_grad_norm_(student.parameters(), clip)
            optimizer.step()
            schedule.step()
            total += loss.item() * len(rows)
        losses.append(total / 120)
    assert torch.equal(found, weights(student))
    assert history.loss == pytest.approx(losses, rel=1e-6)
    assert history.steps == 6


def test_a_student_handed_over_in_eval_mode_is_trained_in_training_mode(data):
    from_eval = trained(data, dropout_student().eval())[0]
    assert torch.equal(from_eval, trained(data, dropout_student().train())[0])


# --- the loss --------------------------------------------------------------------------------------


def test_without_a_teacher_the_default_loss_is_cross_entropy(data):
    spelled_out = trained(data, loss=lambda s, t, y: F.cross_entropy(s, y))[0]
    assert torch.equal(trained(data)[0], spelled_out)


def test_with_a_teacher_the_default_loss_is_kd_loss(data):
    teacher = build(mlp, [32], seed=9)
    default = trained(data, teacher=teacher)[0]
    assert torch.equal(default, trained(data, teacher=teacher, loss=kd_loss)[0])
    assert not torch.equal(default, trained(data)[0])


def test_watched_averages_equal_a_recomputation_and_do_not_change_the_training(data):
    def square(student_logits, teacher_logits, labels):
        return student_logits.square().mean()

    batches = []

    def recorded(student_logits, teacher_logits, labels):
        batches.append((student_logits.detach(), labels))
        return F.cross_entropy(student_logits, labels)

    watched, history = trained(
        data, loss=recorded, watch={"square": square, "count": lambda s, t, y: s.new_tensor(len(y))}
    )
    assert torch.equal(watched, trained(data)[0])
    for epoch in range(2):
        part = batches[3 * epoch : 3 * epoch + 3]
        all_logits = torch.cat([logits for logits, _ in part])
        all_labels = torch.cat([labels for _, labels in part])
        assert history.watched["square"][epoch] == pytest.approx(
            all_logits.square().mean().item(), rel=1e-5
        )
        assert history.loss[epoch] == pytest.approx(
            F.cross_entropy(all_logits, all_labels).item(), rel=1e-5
        )
        # Weighted by the size of the batch: (50·50 + 50·50 + 20·20) / 120.
        assert history.watched["count"][epoch] == pytest.approx(45)


def test_validation_is_scored_after_every_epoch_and_last_with_the_final_weights(data):
    held_out = load_digits().validation
    model = dropout_student()
    seen, history = trained(data, model, validation=held_out)
    assert len(history.validation) == 2
    final = evaluate(model, held_out)
    assert history.validation[-1].nll == final.nll
    assert torch.equal(history.validation[-1].correct, final.correct)
    assert history.validation[0].nll != final.nll
    assert torch.equal(seen, trained(data, dropout_student())[0])  # scoring disturbs nothing


def test_training_makes_the_model_right_on_what_it_saw(data):
    model = build(mlp, [64])
    untrained = evaluate(model, data).accuracy
    fit(model, data, **{**SETTINGS, "epochs": 20}, seed=0)
    assert evaluate(model, data).accuracy > 0.95 > 0.5 > untrained


# --- the teacher -----------------------------------------------------------------------------------


def test_the_teacher_runs_in_eval_mode_without_gradients_and_is_left_unchanged(data):
    torch.manual_seed(0)
    teacher = nn.Sequential(
        nn.Flatten(), nn.BatchNorm1d(64), nn.Dropout(0.5), nn.Linear(64, 10)
    ).train()
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    expected = {}
    for image, logits in zip(data.images, predict(teacher, data.images), strict=True):
        expected[image.numpy().tobytes()] = logits
    seen = []

    def spy(student_logits, teacher_logits, labels):
        assert not teacher.training
        assert not teacher_logits.requires_grad
        seen.append(teacher_logits)
        return F.mse_loss(student_logits, teacher_logits)

    images = []
    student = build()
    student.register_forward_pre_hook(lambda module, inputs: images.append(inputs[0]))
    trained(data, student, teacher=teacher, loss=spy)
    for batch, logits in zip(images, seen, strict=True):
        wanted = torch.stack([expected[image.numpy().tobytes()] for image in batch])
        torch.testing.assert_close(logits, wanted)
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    assert all(p.grad is None for p in teacher.parameters())


def test_logits_computed_once_teach_the_same_as_the_teacher_itself(data):
    teacher = dropout_student()
    by_module, history = trained(data, teacher=teacher)
    by_logits, again = trained(data, teacher=predict(teacher, data.images))
    torch.testing.assert_close(by_logits, by_module, rtol=1e-3, atol=1e-4)
    assert again.loss == pytest.approx(history.loss, rel=1e-4)


def test_rows_of_the_teachers_logits_stay_with_their_examples(data):
    table = torch.arange(120.0).unsqueeze(1).expand(120, 10)
    marked = Examples(data.images, torch.arange(120), data.index)

    def spy(student_logits, teacher_logits, labels):
        assert torch.equal(teacher_logits[:, 0], labels.float())
        return student_logits.square().mean()

    assert trained(marked, teacher=table, loss=spy)[1].steps == 6


# --- after training --------------------------------------------------------------------------------


def test_the_student_is_left_in_eval_mode(data):
    model = dropout_student().train()
    trained(data, model)
    assert not any(module.training for module in model.modules())


def test_predict_gives_eval_logits_in_order_whatever_the_batch_size(data):
    model = dropout_student()
    whole = predict(model, data.images)
    assert whole.shape == (120, 10)
    assert not whole.requires_grad
    torch.testing.assert_close(predict(model, data.images, batch_size=7), whole)
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(data.images), whole)


@pytest.mark.parametrize("training", [True, False])
def test_predict_and_evaluate_restore_the_mode_of_every_module(data, training):
    model = dropout_student().train(training)
    model[0].train(not training)  # a frozen part, or a part left in training mode
    before = [module.training for module in model.modules()]
    predict(model, data.images)
    evaluate(model, data)
    assert [module.training for module in model.modules()] == before


def test_predict_restores_the_mode_after_an_error(data):
    model = dropout_student().train()
    with pytest.raises(RuntimeError):
        predict(model, data.images[:, :, :2])
    assert all(module.training for module in model.modules())


def test_evaluate_scores_the_predictions(data):
    model = build()
    scores = evaluate(model, data)
    logits = predict(model, data.images)
    assert torch.equal(scores.correct, logits.argmax(-1) == data.labels)
    assert scores.nll == pytest.approx(F.cross_entropy(logits, data.labels).item(), rel=1e-5)


def test_the_best_device_can_hold_a_tensor():
    assert torch.zeros(2, device=best_device()).sum().item() == 0


def test_the_progress_bar_is_shown_on_request_only(data, capsys):
    trained(data)
    assert capsys.readouterr().err == ""
    trained(data, progress=True)
    assert "steps" in capsys.readouterr().err


# --- refusals --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "message"),
    [({"epochs": 0}, "epochs is 0"), ({"batch_size": 0}, "batch_size is 0")],
)
def test_no_epochs_and_no_batch_are_refused(data, changed, message):
    with pytest.raises(ValueError, match=message):
        trained(data, **changed)


def test_no_data_are_refused(data):
    with pytest.raises(ValueError, match="0 examples"):
        trained(data[:0])


def test_a_table_of_teacher_logits_for_other_data_is_refused(data):
    with pytest.raises(ValueError, match="teacher holds 119 rows of logits for 120 examples"):
        trained(data, teacher=torch.zeros(119, 10))


def test_a_teacher_that_is_the_student_is_refused(data):
    model = build()
    with pytest.raises(ValueError, match="teacher and student are the same module"):
        trained(data, model, teacher=model)


def test_a_watched_quantity_cannot_take_the_place_of_the_training_loss(data):
    with pytest.raises(ValueError, match='watch holds the name "loss"'):
        trained(data, watch={"loss": lambda s, t, y: s.sum()})


def test_training_stops_with_advice_when_the_loss_is_not_finite(data):
    broken = Examples(data.images.clone(), data.labels, data.index)
    broken.images[7, 0, 3, 3] = float("nan")
    epochs = []

    def counted(student_logits, teacher_logits, labels):
        epochs.append(len(labels))
        return F.cross_entropy(student_logits, labels)

    with pytest.raises(FloatingPointError, match=r"epoch 1 is nan.*smaller lr \(now 0.01\), clip=1.0"):
        trained(broken, loss=counted)
    assert sum(epochs) == 120  # it did not go on to the second epoch


# --- out of fold -----------------------------------------------------------------------------------


class Memoriser(nn.Module):
    """Reads an example's number from its first pixel and remembers which it was trained on."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2))
        self.seen = set()

    def forward(self, images):
        numbers = images.flatten(1)[:, 0]
        if self.training:
            self.seen.update(numbers.int().tolist())
            return self.weight.expand(len(images), 2)
        known = torch.tensor([float(int(n) in self.seen) for n in numbers])
        return torch.stack([known, numbers], dim=-1)


@pytest.fixture
def numbered():
    """90 examples that carry their number, two thirds of class 0 and one third of class 1."""
    numbers = torch.arange(90)
    images = numbers.float().view(90, 1, 1, 1)
    return Examples(images, (numbers % 3 == 0).long(), numbers)


def memorise(numbered, **settings):
    models = []

    def build_memoriser():
        models.append(Memoriser())
        return models[-1]

    logits = out_of_fold(build_memoriser, numbered, **{**SETTINGS, "epochs": 1, **settings})
    return logits, models


@pytest.mark.parametrize("folds", [2, 5])
def test_no_example_is_predicted_by_a_model_that_saw_it(numbered, folds):
    logits, models = memorise(numbered, folds=folds)
    assert len(models) == folds
    assert logits[:, 0].eq(0).all()  # nobody knew the example it predicted
    assert logits[:, 1].tolist() == list(range(90))  # each row stands at its example
    assert all(predict(m, numbered.images)[:, 0].any() for m in models)  # a memoriser can be caught


def test_every_fold_trains_on_all_the_others_and_keeps_the_share_of_each_class(numbered):
    _, models = memorise(numbered, folds=5)
    for model in models:
        rows = torch.tensor(sorted(model.seen))
        assert numbered.labels[rows].bincount().tolist() == [48, 24]
    held_out = [set(range(90)) - model.seen for model in models]
    assert sorted(number for fold in held_out for number in fold) == list(range(90))


def test_the_seed_fixes_the_folds(numbered):
    same = [memorise(numbered, seed=s)[1] for s in (1, 1, 2)]
    first, second, other = ([model.seen for model in models] for models in same)
    assert first == second
    assert first != other


def test_out_of_fold_logits_repeat_exactly_and_leave_the_random_state_alone(data):
    state = torch.get_rng_state()
    first = out_of_fold(lambda: digit_cnn(4), data, folds=3, **SETTINGS)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(3)
    second = out_of_fold(lambda: digit_cnn(4), data, folds=3, **SETTINGS)
    assert torch.equal(first, second)
    assert first.shape == (120, 10)


def test_students_with_and_without_dropout_see_the_same_order():
    class Watching(nn.Module):
        def __init__(self, dropout):
            super().__init__()
            self.body = nn.Sequential(nn.Flatten(), nn.Dropout(dropout), nn.Linear(64, 10))
            self.seen = []

        def forward(self, images):
            self.seen.append(images.detach().clone())
            return self.body(images)

    digits = load_digits().train[:30]
    plain, noisy = Watching(0.0), Watching(0.5)
    for student in (plain, noisy):
        fit(student, digits, epochs=3, lr=1e-3, batch_size=10, seed=4, device="cpu")
    assert len(plain.seen) == 9
    assert all(torch.equal(a, b) for a, b in zip(plain.seen, noisy.seen, strict=True))
