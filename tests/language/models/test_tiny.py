"""Stand-ins: like the originals but for their size; and, on each, the whole path from files to a student."""

import json
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from small_models import R1_TEMPLATE

from kdlib.language.answers.final_answer import verify_answer
from kdlib.language.distill.distill import distill_language_model
from kdlib.language.models.load import load_checkpoint
from kdlib.language.models.r1_distill import R1_DISTILL
from kdlib.language.models.tiny import TAUGHT, stand_in
from kdlib.language.models.vocabulary import check_same_tokens, logit_width
from kdlib.language.puzzles.puzzle import Cage, Puzzle
from kdlib.language.puzzles.text import problem
from kdlib.language.traces.collect import collect_traces
from kdlib.storage import fingerprint

six = pytest.mark.parametrize("name", R1_DISTILL)


@pytest.fixture(scope="module")
def untaught(tmp_path_factory):
    """The folder of a stand-in of this name, made when it is first asked for."""
    folder = tmp_path_factory.mktemp("untaught")
    return cache(lambda name: stand_in(name, folder / name))


def smallest_of_the_family(name: str) -> str:
    return "Qwen-1.5B" if name.startswith("Qwen") else "Llama-8B"


def settings_of(folder: Path) -> dict:
    return json.loads((folder / "config.json").read_bytes())


# --- likeness -----------------------------------------------------------------------------------------------


@six
def test_all_settings_but_the_size_are_those_of_the_original(untaught, name):
    checkpoint = R1_DISTILL[name]
    model, tokenizer = load_checkpoint(untaught(name), device="cpu")
    original = checkpoint.config().to_dict()
    config = type(checkpoint.config()).from_pretrained(untaught(name))
    ours = config.to_dict()
    differing = {key for key in ours.keys() | original.keys() if ours.get(key) != original.get(key)}
    size = {"hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
            "num_key_value_heads", "vocab_size", "bos_token_id", "eos_token_id", "stand_in_for"}  # fmt: skip
    derived = {"layer_types"} if checkpoint.family == "qwen2" else {"head_dim"}
    assert size | derived == differing - {"transformers_version", "_name_or_path"}
    assert ours["stand_in_for"] == checkpoint.repo
    # Token ids differ; which token is named does not.
    assert ours["eos_token_id"] == tokenizer.eos_token_id
    assert (ours["bos_token_id"] == ours["eos_token_id"]) == (checkpoint.family == "qwen2")
    assert model.config.rope_parameters == checkpoint.config().rope_parameters
    assert config.num_attention_heads / config.num_key_value_heads == checkpoint.heads / checkpoint.kv_heads
    assert config.hidden_size == 16 * config.num_attention_heads
    ratio = checkpoint.feed_forward / checkpoint.hidden
    assert config.intermediate_size == pytest.approx(ratio * config.hidden_size, abs=0.5)


@six
def test_weights_have_the_names_of_the_original_in_bfloat16(untaught, name):
    def kept(weight: str) -> bool:
        return not weight.startswith("model.layers.") or int(weight.split(".")[2]) < 2

    original = set(filter(kept, R1_DISTILL[name].on_meta().state_dict()))
    stored = {}
    for path in untaught(name).glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            stored |= {n: file.get_tensor(n).dtype for n in file.keys()}  # noqa: SIM118
    assert stored.keys() == original and set(stored.values()) == {torch.bfloat16}


def test_files_are_divided_as_the_originals_are(untaught):
    files = {name: len(list(untaught(name).glob("*.safetensors"))) for name in R1_DISTILL}
    assert files["Qwen-1.5B"] == 1 and not (untaught("Qwen-1.5B") / "model.safetensors.index.json").exists()
    assert all(
        number > 1 and (untaught(name) / "model.safetensors.index.json").exists()
        for name, number in files.items() if name != "Qwen-1.5B"
    )  # fmt: skip


def test_vocabularies_are_padded_to_different_sizes(untaught):
    tokens, widths = set(), {}
    for name in R1_DISTILL:
        model, tokenizer = load_checkpoint(untaught(name), device="cpu")
        tokens.add(check_same_tokens(tokenizer, None))
        widths[name] = logit_width(model)
    (tokens,) = tokens
    assert tokens < widths["Qwen-1.5B"] < widths["Qwen-7B"] == widths["Qwen-14B"] == widths["Qwen-32B"]
    assert widths["Llama-8B"] == widths["Llama-70B"] == tokens


def test_generation_settings_are_those_recommended(untaught):
    settings = json.loads((untaught("Qwen-7B") / "generation_config.json").read_bytes())
    _, tokenizer = load_checkpoint(untaught("Qwen-7B"), device="cpu")
    assert settings["do_sample"] is True
    assert (settings["temperature"], settings["top_p"]) == (0.6, 0.95)
    assert (settings["bos_token_id"], settings["eos_token_id"]) == (
        tokenizer.bos_token_id, tokenizer.eos_token_id
    )  # fmt: skip


# --- the traps of the format --------------------------------------------------------------------------------


@pytest.fixture
def tokenizer(untaught):
    return load_checkpoint(untaught("Qwen-1.5B"), device="cpu")[1]


CONVERSATIONS = [
    [("user", " heads?")],
    [("system", " A cage"), ("user", " heads?")],
    [("user", " heads?"), ("assistant", "Suppose all\n</think>\n\nAnswer: 4"), ("user", " feet?")],
    [("user", " heads?"), ("assistant", "<think>\nSuppose all\n</think>\n\nAnswer: 4")],
    [("user", " heads?"), ("assistant", "Answer: 4"), ("user", " feet?"), ("assistant", " 8\n</think> 9")],
]


