"""Heavy notebooks: executed on a small recipe always, on the real one when what they run has changed."""

import ast
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import chromium
import nbformat
import numpy as np
import pytest
from PIL import Image
from small_recipe import fetch, fetches, small, tags

from kdlib.course.build.execute import execute
from kdlib.course.build.sources import notebook_fingerprint
from kdlib.vision.photos import load_photos
from kdlib.vision.pretrained import load_pretrained
from kdlib.wheels import NotFetched

ROOT = Path(__file__).resolve().parents[2]
HEAVY = [
    path for path in sorted((ROOT / "notebooks").glob("*.ipynb"))
    if "small_recipe" in json.loads(path.read_text(encoding="utf-8"))["metadata"].get("kdlib", {})
]  # fmt: skip


@pytest.mark.parametrize(
    "path",
    [pytest.param(path, id=path.stem, marks=fetches(path)) for path in HEAVY],
)
@pytest.mark.skipif(chromium.IS_HERE, reason="tests/browser/test_lab.py does it in a browser")
def test_every_cell_runs_on_the_small_recipe(path, monkeypatch):
    monkeypatch.setenv("LOKY_MAX_CPU_COUNT", "1")
    fetch(path)
    execute(small(path), path.parent, path.stem)


@pytest.mark.parametrize("path", HEAVY, ids=lambda path: path.stem)
def test_parameters_are_plain_and_those_of_the_small_recipe(path):
    notebook = nbformat.read(path, as_version=4)
    (cell,) = (cell for cell in notebook.cells if "parameters" in tags(cell))
    values = {}
    for node in ast.parse(cell.source).body:
        assert isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
        values[node.targets[0].id] = ast.literal_eval(node.value)
    for name, value in notebook.metadata["kdlib"]["small_recipe"].items():
        assert type(value) is type(values[name])


def test_the_heavy_notebooks_are_those_that_train_longest_and_have_a_fingerprint():
    heavy = [
        "01_hard_and_soft_labels", "03_distillation_loss", "04_cat_vs_dog", "05_reasoning_distillation",
        "06_real_language_model", "08_limits_and_variants",
    ]  # fmt: skip
    assert [path.stem for path in HEAVY] == heavy
    for path in HEAVY:
        assert len(nbformat.read(path, as_version=4).metadata["kdlib"]["fingerprint"]) == 64


# --- what a fingerprint stands for --------------------------------------------------------------------------


def notebook(*sources):
    return {"cells": [{"cell_type": "code", "source": source} for source in sources]}


