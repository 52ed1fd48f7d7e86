"""`python -m kdlib distill`: options from file and command line, and plans. Processes: sharing.py."""

import re

import pytest
import torch
import yaml
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_multi_gpu_env
from sharing import WAYS
from transformers import AutoConfig

from kdlib.__main__ import main as kdlib
from kdlib.language import pipeline
from kdlib.language.models.tiny import stand_in
from kdlib.language.pipeline import PipelineOptions
from kdlib.losses.divergences import DIVERGENCES

ESSENTIAL = ["--student", "s", "--teacher", "t", "--problems", "p", "--out", "o"]


def main(arguments):
    return kdlib(["distill", *arguments])


@pytest.fixture
def ran(monkeypatch):
    """The options of each run, which does nothing."""
    runs: list[PipelineOptions] = []
    monkeypatch.setattr(pipeline, "run_pipeline", runs.append)
    return runs


def config(tmp_path, **options):
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(options))
    return str(tmp_path / "run.yaml")


def test_what_is_not_given_has_its_default(ran):
    assert main(ESSENTIAL) == 0
    assert ran == [PipelineOptions(student="s", teacher="t", problems="p", out="o")]
    assert ran[0].epochs == 2 and ran[0].packing and ran[0].resume


def test_options_are_spelt_either_way(ran):
    main([*ESSENTIAL, "--max-new-tokens", "7", "--batch_size", "3", "--no-packing", "--steps", "9",
          "--training-arguments", '{"weight_decay": 0.1}'])  # fmt: skip
    main([*ESSENTIAL, "--max_new_tokens", "7", "--batch-size", "3", "--packing", "no", "--steps", "9",
          "--training_arguments", '{"weight_decay": 0.1}'])  # fmt: skip
    assert ran[0] == ran[1]
    assert (ran[0].max_new_tokens, ran[0].batch_size, ran[0].packing, ran[0].steps) == (7, 3, False, 9)
    assert ran[0].training_arguments == {"weight_decay": 0.1} and ran[0].epochs is None


def test_every_divergence_can_be_chosen_and_the_weight_of_its_mixture(ran, capsys):
    for name in DIVERGENCES:
        main([*ESSENTIAL, "--divergence", name, "--beta", "0.9"])
    assert [(run.divergence, run.beta) for run in ran] == [(name, 0.9) for name in DIVERGENCES]
    with pytest.raises(SystemExit, match="2"):
        main([*ESSENTIAL, "--divergence", "kl"])
    told = capsys.readouterr().err
    assert [name for name in DIVERGENCES if name in told.partition("invalid choice")[2]] == [*DIVERGENCES]


def test_a_file_of_options_and_what_the_command_line_says_instead(ran, tmp_path):
    (tmp_path / "run.yaml").write_text(
        "student: s\nteacher: t\nproblems: p\nout: o\nlr: 3e-5\nbatch-size: 4\nshortest: true\n"
        "training_arguments: {max_grad_norm: 0.5}\n"
    )
    assert main(["--config", str(tmp_path / "run.yaml"), "--batch-size", "2"]) == 0
    assert (ran[0].lr, ran[0].batch_size, ran[0].shortest) == (3e-5, 2, True)
    assert ran[0].training_arguments == {"max_grad_norm": 0.5}


def test_yaml_has_a_yes_and_a_no_of_its_own(ran, tmp_path):
    (tmp_path / "run.yaml").write_text("precision: no\npacking: off\nshortest: yes\ntexts: [no, a.txt]\n")
    given = ["--student", "s", "--out", "o", "--config", str(tmp_path / "run.yaml")]
    assert main(given) == 0
    assert (ran[0].precision, ran[0].packing, ran[0].shortest) == ("no", False, True)
    assert ran[0].texts == ["no", "a.txt"]


def test_supplied_configurations_are_whole(ran):
    for name in ("one_80gb", "eight_80gb"):
        source = "--problems" if name == "one_80gb" else "--traces"
        main(["--config", name, "--out", "o", source, "file"])
    one, eight = ran
    assert (one.teacher, one.student, one.top_k) == ("Qwen-7B", "Qwen-1.5B", None)
    assert (eight.teacher, eight.student) == ("Qwen-32B", "Qwen-7B")
    # 64 texts a step, as R1-Distill had (arXiv 2501.12948v2, appendix B.4.3).
    assert one.batch_size * one.accumulation == 64 == 8 * eight.batch_size * eight.accumulation


