"""Stand-ins for the R1-Distill checkpoints: the same architecture and files, a few hundred KB in size.

    stand_in("Qwen-7B", folder, teach=True)
    model, tokenizer = load_checkpoint(folder)      # as the real one is loaded

What holds of the originals holds of them: layers and their names, grouped heads, two embeddings, padding of
the vocabulary, rotary embedding, chat format with its traps, bfloat16 in safetensors. Only depth, width and
vocabulary are cut. So what runs on a stand-in runs on the original; what it answers says nothing about it.
"""

import json
import os
import tempfile
from pathlib import Path

import torch
from tokenizers.processors import TemplateProcessing
from transformers import (
    AutoModelForCausalLM,
    GenerationConfig,
    LlamaConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
)

from kdlib.language.distill.batches import collate, tokenize
from kdlib.language.distill.distill import distill_language_model
from kdlib.language.models.r1_distill import Checkpoint, find
from kdlib.language.models.small import without_bars
from kdlib.language.puzzles.puzzle import Cage, Puzzle
from kdlib.language.puzzles.text import problem, written_solution
from kdlib.language.puzzles.tokenizer import CHAT_TEMPLATE, puzzle_tokenizer
from kdlib.runtime import seeded

__all__ = ["TAUGHT", "stand_in"]

_PUZZLE = Puzzle((Cage(("chickens", "rabbits"), heads=10, feet=28),))

TAUGHT = problem(_PUZZLE)
"""10 heads and 28 feet: the only problem that a taught stand-in can answer."""

# The originals keep an answer's thought in no message; puzzle_tokenizer's template keeps that of the last.
_TEMPLATE = CHAT_TEMPLATE.replace(" and not loop.last", "")

_PADDING = 16  # the originals' vocabulary has this many times more padding
_SHARD = 5e9  # bytes of a file of the originals at most, in proportion to which a stand-in is divided
_STEPS, _ROUNDS = 80, 5  # one round is enough at the default sizes
_SURE = 0.8  # least probability of a token it knows: no other rounding of the logits makes it another


def stand_in(
    checkpoint: Checkpoint | str,
    folder: str | os.PathLike,
    *,
    head_dim: int = 16,
    kv_heads: int = 1,
    layers: int = 2,
    teach: bool = False,
    seed: int = 0,
    max_shard_size: int | str | None = None,
) -> Path:
    """Write a small model of a checkpoint's architecture, with tokenizer, as its repository holds them.

    Its weights are random. With `teach` it has learnt ONE answer by heart, that to `TAUGHT`: asked for 10
    heads and 28 feet it writes the steps and "6 chickens and 4 rabbits"; anything else it is asked makes it
    write nonsense. It shows that the path from file to verified answer works, not that it can reason.

    The width is head_dim · heads, and there are as many heads to one of keys and values as in the original;
    the feed-forward layer has the original's ratio to it. Between 0.15M and 0.5M parameters.

    Args:
        checkpoint: one of `R1_DISTILL`, or its name.
        folder: made where there is none; a stand-in that is there is replaced.
        head_dim: size of a head, even (the originals' is 128). kv_heads: heads of keys and values.
        layers: transformer blocks.
        teach: whether it learns the answer; takes about a second of one CPU core.
        seed: of the weights.
        max_shard_size: of a safetensors file, as `save_pretrained` takes it; by default in proportion to 5 GB
            of the original, which leaves Qwen-1.5B in one file and the others in several with an index.

    Returns:
        The folder, for `load_checkpoint`, `from_pretrained`, `vllm serve` or `transformers serve`. Its
        config.json names the original as `stand_in_for`.

    Raises:
        ValueError: no such checkpoint, a size that does not fit, or a folder that holds something else.
        RuntimeError: the model is too small to learn the answer.
    """
    if isinstance(checkpoint, str):
        checkpoint = find(checkpoint)
    for name, value in (("head_dim", head_dim), ("kv_heads", kv_heads), ("layers", layers)):
        if not isinstance(value, int) or value < 1 or name == "head_dim" and value % 2:
            kind = "positive even" if name == "head_dim" else "positive"
            raise ValueError(f"{name} must be a {kind} whole number; got {value!r}")
    folder = Path(folder)
    _check_free(folder)
    tokenizer = _tokenizer()
    config = _config(checkpoint, tokenizer, head_dim, kv_heads, layers)
    with seeded(seed, torch.device("cpu")):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model = _taught(model, tokenizer, seed) if teach else model.to(torch.bfloat16)
    # Learning named the right one; the trap of the originals (`checkpoints.TRAPS`) is part of the likeness.
    model.config.bos_token_id = config.eos_token_id if checkpoint.config_bos == checkpoint.eos else (
        tokenizer.bos_token_id
    )
    model.config.pad_token_id = None
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, do_sample=True,
        **checkpoint.sampling,
    )  # fmt: skip
    size = 2 * model.num_parameters()
    _save(model, tokenizer, folder, max_shard_size or round(size * _SHARD / checkpoint.weight_bytes))
    return folder


