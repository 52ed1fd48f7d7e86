"""Traces: what is collected, what a file of them is bound to, and how it can be damaged."""

import json
from dataclasses import FrozenInstanceError, replace

import pytest
import torch
from characters_tokenizer import characters_tokenizer
from full_disk import full_after
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from kdlib.language.answers.final_answer import has_format, verify_answer
from kdlib.language.problems import Problem
from kdlib.language.traces import collect as module
from kdlib.language.traces import file
from kdlib.language.traces.collect import collect_traces, load_traces
from kdlib.language.traces.file import Trace, open_traces
from kdlib.storage import DamagedFile, ForeignFile

TOKENIZER = characters_tokenizer()
SHAPE = {
    "vocab_size": len(TOKENIZER), "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
    "initializer_range": 0.3,
}  # fmt: skip


def qwen(seed=0):
    torch.manual_seed(seed)
    model = Qwen2ForCausalLM(Qwen2Config(**SHAPE)).double()
    with torch.no_grad():
        model.lm_head.weight[TOKENIZER.eos_token_id] *= 2  # so that some traces end
    return model


def problems(count=5):
    return [Problem(f"k{n}", f"{n} heads" + " and feet" * (n % 3), f"{n} rabbits") for n in range(count)]


def odd(text, answer):
    return len(text) % 2 == 1


def even(text, answer):
    return len(text) % 2 == 0


def collect(path=None, model=None, asked=None, tokenizer=TOKENIZER, **changed):
    settings = {"samples": 3, "temperature": 1.0, "max_new_tokens": 10, "batch_size": 4, "seed": 7}
    asked = problems() if asked is None else asked
    return collect_traces(model or qwen(), tokenizer, asked, path, **{"verify": odd, **settings, **changed})


@pytest.fixture
def path(tmp_path):
    return tmp_path / "traces.jsonl"


@pytest.fixture
def written(monkeypatch):
    """(prompts) of each batch that a model has written since the test began."""
    batches, write = [], module.Writer.write

    def counting(writer, prompts, seeds):
        batches.append(len(prompts))
        return write(writer, prompts, seeds)

    monkeypatch.setattr(module.Writer, "write", counting)
    return batches


# --- what is collected -----------------------------------------------------------------------------


def test_traces_come_in_the_order_of_problems_and_samples_with_all_that_belongs_to_them():
    asked = problems()[::-1]
    found = collect(asked=asked)
    assert [(t.key, t.sample) for t in found] == [(p.key, s) for p in asked for s in range(3)]
    assert [(t.statement, t.answer) for t in found[::3]] == [(p.statement, p.answer) for p in asked]
    assert len({t.text for t in found}) > 10  # samples differ, and problems do
    assert {t.finished for t in found} == {True, False}
    for t in found:
        assert 1 <= t.tokens <= 10 and (t.finished or t.tokens == 10)
        assert t.correct == (t.finished and odd(t.text, t.answer))
        assert t.well_formed == has_format(t.text)
        assert TOKENIZER.eos_token not in t.text
    with pytest.raises(FrozenInstanceError):
        found[0].text = ""


def test_a_trace_follows_from_seed_problem_and_sample_alone():
    found = {(t.key, t.sample): t for t in collect()}
    for changed in ({"batch_size": 1}, {"batch_size": 100}, {"samples": 2}, {"asked": problems(9)[::-1]}):
        others = collect(**changed)
        shared = [t for t in others if (t.key, t.sample) in found]
        assert len(shared) >= 10
        assert shared == [found[t.key, t.sample] for t in shared], changed
    # Another seed makes other texts, but for one or two that end at once.
    pairs = zip(found.values(), collect(seed=8), strict=True)
    assert sum(a.text == b.text for a, b in pairs) <= 2


def test_the_verifier_sees_text_and_answer_of_finished_traces_only():
    seen = []

    def verify(text, answer):
        seen.append((text, answer))
        return 1  # no bool

    found = collect(verify=verify)
    assert sorted(seen) == sorted((t.text, t.answer) for t in found if t.finished)
    assert all(t.correct is t.finished for t in found)


def test_a_trace_that_was_cut_off_is_not_correct_even_if_it_reads_like_it():
    found = collect(verify=lambda text, answer: True)
    assert any(not t.finished for t in found)
    assert not any(t.correct for t in found if not t.finished)


