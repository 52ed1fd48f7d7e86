from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_models import TEMPLATE, WORDS, word_tokenizer

from kdlib.language.distill.batches import (
    EpochOrder,
    TokenExample,
    collate,
    tokenize,
    tokenize_prompts,
)


def words(ids):
    return " ".join(WORDS[number] for number in ids)


def test_prompt_ends_with_the_generation_prompt_and_completion_with_end_of_text():
    (example,) = tokenize(word_tokenizer(), [("w1 w2", "w3 </think> w4")])
    assert words(example.prompt) == "<user> w1 w2 <assistant> <think>"
    assert words(example.completion) == "w3 </think> w4 <eos>"
    assert tokenize_prompts(word_tokenizer(), ["w1 w2"]) == [TokenExample(example.prompt)]


def test_traces_give_their_statement_and_text_and_an_end_only_if_they_came_to_it():
    whole = SimpleNamespace(statement="w1", text="w2 w3", finished=True)
    cut = SimpleNamespace(statement="w1", text="w2 w3", finished=False)
    without_word = SimpleNamespace(statement="w1", text="w2 w3")
    endings = [words(e.completion) for e in tokenize(word_tokenizer(), [whole, cut, without_word])]
    assert endings == ["w2 w3 <eos>", "w2 w3", "w2 w3 <eos>"]
    problem = SimpleNamespace(statement="w5", answer="w6")
    assert [words(e.prompt) for e in tokenize_prompts(word_tokenizer(), [problem, whole, ("w7", "w8")])] == [
        "<user> w5 <assistant> <think>", "<user> w1 <assistant> <think>", "<user> w7 <assistant> <think>",
    ]  # fmt: skip


def test_a_completion_that_is_closed_already_is_not_closed_twice():
    (example,) = tokenize(word_tokenizer(), [("w1", "w2 <eos>")])
    assert words(example.completion) == "w2 <eos>"