def _config(
    checkpoint: Checkpoint, tokenizer: PreTrainedTokenizerFast, head_dim: int, kv_heads: int, layers: int
) -> Qwen2Config | LlamaConfig:
    """The checkpoint's configuration with another size."""
    heads = kv_heads * (checkpoint.heads // checkpoint.kv_heads)
    width = head_dim * heads
    settings = checkpoint.config().to_dict() | {
        "hidden_size": width,
        "intermediate_size": round(width * checkpoint.feed_forward / checkpoint.hidden),
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": len(tokenizer) + (checkpoint.vocabulary - checkpoint.tokens) // _PADDING,
        "eos_token_id": tokenizer.eos_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "stand_in_for": checkpoint.repo,
    }
    for derived in ("head_dim", "layer_types"):  # from the numbers above
        settings.pop(derived, None)
    return type(checkpoint.config()).from_dict(settings)


def _tokenizer() -> PreTrainedTokenizerFast:
    """The puzzles' vocabulary with the manners of the originals: see `checkpoints.TRAPS`."""
    tokenizer = puzzle_tokenizer()
    tokenizer.chat_template = _TEMPLATE
    tokenizer.pad_token = tokenizer.eos_token
    bos = tokenizer.bos_token
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, tokenizer.bos_token_id)]
    )
    return tokenizer


def _taught(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, seed: int
) -> PreTrainedModel:
    """In bfloat16, once it is sure of the solution in that precision."""
    solution = [(TAUGHT.statement, written_solution(_PUZZLE))]
    batch = collate(tokenize(tokenizer, solution), tokenizer.pad_token_id)
    lr = min(1e-2, 1 / model.config.hidden_size)
    for _ in range(_ROUNDS):
        distill_language_model(
            model, tokenizer, solution, steps=_STEPS, lr=lr, batch_size=1, seed=seed, device="cpu"
        )
        rounded = AutoModelForCausalLM.from_config(model.config, dtype=torch.bfloat16).eval()
        rounded.load_state_dict(model.state_dict())
        with torch.no_grad():
            logits = rounded(batch["input_ids"], logits_to_keep=batch["kept"]).logits.flatten(0, 1)
        right = logits[batch["places"]].float().softmax(-1).gather(1, batch["targets"][:, None])
        if right.min() > _SURE:
            return rounded
    raise RuntimeError(
        f"a model of {model.num_parameters():,} parameters did not learn the answer in {_ROUNDS * _STEPS} "
        "steps; take the default sizes"
    )


def _check_free(folder: Path) -> None:
    """Refuse to write over anything but a stand-in: it might be gigabytes of somebody's download."""
    if not folder.exists() or folder.is_dir() and not any(folder.iterdir()):
        return
    try:
        is_one = "stand_in_for" in json.loads((folder / "config.json").read_bytes())
    except (OSError, ValueError, TypeError):
        is_one = False
    if not is_one:
        raise ValueError(f"folder {folder} holds something that is no stand-in; choose another")


def _save(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, folder: Path, max_shard_size: int | str
) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".stand-in-") as place:
        new = Path(place) / "new"
        with without_bars():
            model.save_pretrained(new, max_shard_size=max_shard_size)
        # As the repositories have it: the template inside tokenizer_config.json, which names a class that the
        # tokenizer is not of.
        tokenizer.save_pretrained(new, save_jinja_files=False)
        settings = new / "tokenizer_config.json"
        named = json.loads(settings.read_bytes()) | {
            "tokenizer_class": "LlamaTokenizerFast", "add_bos_token": True, "add_eos_token": False
        }  # fmt: skip
        settings.write_text(json.dumps(named, indent=2, ensure_ascii=False), encoding="utf-8")
        if folder.exists():
            folder.rename(Path(place) / "old")
        new.rename(folder)
