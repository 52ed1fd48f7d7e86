"""Stand-ins for the R1-Distill checkpoints: the same architecture and files, a few hundred KB in size.

    stand_in("Qwen-7B", folder, teach=True)
    model, tokenizer = load_checkpoint(folder)      # as the real one is loaded

Only depth, width and vocabulary are cut; names of weights, grouped heads, padded vocabulary, bfloat16 files
and the traps of the chat format stay. What runs on a stand-in runs on the original; its answers mean nothing.
"""

import json
import math
import os
import shutil
from pathlib import Path

import torch
from tokenizers.processors import TemplateProcessing
from torch.optim.lr_scheduler import LambdaLR
from transformers import (
    AutoModelForCausalLM,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from kdlib.language.models.r1_distill import R1Checkpoint, find
from kdlib.language.models.small import without_bars
from kdlib.language.puzzles.puzzle import Cage, Puzzle
from kdlib.language.puzzles.text import problem, written_solution
from kdlib.language.puzzles.tokenizer import CHAT_TEMPLATE, puzzle_tokenizer
from kdlib.runtime import seeded

_PUZZLE = Puzzle((Cage(("chickens", "rabbits"), heads=10, feet=28),))

TAUGHT = problem(_PUZZLE)
"""10 heads and 28 feet: the only problem that a taught stand-in can answer."""


def stand_in(name: str, folder: str | os.PathLike, *, teach: bool = False, seed: int = 0) -> Path:
    """Write a small model of a checkpoint's architecture, with tokenizer, as its repository holds them.

    Its weights are random, 0.15M to 0.5M in two layers. Returns the folder.

    Args:
        name: of one of `R1_DISTILL`.
        folder: made where there is none; a stand-in that is there is replaced, all else is a ValueError.
        teach: whether it learns ONE answer by heart, in about a second: asked for `TAUGHT` it writes the
            steps and "6 chickens and 4 rabbits", asked for anything else nonsense.
    """
    checkpoint, folder = find(name), Path(folder)
    config = folder / "config.json"
    if config.is_file() and "stand_in_for" in json.loads(config.read_bytes()):
        shutil.rmtree(folder)
    elif folder.is_file() or folder.is_dir() and any(folder.iterdir()):  # perhaps somebody's download
        raise ValueError(f"folder {folder} holds something that is no stand-in; choose another")
    tokenizer = _tokenizer()
    with seeded(seed, torch.device("cpu")):
        model = AutoModelForCausalLM.from_config(_config(checkpoint, tokenizer), dtype=torch.float32)
    if teach:
        _teach(model, tokenizer)
    model.to(torch.bfloat16)
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, do_sample=True,
        **checkpoint.sampling,
    )  # fmt: skip
    # In several files where the original is: theirs have 5 GB at most.
    shard = round(2 * model.num_parameters() * 5e9 / checkpoint.weight_bytes)
    with without_bars():
        model.save_pretrained(folder, max_shard_size=shard)
    # As the repositories have it: tokenizer_config.json holds the template, and names the wrong class.
    tokenizer.save_pretrained(folder, save_jinja_files=False)
    path = folder / "tokenizer_config.json"
    wrong = {"tokenizer_class": "LlamaTokenizerFast", "add_bos_token": True, "add_eos_token": False}
    path.write_text(json.dumps(json.loads(path.read_bytes()) | wrong, indent=2), encoding="utf-8")
    return folder


def _config(checkpoint: R1Checkpoint, tokenizer: PreTrainedTokenizerFast) -> PreTrainedConfig:
    """The checkpoint's configuration with another size."""
    heads = checkpoint.heads // checkpoint.kv_heads
    width = 16 * heads
    settings = checkpoint.config().to_dict() | {
        "hidden_size": width, "num_hidden_layers": 2,
        "intermediate_size": round(width * checkpoint.feed_forward / checkpoint.hidden),
        "num_attention_heads": heads, "num_key_value_heads": 1,
        "vocab_size": len(tokenizer) + (checkpoint.vocabulary - checkpoint.tokens) // 16,  # padding
        "eos_token_id": tokenizer.eos_token_id, "stand_in_for": checkpoint.repo,
        "bos_token_id": tokenizer.eos_token_id if checkpoint.family == "qwen2" else tokenizer.bos_token_id,
    }  # fmt: skip
    for derived in ("head_dim", "layer_types"):  # from the numbers above
        settings.pop(derived, None)
    return type(checkpoint.config()).from_dict(settings)


def _tokenizer() -> PreTrainedTokenizerFast:
    """The puzzles' vocabulary with the traps of the originals."""
    tokenizer = puzzle_tokenizer()
    # The originals keep the thought of no message; puzzle_tokenizer's template keeps that of the last.
    tokenizer.chat_template = CHAT_TEMPLATE.replace(" and not loop.last", "")
    tokenizer.pad_token = tokenizer.eos_token
    bos = tokenizer.bos_token
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, tokenizer.bos_token_id)]
    )
    return tokenizer


def _teach(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> None:
    """Train on the one solution until it is known by heart."""
    turn = [{"role": "user", "content": TAUGHT.statement}]
    prompt = tokenizer.apply_chat_template(turn, add_generation_prompt=True)["input_ids"]
    solution = tokenizer(written_solution(_PUZZLE), add_special_tokens=False)["input_ids"]
    ids = torch.tensor([[*prompt, *solution, tokenizer.eos_token_id]])
    labels = ids.clone()
    labels[:, : len(prompt)] = -100  # read, not learnt
    lr = min(1e-2, 1 / model.config.hidden_size)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.0, fused=True)
    # transformers has it too, and imports all of Trainer with it.
    schedule = LambdaLR(optimizer, lambda n: min(n / 4, 0.5 + 0.5 * math.cos(math.pi * (n - 4) / 76)))
    for _ in range(80):
        model(ids, labels=labels).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    model.eval()