@pytest.mark.parametrize(
    "name, hardware, source",
    [("one_80gb", "H100-80GB", "--problems"), ("eight_80gb", "H100-80GB×8", "--traces"),
     ("one_80gb", "A100-80GB", "--problems"), ("eight_80gb", "A100-80GB×8", "--traces")],
)  # fmt: skip
def test_supplied_configurations_fit_the_hardware_they_are_for(name, hardware, source, capsys):
    assert main(["--config", name, source, "x", "--out", "o", "--plan", hardware]) == 0
    plan = capsys.readouterr().out
    assert "\nfits: " in plan and "TOO MUCH" not in plan
    assert ("FSDP2" in plan.split("\n")[1]) == (name == "eight_80gb")
    fewer = hardware.replace("×8", "×2") if "×8" in hardware else "RTX-4090"
    main(["--config", name, source, "x", "--out", "o", "--plan", fewer])
    assert "\ndoes not fit: " in capsys.readouterr().out


LARGE = ["--config", "eight_80gb", "--teacher", "Llama-70B", "--student", "Llama-8B", "--out", "run",
         "--plan", "H100-80GB×8"]  # fmt: skip


def test_a_teacher_too_large_for_a_device_does_not_write_and_fills_no_cache(capsys):
    main([*LARGE, "--problems", "p.jsonl"])
    writing = capsys.readouterr().out
    assert "\ndoes not fit: " in writing and "TOO MUCH" in re.search("sampling: .*", writing)[0]
    assert "`python -m kdlib traces --url`, then --traces" in writing
    main([*LARGE, "--traces", "t.jsonl"])
    trained = capsys.readouterr().out
    assert "\nfits: FSDP2" in trained and "traces --url" not in trained
    main([*LARGE, "--traces", "t.jsonl", "--method", "cached"])
    stored = capsys.readouterr().out
    assert "\ndoes not fit: " in stored and "TOO MUCH" in re.search("caching: .*", stored)[0]
    assert "--method logits" in stored and "traces --url" not in stored
    # Where it is the batch that does not fit, a server would need less texts at once, too.
    main(["--config", "one_80gb", "--problems", "p", "--out", "o", "--plan", "H100-80GB",
          "--sampling-batch", "4000"])  # fmt: skip
    crowded = capsys.readouterr().out
    assert "TOO MUCH" in re.search("sampling: .*", crowded)[0] and "traces --url" not in crowded


def test_a_teacher_with_packed_weights_is_never_planned_to_be_spread(capsys):
    main([*LARGE, "--traces", "t.jsonl", "--teacher-quantise", "nf4"])
    told = capsys.readouterr().out
    assert "\ndoes not fit: DDP" in told and "FSDP2 spreads weights" not in told
    main(["--config", "one_80gb", "--traces", "t", "--out", "o", "--plan", "H100-80GB",
          "--teacher-quantise", "nf4"])  # fmt: skip
    assert "\nfits: one device" in capsys.readouterr().out


def test_a_plan_on_policy_has_no_texts_of_the_teacher_and_the_reverse_divergence(capsys):
    arguments = ["--config", "one_80gb", "--problems", "p", "--out", "o", "--plan", "H100-80GB"]
    main([*arguments, "--alpha", "0", "--method", "on-policy"])
    told = capsys.readouterr().out
    assert "sampling" not in told and "and reverse divergence over" in told
    assert "what the student writes at each step is left out" in told
    main(arguments)
    told = capsys.readouterr().out
    assert "sampling: " in told and "and forward divergence over" in told


def test_a_plan_of_texts_knows_how_much_of_each_is_only_read(capsys):
    arguments = ["--student", "Qwen-1.5B", "--out", "o", "--plan", "H100-80GB", "--context", "512"]
    for more, read in (([], 1), (["--prompt-tokens", "300"], 300)):
        main([*arguments, "--texts", "book.txt", *more])
        assert f"every text fills 512 positions, {read} of them prompt" in capsys.readouterr().out
    main([*arguments, "--traces", "t"])
    assert "every text fills 512 positions, 128 of them prompt" in capsys.readouterr().out