def test_temperature_0_writes_the_most_probable_text_whatever_the_seed():
    found = collect(samples=1, temperature=0)
    assert found == collect(samples=1, temperature=0, seed=99, top_p=0.3, batch_size=1)
    assert [t.sample for t in found] == [0] * 5


def test_a_llama_writes_traces_too():
    torch.manual_seed(0)
    found = collect(model=LlamaForCausalLM(LlamaConfig(**SHAPE)).double())
    assert len(found) == 15 and len({t.text for t in found}) > 10


def test_each_module_is_left_in_the_mode_it_was_in():
    model = qwen().train()
    model.model.layers[0].eval()
    before = [m.training for m in model.modules()]
    dropout = torch.nn.Dropout(0.9)
    model.model.norm.register_forward_hook(lambda m, args, out: dropout(out) if m.training else out)
    found = collect(model=model)
    assert [m.training for m in model.modules()] == before
    assert found == collect()  # and in eval mode meanwhile

    def failing(text, answer):
        raise ZeroDivisionError

    with pytest.raises(RuntimeError):
        collect(model=model, verify=failing)
    assert [m.training for m in model.modules()] == before


def test_the_longest_prompts_are_written_first_and_like_lengths_together(monkeypatch):
    batches, write = [], module.Writer.write
    monkeypatch.setattr(
        module.Writer, "write", lambda w, p, s: batches.append([len(x) for x in p]) or write(w, p, s)
    )
    collect(batch_size=6)
    assert [len(batch) for batch in batches] == [6, 6, 3]
    lengths = [length for batch in batches for length in batch]
    assert lengths == sorted(lengths, reverse=True) and len(set(lengths)) == 3


def test_progress_shows_the_traces_done(capsys, path):
    collect(path, samples=1)
    collect(path, progress=True)
    assert "15/15" in capsys.readouterr().err
    collect(path)
    assert capsys.readouterr().err == ""


# --- refusals --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"samples": 0}, "samples is 0; expected a whole number, at least 1"),
        ({"batch_size": 0}, "batch_size is 0; expected a whole number, at least 1"),
        ({"temperature": 0}, "samples is 3, but temperature=0.*samples=1"),
        ({"temperature": -0.1}, "temperature must be at least 0.*-0.1"),
        ({"temperature": float("nan")}, "temperature must be at least 0.*nan"),
        ({"temperature": float("inf")}, "temperature must be at least 0.*inf"),
        ({"top_p": 0}, "top_p must be above 0.*got 0"),
        ({"top_p": 1.2}, "top_p must be above 0.*1.2"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0; expected a whole number, at least 1"),
        ({"max_new_tokens": 61}, "max_new_tokens is 61, but the model has 64 positions.*'0 heads'"),
        ({"asked": problems() + problems(2)}, "different keys.*'k0' occurs 2 times"),
    ],
)
def test_arguments_are_refused_before_a_file_is_made(path, changed, message):
    with pytest.raises(ValueError, match=message):
        collect(path, **changed)
    assert not path.exists()


def test_no_problems_make_no_traces(path):
    assert collect(path, asked=[]) == []
    assert load_traces(path) == []


