"""A notebook on a small budget, for tests that run what a reader runs."""

from pathlib import Path

import nbformat
import pytest
from nbformat import NotebookNode

from kdlib.language.models.smollm2 import fetch_smollm2
from kdlib.wheels import NotFetched

DOWNLOADS = Path(__file__).resolve().parents[1] / "data" / "downloads"
FETCH = {"smollm2": fetch_smollm2}  # by the name in `kdlib.download`


def tags(cell: NotebookNode) -> list[str]:
    return cell.metadata.get("tags", [])


def small(path: Path) -> NotebookNode:
    """The notebook with its small recipe, if it has one, behind its parameters, without what is run alone.

    Nor are the claims there then, which do not hold on so little training.
    """
    notebook = nbformat.read(path, as_version=4)
    recipe = notebook.metadata.get("kdlib", {}).get("small_recipe", {})
    left_out = {"take-with-you"}
    if recipe:
        (place,) = (number for number, cell in enumerate(notebook.cells) if "parameters" in tags(cell))
        source = "\n".join(f"{name} = {value!r}" for name, value in recipe.items())
        notebook.cells.insert(place + 1, nbformat.v4.new_code_cell(source))
        left_out.add("claim")
    notebook.cells = [cell for cell in notebook.cells if not left_out & {*tags(cell)}]
    return notebook


def _download(path: Path) -> str | None:
    return nbformat.read(path, as_version=4).metadata.get("kdlib", {}).get("download")


def fetches(path: Path) -> list:
    """The mark of a test that runs a notebook, if it needs a real model."""
    return [pytest.mark.index] if _download(path) else []


def fetch(path: Path) -> None:
    """What the notebook needs is there afterwards; else the test that runs it is skipped."""
    if name := _download(path):
        try:
            FETCH[name](DOWNLOADS, progress=False)
        except NotFetched as error:
            pytest.skip(str(error))
