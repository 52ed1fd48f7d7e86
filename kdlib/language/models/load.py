"""Any checkpoint in one call: one of the six, a repository, or a folder.

    teacher, tokenizer = load_checkpoint("Qwen-7B")                              # bfloat16, on the GPU
    student, tokenizer = load_checkpoint("Qwen-1.5B", dtype="float32")           # to be trained
    teacher, tokenizer = load_checkpoint("Qwen-32B", quantise="nf4")             # 4 bits a weight
    teacher, tokenizer = load_checkpoint("Llama-70B", device_map="auto")         # over all GPUs there are

A folder is looked through before anything large is read (`kdlib.language.models.weight_files`): safetensors only,
every file there and whole, an architecture that transformers itself has. No code from a repository is run.
"""

import os
from contextlib import nullcontext
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import torch
from huggingface_hub import HfApi, constants, snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError
from huggingface_hub.utils import validate_repo_id
from transformers import (
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)
from transformers.utils import CONFIG_NAME

from kdlib.language.models.r1_distill import R1_DISTILL, Checkpoint, find
from kdlib.language.models.small import without_bars
from kdlib.language.models.vocabulary import align_special_tokens
from kdlib.language.models.weight_files import check_config, read_weight_files
from kdlib.runtime import best_device
from kdlib.storage import DamagedFile

__all__ = ["load_checkpoint"]

Quantisation = Literal["int8", "nf4"]

