"""Any checkpoint in one call: one of the six, a repository, or a folder.

    teacher, tokenizer = load_checkpoint("Qwen-7B")                              # bfloat16, on the GPU
    student, tokenizer = load_checkpoint("Qwen-1.5B", dtype="float32")           # to be trained
    teacher, tokenizer = load_checkpoint("Qwen-32B", quantise="nf4")             # 4 bits a weight
    teacher, tokenizer = load_checkpoint("Llama-70B", device="auto")             # over all GPUs there are

Only safetensors are read, and no code from a repository is run.
"""

import json
import os
import re
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Literal

import torch
from huggingface_hub import HfApi, constants, snapshot_download, try_to_load_from_cache
from safetensors import SafetensorError, safe_open
from transformers import (
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)
from transformers.utils import CONFIG_NAME, SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from kdlib.language.models.r1_distill import R1_DISTILL, find
from kdlib.language.models.small import without_bars
from kdlib.language.models.vocabulary import align_special_tokens
from kdlib.runtime import best_device
from kdlib.storage import DamagedFile

_DTYPES = ("auto", "bfloat16", "float16", "float32")
_QUANTISATIONS = {
    "int8": {"load_in_8bit": True},
    "nf4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": torch.bfloat16},
}
_FILES = ["*.safetensors", "*.json", "*.jinja"]  # no pickles, no second copies of the weights
# What unpacking needs, of GPTQ and AWQ, of bitsandbytes, of fp8 and compressed-tensors, of mxfp4.
_PACKED = re.compile(
    r"[._](qweight|qzeros|g_idx|absmax|quant_map|SCB|weight_scale(?:_inv)?|weight_packed|scales|blocks)$"
)
_PATIENCE = 10.0  # seconds, for the Hub to answer
_LARGE = 1e9  # bytes that take seconds to read: from here on there is a progress bar


