"""A notebook on a small budget, for tests that run what a reader runs."""

from pathlib import Path

import nbformat
from nbformat import NotebookNode


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