_FILES = ["*.safetensors", "*.json", "*.jinja"]  # no pickles, no second copies of the weights
_PATIENCE = 10.0  # seconds, for the Hub to answer
_LONG = 1e9  # bytes that take seconds to read: from here on there is a bar


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

    Returns:
        Model and tokenizer.

    Raises:
        FileNotFoundError: a folder or a file of it is missing; or a repository is neither in the cache nor
            can it be reached, and then the message says what to download, how large it is, and where to put
            it. Without a network, or with HF_HUB_OFFLINE=1, at once; within 10 seconds if the Hub is silent.
        ValueError: an argument that does not fit; weights that are no safetensors; an architecture that
            would need code from the repository; weights that are not all of the model's, or not as many
            parameters as the named checkpoint has.
        DamagedFile: a ValueError; a file that is cut off or no longer readable.
        ImportError: `quantise` without bitsandbytes.
    """
    dtype = _dtype(dtype)
    if device is not None and device_map is not None:
        raise ValueError(f"device is {device} and device_map is {device_map!r}; expected at most one of them")
    quantisation = _quantisation(quantise)
    folder, checkpoint = _locate(name_or_folder)
    check_config(folder)
    files = read_weight_files(folder)
    if checkpoint is not None and files.parameters != checkpoint.parameters:
        raise ValueError(
            f"{folder} holds {files.parameters:,} parameters, but {checkpoint.repo} has "
            f"{checkpoint.parameters:,}: it is another model; give its folder instead of the name "
            f"{os.fspath(name_or_folder)!r}"
        )
    tokenizer = _tokenizer(folder)
    with nullcontext() if files.bytes > _LONG else without_bars():
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
    _check_all_there(folder, model, report)
    # A config.json that names the end as padding would keep that token's embedding from being trained.
    model.get_input_embeddings().padding_idx = None
    align_special_tokens(model, tokenizer)
    if quantisation is not None:
        model.requires_grad_(False)
    return model.eval(), tokenizer


def _check_all_there(folder: Path, model: PreTrainedModel, report: dict) -> None:
    """What a file does not hold, transformers makes up at random, with no more than a warning."""
    missing, other = sorted(report["missing_keys"]), sorted(map(str, report["mismatched_keys"]))
    if missing or other:
        what = f"lacks {missing[0]}" if missing else f"has another shape of {other[0]}"
        raise ValueError(
            f"{folder} {what} ({len(missing)} weights missing, {len(other)} of another shape) of a "
            f"{type(model).__name__} as its config.json describes it; expected all weights, or they would be "
            "random: weights and config.json are of different models"
        )


def _dtype(dtype: torch.dtype | str) -> torch.dtype | str:
    found = getattr(torch, dtype, None) if isinstance(dtype, str) and dtype != "auto" else dtype
    if found != "auto" and not (isinstance(found, torch.dtype) and found.is_floating_point):
        raise ValueError(f'dtype must be "auto", "bfloat16", "float16" or "float32"; got {dtype!r}')
    return found


def _quantisation(quantise: str | None) -> BitsAndBytesConfig | None:
    if quantise is None:
        return None
    if quantise not in ("int8", "nf4"):
        raise ValueError(f'quantise must be "int8", "nf4" or None; got {quantise!r}')
    if find_spec("bitsandbytes") is None:
        raise ImportError(f"quantise={quantise!r} needs bitsandbytes: pip install bitsandbytes")
    if quantise == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16
    )


def _locate(name_or_folder: str | os.PathLike) -> tuple[Path, Checkpoint | None]:
    """The folder, and the checkpoint that its name promises."""
    folder = Path(name_or_folder).expanduser()
    if folder.is_dir():
        return folder, None
    name = os.fspath(name_or_folder)
    try:
        checkpoint = find(name)
    except ValueError:
        checkpoint = None
    repo = checkpoint.repo if checkpoint else name
    try:
        validate_repo_id(repo)
    except HFValidationError:
        repo = ""
    if "/" not in repo:
        raise FileNotFoundError(
            f"name_or_folder is {name!r}, where there is no folder; expected one, a repository (owner/name), "
            f"or one of {', '.join(R1_DISTILL)}"
        )
    return _in_cache(repo) or _downloaded(repo, checkpoint), checkpoint


def _in_cache(repo: str) -> Path | None:
    """The repository as the cache holds it, if it holds what is needed; without the network."""
    config = try_to_load_from_cache(repo, CONFIG_NAME)
    if not isinstance(config, str):  # or a mark that there is none
        return None
    folder = Path(config).parent
    try:
        read_weight_files(folder)
    except FileNotFoundError:  # a download that was interrupted
        return None
    return folder if (folder / "tokenizer.json").exists() else None


def _downloaded(repo: str, checkpoint: Checkpoint | None) -> Path:
    try:
        # snapshot_download would wait for ever for a server that is silent.
        HfApi().model_info(repo, timeout=_PATIENCE)
        return Path(snapshot_download(repo, allow_patterns=_FILES))
    except GatedRepoError as error:
        reason, cause = "its owner lets only some in: ask at its page, then run `hf auth login`", error
    except RepositoryNotFoundError as error:
        reason, cause = "the Hugging Face Hub has no such repository, or not for you", error
    # Of the library underneath, which is not the same in all releases: no network, no answer, no space.
    except Exception as error:
        reason, cause = f"{type(error).__name__}: {error}".split("\n")[0], error
        if constants.HF_HUB_OFFLINE:
            reason = "HF_HUB_OFFLINE is set, which keeps it from asking"
    short = repo.partition("/")[2]
    size = f" ({checkpoint.weight_bytes / 1e9:.1f} GB)" if checkpoint else ""
    raise FileNotFoundError(
        f"{repo} is not, or not whole, in the Hugging Face cache ({_shown(constants.HF_HUB_CACHE)}) and "
        f"cannot be fetched: {reason}. Where there is a network, run `hf download {repo} --local-dir "
        f"{short}`{size}, copy the folder here and give its path: load_checkpoint({f'path/to/{short}'!r})"
    ) from cause


def _shown(path: str) -> str:
    home = os.path.expanduser("~")
    return path.replace(home, "~", 1) if path.startswith(home) else path


def _tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    path = folder / "tokenizer.json"
    if not path.exists():
        raise FileNotFoundError(
            f"{folder} holds no tokenizer.json; expected one beside the weights: copy it from the "
            "repository, or save the tokenizer there with tokenizer.save_pretrained"
        )
    try:
        return PreTrainedTokenizerFast.from_pretrained(
            folder, local_files_only=True, padding_side="left", trust_remote_code=False
        )
    except Exception as error:  # tokenizers raises nothing more special
        raise DamagedFile(f"the tokenizer in {folder} cannot be read ({error}); copy it anew") from error
