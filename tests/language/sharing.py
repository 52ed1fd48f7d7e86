"""python tests/language/sharing.py FOLDER: the same training by one process, and by two that share it.

The two have the environment that torchrun sets, and for FSDP2 that of accelerate launch. For each way of
`WAYS` FOLDER/NAME.safetensors holds the gradient of every step as the optimizer got it, and the weights;
NAME_resumed those of a run that took up the checkpoint of step SAVED. The first process writes them.
FOLDER/command is where the command `distill` has run, with one process and with two.
"""

import gc
import json
import os
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import asdict
from pathlib import Path
from shutil import copytree, rmtree

import torch
import torch._dynamo  # the optimizer imports it at its first step: once, not in each fork  # noqa: F401
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType
from small_models import llama, pairs, qwen, word_tokenizer
from torch.distributed.tensor import DTensor
from torch.optim.optimizer import register_optimizer_step_pre_hook

import kdlib.language.pipeline  # noqa: F401
from kdlib.__main__ import main as kdlib_command
from kdlib.language.distill.distill import distill_language_model
from kdlib.language.distill.fsdp import gather_output_layer, is_sharded
from kdlib.language.distill.hidden import HiddenMatch
from kdlib.language.models.tiny import TAUGHT, stand_in
from kdlib.language.puzzles.puzzle import Cage, Puzzle
from kdlib.language.puzzles.text import problem
from kdlib.storage import save_tensors

sys.path.append(str(Path(__file__).parents[1] / "processes"))
from forks import group  # noqa: E402

FSDP = {
    "ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_RESHARD_AFTER_FORWARD": "true", "FSDP_CPU_RAM_EFFICIENT_LOADING": "false",
}  # fmt: skip
WAYS = {
    "one": (1, {}),
    "ddp": (2, {}),
    "fsdp": (2, FSDP | {"FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT"}),
    "fsdp_in_parts": (2, FSDP | {
        "FSDP_STATE_DICT_TYPE": "SHARDED_STATE_DICT", "FSDP_CPU_RAM_EFFICIENT_LOADING": "true",
        "FSDP_RESHARD_AFTER_FORWARD": "false",
    }),
}  # fmt: skip
STEPS, SAVED = 6, 3  # two steps are an epoch
# Not clipped, so that the gradient keeps its length.
BF16 = {"precision": "bf16", "fused": True, "alpha": 0.3, "steps": 2, "max_grad_norm": 1e9}


