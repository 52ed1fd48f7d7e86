"""The cache of a teacher's tokens: what comes back, what it belongs to and refuses."""

import json
import math
import os

import pytest
import torch
from full_disk import full_after
from small_models import llama, pairs, qwen, word_tokenizer

from kdlib.cache.tokens import CachedTokens, open_token_cache
from kdlib.language.distill.batches import TokenExample, tokenize
from kdlib.language.distill.teachers import cache_teacher_tokens
from kdlib.losses.top_k import top_k_loss, top_k_of
from kdlib.storage import DamagedFile

TEXTS = pairs(30, seed=3)
SETTINGS = {"top_k": 5, "batch_tokens": 60, "device": "cpu"}


@pytest.fixture(scope="module")
def tokenizer():
    return word_tokenizer()


def sharp(model):
    """A model that prefers some tokens; to an untrained one they are all alike."""
    with torch.no_grad():
        model.lm_head.weight *= 20
    return model


@pytest.fixture(scope="module")
def teacher():
    """Its vocabulary is padded by four logits that are no token, and larger than all others."""
    model = sharp(qwen(seed=1, vocabulary=64))
    with torch.no_grad():
        model.lm_head.weight[60:] = 5 * model.lm_head.weight[:4]
    return model


@pytest.fixture(autouse=True)
def small_files(monkeypatch):
    monkeypatch.setattr(CachedTokens, "SHARD_ROWS", 40)


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "cache"


def make(folder, teacher, tokenizer, texts=TEXTS, **changed):
    return cache_teacher_tokens(teacher, tokenizer, texts, folder, **{**SETTINGS, **changed})


@torch.no_grad()
def directly(teacher, example, width=60):
    """(n, width): the logits that predict the completion, of a forward pass of this text alone."""
    logits = teacher(input_ids=torch.tensor([[*example.prompt, *example.completion]])).logits[0, :, :width]
    return logits[len(example.prompt) - 1 : -1]


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".lock"}


def rows_of(cached, text):
    return range(*cached.starts[text : text + 2])


def every_row(cached):
    return cached.top_k(torch.arange(len(cached)))


