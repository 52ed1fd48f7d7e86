"""Students of which adapters alone are trained, against a loop with the product written out."""

import json
import sys

import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig, PeftModel
from safetensors.torch import load_file
from small_models import llama, pairs, qwen, word_tokenizer
from torch.func import functional_call
from transformers import AutoModelForCausalLM, get_cosine_schedule_with_warmup

from kdlib.language.distill.batches import EpochOrder, tokenize
from kdlib.language.distill.distill import CHECKPOINTING, distill_language_model
from kdlib.language.distill.hidden import HiddenMatch
from kdlib.language.distill.lora import adapted, lora_config
from kdlib.language.models.load import load_checkpoint
from kdlib.language.models.prune import prune_layers

QUICK = {"lr": 1e-2, "batch_size": 4, "device": "cpu"}


def run(student, folder=None, data=None, **changed):
    settings = {"steps": 3, "lora": 4, **QUICK, **changed}
    return distill_language_model(student, word_tokenizer(), data or pairs(12), folder, **settings)


def weights(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def linear(model):
    return [n for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and n != "lm_head"]


def plain_loop(student, examples, factors, steps):
    """The same training written out: no Trainer, no peft, no padding."""
    student.requires_grad_(False)
    before = dict(student.named_parameters())
    factors = {name: [part.clone().requires_grad_() for part in pair] for name, pair in factors.items()}
    optimizer = torch.optim.AdamW([part for pair in factors.values() for part in pair], QUICK["lr"],
                                  weight_decay=0.0)  # fmt: skip
    schedule = get_cosine_schedule_with_warmup(optimizer, 1, steps)
    rows, losses = [*EpochOrder([1] * len(examples), seed=0)], []

    def now():
        return before | {f"{n}.weight": before[f"{n}.weight"] + 2 * b @ a for n, (a, b) in factors.items()}

    for step in range(steps):
        loss, count = 0.0, 0
        for row in rows[step * 4 : step * 4 + 4]:
            prompt, completion = examples[row].prompt, torch.tensor(examples[row].completion)
            ids = torch.tensor([prompt + examples[row].completion])
            logits = functional_call(student, now(), (ids,)).logits[0, len(prompt) - 1 : -1]
            loss, count = loss + F.cross_entropy(logits, completion, reduction="sum"), count + len(completion)
        optimizer.zero_grad()
        (loss / count).backward()
        torch.nn.utils.clip_grad_norm_([part for pair in factors.values() for part in pair], 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item() / count)
    return losses, {name: weight.detach() for name, weight in now().items()}


def test_training_is_that_of_a_loop_with_the_product_written_out(tmp_path):
    student, other, data = qwen().double(), qwen().double(), pairs(12)
    before = weights(student)
    with adapted(other, lora_config(4), 0, fused=False):
        factors = {
            name: [other.get_submodule(f"{name}.lora_{part}.default").weight.detach() for part in "AB"]
            for name in linear(qwen())
        }
    assert all(a.any() and not b.any() for a, b in factors.values())
    assert all(torch.equal(value, before[name]) for name, value in other.state_dict().items())
    losses, expected = plain_loop(other, tokenize(word_tokenizer(), data), factors, 3)
    history = run(student, tmp_path, data)
    assert history.loss == pytest.approx(losses, rel=1e-9)
    assert history.loss[-1] < history.loss[0]
    for name, value in student.state_dict().items():
        torch.testing.assert_close(value, expected[name], atol=1e-9, rtol=0)
        if name.removesuffix(".weight") in factors:  # what was added is of the rank that was asked for
            singular = torch.linalg.svdvals(value - before[name])
            assert singular[3] > 1e-4 and singular[4] < 1e-12
        else:
            assert torch.equal(value, before[name]), name
    # A plain model again, all of which can be trained; and a checkpoint holds the factors alone.
    assert student.state_dict().keys() == before.keys() and all(p.requires_grad for p in student.parameters())
    saved = load_file(tmp_path / "checkpoint-3/adapter_model.safetensors")
    assert {key.split(".lora_")[1] for key in saved} == {"A.weight", "B.weight"}
    assert len(saved) == 2 * len(factors)
    assert not (tmp_path / "checkpoint-3/model.safetensors").exists()


@pytest.mark.parametrize(
    "changed",
    [{"packing": True}, {"fused": True}, {CHECKPOINTING: True}, {"batch_size": 2, "accumulation": 2}],
    ids=lambda changed: next(iter(changed)),
)
def test_how_it_is_computed_changes_nothing(changed):
    found = []
    for options in ({}, changed):
        student = qwen().double()
        history = run(student, teacher=llama(1).double(), alpha=0.3, **options)
        found.append((history.loss, weights(student)))
    (loss, expected), (other, got) = found
    assert other == pytest.approx(loss, rel=1e-9)
    for name in expected:
        torch.testing.assert_close(got[name], expected[name], atol=1e-8, rtol=0)


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # peft's
def test_what_is_saved_is_a_model_as_any_other_and_a_checkpoint_is_read_beside_its_base(tmp_path):
    word_tokenizer().save_pretrained(tmp_path / "base")
    qwen().save_pretrained(tmp_path / "base")
    student, _ = load_checkpoint(tmp_path / "base", dtype="float32", device="cpu")
    run(student, tmp_path / "run", teacher=llama(1))
    for loaded in (load_checkpoint(tmp_path / "run", device="cpu")[0],
                   AutoModelForCausalLM.from_pretrained(tmp_path / "run")):  # fmt: skip
        assert all(torch.equal(value, student.state_dict()[name]) for name, value in weights(loaded).items())
    ids = torch.arange(10, 30).reshape(2, 10)
    beside = AutoModelForCausalLM.from_pretrained(tmp_path / "run/checkpoint-3")
    assert beside._hf_peft_config_loaded
    by_peft = PeftModel.from_pretrained(qwen(), tmp_path / "run/checkpoint-3").eval()
    for model in (beside, by_peft):
        torch.testing.assert_close(model(ids).logits, student(ids).logits, atol=1e-5, rtol=1e-4)
    assert prune_layers(student, keep=[0]).name_or_path == ""  # which has no such base


def test_a_finished_run_is_taken_up_and_another_rank_is_another_run(tmp_path):
    students = [qwen(), qwen()]
    histories = [run(student, tmp_path, hidden=HiddenMatch(), teacher=llama(1)) for student in students]
    assert histories[0].loss == histories[1].loss
    one, two = map(weights, students)
    assert all(torch.equal(one[name], two[name]) for name in one)
    with pytest.raises(ValueError, match="belongs to another run: lora was {.*'r': 4.* is {.*'r': 5"):
        run(qwen(), tmp_path, hidden=HiddenMatch(), teacher=llama(1), lora=5)
    record = json.loads((tmp_path / "run.json").read_text())["lora"]
    assert (record["target_modules"], record["lora_alpha"], record["lora_dropout"]) == ("all-linear", 8, 0.0)


def test_the_student_writes_with_its_adapter():
    student = qwen()
    settings = {"on_policy": True, "max_new_tokens": 4, "steps": 12, "batch_size": 8, "lr": 3e-2}
    history = run(student, teacher=llama(1), **settings)
    assert sum(history.loss[-3:]) < 0.8 * sum(history.loss[:3])


def test_adapters_of_half_precision_weights_are_in_full_precision(tmp_path):
    student = qwen().bfloat16()
    run(student, tmp_path)
    saved = load_file(tmp_path / "checkpoint-3/adapter_model.safetensors")
    assert {value.dtype for value in saved.values()} == {torch.float32}
    assert {value.dtype for value in weights(student).values()} == {torch.bfloat16}


def test_a_configuration_of_ones_own():
    torch.manual_seed(0)
    student, before = qwen(), weights(qwen())
    config = LoraConfig(r=2, target_modules=["q_proj", "lm_head"], lora_dropout=0.3, use_rslora=True)
    run(student, lora=config)
    changed = {name for name, value in weights(student).items() if not torch.equal(value, before[name])}
    assert changed == {"lm_head.weight", *(f"model.layers.{n}.self_attn.q_proj.weight" for n in (0, 1))}
    assert config.target_modules == {"q_proj", "lm_head"} and config.base_model_name_or_path is None
    with pytest.raises(ValueError, match="lora adapts the output layer, which the fused loss reads"):
        run(student, lora=config, fused=True)
    assert not student._hf_peft_config_loaded and student.state_dict().keys() == before.keys()


def test_a_run_that_fails_leaves_a_plain_model():
    student, broken = qwen(), llama(1)
    with torch.no_grad():
        broken.lm_head.weight[3] = float("nan")
    with pytest.raises(FloatingPointError):
        run(student, teacher=broken, hidden=HiddenMatch())
    assert student.state_dict().keys() == qwen().state_dict().keys() and not student.training
    assert all(parameter.requires_grad for parameter in student.parameters())


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_beside_packed_weights(tmp_path, kind):
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    word_tokenizer().save_pretrained(tmp_path / "base")
    qwen(hidden_size=64, num_attention_heads=4, num_key_value_heads=4).save_pretrained(tmp_path / "base")

    def packed():
        return load_checkpoint(tmp_path / "base", quantise=kind, device="cpu")[0]

    student, before = packed(), weights(packed())
    settings = {"steps": 8, "batch_size": 12, "lr": 3e-2}
    history = run(student, tmp_path / "run", **settings)
    assert history.loss[-1] < 0.95 * history.loss[0]  # as far as beside whole weights: 0.93
    after = weights(student)
    for name, value in before.items():
        kept = name if name in after else name.replace("_proj.", "_proj.base_layer.")
        assert torch.equal(after[kept], value), name
    resumed = packed()
    assert run(resumed, tmp_path / "run", **settings).loss == history.loss
    ids = torch.arange(10, 30).reshape(2, 10)
    torch.testing.assert_close(resumed(ids).logits, student(ids).logits)
    # The folder holds the adapter, which is read beside the weights as they were before they were packed.
    assert not (tmp_path / "run/model.safetensors").exists()
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "run")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    off, far = ((model(ids).logits - student(ids).logits).norm() for model in (loaded, base))
    assert off < 0.5 * far
    with pytest.raises(ValueError, match="student has adapters already"):
        run(student)
    with pytest.raises(ValueError, match="packed weights, which cannot be trained; load it without"):
        run(packed(), lora=None)


def test_refusals(monkeypatch):
    with monkeypatch.context() as bare:
        bare.setitem(sys.modules, "peft", None)
        with pytest.raises(ModuleNotFoundError, match=r'needs peft: python -m pip install "kdlib\[lora\]"'):
            run(qwen())
    for lora in (0, True, "16", 4.0):
        with pytest.raises(ValueError, match="lora is "):
            run(qwen(), lora=lora)
    student = qwen()
    student.hf_quantizer = object()
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "2")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="student has packed weights, which FSDP2 cannot spread"):
        run(student)
