"""Traces for TRL: what its SFTTrainer makes of them is what kdlib trains on, or it is refused."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from small_models import word_tokenizer
from tokenizers import Tokenizer, models, processors
from transformers import PreTrainedTokenizerFast

from kdlib.language.distill.batches import collate, tokenize
from kdlib.language.distill.export import export_for_trl
from kdlib.language.models.small import load_model, tiny_model, without_bars
from kdlib.language.puzzles.tokenizer import puzzle_tokenizer

PROCESS = Path(__file__).parents[2] / "processes" / "exported.py"


@dataclass(frozen=True)
class Text:
    statement: str
    text: str
    finished: bool = True


TEXTS = [
    Text(f"A cage holds {n} heads and 28 feet.",
         " Suppose all" + " are" * (5 * n % 7) + " chickens.\n</think>\n\n6 chickens and 4 rabbits.")
    for n in range(12)
]  # fmt: skip
CUT_OFF = Text("另一笼子里有鸡和兔", "假设全是鸡", finished=False)


def like_r1(tokenizer):
    """Encoding a text puts a bos in front, beside the one that the chat template writes."""
    bos = tokenizer.bos_token
    tokenizer._tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A $B", special_tokens=[(bos, tokenizer.bos_token_id)]
    )
    return tokenizer


def lines(path):
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


# --- what TRL makes of it --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tokenizer():
    return like_r1(puzzle_tokenizer())


@pytest.fixture(scope="module")
def in_trl(tmp_path_factory, tokenizer):
    """The folder after TRL has trained on each file in it; a process of its own, for TRL warns."""
    folder = tmp_path_factory.mktemp("trl")
    with without_bars():
        tiny_model(tokenizer, width=16, layers=1, heads=2).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    export_for_trl([*TEXTS, CUT_OFF], tokenizer, folder / "tokens.jsonl")
    export_for_trl(TEXTS, tokenizer, folder / "text.jsonl", form="text")
    masks = [
        {"input_ids": row["input_ids"], "completion_mask": [int(label >= 0) for label in row["labels"]]}
        for row in lines(folder / "tokens.jsonl")
    ]
    (folder / "masks.jsonl").write_text("".join(json.dumps(row) + "\n" for row in masks))
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, PROCESS, folder], capture_output=True, text=True, timeout=300, env=environment
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.mark.parametrize("form, texts", [("tokens", [*TEXTS, CUT_OFF]), ("text", TEXTS)])
def test_trl_prepares_the_tokens_and_labels_that_kdlib_trains_on(in_trl, tokenizer, form, texts):
    prepared = torch.load(in_trl / f"{form}.pt", weights_only=True)["prepared"]
    encoded = tokenize(tokenizer, texts)
    assert len(prepared) == len(encoded)
    for row, example in zip(prepared, encoded, strict=True):
        assert row["input_ids"] == [*example.prompt, *example.completion]
        assert row["labels"] == [-100] * len(example.prompt) + [*example.completion]


@pytest.mark.parametrize("form, texts", [("tokens", [*TEXTS, CUT_OFF]), ("text", TEXTS)])
def test_batch_loss_and_gradient_of_trl_are_those_of_kdlib(in_trl, tokenizer, form, texts):
    trained = torch.load(in_trl / f"{form}.pt", weights_only=True)
    batch = trained["batches"][0]
    encoded = {(*e.prompt, *e.completion): e for e in tokenize(tokenizer, texts)}
    rows = zip(batch["input_ids"].tolist(), batch["attention_mask"].sum(-1).tolist(), strict=True)
    chosen = [encoded[tuple(row[:length])] for row, length in rows]
    assert len({len(example) for example in chosen}) > 1, "some are padded"
    ours = collate(chosen, tokenizer.pad_token_id)
    assert torch.equal(ours["input_ids"], batch["input_ids"])
    assert torch.equal(ours["attention_mask"], batch["attention_mask"])
    assert torch.equal(ours["targets"], batch["labels"][batch["labels"] != -100])

    student = load_model(in_trl / "model").float()
    logits = student(input_ids=ours["input_ids"], attention_mask=ours["attention_mask"]).logits
    predicting = [
        row[len(example.prompt) - 1 : len(example) - 1] for row, example in zip(logits, chosen, strict=True)
    ]
    loss = F.cross_entropy(torch.cat(predicting), ours["targets"])
    torch.testing.assert_close(batch["loss"], loss.detach(), rtol=1e-6, atol=1e-6)
    assert trained["logged"][0] == pytest.approx(loss.item(), rel=1e-5)
    (gradient,) = torch.autograd.grad(loss, student.lm_head.weight)
    torch.testing.assert_close(batch["gradient"], gradient, rtol=1e-4, atol=1e-6)
    assert len(trained["logged"]) == 2 and trained["logged"][1] < trained["logged"][0]


def test_a_completion_mask_would_have_been_dropped(in_trl):
    """Why labels are written. If this fails, TRL reads the mask now: fix the module's docstring."""
    prepared = torch.load(in_trl / "masks.pt", weights_only=True)["prepared"]
    assert all(row["labels"] == row["input_ids"] for row in prepared)


