"""Texts as they stand: read from files, cut into pieces, some held back."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_models import WORDS, word_tokenizer

from kdlib.language.distill.batches import TokenExample, tokenize
from kdlib.language.documents import encode_documents, hold_out, load_documents, shuffled

CHAT = [
    {"role": "user", "content": "w1 w2"}, {"role": "assistant", "content": "w3"},
    {"role": "user", "content": "w4"}, {"role": "assistant", "content": "w5 w6"},
]  # fmt: skip


def words(ids):
    return " ".join(WORDS[number] for number in ids)


def test_files_of_text_and_lines_of_json_give_documents_once_each(tmp_path):
    (tmp_path / "a.txt").write_text("\ufeffw1 w2\nw3", encoding="utf-8")
    (tmp_path / "empty.md").write_text(" \n")
    rows = [{"text": "w4", "id": 3}, {"text": "w4"}, {"text": "  "}, {"messages": CHAT, "source": "x"}]
    (tmp_path / "b.jsonl").write_text("\n\n".join(map(json.dumps, rows)) + "\n")
    found = load_documents([tmp_path / "a.txt", tmp_path / "empty.md", tmp_path / "b.jsonl"])
    assert found == ["w1 w2\nw3", "w4", CHAT]
    assert load_documents(tmp_path / "a.txt") == ["w1 w2\nw3"]


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ('{"text": 3}', 'line 2 of .*expected an object with "text" or "messages"'),
        ('["a"]', "line 2 of .*expected an object"),
        (r'{"text": "a \ud83d b"}', "line 2 of .*: text holds half a character"),
        (r'{"messages": [{"role": "assistant", "content": "\ud83d"}]}', "line 2 of .*: content holds half"),
        ('{"text": "a"', "line 2 of .*delimiter"),
        ('{"messages": [{"role": "user"}]}', "line 2 of .*expected an object"),
        ('{"messages": [{"role": "user", "content": "a"}]}', "line 2 of .*no message is the assistant's"),
    ],
)
def test_a_line_that_is_no_document_is_named(tmp_path, line, complaint):
    (tmp_path / "b.jsonl").write_text(f'{{"text": "a"}}\n{line}\n')
    with pytest.raises(ValueError, match=complaint):
        load_documents([tmp_path / "b.jsonl"])


def test_no_file_and_no_text_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no file .*gone.txt"):
        load_documents(tmp_path / "gone.txt")
    (tmp_path / "empty.txt").write_text("\n")
    with pytest.raises(ValueError, match=r"empty.txt holds no text"):
        load_documents(tmp_path / "empty.txt")
    with pytest.raises(ValueError, match="path is 3; expected the path of a file"):
        load_documents([3])


def test_a_file_that_is_not_utf_8_is_named(tmp_path):
    for name, where in (("a.txt", ""), ("b.jsonl", "line 1 of ")):
        (tmp_path / name).write_bytes('{"text": "caf\u00e9"}'.encode("latin-1"))
        with pytest.raises(ValueError, match=f"{where}.*{name}.* codec can't decode byte 0xe9"):
            load_documents([tmp_path / name])
    with pytest.raises(ValueError, match="; expected UTF-8"):
        load_documents([tmp_path / "a.txt"])


def test_the_end_of_a_name_may_be_in_capitals(tmp_path):
    (tmp_path / "A.JSONL").write_text('{"text": "w1"}\n')
    assert load_documents([tmp_path / "A.JSONL"]) == ["w1"]


def test_a_text_is_cut_into_pieces_whose_first_tokens_are_only_read():
    examples = encode_documents(word_tokenizer(), ["w1 w2 w3 w4 w5 w6", "w7"], context=4)
    assert [(words(e.prompt), words(e.completion)) for e in examples] == [
        ("w1", "w2 w3 w4"), ("w5", "w6 <eos>"), ("w7", "<eos>"),
    ]  # fmt: skip
    examples = encode_documents(word_tokenizer(), ["w1 w2 w3 w4 w5 w6", "w7"], context=4, prompt_tokens=2)
    assert [(words(e.prompt), words(e.completion)) for e in examples] == [
        ("w1 w2", "w3 w4"), ("w5 w6", "<eos>"),
    ]  # fmt: skip


def test_a_piece_without_anything_to_learn_is_left_out():
    examples = encode_documents(word_tokenizer(), ["w1 w2 w3 w4"], context=4)  # the end would be alone
    assert [(words(e.prompt), words(e.completion)) for e in examples] == [("w1", "w2 w3 w4")]
    with pytest.raises(ValueError, match="nothing to learn; expected texts of over 2 tokens"):
        encode_documents(word_tokenizer(), ["w1"], context=4, prompt_tokens=2)


def test_each_answer_of_a_conversation_is_learned_after_what_was_said_before():
    examples = encode_documents(word_tokenizer(), [CHAT], context=20)
    first = "<user> w1 w2 <assistant> <think>"
    # The template of these tests has no space between turns, and its words are what stands between spaces.
    second = "<user> w1 w2 <unk> w3 <unk> w4 <assistant> <think>"
    assert [(words(e.prompt), words(e.completion)) for e in examples] == [
        (first, "w3 <eos>"), (second, "w5 w6 <eos>"),
    ]  # fmt: skip
    (short,) = encode_documents(word_tokenizer(), [CHAT], context=6)
    assert (words(short.prompt), words(short.completion)) == (first, "w3")


@given(
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=8), context=st.integers(2, 12),
    data=st.data(),
)  # fmt: skip
def test_every_token_of_the_texts_is_there_in_order(lengths, context, data):
    prompt_tokens = data.draw(st.integers(1, context - 1))
    documents = [" ".join(["w1"] * length) for length in lengths]
    whole = [[*word_tokenizer()(text)["input_ids"], 1] for text in documents]
    if any(len(ids) > prompt_tokens for ids in whole):
        examples = encode_documents(
            word_tokenizer(), documents, context=context, prompt_tokens=prompt_tokens
        )
        assert all(len(e.prompt) == prompt_tokens and 0 < len(e) <= context for e in examples)
        pieces = [ids[start : start + context] for ids in whole for start in range(0, len(ids), context)]
        kept = [piece for piece in pieces if len(piece) > prompt_tokens]
        assert [[*e.prompt, *e.completion] for e in examples] == kept


@pytest.mark.parametrize(
    "numbers", [{"context": 1}, {"context": 4, "prompt_tokens": 4}, {"prompt_tokens": 0}]
)
def test_numbers_that_do_not_fit_are_refused(numbers):
    with pytest.raises(ValueError, match="expected 1 <= prompt_tokens < context"):
        encode_documents(word_tokenizer(), ["w1 w2"], **numbers)


def test_token_ids_pass_and_are_numbered_for_a_cache():
    examples = encode_documents(word_tokenizer(), ["w1 w2 w3 w4 w5"], context=3)
    again = tokenize(word_tokenizer(), examples[::-1])
    assert [(e.prompt, e.completion) for e in again] == [(e.prompt, e.completion) for e in examples[::-1]]
    assert [e.first for e in again] == [0, len(examples[-1].completion)]


def test_what_is_held_back_is_the_end_and_its_share_of_the_tokens():
    examples = [TokenExample((1,), (2,) * 9) for _ in range(100)]
    learnt, held = hold_out(examples, 0.1)
    assert (len(learnt), len(held)) == (90, 10) and learnt + held == examples
    assert len(hold_out(examples, 0.5, most_tokens=200)[1]) == 20
    assert [len(part) for part in hold_out(examples[:2], 0.001)] == [1, 1]
    for wrong in ((examples[:1], 0.1), (examples, 0.0), (examples, 1.0)):
        with pytest.raises(ValueError, match="expected at least two, and a share between 0 and 1"):
            hold_out(*wrong)


def test_shuffled_is_a_permutation_that_follows_from_the_seed():
    documents = [f"w{n}" for n in range(20)]
    assert sorted(shuffled(documents, 1)) == sorted(documents)
    assert shuffled(documents, 1) == shuffled(documents, 1) != shuffled(documents, 2)
