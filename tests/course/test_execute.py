"""The course runner, on tiny courses made in a temporary folder."""

import base64
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from kdlib.__main__ import main
from kdlib.course.build import execute as course

ROOT = Path(__file__).resolve().parents[2]
PNG = base64.b64encode(
    base64.b64decode(
        "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
    )
).decode()
FIGURE = (
    f'from IPython.display import display\ndisplay({{"image/png": "{PNG}"}}, raw=True, '
    'metadata={"image/png": {"alt": "Loss over \\"T\\" & time"}})'
)


def make_course(root: Path, **cells: list) -> Path:
    """A course folder; each keyword is a notebook's name, ``__`` for the folder, and its cells."""
    (root / "pyproject.toml").write_text("")
    for name, content in cells.items():
        path = root / "notebooks" / f"{name.removeprefix('_').replace('__', '/')}.ipynb"
        path.parent.mkdir(parents=True, exist_ok=True)
        notebook = new_notebook(cells=content, metadata={"kernelspec": {"name": "x", "display_name": "y"}})
        path.write_text(nbformat.writes(notebook))
    return root


def stored(root: Path, name: str, folder: str = "notebooks"):
    path = root / folder / f"{name}.ipynb"
    notebook = nbformat.reads(path.read_text(encoding="utf-8"), as_version=nbformat.NO_CONVERT)
    nbformat.validate(notebook)
    return notebook