def test_the_length_that_trl_cuts_at_is_the_one_we_warn_of(in_trl, tokenizer, tmp_path):
    default = json.loads((in_trl / "defaults.json").read_text())["max_length"]
    longest = len(tokenize(tokenizer, [TEXTS[0]])[0])
    text = replace(TEXTS[0], text=" are" * (default - longest) + TEXTS[0].text)
    more = replace(text, text=" are" + text.text)
    exported = export_for_trl([text, more, more, TEXTS[0]], tokenizer, tmp_path / "long.jsonl")
    assert f"or {default + 1} with packing: its default, {default:,}, would cut 2 of them" in exported


# --- the files -------------------------------------------------------------------------------------


def test_tokens_are_exact_whatever_the_tokenizer_and_whatever_was_cut_off(tmp_path):
    tokenizer = word_tokenizer()
    texts = [("w1 w2", "w3 </think> w4"), Text("w5", "w6", finished=False), Text("w7", "", finished=False)]
    path = tmp_path / "deep" / "out.jsonl"
    exported = export_for_trl(texts, tokenizer, path)
    user, assistant, think, close = tokenizer.convert_tokens_to_ids(
        ["<user>", "<assistant>", "<think>", "</think>"]
    )
    w = [tokenizer.convert_tokens_to_ids(f"w{n}") for n in range(8)]
    first = [user, w[1], w[2], assistant, think, w[3], close, w[4], tokenizer.eos_token_id]
    second, third = [user, w[5], assistant, think, w[6]], [user, w[7], assistant, think]
    assert lines(path) == [
        {"input_ids": first, "labels": [-100] * 5 + first[5:]},
        {"input_ids": second, "labels": [-100] * 4 + [w[6]]},
        {"input_ids": third, "labels": [-100] * 4},
    ]
    assert exported.startswith(f"3 texts of 18 tokens, 5 of them to be learnt, the longest of 9: {path}\n")
    assert "or 9 with packing" in exported and "would cut 0 of them" in exported


@pytest.mark.parametrize("bos", [False, True], ids=["no bos", "bos"])
def test_texts_are_what_was_said_and_encode_to_the_same(tmp_path, bos):
    tokenizer = like_r1(puzzle_tokenizer()) if bos else puzzle_tokenizer()
    texts = [*TEXTS, ("甲乙各几只？", "\n</think>\n\n猫 <unk> x")]
    path = tmp_path / "out.jsonl"
    export_for_trl(texts, tokenizer, path, form="text")
    assert "甲乙" in path.read_text("utf-8"), "readable, also in Chinese"
    for row, example, text in zip(lines(path), tokenize(tokenizer, texts), texts, strict=True):
        said = text[1] if isinstance(text, tuple) else text.text
        assert row.keys() == {"prompt", "completion"} and row["completion"] == said + tokenizer.eos_token
        assert tokenizer(row["prompt"])["input_ids"] == [*example.prompt]
        whole = tokenizer(row["prompt"] + row["completion"])["input_ids"]
        assert whole == [*example.prompt, *example.completion]
        assert row["prompt"].startswith("<｜User｜>" if bos else tokenizer.bos_token)


def test_texts_that_trl_would_encode_otherwise_are_refused(tmp_path):
    path = tmp_path / "out.jsonl"
    tokenizer = puzzle_tokenizer()
    with pytest.raises(ValueError, match=r"traces\[12\], which ends with '假设.*use form=.tokens") as raised:
        export_for_trl([*TEXTS, CUT_OFF], tokenizer, path, form="text")
    assert "if it was cut off, it has no end" in str(raised.value)
    assert not path.exists() and not list(tmp_path.iterdir())

    # Two newlines are one token here, and the prompt ends with one.
    vocabulary = {token: n for n, token in enumerate(["<eos>", "<think>", "a", "\n", "\n\n"])}
    merging = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.BPE(vocabulary, [("\n", "\n")])), eos_token="<eos>",
        additional_special_tokens=["<think>"],
        chat_template="{{ messages[0].content }}{% if add_generation_prompt %}<think>\n{% endif %}",
    )  # fmt: skip
    export_for_trl([("a", "a\n\na"), ("a", "a")], merging, path, form="text")
    with pytest.raises(ValueError, match=r"traces\[1\]"):
        export_for_trl([("a", "a\n\na"), ("a", "\na")], merging, path, form="text")
    assert len(lines(path)) == 2, "what was there is left alone"
    export_for_trl([("a", "\na")], merging, path)
    assert lines(path)[0]["input_ids"] == [2, 1, 3, 3, 2, 0]


def test_another_form_and_repeated_think_are_refused(tmp_path):
    with pytest.raises(ValueError, match='form must be "tokens" or "text"; got \'messages\''):
        export_for_trl(TEXTS, puzzle_tokenizer(), tmp_path / "out", form="messages")
    with pytest.raises(ValueError, match=r"examples\[0\] has a completion that begins with <think>"):
        export_for_trl([("A", "<think>\n4")], puzzle_tokenizer(), tmp_path / "out")