def test_a_plan_of_folders_and_bases(tmp_path, capsys):
    stand_in("Llama-8B", tmp_path / "model")
    arguments = ["--traces", "x", "--out", "o", "--plan", "RTX-4090", "--context", "200"]
    arguments += ["--plan-texts", "30"]
    assert main(["--student", str(tmp_path / "model"), *arguments]) == 0
    here = capsys.readouterr().out
    parameters = AutoConfig.from_pretrained(tmp_path / "model")
    assert "fits: one device" in here and "12,000 tokens" in here and parameters.vocab_size < 400
    main(["--student", "Qwen/Qwen2.5-Math-7B", *arguments])
    base = capsys.readouterr().out
    main(["--student", "Qwen-7B", *arguments])
    assert capsys.readouterr().out == base
    assert main(["--student", "Qwen-7B", "--steps", "3", *arguments]) == 1
    assert "leave --steps out" in capsys.readouterr().err
    assert main(["--student", "Qwen-7B", "--lora", "8", *arguments]) == 1
    assert "leave --lora out" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([*ESSENTIAL, "--traces", "t"], "problems is p, traces is t and texts is None"),
        (["--config", "nowhere.yaml"], "there is no file nowhere.yaml, and none of that name comes with"),
        (["--config", "fsdp2"], "fsdp2 holds no options of kdlib: it is for accelerate launch"),
    ],
)
def test_mistakes_are_told_in_a_line(arguments, message, capsys, ran):
    assert main(arguments) == 1
    told = capsys.readouterr().err
    assert told.startswith("kdlib distill: ") and told.count("\n") == 1
    assert re.search(message, told)
    assert not ran


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--student", "s"], "the following arguments are required: --out"),
        ([*ESSENTIAL, "--learning-rate", "1"], "unrecognized arguments: --learning-rate 1"),
        ([*ESSENTIAL, "--packing", "maybe"], "argument --packing: expected yes or no, got 'maybe'"),
        ([*ESSENTIAL, "--training-arguments", "[1]"], r"expected a JSON object, got '\[1\]'"),
        ([*ESSENTIAL, "--method", "soft"], r"argument --method: invalid choice: 'soft' \(choose from .*text"),
    ],
)
def test_so_are_those_that_the_parser_finds(arguments, message, capsys, ran):
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    assert re.search(message, capsys.readouterr().err)
    assert not ran


def test_a_file_that_holds_no_options(tmp_path, capsys, ran):
    for text, message in (("- a\n", "holds ['a']; expected options"), ("a: [", "is no YAML")):
        (tmp_path / "run.yaml").write_text(text)
        assert main(["--config", str(tmp_path / "run.yaml")]) == 1
        assert message in capsys.readouterr().err
    assert main([*ESSENTIAL, "--config", config(tmp_path, learning_rate=1)]) == 1
    assert "holds 'learning_rate', which is no option" in capsys.readouterr().err


@pytest.mark.parametrize(
    "error, status, told",
    [(KeyboardInterrupt(), 130, "Stopped. Start the same command again to go on.\n"),
     (FloatingPointError("the loss of step 3 is nan"), 1, "kdlib distill: the loss of step 3 is nan\n"),
     (ImportError("no bitsandbytes"), 1, "kdlib distill: no bitsandbytes\n")],
)  # fmt: skip
def test_what_ends_a_run_is_told_by_the_first_process(monkeypatch, capsys, error, status, told):
    def ended(options):
        raise error

    monkeypatch.setattr(pipeline, "run_pipeline", ended)
    assert main(ESSENTIAL) == status
    assert capsys.readouterr().err == told
    if status == 1:
        monkeypatch.setenv("RANK", "1")
        assert main(ESSENTIAL) == 1 and capsys.readouterr().err == ""


def test_configurations_are_printed_to_be_changed(capsys):
    assert main(["--print-config", "fsdp2"]) == 0
    settings = yaml.safe_load(capsys.readouterr().out)
    assert settings["fsdp_config"]["fsdp_version"] == 2


# --- accelerate's configurations --------------------------------------------------------------------------


def environment_of(name, capsys, tmp_path):
    """What accelerate launch tells each process with a configuration that comes with kdlib."""
    main(["--print-config", name])
    path = tmp_path / f"{name}.yaml"
    path.write_text(capsys.readouterr().out)
    arguments = launch_command_parser().parse_args(["--config_file", str(path), "-m", "kdlib"])
    arguments, _, _ = _validate_launch_command(arguments)
    return prepare_multi_gpu_env(arguments), arguments


@pytest.mark.filterwarnings("ignore")
def test_accelerate_understands_its_configurations(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)  # else it would launch one process
    environment, arguments = environment_of("fsdp2", capsys, tmp_path)
    assert arguments.num_processes == 8 and arguments.use_fsdp
    expected = WAYS["fsdp"][1]
    assert {name: environment.get(name) for name in expected} == expected
    assert environment["ACCELERATE_MIXED_PRECISION"] == "no"
    environment, arguments = environment_of("ddp", capsys, tmp_path)
    assert arguments.num_processes == 8 and "ACCELERATE_USE_FSDP" not in environment