def test_a_verifier_that_fails_names_the_trace_and_loses_nothing_before_it(path, written):
    calls = []

    def verify(text, answer):
        calls.append(text)
        if len(calls) == 6:
            raise KeyError("spiders")
        return False

    with pytest.raises(RuntimeError, match=r"failed on sample \d of problem 'k\d': KeyError: 'spiders'"):
        collect(path, verify=verify)
    done = len(load_traces(path))
    assert sum(t.finished for t in load_traces(path)) == 5
    written.clear()
    assert [t.text for t in collect(path, verify=verify)] == [t.text for t in collect()]
    assert sum(written[: -(-(15 - done) // 4)]) == 15 - done


# --- the file --------------------------------------------------------------------------------------


def test_the_file_holds_what_is_returned_as_json_that_anyone_can_read(path):
    asked = [*problems(3), Problem("鸡兔\u2028", "几只鸡? \n\u2028\x85", "鸡6只")]
    found = collect(path, asked=asked)
    assert found == collect(asked=asked)
    header, *lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    assert json.loads(header)["format"] == "kdlib traces"
    records = [json.loads(line) for line in lines]
    for record in records:
        record.pop("crc32")
    by_place = {(t.key, t.sample): t for t in found}
    assert {(r["key"], r["sample"]): Trace(**r) for r in records} == by_place and len(records) == 12
    assert "几只鸡" in path.read_text(encoding="utf-8")
    assert [by_place[t.key, t.sample] for t in load_traces(path)] == load_traces(path)


def test_nothing_is_written_twice(path, written):
    found = collect(path)
    content = path.read_bytes()
    written.clear()
    assert collect(path, batch_size=1) == found
    assert not written and path.read_bytes() == content


def test_more_problems_and_more_samples_continue_a_file(path, written):
    collect(path, asked=problems(3), samples=2)
    content = path.read_bytes()
    written.clear()
    assert collect(path) == collect()
    assert sum(written) == 9 + 15  # what was missing, and all of it for comparison
    assert path.read_bytes().startswith(content)
    written.clear()
    # What is not asked for stays in the file and is not returned.
    assert [(t.key, t.sample) for t in collect(path, asked=problems()[3:4], samples=1)] == [("k3", 0)]
    assert not written and len(load_traces(path)) == 15


def test_a_model_that_was_saved_and_loaded_continues_its_file(path, tmp_path, written):
    model = qwen()
    collect(path, model, samples=1)
    model.save_pretrained(tmp_path / "saved")
    TOKENIZER.save_pretrained(tmp_path / "saved")
    loaded = Qwen2ForCausalLM.from_pretrained(tmp_path / "saved", dtype=torch.float64)
    tokenizer = type(TOKENIZER).from_pretrained(tmp_path / "saved")
    written.clear()
    assert collect(path, loaded, tokenizer=tokenizer) == collect()
    assert sum(written) == 10 + 15


def other_template():
    tokenizer = characters_tokenizer()
    tokenizer.chat_template = tokenizer.chat_template.replace("<think>", "")
    return tokenizer


def finer_model():
    model = qwen()
    with torch.no_grad():
        model.model.norm.weight[3] += 1e-12
    return model


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"model": finer_model()}, "model was [0-9a-f]{32}, is [0-9a-f]{32}"),
        ({"tokenizer": other_template()}, "tokenizer was .*, is .*"),
        ({"temperature": 0.6}, "temperature was 1.0, is 0.6"),
        ({"top_p": 0.9}, "top_p was 0.95, is 0.9"),
        ({"max_new_tokens": 11}, "max_new_tokens was 10, is 11"),
        ({"seed": 8}, "seed was 7, is 8"),
        ({"verify": even}, "verify was odd, is even"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_file_of_other_traces_is_refused_and_left_as_it_is(path, written, changed, message):
    collect(path)
    content = path.read_bytes()
    written.clear()
    with pytest.raises(ForeignFile, match=f"holds other traces: {message}. To collect anew, delete it"):
        collect(path, **changed)
    assert path.read_bytes() == content and not written


@pytest.mark.parametrize("changed", [{"statement": "9 heads"}, {"answer": "9 rabbits"}])
def test_another_problem_under_the_same_key_is_refused(path, changed):
    collect(path)
    asked = [*problems(4), replace(problems()[4], **changed)]
    with pytest.raises(ValueError, match="'k4' has another statement or answer.*another key, or choose"):
        collect(path, asked=asked)


def test_a_torn_last_line_is_cut_off_wherever_it_is_torn(path):
    found = collect(path)
    content = path.read_bytes()
    ends = [n + 1 for n, byte in enumerate(content) if byte == ord("\n")]
    for cut in (ends[0], ends[0] + 1, ends[3] - 1, ends[7] + 5, ends[-2] + 40, len(content) - 1):
        path.write_bytes(content[:cut])
        assert len(load_traces(path)) == sum(end <= cut for end in ends) - 1
        assert collect(path) == found, cut
        assert len(load_traces(path)) == 15
        assert path.read_bytes().startswith(content[: max(end for end in ends if end <= cut)])
    # Bytes that the system had set aside, and not filled when the power went.
    path.write_bytes(content[: ends[4]] + b"\0" * 50)
    assert collect(path) == found and b"\0" not in path.read_bytes()


def test_a_line_that_has_changed_is_refused_and_can_be_deleted(path):
    found = collect(path)
    lines = path.read_bytes().splitlines(keepends=True)
    for number in (2, 9, 16):
        damaged = list(lines)
        damaged[number - 1] = damaged[number - 1].replace(b'"tokens": ', b'"tokens": 1')
        path.write_bytes(b"".join(damaged))
        for read in (collect, load_traces):
            with pytest.raises(DamagedFile, match=f"line {number} of .* has changed.*delete that line"):
                read(path)
        assert path.read_bytes() == b"".join(damaged)
        path.write_bytes(b"".join(damaged[: number - 1] + damaged[number:]))
        assert collect(path) == found


@pytest.mark.parametrize(
    "content", [b"no line end", b'{"a": 1}\n', b"\xff\xfe\x00\n\n", b"\n", b"[]\n[]\n"], ids=repr
)
def test_a_file_of_something_else_is_refused_and_left_as_it_is(path, content):
    path.write_bytes(content)
    for read in (collect, load_traces):
        with pytest.raises(ForeignFile, match="is not by this version.*delete it, or choose another path"):
            read(path)
    assert path.read_bytes() == content


def test_a_file_of_another_version_is_refused(path, monkeypatch):
    collect(path)
    monkeypatch.setitem(file._HEADER, "version", 2)
    with pytest.raises(ForeignFile, match="is not by this version's collect_traces"):
        collect(path)


def test_an_empty_file_is_a_new_one_and_folders_are_made(tmp_path):
    (tmp_path / "empty.jsonl").touch()
    found = collect(tmp_path / "empty.jsonl")
    deep = tmp_path / "a" / "b" / "c.jsonl"
    assert collect(str(deep)) == found
    assert len(load_traces(str(deep))) == 15
    with pytest.raises(FileNotFoundError, match="there is no file"):
        load_traces(tmp_path / "missing.jsonl")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"asked": "problems.jsonl"}, "problems is 'problems.jsonl'; expected problems: call load_problems"),
        ({"asked": ["how many?"]}, r"problems\[0\] is 'how many\?'; expected a Problem"),
        ({"asked": [Problem("k", "a \ud83d", "1")]}, r"statement of problems\[0\] holds half a character"),
        ({"asked": [Problem("k", "a", "")], "verify": verify_answer}, r"answer of problems\[0\] cannot be"),
        ({"verify": "exact"}, "verify is 'exact'; expected a function"),
        ({"samples": 1.5}, "samples is 1.5; expected a whole number, at least 1"),
        ({"batch_size": 2.0}, "batch_size is .*; expected a whole number"),
        ({"max_new_tokens": 9.5}, "max_new_tokens is .*; expected a whole number"),
        ({"seed": "a"}, "seed is 'a'; expected a whole number"),
        ({"seed": None}, "seed is None; expected a whole number"),
        ({"temperature": "warm"}, "temperature must be at least 0"),
        ({"top_p": float("nan")}, "top_p must be above 0"),
        ({"path": 3}, "path is 3; expected the path of a file"),
        ({"path": ["a.jsonl"]}, r"path is \['a.jsonl'\]; expected the path"),
        ({"path": "."}, "'.' is a folder; expected the name of a file"),
    ],
)
def test_likely_mistakes_are_named(tmp_path, monkeypatch, changed, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message):
        collect(**{"path": "traces.jsonl", **changed})
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_named_with_the_file_and_the_next_call_goes_on(path, monkeypatch):
    """The header and the first batch fit, the second does not."""
    whole = collect()
    message = "cannot write .*traces.jsonl .*the disk is full; make room there"
    with full_after(2), pytest.raises(OSError, match=message):
        collect(path)
    assert len(load_traces(path)) == 4 and path.read_bytes().endswith(b"\n")
    assert collect(path) == whole


def test_one_collector_at_a_time_under_whatever_name(path, tmp_path):
    found = collect(path)
    (tmp_path / "link.jsonl").symlink_to(path)
    with open_traces(path, json.loads(path.read_text().split("\n")[0])["settings"]):
        for name in (path, tmp_path / "link.jsonl"):
            with pytest.raises(TimeoutError, match="another process is collecting traces into"):
                collect(name)
        assert len(load_traces(path)) == 15  # reading is free
    assert collect(tmp_path / "link.jsonl") == found


def test_a_refused_file_is_not_locked_for_the_next(path):
    collect(path)
    for _ in range(2):
        with pytest.raises(ForeignFile):
            collect(path, seed=8)
    collect(path)