# --- what comes back -------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [1.0, 3.0])
@pytest.mark.parametrize("family", ["qwen2", "llama"])
def test_rows_are_what_a_direct_forward_pass_says_at_that_temperature(
    folder, tokenizer, teacher, family, temperature
):
    teacher = teacher if family == "qwen2" else sharp(llama(seed=2))
    cached = make(folder, teacher, tokenizer, temperature=temperature)
    encoded = tokenize(tokenizer, TEXTS)
    assert len(cached) == sum(len(example.completion) for example in encoded)
    row = 0
    for number, example in enumerate(encoded):
        rows = rows_of(cached, number)
        assert rows == range(row, row + len(example.completion))
        row = rows.stop
        top = cached.top_k(torch.tensor(rows))
        expected = top_k_of(directly(teacher, example), 5, temperature)
        assert torch.equal(top.indices, expected.indices)
        total = expected.log_total
        torch.testing.assert_close(top.values, expected.values - total.unsqueeze(-1), rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(top.log_tail, expected.log_tail - total, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(top.log_total, torch.zeros_like(total), rtol=0.0, atol=1e-3)


def test_the_loss_from_the_cache_is_the_loss_from_the_teacher(folder, tokenizer, teacher):
    cached, student = make(folder, teacher, tokenizer, temperature=2.0), qwen(seed=5)
    for number, example in enumerate(tokenize(tokenizer, TEXTS)[:8]):
        logits = directly(student, example)
        found = top_k_loss(logits, cached.top_k(torch.tensor(rows_of(cached, number))), temperature=2.0)
        online = top_k_loss(logits, top_k_of(directly(teacher, example), 5, 2.0), temperature=2.0)
        torch.testing.assert_close(found, online, rtol=1e-3, atol=1e-3)
        assert online > 0.1


def test_rows_in_any_order_some_of_them_and_repeated(folder, tokenizer, teacher):
    cached = make(folder, teacher, tokenizer)
    everything = every_row(cached)
    last = len(cached) - 1
    for rows in ([0], [last], [3, 3, 40, 3], [17, 2, last, 16, 15], list(range(last, -1, -1)), []):
        rows = torch.tensor(rows, dtype=torch.int64)
        for found, whole in zip(cached.top_k(rows), everything, strict=True):
            assert torch.equal(found, whole[rows])
    assert [part.dtype for part in everything] == [torch.float32, torch.int64, torch.float32]


def test_batches_padding_side_and_borders_of_files_change_nothing_but_rounding(
    tmp_path, tokenizer, teacher, monkeypatch
):
    expected = every_row(make(tmp_path / "one", teacher, tokenizer, batch_tokens=1))
    left = word_tokenizer()
    left.padding_side = "left"
    for rows, chosen, batch_tokens in ((40, tokenizer, 9999), (1, tokenizer, 60), (1000, left, 60)):
        monkeypatch.setattr(CachedTokens, "SHARD_ROWS", rows)
        found = every_row(make(tmp_path / f"{rows}", teacher, chosen, batch_tokens=batch_tokens))
        assert torch.equal(found.indices, expected.indices)
        torch.testing.assert_close(found.values, expected.values, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(found.log_tail, expected.log_tail, rtol=1e-5, atol=1e-5)


def test_a_forward_pass_holds_no_more_tokens_than_allowed(folder, tokenizer, teacher, monkeypatch):
    seen, forward = [], teacher.forward

    def watched(input_ids, attention_mask, use_cache, logits_to_keep):
        seen.append((input_ids.shape, attention_mask.sum().item()))
        return forward(
            input_ids, attention_mask, use_cache=use_cache, logits_to_keep=logits_to_keep
        )

    monkeypatch.setattr(teacher, "forward", watched)
    monkeypatch.setattr(CachedTokens, "SHARD_ROWS", 1000)
    make(folder, teacher, tokenizer, batch_tokens=50)
    shapes = [shape for shape, _ in seen]
    assert all(shape.numel() <= 50 or shape[0] == 1 for shape in shapes)
    assert shapes[0][1] == max(shape[1] for shape in shapes), "the longest first"
    assert len(shapes) < 15, "many texts to a pass"
    padding = 1 - sum(tokens for _, tokens in seen) / sum(shape.numel() for shape in shapes)
    assert padding < 0.1


def test_the_teacher_is_left_in_its_mode_and_has_no_dropout(folder, tokenizer):
    dropping = sharp(qwen(seed=1, attention_dropout=0.5)).train()
    cached = make(folder, dropping, tokenizer)
    assert dropping.training and dropping.model.layers[0].training
    example = tokenize(tokenizer, TEXTS[:1])[0]
    expected = top_k_of(directly(dropping.eval(), example), 5)
    assert torch.equal(cached.top_k(torch.tensor(rows_of(cached, 0))).indices, expected.indices)


def test_cut_off_texts_have_no_end_and_may_be_empty(folder, tokenizer, teacher):
    class Text:
        def __init__(self, statement, text, finished):
            self.statement, self.text, self.finished = statement, text, finished

    texts = [Text("w1", "w2 w3", True), Text("w1", "", False), Text("w4", "w5", False), Text("w6", "", True)]
    cached = make(folder, teacher, tokenizer, texts)
    assert [len(rows_of(cached, number)) for number in range(4)] == [3, 0, 1, 1]
    assert rows_of(open_token_cache(folder), 3) == range(4, 5)
    empty = [Text("w1", "", False)]
    with pytest.raises(ValueError, match="examples hold no completion tokens; expected at least one"):
        make(folder.with_name("empty"), teacher, tokenizer, empty)


# --- rounding and size -----------------------------------------------------------------------------


def test_logits_far_beyond_float16_are_stored_as_well_as_others(folder, tokenizer):
    """A common offset of a million; float16 ends at 65,504."""
    teacher = sharp(qwen(seed=1))
    make(folder.with_name("plain"), teacher, tokenizer)
    moved = type(teacher).forward

    class Offset(type(teacher)):
        def forward(self, *arguments, **named):
            output = moved(self, *arguments, **named)
            output.logits = output.logits.double() + 1e6
            return output

    expected = every_row(open_token_cache(folder.with_name("plain")))
    teacher.__class__ = Offset
    found = every_row(make(folder, teacher, tokenizer))
    torch.testing.assert_close(found.values, expected.values, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(found.log_tail, expected.log_tail, rtol=1e-3, atol=1e-3)


def test_a_probability_beyond_float16_is_nothing_but_not_ruled_out(folder, tokenizer, teacher, monkeypatch):
    forward = teacher.forward

    def apart(**inputs):
        output = forward(**inputs)
        output.logits[..., :] = -2e5
        output.logits[..., 7], output.logits[..., 9] = 0.0, -1e5
        output.logits[..., 11:] = -math.inf
        return output

    monkeypatch.setattr(teacher, "forward", apart)
    top = make(folder, teacher, tokenizer, top_k=12).top_k(torch.tensor([4]))
    assert top.indices[0, :2].tolist() == [7, 9]
    assert top.values[0, 0] == 0 and (top.values[0, 1:11] == -65504).all() and top.values[0, 11] == -math.inf
    assert top.log_tail == -math.inf


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_logits_that_are_not_finite_are_refused(folder, tokenizer, value):
    broken = qwen(seed=1)
    with torch.no_grad():
        broken.lm_head.weight[3, 0] = value
    with pytest.raises(ValueError, match=r"logits for examples\[\d+\] are not finite; look at its weights"):
        make(folder, broken, tokenizer)


def test_it_says_what_it_costs(folder, tokenizer, teacher):
    cached = make(folder, teacher, tokenizer, temperature=2.0)
    assert cached.bytes_per_token == 5 * (2 + 2) + 4
    tokens = len(cached)
    assert str(cached) == (
        f"teacher outputs of {tokens} tokens in 30 texts, T = 2, top 5 of 60 in float16: 24 bytes a token, "
        f"{tokens * 24 / 1e6:.1f} MB"
    )
    on_disk = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    files = len(list(folder.glob("*.safetensors")))
    assert files == math.ceil(tokens / 40) and 0 < on_disk - 24 * tokens < 1000 * files


def test_388_bytes_a_token_with_the_vocabulary_of_qwen(folder, tokenizer):
    words = [f"v{number}" for number in range(65_537)]
    wide = word_tokenizer([*tokenizer.convert_ids_to_tokens(range(60)), *words[60:]])
    teacher = qwen(seed=0, vocabulary=65_537, hidden_size=8, num_attention_heads=1, num_key_value_heads=1,
                   num_hidden_layers=1)  # fmt: skip
    cached = make(folder, teacher, wide, [("w1", "w2 v65536")], top_k=64)
    assert cached.bytes_per_token == 388
    example = tokenize(wide, [("w1", "w2 v65536")])[0]
    found = cached.top_k(torch.arange(3)).indices
    assert torch.equal(found, top_k_of(directly(teacher, example, 65_537), 64).indices)
    assert found.max() > 2**15, "also what 16 bits would not hold"


# --- what it belongs to ----------------------------------------------------------------------------


def test_called_again_it_makes_only_what_is_missing_or_damaged(folder, tokenizer, teacher):
    make(folder, teacher, tokenizer)
    before = contents(folder)
    shards = sorted(folder.glob("*.safetensors"))
    shards[2].unlink()
    shards[5].write_bytes(shards[5].read_bytes()[:-3])
    (folder / f".{shards[1].name}.1-ab.part").write_bytes(b"half")
    seen = []
    hook = teacher.register_forward_hook(lambda *_: seen.append(1))
    try:
        make(folder, teacher, tokenizer)
        some = len(seen)
        make(folder, teacher, tokenizer)
    finally:
        hook.remove()
    assert contents(folder) == before
    assert 0 < some < 15 and len(seen) == some


def test_opened_again_it_is_the_same(folder, tokenizer, teacher):
    made = make(folder, teacher, tokenizer, temperature=2.0)
    encoded = tokenize(tokenizer, TEXTS)
    opened = open_token_cache(folder)
    assert str(opened) == str(made) and opened.fingerprint == made.fingerprint
    assert all(map(torch.equal, every_row(opened), every_row(made)))
    opened.check(encoded, 2.0, 60)


OTHERS = {
    "teacher": ({"teacher": qwen(seed=9, vocabulary=64)}, "teacher was"),
    "texts": ({"texts": pairs(30, seed=4)}, "texts was"),
    "order": ({"texts": TEXTS[::-1]}, "texts was"),
    "prompt": ({"texts": [("w50", TEXTS[0][1]), *TEXTS[1:]]}, "texts was"),
    "temperature": ({"temperature": 2.0}, "temperature was 1.0, is 2.0"),
    "k": ({"top_k": 6}, "top_k was 5, is 6"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_another_cache_in_the_folder_is_refused_and_left_alone(folder, tokenizer, teacher, name):
    changed, message = OTHERS[name]
    make(folder, teacher, tokenizer)
    before = contents(folder)
    changed = {"teacher": teacher, "tokenizer": tokenizer} | changed
    with pytest.raises(ValueError, match=message) as raised:
        make(folder, **changed)
    assert "pass overwrite=True to cache_teacher_tokens" in str(raised.value)
    assert contents(folder) == before
    replaced = make(folder, **changed, overwrite=True)
    alone = make(folder.with_name("alone"), **changed)
    assert contents(folder) == contents(alone.folder) and replaced.fingerprint == alone.fingerprint


def test_a_tokenizer_with_more_tokens_is_refused(folder, tokenizer, teacher):
    make(folder, teacher, tokenizer)
    more = word_tokenizer([*tokenizer.convert_ids_to_tokens(range(60)), "new"])
    with pytest.raises(ValueError, match="width was 60, is 61"):
        make(folder, teacher, more)
    with pytest.raises(ValueError, match="has no token 60 where tokenizer has token 60 'new'"):
        make(folder, teacher, more, teacher_tokenizer=tokenizer)
    wide = word_tokenizer([*tokenizer.convert_ids_to_tokens(range(60)), *(f"x{n}" for n in range(5))])
    with pytest.raises(ValueError, match="teacher has 64 logits, but tokenizer has tokens up to id 64"):
        make(folder, teacher, wide)


def test_training_on_other_texts_at_another_temperature_or_width_is_refused(folder, tokenizer, teacher):
    cached, encoded = make(folder, teacher, tokenizer, temperature=2.0), tokenize(tokenizer, TEXTS)
    moved = [TokenExample(e.prompt + e.completion[:1], e.completion[1:]) for e in encoded]
    for examples, temperature, width, message in (
        (encoded[:-1], 2.0, 60, "texts was"),
        (moved, 2.0, 60, "texts was"),
        (encoded, 1.0, 60, "temperature was 2.0, is 1.0"),
        (encoded, 2.0, 61, "width was 60, is 61"),
    ):
        with pytest.raises(ValueError, match=f"do not belong to this run: .*{message}.*cache_teacher_tokens"):
            cached.check(examples, temperature, width)


def test_what_is_no_cache_or_not_whole_is_refused(tmp_path, folder, tokenizer, teacher):
    with pytest.raises(FileNotFoundError, match="there is no cache in .*make one with cache_teacher_tokens"):
        open_token_cache(folder)
    make(folder, teacher, tokenizer)
    first = sorted(folder.glob("*.safetensors"))[0]
    content = bytearray(first.read_bytes())
    content[-1] ^= 1
    first.write_bytes(content)
    with pytest.raises(DamagedFile, match="has changed.*call cache_teacher_tokens with the same"):
        every_row(open_token_cache(folder))
    first.unlink()
    with pytest.raises(FileNotFoundError, match=f"{first.name}.*call cache_teacher_tokens"):
        every_row(open_token_cache(folder))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("precious")
    for overwrite in (False, True):
        with pytest.raises(ValueError, match=r"holds files that are no cache, such as thesis\.txt"):
            make(tmp_path / "other", teacher, tokenizer, overwrite=overwrite)


def test_a_cache_of_images_is_not_taken_for_one_of_tokens(folder, tokenizer, teacher):
    manifest = {"maker": "cache_teacher"}
    folder.mkdir()
    (folder / "manifest.json").write_text(json.dumps(manifest))
    message = "was not written by cache_teacher_tokens.*, or has changed since; choose another"
    with pytest.raises(ValueError, match=message):
        open_token_cache(folder)
    with pytest.raises(ValueError, match=message):
        make(folder, teacher, tokenizer, overwrite=True)


@pytest.mark.parametrize("changed, message", [
    ({"top_k": 0}, "top_k must be a whole number from 1 to the 60 tokens; got 0"),
    ({"top_k": 61}, "top_k must be a whole number from 1 to the 60 tokens; got 61"),
    ({"temperature": 0.0}, "temperature must be a positive finite number; got 0.0"),
    ({"temperature": math.inf}, "temperature must be a positive finite number; got inf"),
], ids=range(4))  # fmt: skip
def test_bad_arguments_are_refused_before_anything_is_made(folder, tokenizer, teacher, changed, message):
    with pytest.raises(ValueError, match=message):
        make(folder, teacher, tokenizer, **changed)
    assert not folder.exists()


def test_a_full_disk_is_named_with_the_file_and_the_next_call_goes_on(tokenizer, teacher, folder):
    """The manifest and the first file fit, the second file does not."""
    message = "cannot write .*cache/0000-0000000040.safetensors .*disk is full"
    with full_after(2), pytest.raises(OSError, match=message):
        cache_teacher_tokens(teacher, tokenizer, TEXTS, folder, **SETTINGS)
    left = {path.name for path in folder.iterdir()}
    assert left <= {"manifest.json", "0000-0000000000.safetensors", ".lock"}
    made = os.stat(folder / "0000-0000000000.safetensors").st_mtime_ns
    cache_teacher_tokens(teacher, tokenizer, TEXTS, folder, **SETTINGS).whole("log_tail")
    assert os.stat(folder / "0000-0000000000.safetensors").st_mtime_ns == made


def test_a_file_where_the_folder_should_be_is_named(tokenizer, teacher, folder):
    folder.write_text("mine")
    with pytest.raises(OSError, match="cannot write .*cache .*expected a folder"):
        cache_teacher_tokens(teacher, tokenizer, TEXTS, folder, **SETTINGS)
    assert folder.read_text() == "mine"