@pytest.fixture
def course(tmp_path):
    files = {
        "kdlib/__init__.py": "HOMES = {'kdlib.loss': ('kd',), 'kdlib.other': ('x',)}\n"
        "if TYPE_CHECKING:\n    from kdlib.loss import kd\n    from kdlib.other import x\n",
        "kdlib/loss.py": "def kd(z):\n    '''Soft.'''\n    from kdlib.deep import inner\n"
        "    return inner.f(z)\n",
        "kdlib/deep/__init__.py": "",
        "kdlib/deep/inner.py": "def f(z):\n    return 2 * z  # twice\n",
        "kdlib/other.py": "x = 1\n",
        "data/results/some.json": "{}",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


CELLS = ("from kdlib import kd", "kd(3)", "load('some.json')")


@pytest.mark.parametrize(
    ("file", "old", "new", "changes"),
    [
        ("kdlib/loss.py", "Soft.", "Soft targets.", False),
        ("kdlib/loss.py", "    return", "    # why\n\n    return", False),
        ("kdlib/loss.py", "inner.f(z)", "inner.f(-z)", True),
        ("kdlib/deep/inner.py", "# twice", "# two times", False),
        ("kdlib/deep/inner.py", "2 *", "3 *", True),
        ("kdlib/other.py", "x = 1", "x = 2", False),
        ("data/results/some.json", "{}", "[]", True),
    ],
)
def test_code_that_is_run_counts_and_what_explains_it_does_not(course, file, old, new, changes):
    before = notebook_fingerprint(notebook(*CELLS), course)
    text = (course / file).read_text()
    assert old in text
    (course / file).write_text(text.replace(old, new))
    assert (notebook_fingerprint(notebook(*CELLS), course) != before) == changes


def test_the_cells_count_too_but_not_their_comments(course):
    before = notebook_fingerprint(notebook(*CELLS), course)
    assert notebook_fingerprint(notebook("from kdlib import kd  # the loss", *CELLS[1:]), course) == before
    assert notebook_fingerprint(notebook(CELLS[0], "kd(4)", CELLS[2]), course) != before
    for module in ("kdlib.other", "kdlib.deep"):
        assert notebook_fingerprint(notebook(f"import {module}", *CELLS), course) != before


def test_the_heavy_notebooks_depend_on_what_they_train_with():
    package, digests = ROOT / "kdlib", {}
    for path in HEAVY:
        digests[path] = notebook_fingerprint(nbformat.read(path, as_version=4), ROOT)
        assert digests[path] == notebook_fingerprint(json.loads(path.read_text(encoding="utf-8")), ROOT)
    assert package.is_dir() and len(set(digests.values())) == len(HEAVY)


def test_pytest_leaves_out_what_has_not_changed_and_says_so(tmp_path):
    heavy = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1 / 0")])
    heavy.metadata["kdlib"] = {"small_recipe": {}, "fingerprint": notebook_fingerprint(heavy, tmp_path)}
    (tmp_path / "notebooks").mkdir()
    nbformat.write(heavy, tmp_path / "notebooks" / "04_heavy.ipynb")
    shutil.copy(ROOT / "conftest.py", tmp_path)
    command = [sys.executable, "-m", "pytest", "--nbval", "--collect-only", "notebooks"]
    some, all_of_them = (
        subprocess.run([*command, *more], cwd=tmp_path, capture_output=True, text=True).stdout
        for more in ([], ["--all-notebooks"])
    )
    assert "1 deselected" in some and "has changed (make test-all does): 04_heavy" in some
    assert "deselected" not in all_of_them and "1 test collected" in all_of_them


def test_pytest_leaves_out_a_notebook_whose_model_is_not_there_even_if_all_are_asked_for(tmp_path):
    real = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1 / 0")])
    real.metadata["kdlib"] = {"download": "a_model"}
    (tmp_path / "notebooks").mkdir()
    nbformat.write(real, tmp_path / "notebooks" / "06_real.ipynb")
    shutil.copy(ROOT / "conftest.py", tmp_path)
    command = [sys.executable, "-m", "pytest", "--nbval", "--all-notebooks", "--collect-only", "notebooks"]

    def collected():
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True).stdout

    assert "what they download is not there (python -m kdlib fetch): 06_real" in collected()
    (tmp_path / "data" / "downloads" / "a_model").mkdir(parents=True)
    assert "1 test collected" in collected()


@pytest.mark.index
def test_the_short_form_with_a_real_teacher_runs_on_the_readers_photographs(tmp_path, monkeypatch, capsys):
    try:
        load_pretrained("efficientnet-lite0", root=ROOT / "data" / "downloads", progress=False)
    except NotFetched as error:
        pytest.skip(str(error))
    random = np.random.default_rng(0)
    for name, count in (("train", 40), ("test", 6)):
        for k, kind in enumerate(("cat", "dog")):
            (tmp_path / name / kind).mkdir(parents=True)
            for number in range(count):
                pixels = random.integers(60 * k, 190 + 60 * k, (32, 40, 3), dtype="uint8")
                Image.fromarray(pixels).save(tmp_path / name / kind / f"{number}.png")
    monkeypatch.chdir(tmp_path)  # from anywhere
    monkeypatch.setitem(load_photos.__kwdefaults__, "cache", tmp_path / "cache")
    notebook = nbformat.read(ROOT / "notebooks" / "04_cat_vs_dog.ipynb", as_version=4)
    code = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    (short,) = (source for source in code if "def real_teacher" in source)
    beginning = next(number for number, source in enumerate(code) if source.startswith("KNOWN = "))
    space = {}
    for source in (*code[: beginning + 1], short):
        exec(source.replace("PHOTOGRAPHS = None", f"PHOTOGRAPHS = {str(tmp_path)!r}"), space)
    printed = capsys.readouterr().out
    assert all(re.search(rf"^{who} +accuracy", printed, re.M) for who in ("teacher", "alone", "distilled"))
