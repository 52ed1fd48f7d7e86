"""The course as a reader meets it: a real JupyterLab in a real browser, moved with the keyboard.

The heavy notebooks are run on their small recipe; of the others, which nbval runs, and of the Chinese ones,
whose code is the same, only what their explorers and the first exercise need. Every slider is moved, and the
exercise is solved.
"""

import ast
import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import symtable
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
import pytest
from chromium import CSS, errors, needs_browser, started, wait
from nbformat import NotebookNode
from selenium.webdriver.support.select import Select
from small_recipe import fetch, fetches, small, tags

pytest.importorskip("jupyterlab", reason="the package jupyterlab is not installed")

ROOT = Path(__file__).resolve().parents[2]
COURSE = ROOT / "notebooks"
# As the WebDriver standard names them.
RIGHT, LEFT, CONTROL, ENTER = "\ue014\ue012\ue009\ue007"
PICTURES = ROOT / "build" / "browser"
DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))

pytestmark = needs_browser


def to_run(path: Path) -> NotebookNode:
    """The notebook as far as it is to run, without outputs that could pass for a result."""
    notebook = small(path)
    # Nothing but this file runs a heavy notebook; those in Chinese have the code of the English ones.
    if path.parent.name == "zh" or "small_recipe" not in notebook.metadata.get("kdlib", {}):
        needed = needed_cells(code_cells(notebook), solution(path))
        notebook.cells = [cell for cell in notebook.cells if cell.cell_type != "code" or cell.id in needed]
    # In the kernel of the notebook before, which has imported most of what this one needs.
    source = f"%reset -f -s\nimport os\nos.chdir({str(path.parent)!r})"
    notebook.cells.insert(0, nbformat.v4.new_code_cell(source))
    for cell in code_cells(notebook):
        cell.outputs, cell.execution_count = [], None
    return notebook


def needed_cells(cells: list[NotebookNode], solution: str) -> set[str]:
    """The ids of explorers, first exercise and its check, and of cells that make what these use."""
    kept, used = set(), set()
    for cell in reversed(cells):
        makes, changes, given = names(cell.source)
        if used & (makes | changes) or {"widget", "exercise-1", "check-1"} & {*tags(cell)}:
            kept.add(cell.id)
            used = (used - makes) | given
            if "exercise-1" in tags(cell):
                used |= names(solution)[2]
    return kept


def names(source: str) -> tuple[set[str], set[str], set[str]]:
    """The global names that a cell makes, that it changes a part of, and that it must be given."""
    makes, changes, given = set(), set(), set()
    for statement in ast.parse(source).body:
        tables = [symtable.symtable(ast.unparse(statement), "cell", "exec")]
        top = tables[0].get_symbols()
        made = {s.get_name() for s in top if s.is_assigned() or s.is_imported()}
        uses = {s.get_name() for s in top if s.is_referenced()}
        while tables:
            inner = tables.pop().get_children()
            uses |= {s.get_name() for table in inner for s in table.get_symbols() if s.is_global()}
            tables += inner
        # A loop makes its variable before it uses it; `x = f(x)` is given x.
        given |= uses - makes - (set() if isinstance(statement, ast.Assign | ast.AugAssign) else made)
        makes |= made
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute | ast.Subscript) and isinstance(node.ctx, ast.Store):
            while isinstance(node, ast.Attribute | ast.Subscript):
                node = node.value
            changes |= {node.id} if isinstance(node, ast.Name) else set()
    return makes, changes, given


def place(cells: list[NotebookNode], tag: str) -> int:
    (found,) = (number for number, cell in enumerate(cells) if tag in tags(cell))
    return found