def snapshot(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """One small course, executed once into build/course."""
    root = make_course(
        tmp_path_factory.mktemp("course"),
        _01_labels=[
            new_markdown_cell("# Hard & soft"),
            new_code_cell(
                "import os, sys\nprint(os.getcwd() == sys.path[0] or "
                "os.path.basename(os.getcwd()))\nprint(sys.prefix)",
                metadata={"tags": ["claim"]},
            ),
        ],
        glossary=[new_markdown_cell("# Glossary")],
        solutions__01_labels=[new_code_cell("import os; print(os.path.basename(os.getcwd()))")],
        draft=[new_code_cell("raise SystemExit('not part of the course')")],
    )  # fmt: skip
    before = snapshot(root)
    done = course.run_course(root)
    return root, before, done


def test_build_leaves_the_sources_alone(built):
    root, before, _ = built
    after = snapshot(root)
    assert {name: after[name] for name in before} == before
    assert not [name for name in after if name.endswith(".part")]


def test_build_runs_everything_in_reading_order(built):
    root, _, done = built
    assert list(done) == ["01_labels", "glossary", "solutions/01_labels"]
    copy = stored(root, "01_labels", "build/course")
    assert copy.cells[1].outputs[0].text == f"notebooks\n{sys.prefix}\n"
    assert stored(root, "solutions/01_labels", "build/course").cells[0].outputs[0].text == "solutions\n"


def test_cut_streams_are_joined_and_the_order_of_prints_and_figures_stays():
    picture = new_output("display_data", {"image/png": PNG})
    texts = [new_output("stream", name="stdout", text=text) for text in ("a", "\nb\n", "c\n")]
    cell = new_code_cell("x", outputs=[*texts[:2], picture, texts[2]])
    course.clean(new_notebook(cells=[cell]))
    assert [output.get("text") for output in cell.outputs] == ["a\nb\n", None, "c\n"]


def test_of_an_explorer_its_picture_stays():
    picture = {"text/plain": "T = 4", "image/png": PNG}
    view = {"application/vnd.jupyter.widget-view+json": {"model_id": "1"}}
    about = {"image/png": {"alt": "T = 4"}}
    cell = new_code_cell("x", outputs=[new_output("display_data", view | picture, metadata=about)])
    notebook = new_notebook(cells=[cell], metadata={"widgets": {}})
    course.clean(notebook)
    assert (cell.outputs[0].data, cell.outputs[0].metadata) == (picture, about)
    assert "widgets" not in notebook.metadata


def test_claims_are_folded_and_nothing_else_is():
    other = {"jupyter": {"source_hidden": True, "outputs_hidden": True}, "tags": ["hide-input", "x"]}
    cells = [new_code_cell("assert x", metadata={"tags": ["claim"]}), new_code_cell("x", metadata=other)]
    for _ in range(2):
        course.clean(new_notebook(cells=cells))
        assert cells[0].metadata == {"jupyter": {"source_hidden": True}, "tags": ["claim", "hide-input"]}
        assert cells[1].metadata == {"jupyter": {"outputs_hidden": True}, "tags": ["x"]}


def test_record_cleans_and_is_repeatable(tmp_path):
    prints = new_code_cell(
        "import time\nfor word in ('one', 'two'):\n    print(word, flush=True)\n    time.sleep(0.3)",
        metadata={"tags": ["nbval-ignore-output"], "execution": {"iopub.status.busy": "then"}},
    )
    slider = new_code_cell("import ipywidgets\nipywidgets.IntSlider()")
    root = make_course(tmp_path, _00_a=[new_markdown_cell("# A"), prints, slider, new_code_cell("7")])
    (minutes,) = course.run_course(root, record=True).values()
    notebook = stored(root, "00_a")
    code = notebook.cells[1]
    assert [(output.name, output.text) for output in code.outputs] == [("stdout", "one\ntwo\n")]
    assert code.metadata == {"tags": ["nbval-ignore-output"]}
    (shown,) = notebook.cells[2].outputs
    assert shown.data == {"text/plain": "IntSlider(value=0)"}
    assert notebook.cells[3].outputs[0].data == {"text/plain": "7"}
    assert notebook.metadata == course.METADATA
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
    text = (root / "notebooks/00_a.ipynb").read_text()
    assert text.endswith("}\n") and not text.endswith("\n\n")
    assert "3.1" not in json.dumps(notebook.metadata)  # no version of Python
    assert not (root / "build").exists()

    results = (root / course.RESULTS).read_text()
    assert set(json.loads(results)) == {"minutes", "environment"}
    assert json.loads(results)["minutes"] == {"00_a": round(minutes, 2)}
    environment = json.loads(results)["environment"]
    assert environment["python"] == ".".join(map(str, sys.version_info[:3])) and environment["cpu_count"] >= 1
    for hidden in (os.uname().nodename, str(root), sys.prefix):
        assert f'"{hidden}' not in results

    course.run_course(root, record=True)
    assert (root / "notebooks/00_a.ipynb").read_text() == text


def test_record_of_one_notebook_updates_its_minutes_only(tmp_path):
    root = make_course(tmp_path, _00_a=[new_code_cell("1")], _01_b=[new_code_cell("2")])
    course.run_course(root, record=True)
    results = root / course.RESULTS
    content = json.loads(results.read_text())
    assert sorted(content["minutes"]) == ["00_a", "01_b"]
    content["minutes"] = {"00_a": 123.0, "01_b": 456.0}
    results.write_text(json.dumps(content))
    other = (root / "notebooks/01_b.ipynb").read_bytes()

    course.run_course(root, ["notebooks/00_a.ipynb"], record=True)
    minutes = json.loads(results.read_text())["minutes"]
    assert minutes["00_a"] < 100 and minutes["01_b"] == 456.0
    assert (root / "notebooks/01_b.ipynb").read_bytes() == other

    content["environment"]["torch"] = "0.0.1"
    results.write_text(json.dumps(content))
    before = snapshot(root)
    with pytest.raises(ValueError, match=r"'torch': '0\.0\.1'"):
        course.run_course(root, ["00_a"], record=True)
    assert snapshot(root) == before


def test_full_record_forgets_notebooks_that_are_gone(tmp_path):
    root = make_course(tmp_path, _00_a=[new_code_cell("1")])
    results = root / course.RESULTS
    results.parent.mkdir(parents=True)
    results.write_text(json.dumps({"minutes": {"09_gone": 1.0}, "environment": {"torch": "0"}}))
    course.run_course(root, record=True)
    assert list(json.loads(results.read_text())["minutes"]) == ["00_a"]


@pytest.fixture
def failing(tmp_path):
    cells = [
        new_markdown_cell("# B"),
        new_code_cell("x = 1"),
        new_code_cell("student = 3\nteacher / student"),
        new_code_cell("open('after', 'w')"),
    ]
    return make_course(tmp_path, _00_a=[new_code_cell("print('fine')")], _01_b=cells)


def test_failing_cell_stops_readably_and_writes_nothing(failing):
    before = snapshot(failing)
    run = subprocess.run(
        [sys.executable, "-m", "kdlib", "course", "--record", "--root", str(failing)],
        capture_output=True,
        text=True,
    )
    assert run.returncode == 1
    assert "notebooks/01_b.ipynb failed in cell 3 (id " in run.stderr
    assert "\nstudent = 3\nteacher / student\n" in run.stderr
    assert "NameError: name 'teacher' is not defined" in run.stderr
    assert "\x1b" not in run.stderr and "nbclient" not in run.stderr
    assert snapshot(failing) == before


def test_kernel_that_dies_names_the_cell(tmp_path):
    root = make_course(tmp_path, _00_a=[new_code_cell("import os\nos._exit(3)")])
    with pytest.raises(ValueError, match=r"00_a\.ipynb failed in cell 1 \(id .*died"):
        course.run_course(root)


def test_some_notebooks_from_the_command_line(tmp_path, monkeypatch, capsys):
    root = make_course(tmp_path, _00_a=[new_code_cell("1")], _01_b=[new_code_cell("1 / 0")])
    monkeypatch.chdir(root / "notebooks")  # the course is found from here
    assert main(["course", "00_a"]) == 0
    assert re.search(r"00_a +0\.\d\d min", capsys.readouterr().out)
    assert [path.name for path in (root / "build/course").rglob("*.*")] == ["00_a.ipynb"]


def test_unknown_notebook_is_named(tmp_path):
    root = make_course(tmp_path, _00_a=[new_code_cell("1")])
    with pytest.raises(ValueError, match=r"No notebook 09_x\. There are: 00_a\."):
        course.run_course(root, ["09_x"])


def test_kernel_is_this_interpreter_whatever_is_installed(tmp_path, monkeypatch):
    elsewhere = tmp_path / "jupyter" / "kernels" / "python3"
    elsewhere.mkdir(parents=True)
    (elsewhere / "kernel.json").write_text(
        json.dumps(
            {"argv": ["/nowhere/python", "{connection_file}"], "display_name": "x", "language": "python"}
        )  # fmt: skip
    )
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    from jupyter_client.kernelspec import get_kernel_spec

    assert get_kernel_spec("python3").argv[0] == "/nowhere/python"  # by name it would win
    notebook = new_notebook(cells=[new_code_cell("import sys; print(sys.executable)")])
    course.execute(notebook, tmp_path, "00_a")
    assert notebook.cells[0].outputs[0].text.strip() == sys.executable


def test_start_up_files_of_the_reader_stay_out(tmp_path, monkeypatch):
    startup = tmp_path / "ipython" / "profile_default" / "startup"
    startup.mkdir(parents=True)
    (startup / "00.py").write_text("leaked = True")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    notebook = new_notebook(cells=[new_code_cell("print('leaked' in globals())")])
    course.execute(notebook, tmp_path, "00_a")
    assert notebook.cells[0].outputs[0].text == "False\n"


def test_root_is_found_above_and_missed_readably(tmp_path):
    root = make_course(tmp_path, _00_a=[])
    assert course.find_root(root / "notebooks") == root.resolve()
    # From anywhere else, the checkout that kdlib is installed from.
    assert course.find_root(Path(os.path.abspath(os.sep))) == Path(course.__file__).parents[3]


def test_packages_of_the_course_missing_is_one_sentence(monkeypatch, capsys):
    monkeypatch.delitem(sys.modules, "kdlib.cli.course")
    monkeypatch.delitem(sys.modules, "kdlib.course.build.execute")
    monkeypatch.setitem(sys.modules, "nbclient", None)
    assert main(["course"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("kdlib course needs the package nbclient: ") and '"kdlib[course]"' in error


def test_record_keeps_the_picture_that_the_readme_shows(tmp_path):
    cell = new_code_cell(FIGURE, metadata={"tags": [course.PICTURE_TAG]})
    make_course(tmp_path, _00_start=[new_markdown_cell("# Start"), cell])
    course.run_course(tmp_path, record=True)
    assert (tmp_path / course.PICTURE).read_bytes() == base64.b64decode(PNG)


def test_the_readme_shows_the_picture_stored_in_the_notebook():
    notebook = stored(ROOT, "00_start_here")
    assert course.readme_picture(notebook) == (ROOT / course.PICTURE).read_bytes()
    assert f"]({course.PICTURE.as_posix()})" in (ROOT / "README.md").read_text(encoding="utf-8")
