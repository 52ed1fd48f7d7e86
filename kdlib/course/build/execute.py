"""Execute the course without a browser.

Every notebook runs in a fresh kernel of this interpreter, one at a time so that the minutes are honest.
Executed copies land in `build/course`. To record means to rewrite the notebooks themselves
with cleaned outputs, and to put the minutes into `data/results/course.json`. Nothing is written until
everything that was asked for has run.
"""

import base64
import json
import os
import re
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import nbformat
from ipykernel.kernelspec import get_kernel_dict
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbconvert.preprocessors import CoalesceStreamsPreprocessor
from nbformat import NotebookNode, from_dict
from tqdm import tqdm

from kdlib.course.build.sources import notebook_fingerprint
from kdlib.runtime import describe_environment
from kdlib.storage import replaced

RESULTS = Path("data/results/course.json")
PICTURE = Path("data/results/readme.png")
PICTURE_TAG = "result:readme"
BUILD = Path("build/course")
# The same in every notebook, so that another patch release of Python makes no difference.
METADATA = {
    "kernelspec": {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"},
    "language_info": {
        "codemirror_mode": {"name": "ipython", "version": 3}, "file_extension": ".py",
        "mimetype": "text/x-python", "name": "python", "nbconvert_exporter": "python",
        "pygments_lexer": "ipython3",
    },
}  # fmt: skip


def find_root(start: Path | None = None) -> Path:
    """The course's folder: the nearest one above `start` with notebooks, else kdlib's checkout."""
    start = Path(start or Path.cwd()).resolve()
    for folder in (start, *start.parents, Path(__file__).resolve().parents[3]):
        if (folder / "notebooks").is_dir() and (folder / "pyproject.toml").is_file():
            return folder
    raise ValueError(f"No folder with notebooks/ and pyproject.toml at or above {start}.")


def find_notebooks(root: Path, wanted: Sequence[str] = ()) -> list[str]:
    """The names of the notebooks, such as `solutions/02_temperature`, in reading order, all or those wanted.

    The path, as a shell completes it, is also accepted.
    """
    folder = root / "notebooks"
    paths = [
        *sorted(folder.glob("[0-9][0-9]_*.ipynb")),
        *folder.glob("glossary.ipynb"),
        *sorted((folder / "solutions").glob("*.ipynb")),
    ]
    names = [path.relative_to(folder).with_suffix("").as_posix() for path in paths]
    chosen = [name.replace("\\", "/").removeprefix("notebooks/").removesuffix(".ipynb") for name in wanted]
    if unknown := [name for name in chosen if name not in names]:
        raise ValueError(f"No notebook {', '.join(unknown)}. There are: {', '.join(names)}.")
    return [name for name in names if not chosen or name in chosen]


class ThisInterpreter(AsyncKernelManager):
    """Starts the kernel from this interpreter: by name, `python3` may be a specification of another one."""

    @property
    def kernel_spec(self) -> KernelSpec:
        return KernelSpec(**get_kernel_dict())


def execute(notebook: NotebookNode, folder: Path, name: str, on_cell=lambda: None) -> float:
    """Run every cell in place, in the folder; return the minutes, with the start of the kernel.

    Calls `on_cell` after each code cell. Raises `ValueError` if a cell fails or the kernel dies.
    """
    running = ["before the first cell"]
    client = NotebookClient(
        notebook, kernel_manager_class=ThisInterpreter, resources={"metadata": {"path": str(folder)}},
        timeout=None, record_timing=False, store_widget_state=True,
        # ipykernel warns at every start that this machine talks to itself unencrypted.
        extra_arguments=["--log-level=ERROR"],
        on_cell_execute=lambda cell, cell_index: running.append(f"in cell {cell_index + 1} (id {cell.id})"),
        on_cell_executed=lambda **_: on_cell(),
    )  # fmt: skip
    for cell in notebook.cells:  # a cell of an earlier run must not pass for one of this run
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    notebook.metadata.pop("widgets", None)
    begin = time.perf_counter()
    # A profile of its own: start-up files and history of the reader's IPython stay out of it.
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        try:
            client.execute(env={**os.environ, "IPYTHONDIR": profile})
        except (CellExecutionError, RuntimeError) as error:  # a dead kernel is a RuntimeError
            message = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).strip()
            raise ValueError(f"notebooks/{name}.ipynb failed {running[-1]}: {message}") from error
    return (time.perf_counter() - begin) / 60


