"""python -m kdlib traces, and the files of problems that it reads."""

import json
from types import SimpleNamespace

import pytest
from characters_tokenizer import characters_tokenizer
from loopback import Server, as_json, completion
from transformers import LlamaConfig, LlamaForCausalLM

from kdlib.__main__ import main
from kdlib.language.models.small import without_bars
from kdlib.language.traces import remote
from kdlib.language.traces.file import load_traces
from kdlib.language.traces.select import trace_report


def written(path, *rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def files(tmp_path):
    rows = [{"key": f"k{n}", "statement": f"{n} heads", "answer": str(n)} for n in range(3)]
    return SimpleNamespace(
        problems=written(tmp_path / "problems.jsonl", *rows), out=tmp_path / "traces.jsonl"
    )


def run(files, *options):
    given = ["--problems", files.problems, "--out", files.out, *options]
    return main(["traces", *map(str, given)])


async def right(request):
    return as_json(completion(request.statement.split()[0], thought="so many"))


def test_traces_of_a_server_are_collected_and_reported(files, capsys):
    with Server(right) as server:
        assert run(files, "--url", server.url, "--model", "m", "--samples", 2, "--max-new-tokens", 9) == 0
    traces = load_traces(files.out)
    assert len(traces) == 6 and all(trace.correct for trace in traces)
    assert str(trace_report(traces)) in capsys.readouterr().out


def test_options_of_a_server_reach_it(files, monkeypatch):
    monkeypatch.setenv("TEACHER_KEY", "sk-0123456789")
    with Server(right) as server:
        options = {
            "url": server.url, "model": "m", "samples": 1, "temperature": 0.7, "top-p": 0.9,
            "max-new-tokens": 11, "concurrency": 1, "key-variable": "TEACHER_KEY", "retries": 0,
            "timeout": 30, "token-budget": 100, "cost-budget": 1, "extra-body": '{"min_p": 0.1}',
        }  # fmt: skip
        given = [part for name, value in options.items() for part in (f"--{name}", value)]
        assert run(files, *given, "--no-seed", "--prices", 1, 2) == 0
    assert server.peak == 1
    assert server.requests[0].headers["authorization"] == "Bearer sk-0123456789"
    body = server.requests[0].body
    del body["messages"]
    assert body == {"model": "m", "temperature": 0.7, "top_p": 0.9, "max_tokens": 11, "min_p": 0.1}


def test_where_the_budget_ends_it_says_so_and_goes_on_the_next_time(files, capsys):
    with Server(right) as server:
        options = [
            "--url",
            server.url,
            "--model",
            "m",
            "--samples",
            1,
            "--max-new-tokens",
            9,
            "--concurrency",
            1,
        ]
        assert run(files, *options, "--token-budget", 17) == 1
        out, err = capsys.readouterr()
        assert "token_budget=17 has no room" in err and "2 traces of 2 problems" in out
        assert run(files, *options) == 0
    assert len(server.requests) == 3


def test_what_failed_is_told_and_what_is_there_reported(files, capsys):
    async def answer(request):
        return as_json({"error": "no"}, 400) if request.statement == "1 heads" else await right(request)

    with Server(answer) as server:
        assert run(files, "--url", server.url, "--model", "m", "--samples", 1, "--concurrency", 3) == 1
    out, err = capsys.readouterr()
    assert "the server refuses the request (400: no)" in err and "2 traces of 2 problems" in out


def test_an_interrupt_says_how_to_go_on(files, capsys, monkeypatch):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(remote, "collect_remote_traces", interrupted)
    assert run(files, "--url", "http://127.0.0.1:9/v1", "--model", "m") == 130
    assert "Start the same command again" in capsys.readouterr().err


def test_traces_of_a_model_in_a_folder(files, tmp_path, capsys):
    tokenizer, folder = characters_tokenizer(), tmp_path / "teacher"
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=64,
    )  # fmt: skip
    with without_bars():
        LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    options = ["--teacher", folder, "--samples", 2, "--max-new-tokens", 5, "--batch-size", 4]
    assert run(files, *options, "--device", "cpu", "--dtype", "float32") == 0
    traces = load_traces(files.out)
    assert len(traces) == 6 and all(1 <= trace.tokens <= 5 for trace in traces)
    assert "6 traces of 3 problems" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "expected --url with --model, or --teacher"),
        (["--url", "http://localhost/v1"], "expected --url with --model"),
        (["--model", "m"], "expected --url with --model"),
        (["--url", "http://localhost/v1", "--model", "m", "--teacher", "Qwen-7B"], "expected --url with"),
        (["--teacher", "Qwen-7B", "--token-budget", "5"], "--token-budget goes with --url only"),
        (
            ["--url", "http://localhost/v1", "--model", "m", "--batch-size", "5"],
            "--batch-size goes with --teacher",
        ),
        (["--extra-body", "{bad"], "argument --extra-body: expected a JSON object, got '{bad'"),
        (["--extra-body", "[1]"], "argument --extra-body: expected a JSON object, got '[1]'"),
    ],
)
def test_options_that_do_not_go_together_are_refused(files, capsys, options, message):
    with pytest.raises(SystemExit) as raised:
        run(files, *options)
    assert raised.value.code == 2 and message in capsys.readouterr().err


def test_what_cannot_be_read_or_asked_is_told_in_a_line(files, capsys):
    assert run(files, "--url", "nowhere", "--model", "m") == 1
    assert "url must be" in capsys.readouterr().err
    files.problems.unlink()
    assert run(files, "--url", "http://localhost/v1", "--model", "m") == 1
    assert "there is no file" in capsys.readouterr().err
