"""A checkpoint's folder, looked through before its weights are read: what is missing, damaged, unwanted."""

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils import CONFIG_NAME, SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from kdlib.storage import DamagedFile

__all__ = ["WeightFiles", "check_config", "read_weight_files"]

_OTHERS = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.gguf", "*.h5", "*.msgpack")


@dataclass(frozen=True)
class WeightFiles:
    """The safetensors files of a model.

    Attributes:
        paths: all of them.
        parameters: how many numbers they hold.
        bytes: how large they are.
    """

    paths: tuple[Path, ...]
    parameters: int
    bytes: int


def check_config(folder: Path) -> None:
    """See that config.json names a causal language model that transformers has.

    Raises:
        FileNotFoundError: there is none.
        DamagedFile: it is no JSON object.
        ValueError: it names another architecture, or one that comes as code of its own.
    """
    path = folder / CONFIG_NAME
    if not path.exists():
        raise FileNotFoundError(
            f"{folder} holds no {CONFIG_NAME}, so it is no checkpoint; expected a folder as save_pretrained "
            "or `hf download` leaves it"
        )
    settings = _read(path)
    kind = settings.get("model_type")
    if kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        return
    if "auto_map" in settings:
        raise ValueError(
            f"{path} has model_type {kind!r}, whose code is to be taken from the repository (auto_map); "
            "kdlib runs no code from a checkpoint: take one of an architecture that transformers has"
        )
    raise ValueError(
        f"{path} has model_type {kind!r}; expected a causal language model of transformers, such as qwen2 or "
        "llama (a newer release of transformers may know it)"
    )


def read_weight_files(folder: Path) -> WeightFiles:
    """The weights of a folder, counted from the headers of their files.

    Raises:
        FileNotFoundError: there are none, or some of those that the index names are missing.
        ValueError: they are in another format.
        DamagedFile: a file that is cut off or damaged, or does not hold what the index says.
    """
    index = folder / SAFE_WEIGHTS_INDEX_NAME
    if (folder / SAFE_WEIGHTS_NAME).exists():
        named = {SAFE_WEIGHTS_NAME: None}
    elif index.exists():
        named = _shards(index)
    else:
        raise _no_weights(folder)
    if missing := [name for name in named if not (folder / name).exists()]:
        raise FileNotFoundError(
            f"{folder} lacks {', '.join(missing)}, {len(missing)} of the {len(named)} files that "
            f"{index.name} names; expected all: download or copy them"
        )
    parameters = 0
    for name, expected in named.items():
        sizes = _sizes(folder / name)
        if expected is not None and (lost := sorted(expected - sizes.keys())):
            raise DamagedFile(f"{folder / name} lacks {lost[0]}, which {index.name} names; copy both anew")
        parameters += sum(sizes.values())
    paths = tuple(folder / name for name in named)
    return WeightFiles(paths, parameters, sum(os.path.getsize(path) for path in paths))


def _shards(index: Path) -> dict[str, set[str]]:
    """Tensors by the name of their file, in its order."""
    shards: dict[str, set[str]] = {}
    tensors = _read(index).get("weight_map")
    if not isinstance(tensors, dict) or not tensors or not all(isinstance(n, str) for n in tensors.values()):
        raise DamagedFile(f"{index} has no weight_map from tensors to files; copy it anew")
    for tensor, name in tensors.items():
        if name != os.path.basename(name):
            raise ValueError(f"{index} names {name!r}; expected a file of the same folder")
        shards.setdefault(name, set()).add(tensor)
    return dict(sorted(shards.items()))


def _sizes(path: Path) -> dict[str, int]:
    """Numbers in each tensor of a file; safetensors compares the header with the size of the file."""
    try:
        with safe_open(path, "pt") as file:
            return {name: math.prod(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise DamagedFile(
            f"{path} ({path.stat().st_size:,} bytes) is cut off or damaged ({error}); copy it anew, or "
            "download it with hf download --force-download"
        ) from error


def _no_weights(folder: Path) -> Exception:
    others = sorted(path.name for pattern in _OTHERS for path in folder.glob(pattern))
    if not others:
        return FileNotFoundError(
            f"{folder} holds no weights; expected {SAFE_WEIGHTS_NAME}, or {SAFE_WEIGHTS_INDEX_NAME} and the "
            "files that it names"
        )
    return ValueError(
        f"{folder} holds {others[0]} and no {SAFE_WEIGHTS_NAME}; expected safetensors, which cannot run code "
        "as they are read. If you trust its origin, convert it once: AutoModelForCausalLM.from_pretrained("
        f"{str(folder)!r}).save_pretrained({f'{folder}-safetensors'!r}), and save the tokenizer there too"
    )


def _read(path: Path) -> dict:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise DamagedFile(f"{path} cannot be read ({error}); copy it anew") from error
    if not isinstance(content, dict):
        raise DamagedFile(f"{path} holds no JSON object; copy it anew")
    return content
