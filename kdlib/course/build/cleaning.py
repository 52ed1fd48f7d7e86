"""What goes from an executed notebook before it is stored: what differs from run to run and is no result."""

from nbconvert.preprocessors import CoalesceStreamsPreprocessor
from nbformat import NotebookNode, from_dict

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


class CourseError(ValueError):
    """The course cannot go on; the message is for the reader."""


def clean(notebook: NotebookNode, *, keep_widgets: bool) -> None:
    """Clean the outputs in place.

    A stored widget would name a model that no longer lives. Without `keep_widgets` a sentence stands in its
    stead; HTML pages keep the state.
    """
    notebook.metadata.update(from_dict(METADATA))
    # How a stream is cut into messages depends on timing.
    CoalesceStreamsPreprocessor().preprocess(notebook, {})
    for cell in notebook.cells:
        for key in ("execution", "lines_to_next_cell"):  # left by JupyterLab and jupytext
            cell.metadata.pop(key, None)
    if keep_widgets:
        return
    notebook.metadata.pop("widgets", None)
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if WIDGET_VIEW in output.get("data", {}):
                output.update(from_dict({"data": {"text/plain": WIDGET_TEXT}, "metadata": {}}))