def fold_claims(notebook: NotebookNode) -> None:
    """Fold in place the code of cells tagged `claim`, and of no others.

    JupyterLab goes by the metadata, MyST and Jupyter Book by the tag.
    """
    for cell in notebook.cells:
        tags = [tag for tag in cell.metadata.get("tags", []) if tag != "hide-input"]
        look = {**cell.metadata.get("jupyter", {})}
        look.pop("source_hidden", None)
        if "claim" in tags:
            tags, look = [*tags, "hide-input"], {**look, "source_hidden": True}
        for key, value in (("tags", tags), ("jupyter", look)):
            cell.metadata.pop(key, None)
            if value:
                cell.metadata[key] = value


def clean(notebook: NotebookNode) -> None:
    """Fold claims, and remove in place what differs from run to run and is no result.

    A stored widget would name a model that no longer lives: an explorer's picture stays.
    """
    notebook.metadata.update(from_dict(METADATA))
    fold_claims(notebook)
    # How a stream is cut into messages depends on timing.
    CoalesceStreamsPreprocessor().preprocess(notebook, {})
    for cell in notebook.cells:
        for key in ("execution", "lines_to_next_cell"):  # left by JupyterLab and jupytext
            cell.metadata.pop(key, None)
    notebook.metadata.pop("widgets", None)
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            output.get("data", {}).pop("application/vnd.jupyter.widget-view+json", None)


def readme_picture(notebook: NotebookNode) -> bytes | None:
    """The PNG of the cell tagged `result:readme`, which the README shows; None without such a cell."""
    for cell in notebook.cells:
        if PICTURE_TAG in cell.metadata.get("tags", []):
            (output,) = cell.outputs
            return base64.b64decode(output.data["image/png"])
    return None


def run_course(root: Path, wanted: Sequence[str] = (), *, record: bool = False) -> dict[str, float]:
    """Execute the notebooks, then write copies, or the record; return the minutes of each."""
    root = root.resolve()
    notebooks = {
        name: nbformat.read(root / "notebooks" / f"{name}.ipynb", as_version=4)
        for name in find_notebooks(root, wanted)
    }
    if record and wanted:
        _recorded_minutes(root)
    for notebook in notebooks.values():
        stored = notebook.metadata.get("kdlib", {})
        if record and "small_recipe" in stored:
            stored["fingerprint"] = notebook_fingerprint(notebook, root)
    minutes = {}
    total = sum(cell.cell_type == "code" for notebook in notebooks.values() for cell in notebook.cells)
    # disable=None: no bar where nobody watches, as in a log file.
    with tqdm(total=total, unit="cell", disable=None) as bar:
        for name, notebook in notebooks.items():
            folder = (root / "notebooks" / name).parent
            minutes[name] = execute(notebook, folder, name, on_cell=bar.update)
            clean(notebook)
            bar.write(f"{name:<32}{minutes[name]:6.2f} min")
    folder = root / ("notebooks" if record else BUILD)
    results = {folder / f"{name}.ipynb": nbformat.writes(found) + "\n" for name, found in notebooks.items()}
    if record:
        results |= _record(root, notebooks, minutes, whole=not wanted)
    for path, content in results.items():
        with replaced(path) as file:
            file.write(content if isinstance(content, bytes) else content.encode())
    return minutes


def _record(root: Path, notebooks: dict, minutes: dict, whole: bool) -> dict[Path, str | bytes]:
    """File to its content: the README's picture and the minutes."""
    contents: dict[Path, str | bytes] = {}
    for notebook in notebooks.values():
        if picture := readme_picture(notebook):
            contents[root / PICTURE] = picture
    # Read anew: another notebook may have been recorded meanwhile.
    earlier = {} if whole else _recorded_minutes(root)
    minutes = earlier | {name: round(value, 2) for name, value in minutes.items()}
    results = {"environment": describe_environment(), "minutes": minutes}
    contents[root / RESULTS] = json.dumps(results, indent=2, sort_keys=True) + "\n"
    return contents


def _recorded_minutes(root: Path) -> dict[str, float]:
    """The minutes recorded so far; `ValueError` if they were measured on another machine."""
    if not (root / RESULTS).is_file():
        return {}
    earlier, here = json.loads((root / RESULTS).read_text(encoding="utf-8")), describe_environment()
    if earlier["environment"] != here:
        raise ValueError(
            f"{RESULTS.name} was measured elsewhere, on {earlier['environment']}; this is {here}. One file "
            "holds the minutes of one machine: record the whole course here."
        )
    return earlier["minutes"]