def whole(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def shard_on_cpus() -> None:
    """Accelerate shards over accelerators only; on CPUs, with gloo, the same code runs."""
    original = AcceleratorState.__init__

    def initialised(state, *args, fsdp_plugin=None, **options) -> None:
        original(state, *args, fsdp_plugin=fsdp_plugin, **options)
        if fsdp_plugin is not None:
            state.fsdp_plugin, state.distributed_type = fsdp_plugin, DistributedType.FSDP
            PartialState._shared_state["distributed_type"] = DistributedType.FSDP
            if state._mixed_precision != "no":
                fsdp_plugin.set_mixed_precision(state._mixed_precision)

    AcceleratorState.__init__ = initialised


def train(folder: Path, name: str, **changed) -> None:
    """Sixteen examples a step, thirty-two in all; the learning rate is high enough to tell runs apart."""
    dtype = torch.float32 if "precision" in changed else torch.float64
    student, teacher, gradients = llama().to(dtype), qwen(1).to(dtype), []

    def note(optimizer, *_):
        # In the model's order: an optimizer whose sharded state was loaded has another.
        gradient = torch.cat([whole(p.grad).flatten() for p in student.parameters() if p.requires_grad])
        # PyTorch takes an empty step before it loads a sharded state.
        if gradient.any():
            gradients.append(gradient)

    processes = int(os.environ.get("WORLD_SIZE", "1"))
    handle = register_optimizer_step_pre_hook(note)
    settings = {
        "teacher": teacher, "steps": STEPS, "lr": 3e-3, "batch_size": 8 // processes, "accumulation": 2,
        "save_steps": SAVED, "device": "cpu", "packing": True, "max_grad_norm": 0.5, **changed,
    }  # fmt: skip
    try:
        history = distill_language_model(
            student, word_tokenizer(), pairs(32), folder / f"run_{name}", **settings
        )
    finally:
        handle.remove()
    sharded = [is_sharded(model) for model in (student, teacher)]
    layers = [any(map(is_sharded, model.model.layers)) for model in (student, teacher)]
    split = []
    if all(sharded):
        layer = teacher.lm_head
        for owner in filter(is_sharded, (teacher, layer)):
            owner.reshard()
        split.append(isinstance(layer.weight, DTensor))
        gather_output_layer(teacher)
        split.append(isinstance(layer.weight, DTensor))
    weights = {f"weights/{key}": whole(value) for key, value in student.state_dict().items()}
    tensors = weights | {f"gradient/{step:02}": gradient for step, gradient in enumerate(gradients)}
    if os.environ.get("RANK", "0") == "0":
        facts = {"history": asdict(history), "sharded": sharded, "layers": layers, "split": split}
        save_tensors(folder / f"{name}.safetensors", tensors, facts)
    if processes > 1:
        torch.distributed.barrier()


def work(folder: Path, name: str) -> None:
    os.environ |= WAYS[name][1]
    train(folder, name)
    if os.environ.get("RANK", "0") == "0":
        # As if it had been killed after its first checkpoint.
        copytree(folder / f"run_{name}", folder / f"run_{name}_resumed")
        rmtree(folder / f"run_{name}_resumed" / f"checkpoint-{STEPS}")
    if WAYS[name][0] > 1:
        torch.distributed.barrier()
    train(folder, f"{name}_resumed")
    if name in ("one", "fsdp"):
        train(folder, f"{name}_top", top_k=5, alpha=0.0, steps=2)
    train(folder, f"{name}_fused", fused=True, alpha=0.3, divergence="jsd", steps=2)
    if name in ("one", "fsdp"):
        train(folder, f"{name}_bf16", **BF16)
    if name != "fsdp_in_parts":
        adapted = {"lora": 4, "hidden": HiddenMatch({0: 0, 2: 1}), "fused": True, "steps": 2, "save_steps": 1}
        train(folder, f"{name}_adapted", **adapted)
        if os.environ.get("RANK", "0") == "0":
            copytree(folder / f"run_{name}_adapted", folder / f"run_{name}_adapted_resumed")
            rmtree(folder / f"run_{name}_adapted_resumed" / "checkpoint-2")
        if WAYS[name][0] > 1:
            torch.distributed.barrier()
        train(folder, f"{name}_adapted_resumed", **adapted)
    if name == "fsdp":
        train(folder, "fsdp_on_policy", on_policy=True, max_new_tokens=7, steps=2)


def command(folder: Path, name: str) -> None:
    """`python -m kdlib distill`, by one process or by two that shard; what it prints goes into a file."""
    processes, environment = WAYS[name]
    os.environ |= environment
    arguments = [
        "--student", "student", "--teacher", "teacher", "--problems", "problems.jsonl", "--test",
        "test.jsonl", "--out", name, "--method", "logits", "--max-new-tokens", "60", "--samples", "1",
        "--accumulation", "1", "--sampling-temperature", "0", "--steps", str(STEPS), "--lr", "1e-2",
        "--batch-size", str(2 // processes), "--unverified",
    ]  # fmt: skip
    os.chdir(folder)
    told = Path(f"{name}_{os.environ.get('RANK', '0')}.txt")
    with open(told, "w") as file, redirect_stdout(file), redirect_stderr(file):
        code = kdlib_command(["distill", *arguments])
    if code:
        raise SystemExit(told.read_text())


def stand_ins(folder: Path) -> None:
    stand_in("Llama-70B", folder / "teacher", teach=True)
    stand_in("Llama-8B", folder / "student", seed=1)
    asked = {
        "problems": [TAUGHT, *(problem(Puzzle((Cage(("ants", "crabs"), 9, n),))) for n in (58, 62, 66))],
        "test": [problem(Puzzle((Cage(("ants", "spiders"), 8, n),))) for n in (50, 56)],
    }
    for name, part in asked.items():
        rows = [{"key": p.key, "statement": p.statement, "answer": p.answer} for p in part]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.set_num_interop_threads(1)
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # as torchrun does
    here = Path(sys.argv[1])
    shard_on_cpus()
    gc.freeze()  # Trainer collects garbage as it begins, mostly among modules imported long ago
    for name, (processes, _) in WAYS.items():
        group(processes, lambda rank, name=name: work(here, name))
    (here / "command").mkdir()
    group(1, lambda rank: stand_ins(here / "command"))  # this process computes nothing, or forks would hang
    for name in ("one", "fsdp"):
        group(WAYS[name][0], lambda rank, name=name: command(here / "command", name))
    os._exit(0)  # libraries complain of objects that are frozen as they are taken down
