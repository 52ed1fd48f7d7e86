"""What may stand in an executed notebook, and what goes: timings, progress bars, traces of a machine."""

import os
import re
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

import nbformat
from nbformat import NotebookNode

WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"
WIDGET_TEXT = "An interactive explorer appears here when this cell is run."

# The same in every notebook, so that another patch release of Python makes no difference.
METADATA = {
    "kernelspec": {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"},
    "language_info": {
        "codemirror_mode": {"name": "ipython", "version": 3}, "file_extension": ".py",
        "mimetype": "text/x-python", "name": "python", "nbconvert_exporter": "python",
        "pygments_lexer": "ipython3",
    },
}  # fmt: skip
# What front ends and runners leave in a cell's metadata.
CELL_NOISE = (
    "execution", "ExecuteTime", "papermill", "collapsed", "scrolled", "trusted", "lines_to_next_cell",
)

_TQDM = re.compile(r"\[(\d+:)?\d+:\d\d(<(\?|[\d:]+))?, [^\]]*/[^\]]*\]")
ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_HOME = r"(?<![\w.:/-])/(?:home|Users)/\w+|(?<!\w)[A-Za-z]:\\+Users\\+\w+"
_ADDRESS = re.compile(r"\bat 0x[0-9a-fA-F]{6,}")


class CourseError(Exception):
    """The course cannot go on; the message is for the reader."""


def clean(notebook: NotebookNode, *, keep_widgets: bool) -> None:
    """Take out, in place, what is not a result: timings, progress bars, widget state.

    A widget in a stored notebook names a model that no longer lives, under a name that changes in
    every run. Without `keep_widgets` a sentence stands in its place; HTML pages keep the state.
    """
    for key, value in METADATA.items():
        notebook.metadata[key] = nbformat.from_dict(value)
    if not keep_widgets:
        notebook.metadata.pop("widgets", None)
    for cell in notebook.cells:
        for key in CELL_NOISE:
            cell.metadata.pop(key, None)
        if cell.cell_type != "code":
            continue
        outputs = _joined(cell.outputs)
        bars = any(o.get("name") == "stderr" and _TQDM.search(o.text) for o in outputs)
        kept = []
        for output in outputs:
            if output.output_type == "stream":
                output.text = _settle(output.text)
                if output.name == "stderr":
                    # What is printed in between may part a bar from its end of line.
                    output.text = _without_progress(output.text, bars)
                if not output.text:
                    continue
            elif WIDGET_VIEW in output.get("data", {}):
                if _TQDM.search(output.data.get("text/plain", "")):
                    continue
                if not keep_widgets:
                    output.data = nbformat.from_dict({"text/plain": WIDGET_TEXT})
                    output.metadata = nbformat.from_dict({})
            kept.append(output)
        cell.outputs = _joined(kept)


def _joined(outputs: Iterable[NotebookNode]) -> list[NotebookNode]:
    """Neighbouring pieces of one stream as one; how it is cut into messages depends on timing."""
    joined: list[NotebookNode] = []
    for output in outputs:
        last = joined[-1] if joined else {}
        if output.output_type == last.get("output_type") == "stream" and output.name == last.name:
            last.text += output.text
        else:
            joined.append(output)
    return joined


def _settle(text: str) -> str:
    """What a terminal shows in the end: a carriage return goes back over the line."""
    lines = ANSI.sub("", text).replace("\r\n", "\n").split("\n")
    kept = []
    for line in lines:
        parts = [part for part in line.split("\r") if part]
        # A bar that leaves goes over itself with spaces.
        kept.append(parts[-1].rstrip() if len(parts) > 1 else "".join(parts))
    return "\n".join(kept)


def _without_progress(text: str, bars: bool) -> str:
    if not bars:
        return text if text.strip() else ""
    rest = [line for line in text.split("\n") if line.strip() and not _TQDM.search(line)]
    return "".join(line + "\n" for line in rest)


def machine_paths(root: Path) -> list[str]:
    """The folders of this machine that have no place in a stored output."""
    folders = [root, Path.home(), sys.prefix, sys.base_prefix, tempfile.gettempdir()]
    found = {str(text) for folder in folders for text in (folder, os.path.realpath(folder))}
    return sorted((path for path in found if len(Path(path).parts) > 1), key=len, reverse=True)


def refuse_traces(notebook: NotebookNode, name: str, paths: Iterable[str]) -> None:
    """Raise `CourseError` if an output holds a path of this machine or a memory address."""
    literal = "|".join(re.escape(path).replace(r"\\", r"\\+") for path in paths)
    path = re.compile(rf"(?<![\w.:/-])(?:{literal})(?![\w-])|{_HOME}")
    for index, cell in enumerate(notebook.cells):
        for text in _texts(cell.get("outputs", [])):
            for pattern, what in ((path, "a path of this machine"), (_ADDRESS, "a memory address")):
                if found := pattern.search(text):
                    line = text[text.rfind("\n", 0, found.start()) + 1 :].split("\n")[0]
                    raise CourseError(
                        f"notebooks/{name}.ipynb, cell {index + 1} (id {cell['id']}): "
                        f"its output holds {what}: {line.strip()[:200]}"
                    )


def _texts(value: object) -> Iterable[str]:
    """Every string in the outputs, images aside."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)
    elif isinstance(value, dict):
        for key, item in value.items():
            if not (str(key).startswith("image/") and isinstance(item, str)) or "svg" in key:
                yield from _texts(item)