@pytest.mark.parametrize("pad", ["<pad>", "<eos>"])
def test_token_by_token_what_is_predicted_from_where(pad):
    tokenizer = word_tokenizer(pad=pad)
    examples = tokenize(tokenizer, [("w1 w2", "w3"), ("w4", "w5 w6 w7")])
    batch = collate(examples, tokenizer.pad_token_id)
    #        <user> w1 w2 <assistant> <think> w3 <eos> pad
    #        <user> w4 <assistant> <think> w5 w6 w7 <eos>
    assert [words(row) for row in batch["input_ids"]] == [
        f"<user> w1 w2 <assistant> <think> w3 <eos> {pad}", "<user> w4 <assistant> <think> w5 w6 w7 <eos>",
    ]  # fmt: skip
    assert batch["attention_mask"].tolist() == [[1] * 7 + [0], [1] * 8]
    assert words(batch["targets"]) == "w3 <eos> w5 w6 w7 <eos>"
    # The logits of column t predict the token of column t + 1.
    assert batch["kept"].tolist() == [3, 4, 5, 6, 7]
    places = [(place // 5, place % 5 + 3) for place in batch["places"].tolist()]
    assert places == [(0, 4), (0, 5), (1, 3), (1, 4), (1, 5), (1, 6)]
    assert batch["stored"].tolist() == [0, 1, 2, 3, 4, 5]
    backwards = collate(examples[::-1], tokenizer.pad_token_id)
    assert backwards["stored"].tolist() == [2, 3, 4, 5, 0, 1]
    assert words(backwards["targets"]) == "w5 w6 w7 <eos> w3 <eos>"


def test_packed_row_by_row():
    tokenizer = word_tokenizer()
    examples = tokenize(tokenizer, [("w1", "w2"), ("w4", "w5 w6 w7"), ("w8", "")])
    #        <user> w1 <assistant> <think> w2 <eos>, 6; <user> w4 <assistant> <think> w5 w6 w7 <eos>, 8;
    #        <user> w8 <assistant> <think> <eos>, 5. The longest row first: 8; 6; and 5 does not fit beside 6.
    rows = collate(examples, tokenizer.pad_token_id, "rows")
    assert [words(row) for row in rows["input_ids"]] == [
        "<user> w4 <assistant> <think> w5 w6 w7 <eos>",
        "<user> w1 <assistant> <think> w2 <eos> <pad> <pad>",
        "<user> w8 <assistant> <think> <eos> <pad> <pad> <pad>",
    ]
    assert rows["position_ids"].tolist() == [
        [0, 1, 2, 3, 4, 5, 6, 7], [0, 1, 2, 3, 4, 5, 0, 1], [0, 1, 2, 3, 4, 0, 1, 2],
    ]  # fmt: skip
    assert words(rows["targets"]) == "w2 <eos> w5 w6 w7 <eos> <eos>"
    one = collate(examples, tokenizer.pad_token_id, "one row")
    assert one["position_ids"].tolist() == [[*range(6), *range(8), *range(5)]]
    assert one["kept"].tolist() == [3, 4, 9, 10, 11, 12, 17] and one["places"].tolist() == [*range(7)]
    assert "attention_mask" not in rows and "attention_mask" not in one


tokens = st.lists(st.integers(0, 59), max_size=6).map(tuple)
examples = st.builds(TokenExample, tokens.filter(len), tokens)


@given(st.lists(examples, min_size=1, max_size=5), st.integers(0, 59))
def test_places_and_targets_are_those_of_labels_that_are_shifted(batch, pad):
    made = collate(batch, pad)
    length = max(map(len, batch))
    labels = torch.full((len(batch), length), -100)
    for row, example in enumerate(batch):
        labels[row, len(example.prompt):len(example)] = torch.tensor(example.completion)
        assert tuple(made["input_ids"][row, :len(example)].tolist()) == example.prompt + example.completion
        assert made["attention_mask"][row].tolist() == [1] * len(example) + [0] * (length - len(example))
    shifted = labels[:, 1:]
    assert made["targets"].tolist() == shifted[shifted != -100].tolist()
    everywhere = torch.arange(len(batch) * length).view(len(batch), length)  # stands for logits
    predicting = everywhere[:, :-1][shifted != -100]
    kept = everywhere[:, made["kept"]].flatten()
    assert kept[made["places"]].tolist() == predicting.tolist()
    assert made["kept"].tolist() == list(range(min(len(e.prompt) for e in batch) - 1, length))


@given(st.lists(examples, min_size=1, max_size=7), st.sampled_from(["rows", "one row"]))
def test_packed_examples_stand_whole_and_each_counted_token_is_predicted_by_the_one_before(batch, packing):
    made = collate(batch, 60, packing)
    ids, positions = made["input_ids"].flatten().tolist(), made["position_ids"].flatten().tolist()
    rows, width = made["input_ids"].shape
    assert rows == 1 if packing == "one row" else width == max(map(len, batch))
    # What begins at position 0 and is not padding: every example once.
    starts = [place for place in range(len(ids)) if positions[place] == 0 and ids[place] != 60]
    assert sorted(
        tuple(ids[start:start + length])
        for start in starts
        for length in [next((n for n in range(1, width + 1) if start % width + n == width
                             or positions[start + n] == 0), None)]
    ) == sorted(e.prompt + e.completion for e in batch)  # fmt: skip
    everywhere = torch.arange(len(ids)).view(rows, width)
    predicting = everywhere[:, made["kept"]].flatten()[made["places"]].tolist()
    assert [ids[place + 1] for place in predicting] == made["targets"].tolist()
    assert set(made["kept"].tolist()) == {place % width for place in predicting}
    behind = [place for e in batch for place in range(len(e.prompt), len(e))]
    assert [positions[place] + 1 for place in predicting] == behind


@given(st.lists(st.integers(1, 9), min_size=1, max_size=12))
def test_rows_are_at_most_those_that_first_fit_promises(lengths):
    batch = [TokenExample((1,) * length, (2,)) for length in lengths]
    rows, width = collate(batch, 0, "rows")["input_ids"].shape
    assert width == max(lengths) + 1
    # All rows but one are more than half full, or two of them would be one.
    assert rows <= 2 * sum(length + 1 for length in lengths) / width + 1


def orders(lengths, seed=0, epochs=3, **options):
    order = EpochOrder(lengths, seed, **options)
    for epoch in range(epochs):
        order.epoch = epoch
        yield list(order)


def test_order_is_of_seed_epoch_and_number_alone():
    first = list(orders([5] * 20))
    assert all(sorted(order) == list(range(20)) for order in first)
    assert len({tuple(order) for order in first}) == 3
    torch.manual_seed(7)
    assert list(orders(range(1, 21))) == first
    assert list(orders([5] * 20, seed=1)) != first
    assert next(iter(orders([5] * 20, seed=1, epochs=1))) not in first


def test_groups_hold_examples_of_similar_length():
    lengths = [(7 * number) % 103 + 1 for number in range(103)]

    def padding(order):
        groups = [order[start:start + 10] for start in range(0, 103, 10)]
        return sum(max(lengths[i] for i in g) - lengths[j] for g in groups for j in g)

    mixed, grouped = list(orders(lengths)), list(orders(lengths, group=10))
    assert all(sorted(order) == list(range(103)) for order in grouped)
    assert grouped == list(orders(lengths, group=10)) and grouped[0] != grouped[1]
    assert max(map(padding, grouped)) < min(map(padding, mixed)) / 1.5


def without_template():
    tokenizer = word_tokenizer()
    tokenizer.chat_template = None
    return tokenizer


def without_end():
    tokenizer = word_tokenizer()
    tokenizer.eos_token = None
    return tokenizer


def test_refusals():
    good = [("w1", "w2")]
    cases = [
        (word_tokenizer(), [], "examples is empty"),
        (word_tokenizer(), ["w1"], r"examples\[0\] has no completion"),
        (word_tokenizer(), [*good, ("w1", 3)], r"examples holds \('w1', 3\); expected a Trace or a pair"),
        (word_tokenizer(), [*good, SimpleNamespace(text="w")], "expected a Trace or a pair"),
        (word_tokenizer(), [*good, ("w1", " <think> w2")], r"examples\[1\] .* drop ' <think>'$"),
        (without_template(), good, "no chat_template"),
        (without_end(), good, "no eos_token"),
    ]
    for tokenizer, data, message in cases:
        with pytest.raises(ValueError, match=message):
            tokenize(tokenizer, data)
    with pytest.raises(ValueError, match="examples is empty"):
        tokenize_prompts(word_tokenizer(), [])


def test_a_template_that_opens_no_thought_leaves_it_to_the_completion():
    tokenizer = word_tokenizer()
    tokenizer.chat_template = TEMPLATE.replace(" <think>", "")
    (example,) = tokenize(tokenizer, [("w1", "<think> w2")])
    assert words(example.prompt + example.completion) == "<user> w1 <assistant> <think> w2 <eos>"
