"""Any checkpoint in one call: one of the six, a repository, or a folder.

    teacher, tokenizer = load_checkpoint("Qwen-7B")                              # bfloat16, on the GPU
    student, tokenizer = load_checkpoint("Qwen-1.5B", dtype="float32")           # to be trained
    teacher, tokenizer = load_checkpoint("Qwen-32B", quantise="nf4")             # 4 bits a weight
    teacher, tokenizer = load_checkpoint("Llama-70B", device_map="auto")         # over all GPUs there are

Only safetensors are read, and no code from a repository is run.
"""

import json
import os
import re
from contextlib import nullcontext
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import torch
from huggingface_hub import HfApi, constants, snapshot_download, try_to_load_from_cache
from safetensors import SafetensorError, safe_open
from transformers import (
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils import CONFIG_NAME, SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from kdlib.language.models.r1_distill import R1_DISTILL, R1Checkpoint, find
from kdlib.language.models.small import without_bars
from kdlib.language.models.vocabulary import align_special_tokens
from kdlib.runtime import best_device
from kdlib.storage import DamagedFile

__all__ = ["load_checkpoint"]

Quantisation = Literal["int8", "nf4"]

_DTYPES = ("bfloat16", "float16", "float32")
_FILES = ["*.safetensors", "*.json", "*.jinja"]  # no pickles, no second copies of the weights
_PATIENCE = 10.0  # seconds, for the Hub to answer
_LARGE = 1e9  # bytes that take seconds to read: from here on there is a progress bar

# What a folder without safetensors may hold instead, and what to do then.
_INSTEAD = {
    "adapter_config.json": "it holds an adapter: merge it into its base by PEFT's merge_and_unload first",
    "*.bin": "it holds pickled weights, which can run code as they are read: if you trust their origin, "
    "convert them once with AutoModelForCausalLM.from_pretrained(…).save_pretrained(…)",
    "*.gguf": "GGUF is not read here: take the repository that it was made from",
}


def load_checkpoint(
    name_or_folder: str | os.PathLike,
    *,
    dtype: torch.dtype | str = "auto",
    device: torch.device | str | None = None,
    device_map: str | dict | None = None,
    quantise: Quantisation | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A causal language model in eval mode and its tokenizer.

    Special tokens of the model are made those of the tokenizer, which pads on the left, as generation needs
    it. The tokenizer is always what tokenizer.json says; `AutoTokenizer` would build another from it.

    Args:
        name_or_folder: a folder, which goes first; a key of `R1_DISTILL`, or its repository; any repository
            of the Hugging Face Hub ("owner/name"). What the Hugging Face cache holds whole is taken from
            there without asking the network; anything else is downloaded into it, with a bar.
        dtype: of the weights. "auto" takes that of the checkpoint: bfloat16 for the six. "float32" for a
            student: `distill_language_model` trains in the dtype the weights have, and updates of a small
            learning rate are lost in bfloat16.
        device: where to; default `best_device()`. The weights are read straight to there.
        device_map: instead of a device, spread over several: "auto", or as transformers takes it.
        quantise: "int8" or "nf4" by bitsandbytes (Dettmers et al. 2022, arXiv 2208.07339, and 2023, arXiv
            2305.14314), for one and about half a byte a weight; the embeddings stay as they are. Only as a
            teacher: its weights cannot be trained.

    Raises:
        FileNotFoundError: a file of the folder is missing; or a repository is neither in the cache nor can it
            be reached, and then the message says what to download, how large it is, and where to put it.
            Without a network, or with HF_HUB_OFFLINE=1, at once; within 10 seconds if the Hub is silent.
        ValueError: an argument that does not fit; an architecture that transformers does not have; weights
            that are not all of the model's.
        DamagedFile: a ValueError; a file that is cut off or no longer readable.
        ImportError: `quantise` without bitsandbytes.
    """
    if dtype not in ("auto", *_DTYPES, *(getattr(torch, name) for name in _DTYPES)):
        raise ValueError(f'dtype must be "auto", {", ".join(map(repr, _DTYPES))}; got {dtype!r}')
    if device is not None and device_map is not None:
        raise ValueError(f"device is {device} and device_map is {device_map!r}; expected at most one of them")
    quantisation = _quantisation(quantise)
    folder = _folder(name_or_folder)
    _check_files(folder)
    tokenizer = _tokenizer(folder)
    size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    with nullcontext() if size > _LARGE else without_bars():
        model, report = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=dtype,
            device_map=device_map or {"": torch.device(device) if device is not None else best_device()},
            quantization_config=quantisation,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            ignore_mismatched_sizes=True,  # so that they are told below
            output_loading_info=True,
        )
    # transformers makes up at random what the files do not hold, with no more than a warning.
    missing, other = sorted(report["missing_keys"]), sorted(map(str, report["mismatched_keys"]))
    if missing or other:
        what = f"lacks {missing[0]}" if missing else f"has another shape of {other[0]}"
        raise ValueError(
            f"{folder} {what} ({len(missing)} weights missing, {len(other)} of another shape) of a "
            f"{type(model).__name__} as its config.json describes it; expected all weights"
        )
    # A config.json that names the end as padding would keep that token's embedding from being trained.
    model.get_input_embeddings().padding_idx = None
    align_special_tokens(model, tokenizer)
    if quantisation is not None:
        model.requires_grad_(False)
    return model.eval(), tokenizer


def _quantisation(quantise: str | None) -> BitsAndBytesConfig | None:
    if quantise is None:
        return None
    if quantise not in ("int8", "nf4"):
        raise ValueError(f'quantise must be "int8", "nf4" or None; got {quantise!r}')
    if find_spec("bitsandbytes") is None:
        raise ImportError(f"quantise={quantise!r} needs bitsandbytes: pip install bitsandbytes")
    four = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": torch.bfloat16}
    return BitsAndBytesConfig(**four if quantise == "nf4" else {"load_in_8bit": True})


def _folder(name_or_folder: str | os.PathLike) -> Path:
    """The folder of that name, or the one in the Hugging Face cache, downloaded if need be."""
    folder, name = Path(name_or_folder).expanduser(), os.fspath(name_or_folder)
    if folder.is_dir():
        return folder
    try:
        checkpoint = find(name)
    except ValueError:
        checkpoint = None
    repo = checkpoint.repo if checkpoint else name
    if not re.fullmatch(r"\w[\w.-]*/[\w.-]+", repo):
        raise FileNotFoundError(
            f"name_or_folder is {name!r}, where there is no folder; expected one, a repository (owner/name), "
            f"or one of {', '.join(R1_DISTILL)}"
        )
    config = try_to_load_from_cache(repo, CONFIG_NAME)
    if isinstance(config, str) and not _missing_files(Path(config).parent):
        return Path(config).parent
    return _downloaded(repo, checkpoint)


def _downloaded(repo: str, checkpoint: R1Checkpoint | None) -> Path:
    try:
        # Unlike this, snapshot_download has no timeout: it would wait for ever for a server that is silent.
        HfApi().model_info(repo, timeout=_PATIENCE)
        return Path(snapshot_download(repo, allow_patterns=_FILES))
    except Exception as error:  # of several libraries: no network, no such repository, no answer, no space
        reason, cause = f"{type(error).__name__}: {' '.join(str(error).split())}", error
    if constants.HF_HUB_OFFLINE:
        reason = "HF_HUB_OFFLINE is set, which keeps it from asking"
    short = repo.partition("/")[2]
    size = f" ({checkpoint.weight_bytes / 1e9:.1f} GB)" if checkpoint else ""
    raise FileNotFoundError(
        f"{repo} is not, or not whole, in the Hugging Face cache ({constants.HF_HUB_CACHE}) and cannot be "
        f"fetched: {reason}. Where there is a network, run `hf download {repo} --local-dir {short}`{size}, "
        f"copy the folder here and give its path: load_checkpoint({f'path/to/{short}'!r})"
    ) from cause


def _weight_files(folder: Path) -> list[str]:
    """Names of the files that should hold the weights."""
    index = folder / SAFE_WEIGHTS_INDEX_NAME
    if (folder / SAFE_WEIGHTS_NAME).exists() or not index.exists():
        return [SAFE_WEIGHTS_NAME]
    try:
        return sorted(set(json.loads(index.read_bytes())["weight_map"].values()))
    except (ValueError, LookupError, TypeError) as error:
        raise DamagedFile(f"{index} cannot be read ({error}); copy it anew") from error


def _missing_files(folder: Path) -> list[str]:
    names = [CONFIG_NAME, "tokenizer.json", *_weight_files(folder)]
    return [name for name in names if not (folder / name).exists()]


def _check_files(folder: Path) -> None:
    """Refuse what cannot be loaded before anything large is read."""
    if missing := _missing_files(folder):
        hints = [hint for pattern, hint in _INSTEAD.items() if any(folder.glob(pattern))]
        raise FileNotFoundError(
            f"{folder} lacks {', '.join(missing)}; "
            f"{hints[0] if hints else 'expected a folder as save_pretrained or `hf download` leaves it'}"
        )
    kind = PreTrainedConfig.get_config_dict(folder)[0].get("model_type")
    if kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise ValueError(
            f"{folder} has model_type {kind!r}; expected a causal language model of transformers, such as "
            "qwen2 or llama (a newer release may know it; code that comes with a checkpoint is not run)"
        )
    for name in _weight_files(folder):
        try:
            with safe_open(folder / name, "pt"):  # compares the header with the size of the file
                pass
        except SafetensorError as error:
            raise DamagedFile(
                f"{folder / name} is cut off or damaged ({error}); copy it anew, or download it with hf "
                "download --force-download"
            ) from error


def _tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    # AutoTokenizer would build a LlamaTokenizer, which loses the blanks of R1-Distill's texts:
    # https://github.com/huggingface/transformers/issues/45488
    try:
        return PreTrainedTokenizerFast.from_pretrained(
            folder, local_files_only=True, padding_side="left", trust_remote_code=False
        )
    except Exception as error:  # tokenizers raises nothing more special
        raise DamagedFile(f"the tokenizer in {folder} cannot be read ({error}); copy it anew") from error
