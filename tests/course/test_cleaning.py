"""What goes from executed notebooks before they are stored."""

from nbformat.v4 import new_code_cell, new_notebook, new_output

from kdlib.course.build import cleaning


def test_cut_streams_are_joined_and_the_order_of_prints_and_figures_stays():
    picture = new_output("display_data", {"image/png": "iVBORw0K"})
    texts = [new_output("stream", name="stdout", text=text) for text in ("a", "\nb\n", "c\n")]
    cell = new_code_cell("x", outputs=[*texts[:2], picture, texts[2]])
    cleaning.clean(new_notebook(cells=[cell]), keep_widgets=False)
    assert [output.get("text") for output in cell.outputs] == ["a\nb\n", None, "c\n"]