def load_checkpoint(
    name_or_folder: str | os.PathLike, *, dtype: torch.dtype | str = "auto",
    device: torch.device | str | dict | None = None, quantise: Literal["int8", "nf4"] | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:  # fmt: skip
    """A causal language model in eval mode, with the special tokens of its tokenizer, which pads on the left.

    Args:
        name_or_folder: a folder, which goes first; a key of `R1_DISTILL`; any repository of the Hugging Face
            Hub ("owner/name"), taken from the cache where that holds it whole, else downloaded into it.
        dtype: of the weights. "auto" takes that of the checkpoint: bfloat16 for the six. "float32" for a
            student: updates of a small learning rate are lost in bfloat16.
        device: where to; default `best_device()`. "auto" spreads the layers over all GPUs; or a device_map
            of transformers.
        quantise: "int8" or "nf4" by bitsandbytes (Dettmers et al. 2022, arXiv 2208.07339, and 2023, arXiv
            2305.14314): one and about half a byte a weight outside of embeddings, which cannot be trained.

    Raises:
        FileNotFoundError: a file of the folder is missing; or a repository is neither in the cache nor can it
            be reached, within 10 seconds: the message says what to download, and where to put it.
        ValueError: an argument that does not fit; an unknown architecture; weights that are missing, or were
            packed before (GPTQ, AWQ, bitsandbytes); a file that is cut off (`DamagedFile`).
        ImportError: `quantise` without bitsandbytes.
    """
    if str(dtype).removeprefix("torch.") not in _DTYPES:
        raise ValueError(f"dtype is {dtype!r}; expected one of {', '.join(_DTYPES)}")
    if quantise not in (None, *_QUANTISATIONS):
        raise ValueError(f'quantise is {quantise!r}; expected "int8", "nf4" or None')
    folder = _folder(name_or_folder)
    size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    try:
        if missing := _missing_files(folder):
            raise FileNotFoundError(f"{folder} lacks {', '.join(missing)}")
        if method := _packing(folder):
            raise ValueError(
                f"{folder} holds packed weights ({method}), which load_checkpoint does not read. Take the "
                'original: quantise="nf4" or "int8" packs it when it is loaded'
            )
        tokenizer = _tokenizer(folder)
        with nullcontext() if size > _LARGE else without_bars():
            model, report = AutoModelForCausalLM.from_pretrained(
                folder, dtype=dtype, device_map=device or best_device(),
                quantization_config=quantise and BitsAndBytesConfig(**_QUANTISATIONS[quantise]),
                use_safetensors=True, trust_remote_code=False, local_files_only=True,
                output_loading_info=True, ignore_mismatched_sizes=True,  # both are told below
            )  # fmt: skip
    except (SafetensorError, json.JSONDecodeError) as error:
        raise DamagedFile(f"a file in {folder} is cut off or damaged ({error}); copy it anew") from error
    # transformers makes up at random what the files do not hold, with no more than a warning.
    if wrong := sorted(map(str, [*report["missing_keys"], *report["mismatched_keys"]])):
        raise ValueError(
            f"{folder} lacks {len(wrong)} of the weights that config.json describes, or has them in another "
            f"shape; the first is {wrong[0]}"
        )
    # A config.json that names the end as padding would keep that token's embedding from being trained.
    model.get_input_embeddings().padding_idx = None
    align_special_tokens(model, tokenizer)
    if quantise is not None:
        model.requires_grad_(False)
    return model.eval(), tokenizer


def download(repo: str, folder: str | os.PathLike | None = None) -> Path:
    """Fetch a repository of the Hugging Face Hub into its cache, or into a folder; returns where it lies.

    No pickle is fetched. What an interrupted download left is kept and used. Raises whatever
    huggingface_hub does, within 10 seconds where the Hub does not answer.
    """
    # Unlike this, snapshot_download has no timeout: it would wait for ever for a server that is silent.
    HfApi().model_info(repo, timeout=_PATIENCE)
    return Path(snapshot_download(repo, allow_patterns=_FILES, local_dir=folder))


def _folder(name_or_folder: str | os.PathLike) -> Path:
    """The folder of that name, or the one in the Hugging Face cache, downloaded if need be."""
    folder, name = Path(name_or_folder).expanduser(), os.fspath(name_or_folder)
    if folder.is_dir():
        return folder
    known = None
    with suppress(ValueError):
        known = find(name)
    repo = known.repo if known else name
    if not re.fullmatch(r"\w[\w.-]*/[\w.-]+", repo):
        raise FileNotFoundError(
            f"name_or_folder is {name!r}, where there is no folder; expected one, a repository (owner/name), "
            f"or one of {', '.join(R1_DISTILL)}"
        )
    config = try_to_load_from_cache(repo, CONFIG_NAME)
    if isinstance(config, str) and not _missing_files(Path(config).parent):
        return Path(config).parent
    try:
        return download(repo)
    except Exception as error:  # of several libraries: no network, no such repository, no answer, no space
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        if constants.HF_HUB_OFFLINE:
            reason = "HF_HUB_OFFLINE is set, which keeps it from asking"
        short = repo.partition("/")[2]
        size = f" ({known.weight_bytes / 1e9:.1f} GB)" if known else ""
        raise FileNotFoundError(
            f"{repo} is not, or not whole, in the Hugging Face cache ({constants.HF_HUB_CACHE}) and cannot "
            f"be fetched: {reason}. Where there is a network, run `hf download {repo} --local-dir {short}`"
            f"{size}, copy the folder here and give its path: load_checkpoint({f'path/to/{short}'!r})"
        ) from error


def _missing_files(folder: Path) -> list[str]:
    index = folder / SAFE_WEIGHTS_INDEX_NAME
    weights = [SAFE_WEIGHTS_NAME]
    if index.exists() and not (folder / SAFE_WEIGHTS_NAME).exists():
        weights = sorted(set(json.loads(index.read_bytes())["weight_map"].values()))
    return [name for name in (CONFIG_NAME, "tokenizer.json", *weights) if not (folder / name).exists()]


def _packing(folder: Path) -> str | None:
    """How the weights of a folder are packed, if they are: by the names of what unpacking needs."""
    index = folder / SAFE_WEIGHTS_INDEX_NAME
    if (folder / SAFE_WEIGHTS_NAME).exists():
        with safe_open(folder / SAFE_WEIGHTS_NAME, "pt") as file:
            names = [*file.keys()]
    else:
        names = [*json.loads(index.read_bytes())["weight_map"]]
    found = {match[1]: None for match in map(_PACKED.search, names) if match}
    if not found:
        return None
    claimed = json.loads((folder / CONFIG_NAME).read_bytes()).get("quantization_config") or {}
    kinds = {"qweight": "GPTQ or AWQ", "absmax": "bitsandbytes", "SCB": "bitsandbytes"}
    by_name = next((kinds[name] for name in found if name in kinds), f"with {next(iter(found))}")
    method = claimed.get("quant_method", by_name)
    return {"gptq": "GPTQ", "awq": "AWQ"}.get(method, method)


def _tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    # AutoTokenizer would build a LlamaTokenizer, which loses the blanks of R1-Distill's texts:
    # https://github.com/huggingface/transformers/issues/45488
    try:
        return PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True, padding_side="left")
    except Exception as error:  # tokenizers raises nothing more special
        raise DamagedFile(f"the tokenizer in {folder} cannot be read ({error}); copy it anew") from error
