"""Execute the course without a browser.

Every notebook runs in a fresh kernel of this interpreter, one at a time so that the minutes are honest.
Executed copies and HTML pages land in `build/course`. To record means to rewrite the notebooks themselves
with cleaned outputs, and to put the minutes into `data/results/course.json`. Nothing is written until
everything that was asked for has run.
"""

import base64
import json
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import nbformat
from ipykernel.kernelspec import get_kernel_dict
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from nbclient.exceptions import CellControlSignal, CellExecutionError, DeadKernelError
from nbformat import NotebookNode
from tqdm import tqdm

from kdlib.course.build.cleaning import ANSI, CourseError, clean, machine_paths, refuse_traces
from kdlib.course.build.pages import FormulaError, check_formulas, index_page, render
from kdlib.course.build.sources import notebook_fingerprint
from kdlib.storage import replaced

RESULTS = Path("data/results/course.json")
PICTURE = Path("data/results/readme.png")
PICTURE_TAG = "result:readme"
BUILD = Path("build/course")


@dataclass
class Executed:
    """One executed notebook: its name, cells with outputs, title and measured minutes."""

    name: str
    notebook: NotebookNode
    title: str
    minutes: float


# --- finding and reading ---------------------------------------------------------------------


def find_root(start: Path | None = None) -> Path:
    """The course's folder: the nearest one above `start` with notebooks, else kdlib's checkout."""
    start = Path(start or Path.cwd()).resolve()
    for folder in (start, *start.parents, Path(__file__).resolve().parents[3]):
        if (folder / "notebooks").is_dir() and (folder / "pyproject.toml").is_file():
            return folder
    raise CourseError(f"No folder with notebooks/ and pyproject.toml at or above {start}.")


def find_notebooks(root: Path, wanted: Sequence[str] = ()) -> list[str]:
    """The names of the notebooks in reading order, all or those wanted.

    A name is the path below `notebooks/` without its ending: `02_temperature`,
    `solutions/02_temperature`. The names are also accepted as paths, as a shell completes them.
    """
    folder = root / "notebooks"
    paths = [
        *sorted(folder.glob("[0-9][0-9]_*.ipynb")),
        *folder.glob("glossary.ipynb"),
        *sorted((folder / "solutions").glob("*.ipynb")),
    ]
    names = [path.relative_to(folder).with_suffix("").as_posix() for path in paths]
    if not names:
        raise CourseError(f"There is no notebook in {folder}.")
    chosen = {name.replace("\\", "/").removeprefix("notebooks/").removesuffix(".ipynb"): name
              for name in wanted}  # fmt: skip
    unknown = [given for name, given in chosen.items() if name not in names]
    if unknown:
        raise CourseError(f"No notebook {', '.join(unknown)}. There are: {', '.join(names)}.")
    return [name for name in names if not chosen or name in chosen]


def read_notebook(path: Path) -> NotebookNode:
    """Read a notebook of format 4.5."""
    try:
        return nbformat.read(path, as_version=4)
    except (ValueError, AttributeError) as error:
        raise CourseError(f"{path.name} is not a notebook that can be read: {error}") from error


def title_of(notebook: NotebookNode, default: str) -> str:
    """The text of the first heading `# …` of the notebook's card."""
    for cell in notebook.cells:
        if cell.cell_type == "markdown" and (found := re.search(r"^# +(.+?)\s*$", cell.source, re.MULTILINE)):
            return found[1]
    return default


# --- executing -------------------------------------------------------------------------------


class ThisInterpreter(AsyncKernelManager):
    """Starts the kernel from this interpreter, whatever kernels are installed on the machine.

    By name, `python3` may be a specification in the user's folder that runs another Python.
    """

    @property
    def kernel_spec(self) -> KernelSpec:
        return KernelSpec(**get_kernel_dict())


def execute(
    notebook: NotebookNode, folder: Path, name: str, on_cell: Callable[[], object] = lambda: None
) -> float:
    """Run every cell in place, with `folder` as working folder; return the minutes it took.

    The minutes include the start of the kernel, as a reader waits for it too. `on_cell` is called after each
    code cell. Raises `CourseError` at the first cell that fails.
    """
    running = {"index": None}
    client = NotebookClient(
        notebook,
        timeout=None,
        kernel_manager_class=ThisInterpreter,
        resources={"metadata": {"path": str(folder)}},
        record_timing=False,
        store_widget_state=True,
        # ipykernel warns at every start that this machine talks to itself unencrypted.
        extra_arguments=["--log-level=ERROR"],
        on_cell_execute=lambda cell, cell_index: running.update(index=cell_index),
        on_cell_executed=lambda **_: on_cell(),
    )
    for cell in notebook.cells:  # a cell of an earlier run must not pass for one of this run
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    notebook.metadata.pop("widgets", None)
    begin = time.perf_counter()
    # A profile of its own: start-up files and history of the reader's IPython stay out of it.
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        try:
            client.execute(env={**os.environ, "IPYTHONDIR": profile})
        except (CellControlSignal, CellExecutionError, DeadKernelError, RuntimeError) as error:
            raise CourseError(_failure(notebook, name, running["index"], error)) from error
    return (time.perf_counter() - begin) / 60