def code_cells(notebook: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def solution(path: Path) -> str:
    """The worked solution of a notebook's first exercise."""
    solved = nbformat.read(path.parent / "solutions" / path.name, as_version=4)
    (cell,) = (cell for cell in solved.cells if "solution-1" in tags(cell))
    return cell.source


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[tuple[Path, str, str]]:
    """A copy of the notebooks, the address of a JupyterLab with nobody's settings, and its token."""
    home = tmp_path_factory.mktemp("lab")
    folder = shutil.copytree(COURSE, home / "notebooks")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    token = secrets.token_hex(16)
    places = {
        "HOME": home, "JUPYTER_CONFIG_DIR": home / "config", "JUPYTER_DATA_DIR": home / "data",
        "JUPYTER_RUNTIME_DIR": home / "runtime", "IPYTHONDIR": home / "ipython",
    }
    settings = {
        "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},  # no questions
        "notebook-extension/tracker": {"windowingMode": "none"},  # the page holds every cell
    }
    for name, values in settings.items():
        path = home / f"config/lab/user-settings/@jupyterlab/{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(values))
    command = [
        sys.executable, "-m", "jupyterlab", "--no-browser", "--ip=127.0.0.1", f"--port={port}",
        "--ServerApp.port_retries=0", f"--IdentityProvider.token={token}", f"--ServerApp.root_dir={folder}",
        "--LabApp.expose_app_in_browser=True", "--allow-root",
    ]
    with (home / "server.log").open("w+") as log:
        server = subprocess.Popen(
            command, cwd=folder, env={**os.environ, **{name: str(place) for name, place in places.items()}},
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
        )
        try:

            def answers() -> bool:
                if server.poll() is not None:
                    pytest.fail(f"JupyterLab ended: {(home / 'server.log').read_text()[-2000:]}")
                try:
                    with DIRECT.open(f"http://127.0.0.1:{port}/api?token={token}", timeout=2):
                        return True
                except OSError:
                    return False

            wait("JupyterLab to answer", answers, 40)
            yield folder, f"http://127.0.0.1:{port}", token
        finally:
            server.send_signal(signal.SIGTERM)  # ends the kernels, too
            try:
                server.wait(15)
            except subprocess.TimeoutExpired:
                os.killpg(server.pid, signal.SIGKILL)
                server.wait(5)


@dataclass
class Lab:
    """JupyterLab in a browser, which stays open from notebook to notebook: to load it takes seconds."""

    browser: Any
    folder: Path  # of the notebooks
    address: str
    token: str

    def command(self, name: str, **arguments: object) -> None:
        call = "return window.jupyterapp.commands.execute(...arguments).then(() => null)"
        self.browser.execute_script(call, name, arguments)

    def close(self) -> None:
        """Close all notebooks."""
        self.command("docmanager:save-all")  # else it asks
        self.command("application:close-all")

    def kernels(self) -> list[str]:
        """The ids of those that run."""
        with DIRECT.open(f"{self.address}/api/kernels?token={self.token}") as reply:
            return [kernel["id"] for kernel in json.load(reply)]


@pytest.fixture(scope="module")
def lab(server, tmp_path_factory) -> Iterator[Lab]:
    folder, address, token = server
    with started(tmp_path_factory.mktemp("browser")) as browser:
        browser.get(f"{address}/lab?token={token}")
        wait("the launcher", lambda: browser.find_elements(CSS, ".jp-Launcher"), 90)
        yield Lab(browser, folder, address, token)


class Page:
    """A notebook in JupyterLab, as far as it is to run."""

    def __init__(self, lab: Lab, name: str, seconds: float) -> None:
        self.browser = lab.browser
        notebook = to_run(lab.folder / name)
        nbformat.write(notebook, lab.folder / name)
        cells = code_cells(notebook)
        self.exercise, self.check = place(cells, "exercise-1"), place(cells, "check-1")
        self.question = cells[self.check].source
        self.total = len(cells)
        running = [{"kernel": {"id": kernel}} for kernel in lab.kernels()]
        lab.command("docmanager:open", path=name, **next(iter(running), {}))
        wait("its cells", lambda: len(self.all_of(".jp-CodeCell")) == self.total)
        status = "#jp-main-statusbar"
        wait("an idle kernel", lambda: any("| Idle" in bar.text for bar in self.all_of(status)), 90)
        (menu,) = [label for label in self.all_of(".lm-MenuBar-itemLabel") if label.text == "Run"]
        menu.click()
        wait("the menu", lambda: self.all_of('.lm-Menu-item[data-command="runmenu:run-all"]'))[0].click()
        wait(f"{self.total} cells to run", lambda: self.ran() == self.total, seconds)

    def all_of(self, selector: str) -> list:
        return self.browser.find_elements(CSS, selector)

    def ran(self) -> int:
        """How many code cells have run, by the numbers before those that are not folded."""
        prompts = "return [...document.querySelectorAll('.jp-InputPrompt')].map(each => each.textContent)"
        found = (re.search(r"\d+", text) for text in self.browser.execute_script(prompts))
        numbers = [int(number[0]) for number in found if number]
        return numbers[-1] - numbers[0] + 1 if numbers else 0

    def explorer(self, control) -> Any:
        """All of what a control belongs to."""
        return self.browser.execute_script("return arguments[0].closest('.widget-vbox')", control)

    def picture(self, control) -> str:
        """What the picture of a control's explorer shows: empty until it is there."""
        find = "return arguments[0].closest('.widget-vbox')?.querySelector('.widget-html img')?.src ?? ''"
        return self.browser.execute_script(find, control)

    def replace(self, cell: int, source: str) -> None:
        """Paste over what stands in a code cell, and run it."""
        editor = self.all_of(".jp-CodeCell")[cell].find_element(CSS, ".cm-content")
        self.browser.execute_script("arguments[0].scrollIntoView()", editor)
        editor.click()
        editor.send_keys(CONTROL, "a")
        self.browser.execute_script(
            "const data = new DataTransfer(); data.setData('text/plain', arguments[1]);"
            "arguments[0].dispatchEvent(new ClipboardEvent('paste', {clipboardData: data, bubbles: true}))",
            editor, source,
        )  # fmt: skip
        editor.send_keys(CONTROL, ENTER)

    def answer(self) -> str:
        """What the check of the exercise prints."""
        return self.all_of(".jp-CodeCell")[self.check].find_element(CSS, ".jp-OutputArea").text


NOTEBOOKS = [
    path.relative_to(COURSE)
    for folder in ("", "zh") for path in sorted((COURSE / folder).glob("[0-9]*_*.ipynb"))
]  # fmt: skip


@pytest.mark.parametrize("name", [
    pytest.param(path.as_posix(), id=path.with_suffix("").as_posix(), marks=fetches(COURSE / path))
    for path in NOTEBOOKS
])  # fmt: skip
def test_a_reader_runs_the_notebook_moves_its_sliders_and_solves_an_exercise(name, lab):
    browser = lab.browser
    fetch(lab.folder / name)
    solved = solution(lab.folder / name)
    PICTURES.mkdir(parents=True, exist_ok=True)
    pictures = PICTURES / name.replace("/", "_").removesuffix(".ipynb")
    try:
        page = Page(lab, name, seconds=240)
        for number, slider in enumerate(page.all_of(".noUi-handle"), 1):
            before = wait("the explorer's picture", lambda slider=slider: page.picture(slider))
            slider.send_keys(RIGHT)
            if (after := changed(page, slider, before)) == before:  # it stands at its end, perhaps
                slider.send_keys(LEFT)
                after = changed(page, slider, before)
            page.explorer(slider).screenshot(f"{pictures}.slider{number:02}.png")
            assert after != before, f"the picture does not follow {slider.get_attribute('outerHTML')}"
        for choice in map(Select, page.all_of(".widget-dropdown select")):
            before = wait("the explorer's picture", lambda choice=choice: page.picture(choice._el))
            other = next(option for option in choice.options if not option.is_selected())
            choice.select_by_visible_text(other.text)
            assert changed(page, choice._el, before) != before, f"the picture does not follow {other.text}"
        shown = browser.execute_script(
            "const room = document.querySelector('.jp-Notebook').getBoundingClientRect();"
            "return [...document.querySelectorAll('.jp-Notebook img')]"
            ".map(picture => picture.getBoundingClientRect())"
            ".filter(edges => edges.width < 100 || edges.right > room.right + 1).length"
        )
        assert not shown, "pictures that are tiny or cut off"
        text = browser.execute_script("return document.querySelector('.jp-Notebook').textContent")
        assert "Traceback" not in text
        assert "Error displaying widget" not in text
        assert not page.all_of('[data-mime-type="application/vnd.jupyter.error"]')
        assert not page.all_of('[data-mime-type="application/vnd.jupyter.stderr"]'), "no warnings"

        assert "not yet" in page.answer()
        page.replace(page.exercise, solved)
        page.replace(page.check, page.question)
        wait("the check to say correct", lambda: "correct." in page.answer())
        assert not errors(browser)
    finally:
        browser.save_screenshot(f"{pictures}.png")
        lab.close()


def changed(page: Page, control, before: str, seconds: float = 3) -> str:
    """The picture once it is another, or what it still is after some seconds."""
    end = time.monotonic() + seconds
    while (now := page.picture(control)) == before and time.monotonic() < end:
        time.sleep(0.1)
    return now