@pytest.mark.parametrize(("prompt", "turns"), [(n % 2 == 0, turns) for n, turns in enumerate(CONVERSATIONS)])
def test_the_template_renders_what_deepseeks_does(tokenizer, turns, prompt):
    messages = [{"role": role, "content": content} for role, content in turns]
    ours, theirs = (
        tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=prompt, chat_template=template
        )
        for template in (None, R1_TEMPLATE)
    )
    assert ours == theirs
    assert ours.endswith("<think>\n") == prompt
    assert "Suppose" not in ours  # thoughts are dropped, of the last message too


def test_a_rendered_prompt_gets_a_second_beginning(tokenizer):
    turn = [{"role": "user", "content": TAUGHT.statement}]
    rendered = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
    bos = tokenizer.bos_token_id
    assert tokenizer(rendered)["input_ids"].count(bos) == 2
    right = tokenizer(rendered, add_special_tokens=False)["input_ids"]
    assert right.count(bos) == 1 and right[0] == bos
    assert tokenizer.apply_chat_template(turn, add_generation_prompt=True)["input_ids"] == right


def test_padding_is_the_end(tokenizer):
    assert tokenizer.pad_token == tokenizer.eos_token


# --- what is taught -----------------------------------------------------------------------------------------


def test_untaught_it_knows_nothing_and_the_seed_makes_it(tmp_path):
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    models = [
        load_checkpoint(stand_in("Llama-8B", tmp_path / f"{number}", seed=seed), device="cpu")
        for number, seed in enumerate((1, 1, 2))
    ]
    assert torch.rand(1) == expected
    first, again, other = (fingerprint(model) for model, _ in models)
    assert first == again != other
    model, tokenizer = models[0]
    (trace,) = collect_traces(model, tokenizer, [TAUGHT], samples=1, temperature=0, max_new_tokens=60)
    assert not trace.correct


# --- the whole path -----------------------------------------------------------------------------------------


@six
def test_from_files_to_a_student_of_its_family(name, tmp_path):
    checkpoint = R1_DISTILL[name]
    folder = stand_in(name, tmp_path / "taught", teach=True)
    teacher, teacher_tokenizer = load_checkpoint(folder, device="cpu")

    prompt = teacher_tokenizer.apply_chat_template(
        [{"role": "user", "content": TAUGHT.statement}], tokenize=False, add_generation_prompt=True
    )
    assert prompt.endswith("<｜Assistant｜><think>\n")
    assert prompt.count("<think>") == prompt.count(teacher_tokenizer.bos_token) == 1

    # It knows this answer, and no other.
    others = [problem(Puzzle((Cage(("chickens", "rabbits"), heads, 32),))) for heads in (10, 12)]
    greedy, *wrong = collect_traces(
        teacher, teacher_tokenizer, [TAUGHT, *others], samples=1, temperature=0, max_new_tokens=80
    )
    assert greedy.finished and greedy.well_formed and greedy.correct
    assert not any(trace.correct for trace in wrong)
    assert "8 ÷ 2 = 4 rabbits" in greedy.text and verify_answer(greedy.text, "6 chickens and 4 rabbits")

    student_name = smallest_of_the_family(name)
    folder = stand_in(student_name, tmp_path / "untaught", seed=7)
    student, tokenizer = load_checkpoint(folder, dtype="float32", device="cpu")
    assert student.dtype == torch.float32 and type(student) is type(teacher)
    wider = logit_width(teacher) - logit_width(student)
    assert wider == (0 if student_name == name or checkpoint.family == "llama" else 8)
    before = fingerprint(teacher)
    history = distill_language_model(
        student, tokenizer, [greedy], tmp_path / "student", teacher=teacher, alpha=0.5,
        teacher_tokenizer=teacher_tokenizer, steps=8, lr=5e-3, batch_size=1, save_steps=8, device="cpu",
    )  # fmt: skip
    assert fingerprint(teacher) == before
    assert history.soft[-1] < 0.8 * history.soft[0] and history.hard[-1] < 0.8 * history.hard[0]

    loaded, read = load_checkpoint(tmp_path / "student", device="cpu")
    assert fingerprint(loaded) == fingerprint(student) and loaded.dtype == torch.float32
    assert read.get_vocab() == tokenizer.get_vocab() and read.chat_template == tokenizer.chat_template
    assert read(prompt)["input_ids"] == tokenizer(prompt)["input_ids"]


# --- folders ------------------------------------------------------------------------------------------------


def test_it_replaces_stand_ins_and_nothing_else(tmp_path):
    folder = tmp_path / "deep" / "folder"
    stand_in("Qwen-7B", folder)
    assert len(list(folder.glob("*.safetensors"))) > 1
    stand_in("Qwen-1.5B", folder)
    assert settings_of(folder)["stand_in_for"] == R1_DISTILL["Qwen-1.5B"].repo
    assert [path.name for path in folder.glob("*.safetensors*")] == ["model.safetensors"]
    assert [path.name for path in folder.parent.iterdir()] == ["folder"]

    config = settings_of(folder)
    del config["stand_in_for"]
    (folder / "config.json").write_text(json.dumps(config))
    kept = {path.name: path.read_bytes() for path in folder.iterdir()}
    for attempt in (folder, tmp_path / "deep"):
        with pytest.raises(ValueError, match="holds something that is no stand-in; choose another"):
            stand_in("Llama-8B", attempt)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == kept
    (tmp_path / "a file").write_text("{}")
    with pytest.raises(ValueError, match="holds something that is no stand-in"):
        stand_in("Llama-8B", tmp_path / "a file")
    (tmp_path / "empty").mkdir()
    assert (stand_in("Llama-8B", tmp_path / "empty") / "config.json").exists()