def _failure(notebook: NotebookNode, name: str, index: int | None, error: Exception) -> str:
    if index is None:
        return f"notebooks/{name}.ipynb: the kernel did not start: {error}"
    cell = notebook.cells[index]
    text = getattr(error, "traceback", "") or f"{type(error).__name__}: {error}"
    source = "\n".join("    " + line for line in cell.source.splitlines())
    return (
        f"notebooks/{name}.ipynb failed in cell {index + 1} of {len(notebook.cells)} "
        f"(id {cell['id']}):\n\n{source}\n\n{ANSI.sub('', text).strip()}"
    )


# --- results and files -----------------------------------------------------------------------


def serialise(notebook: NotebookNode) -> str:
    """The file's text: format 4.5, validated, one newline at the end."""
    nbformat.validate(notebook)
    return nbformat.writes(notebook).rstrip("\n") + "\n"


def results_text(
    done: Iterable[Executed], environment: Mapping[str, object], earlier: Mapping | None = None
) -> str:
    """The text of `course.json`; the minutes of notebooks that did not run are kept."""
    minutes = dict((earlier or {}).get("minutes", {}))
    minutes.update({item.name: round(item.minutes, 2) for item in done})
    content = {"environment": dict(environment), "minutes": minutes}
    return json.dumps(content, indent=2, sort_keys=True) + "\n"


def readme_picture(notebook: NotebookNode) -> bytes | None:
    """The PNG of the cell tagged `result:readme`, which the README shows; None without such a cell."""
    for cell in notebook.cells:
        if PICTURE_TAG in cell.metadata.get("tags", []):
            for output in cell.get("outputs", []):
                if "image/png" in output.get("data", {}):
                    return base64.b64decode(output.data["image/png"])
            raise CourseError(f"The cell tagged {PICTURE_TAG} shows no picture.")
    return None


def run_course(root: Path, wanted: Sequence[str] = (), *, record: bool = False) -> list[Executed]:
    """Execute the notebooks, then write what came of it: copies and pages, or the record."""
    root = root.resolve()
    names = find_notebooks(root, wanted)
    from kdlib.runtime import describe_environment  # imports torch, which arguments need not

    environment = describe_environment()
    results = root / (RESULTS if record else BUILD / "course.json")
    earlier = _earlier(results, environment, refuse=record) if wanted else None
    sources = {name: read_notebook(root / "notebooks" / f"{name}.ipynb") for name in names}
    total = sum(
        cell.cell_type == "code" and bool(cell.source.strip())
        for notebook in sources.values()
        for cell in notebook.cells
    )
    for name, notebook in sources.items():  # before the minutes that it takes to execute them
        with _naming(name):
            check_formulas(notebook)
    paths = machine_paths(root)
    done = []
    contents: dict[Path, str | bytes] = {}
    # disable=None: no bar where nobody watches, as in a log file.
    with tqdm(total=total, unit="cell", disable=None) as bar:
        for name, notebook in sources.items():
            bar.set_description(name)
            source = root / "notebooks" / f"{name}.ipynb"
            if record and "small_recipe" in (stored := notebook.metadata.get("kdlib", {})):
                stored["fingerprint"] = notebook_fingerprint(notebook, root)
            minutes = execute(notebook, source.parent, name, on_cell=bar.update)
            item = Executed(name, notebook, title_of(notebook, name), minutes)
            clean(notebook, keep_widgets=not record)
            if record:
                refuse_traces(notebook, name, paths)
                contents[source] = serialise(notebook)
                if picture := readme_picture(notebook):
                    contents[root / PICTURE] = picture
            else:
                contents[root / BUILD / f"{name}.ipynb"] = serialise(notebook)
                page = root / BUILD / f"{name}.html"
                with _naming(name):
                    contents[page] = render(notebook, item.title, source, page, root / "notebooks")
            done.append(item)
            with nullcontext() if bar.disable else bar.external_write_mode():
                print(f"{name:<32}{minutes:6.2f} min", flush=True)
    if not record and not wanted:
        contents[root / BUILD / "index.html"] = index_page(
            [(item.name, item.title, item.minutes) for item in done]
        )
    if wanted:  # again: another notebook may have been recorded meanwhile
        earlier = _earlier(results, environment, refuse=record)
    contents[results] = results_text(done, environment, earlier)
    for path, content in contents.items():
        with replaced(path) as file:
            file.write(content.encode() if isinstance(content, str) else content)
    return done


@contextmanager
def _naming(name: str) -> Iterator[None]:
    try:
        yield
    except FormulaError as error:
        raise CourseError(f"notebooks/{name}.ipynb: {error}") from error


def _earlier(results: Path, environment: Mapping, *, refuse: bool) -> Mapping | None:
    """The results of an earlier run that these may stand beside: measured on the same machine."""
    if not results.is_file():
        return None
    earlier = json.loads(results.read_text(encoding="utf-8"))
    differing = [
        f"{key}: {earlier['environment'].get(key)!r} then, {environment.get(key)!r} now"
        for key in sorted({*environment, *earlier["environment"]})
        if earlier["environment"].get(key) != environment.get(key)
    ]
    if not differing:
        return earlier
    if refuse:
        raise CourseError(
            f"{results.name} was measured elsewhere ({'; '.join(differing)}). One file holds the "
            "minutes of one machine: record the whole course here."
        )
    return None
