"""The folder of a training run: which run it belongs to, and its newest whole checkpoint."""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from kdlib.storage import replaced

__all__ = ["claim", "newest_checkpoint"]

_RUN, _STATE = "run.json", "trainer_state.json"


def claim(folder: str | os.PathLike, run: Mapping[str, object], *, resume: bool) -> None:
    """Make the folder that of this run, by writing down in `run.json` what the run is.

    Checkpoints that a killed process left unfinished are removed; with `resume=False` all of this folder's.

    Args:
        folder: made where there is none.
        run: what must be equal for a checkpoint to belong to this run, as JSON values.
        resume: whether the checkpoints that are there are to be taken up.

    Raises:
        ValueError: the folder holds another run, saying what differs, or checkpoints of something else.
    """
    folder, run = Path(folder), json.loads(json.dumps(run))
    record = folder / _RUN
    checkpoints = _checkpoints(folder)
    if not record.exists():
        if checkpoints:
            raise ValueError(
                f"output_dir {folder} holds {checkpoints[-1].name}, but no {_RUN}: it was not written by "
                "distill_language_model; choose another folder"
            )
    elif resume:
        _check(folder, _read(record), run)
    for checkpoint in checkpoints:
        if not resume or not _whole(checkpoint):
            shutil.rmtree(checkpoint)
    with replaced(record) as file:
        file.write(json.dumps(run, indent=1, sort_keys=True).encode())


def newest_checkpoint(folder: str | os.PathLike) -> tuple[Path, int] | None:
    """The newest checkpoint that was written to its end, and its step; None where there is none."""
    whole = [checkpoint for checkpoint in _checkpoints(Path(folder)) if _whole(checkpoint)]
    return (whole[-1], _step(whole[-1])) if whole else None


def _checkpoints(folder: Path) -> list[Path]:
    """Folders named checkpoint-STEP, oldest first."""
    names = folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*")
    found = [path for path in names if path.is_dir() and path.name.rpartition("-")[2].isdecimal()]
    return sorted(found, key=_step)


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


def _whole(checkpoint: Path) -> bool:
    """Trainer writes into the folder itself, its state last: what ends before that is unfinished."""
    state = _read(checkpoint / _STATE)
    return isinstance(state, dict) and state.get("global_step") == _step(checkpoint)


def _read(path: Path) -> object:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None


def _check(folder: Path, saved: object, run: Mapping[str, object]) -> None:
    if not isinstance(saved, dict):
        raise ValueError(f"{folder / _RUN} cannot be read; delete {folder}, or choose another output_dir")
    differing = [
        f"{name} was {saved.get(name)}, is {run.get(name)}"
        for name in sorted({*saved, *run})
        if saved.get(name) != run.get(name)
    ]
    if differing:
        raise ValueError(
            f"output_dir {folder} belongs to another run: {'; '.join(differing)}. Choose another folder, or "
            "start anew in this one with resume=False, which removes its checkpoints"
        )
