"""What goes from executed notebooks before they are stored, and what is refused."""

from pathlib import Path

import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from kdlib.course.build import cleaning


def stream(text: str, name: str = "stdout"):
    return new_output("stream", name=name, text=text)


@pytest.mark.parametrize(
    ("output", "what"),
    [
        (lambda root: stream(f"saved to {root}/data/x.pt\n"), "a path of this machine"),
        (lambda root: stream(f"{Path.home()}/.cache\n"), "a path of this machine"),
        (lambda root: stream("/home/ada/x.py:3: UserWarning\n", "stderr"), "a path"),
        (lambda root: stream("C:\\Users\\ada\\x.py\n"), "a path"),
        (lambda root: new_output("execute_result", {"text/html": f"<b>{root}</b>"}), "a path"),
        (lambda root: new_output("display_data", {"image/svg+xml": f"<a>{root}</a>"}), "a path"),
        (lambda root: new_output("error", ename="E", evalue="", traceback=[f"{root}/a"]), "a path"),
        (lambda root: stream("<Line2D at 0x7f3a2b1c>\n"), "a memory address"),
    ],
)
def test_traces_of_the_machine_are_refused(tmp_path, output, what):
    cells = [new_markdown_cell("# A"), new_code_cell("x", outputs=[output(tmp_path)], id="made")]
    with pytest.raises(cleaning.CourseError, match=rf"00_a\.ipynb, cell 2 \(id made\).*{what}"):
        cleaning.refuse_traces(new_notebook(cells=cells), "00_a", cleaning.machine_paths(tmp_path))


def test_words_that_only_look_like_paths_pass(tmp_path):
    outputs = [
        stream("https://example.org/home/ada and a/tmpfile and data/results at 0x1F\n"),
        new_output("display_data", {"image/png": "/tmp/AAAA" + str(tmp_path)}),
    ]
    notebook = new_notebook(cells=[new_code_cell("x", outputs=outputs)])
    cleaning.refuse_traces(notebook, "00_a", cleaning.machine_paths(tmp_path))


@pytest.mark.parametrize(
    ("name", "text", "cleaned"),
    [
        ("stderr", "\r  0%|    | 0/3 [00:00<?, ?it/s]\r100%|####| 3/3 [00:00<00:00, 3.0it/s]\n", ""),
        ("stderr", "a: 5it [00:01,  4.1it/s, loss=0.3]\n", ""),
        ("stderr", " 50%|#  | 1/2 [1:00:01<00:01, 1.5s/it]\nUserWarning: T\n", "UserWarning: T\n"),
        ("stderr", "\r 10%|# | 1/9 [00:00<?, ?it/s]\r          \r", ""),
        ("stderr", "one\n\ntwo [1, 2/3]\n", "one\n\ntwo [1, 2/3]\n"),
        ("stdout", "step 1\rstep 2\rstep 3\ndone\r\n", "step 3\ndone\n"),
        ("stdout", "\x1b[31mred\x1b[0m\n", "red\n"),
    ],
)
def test_streams_are_cleaned(name, text, cleaned):
    for cut in range(len(text)):  # the kernel may cut the stream anywhere
        pieces = [stream(piece, name) for piece in (text[:cut], text[cut:]) if piece]
        cell = new_code_cell("x", outputs=[*pieces, new_output("execute_result", {"a": "b"})])
        cleaning.clean(new_notebook(cells=[cell]), keep_widgets=False)
        assert [output.text for output in cell.outputs[:-1]] == [cleaned] * bool(cleaned)


def test_order_of_prints_and_figures_stays():
    picture = new_output("display_data", {"image/png": "iVBORw0K"})
    bar = stream("100%|####| 3/3 [00:00<00:00, 3.0it/s]\n", "stderr")
    outputs = [stream("a\n"), bar, stream("b\n"), picture, stream("c\n")]
    cell = new_code_cell("x", outputs=outputs)
    cleaning.clean(new_notebook(cells=[cell]), keep_widgets=False)
    assert [output.get("text") for output in cell.outputs] == ["a\nb\n", None, "c\n"]
