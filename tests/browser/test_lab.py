"""The course as a reader meets it: a real JupyterLab in a real browser, moved with the keyboard."""

import math
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import nbformat
import pytest

webdriver = pytest.importorskip("selenium.webdriver", reason="the package selenium is not installed")
pytest.importorskip("jupyterlab", reason="the package jupyterlab is not installed")

CSS, RIGHT, CONTROL = "css selector", "\ue014", "\ue009"  # as the WebDriver standard names them

ROOT = Path(__file__).resolve().parents[2]
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(BROWSER is None, reason="no browser: neither chromium nor google-chrome is here"),
    pytest.mark.skipif(DRIVER is None, reason="chromedriver is not here"),
]

NOTEBOOK = "02_temperature.ipynb"
OTHERWISE = (
    "import torch\nfrom kdlib.course import widgets",
    "widgets.temperature_explorer(torch.tensor([4.0, 2.0, 0.0]), ['8', '3', '5'])",
)


def wait(what: str, condition: Callable[[], object], seconds: float = 30) -> object:
    """The first true value of the condition; fails with the name of what was awaited."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if value := condition():
            return value
        time.sleep(0.2)
    pytest.fail(f"waited {seconds:.0f} s in vain for {what}")


@pytest.fixture
def folder(tmp_path) -> Iterator[Path]:
    """A copy of the notebooks, removed afterwards.

    The notebook under test loses its outputs, so that nothing stored can pass for a result, and the
    cells after its last explorer: that they run is tested elsewhere, and takes its time.
    """
    copy = tmp_path / "notebooks"
    shutil.copytree(ROOT / "notebooks", copy) if (ROOT / "notebooks").is_dir() else copy.mkdir()
    if (copy / NOTEBOOK).exists():
        notebook = nbformat.read(copy / NOTEBOOK, as_version=4)
        explorers = [k for k, c in enumerate(notebook.cells) if "widget" in c.metadata.get("tags", [])]
        notebook.cells = notebook.cells[: explorers[-1] + 1]
        for cell in code_cells(notebook):
            cell.outputs, cell.execution_count = [], None
    else:
        notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in OTHERWISE])
    nbformat.write(notebook, copy / NOTEBOOK)
    yield copy
    shutil.rmtree(tmp_path, ignore_errors=True)


def code_cells(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


@pytest.fixture
def address(folder) -> Iterator[str]:
    """The address of the notebook in a JupyterLab of its own, with nobody's settings."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    token = secrets.token_hex(16)
    home = folder.parent
    places = {
        "HOME": home, "JUPYTER_CONFIG_DIR": home / "config", "JUPYTER_DATA_DIR": home / "data",
        "JUPYTER_RUNTIME_DIR": home / "runtime", "IPYTHONDIR": home / "ipython",
    }
    no_questions = home / "config/lab/user-settings/@jupyterlab/apputils-extension"
    no_questions.mkdir(parents=True)
    (no_questions / "notification.jupyterlab-settings").write_text(
        '{"fetchNews": "false", "checkForUpdates": false}'
    )
    command = [
        sys.executable, "-m", "jupyterlab", "--no-browser", "--ip=127.0.0.1", f"--port={port}",
        "--ServerApp.port_retries=0", f"--IdentityProvider.token={token}", f"--ServerApp.root_dir={folder}",
        "--allow-root",
    ]
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
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
                    with direct.open(f"http://127.0.0.1:{port}/api?token={token}", timeout=2):
                        return True
                except OSError:
                    return False

            wait("JupyterLab to answer", answers, 40)
            yield f"http://127.0.0.1:{port}/lab/tree/{NOTEBOOK}?token={token}"
        finally:
            server.send_signal(signal.SIGTERM)  # ends the kernels, too
            try:
                server.wait(15)
            except subprocess.TimeoutExpired:
                os.killpg(server.pid, signal.SIGKILL)
                server.wait(5)


@pytest.fixture
def browser(tmp_path) -> Iterator["webdriver.Chrome"]:
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for argument in (
        "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync",
        "--disable-dev-shm-usage", "--no-proxy-server", "--window-size=1280,1400",
        f"--user-data-dir={tmp_path / 'browser'}",
    ):
        options.add_argument(argument)
    driver = webdriver.Chrome(options, webdriver.ChromeService(executable_path=DRIVER))
    try:
        driver.set_script_timeout(10)
        driver.set_page_load_timeout(40)
        yield driver
    finally:
        driver.quit()


def test_a_reader_runs_the_notebook_and_moves_a_slider_with_the_keyboard(folder, address, browser):
    def all_of(selector: str) -> list:
        return browser.find_elements(CSS, selector)

    def edges(selector: str) -> dict[str, float]:
        find = "return document.querySelector(arguments[0]).getBoundingClientRect().toJSON()"
        return browser.execute_script(find, selector)

    def prompts() -> list[str]:
        """The numbers before the code cells that have run."""
        find = "return [...document.querySelectorAll('.jp-InputPrompt')].map(p => p.textContent)"
        return [text for text in browser.execute_script(find) if re.search(r"\d", text)]

    def alt() -> str:
        """The alt text of the first explorer's picture; empty until it is there."""
        return browser.execute_script("return document.querySelector('.widget-html img')?.alt ?? ''")

    total = len(code_cells(nbformat.read(folder / NOTEBOOK, as_version=4)))
    browser.get(address)
    wait("an idle kernel", lambda: any("| Idle" in bar.text for bar in all_of("#jp-main-statusbar")), 90)
    (menu,) = [label for label in all_of(".lm-MenuBar-itemLabel") if label.text == "Run"]
    menu.click()
    wait("the menu", lambda: all_of('.lm-Menu-item[data-command="runmenu:run-all"]'))[0].click()

    wait(f"{total} cells to run", lambda: len(prompts()) == total, 150)
    wait("the explorer", alt)
    before = alt()
    assert before.startswith("T = 4: entropy ")

    slider = all_of(".noUi-handle")[0]
    assert slider.get_attribute("role") == "slider"
    slider.send_keys(RIGHT)
    wait("the picture to follow the slider", lambda: alt() != before)
    assert alt().startswith(f"T = {2**2.25:.3g}: entropy ")
    assert math.isclose(float(all_of(".widget-readout")[0].text), 2**2.25, abs_tol=0.01)
    shown, room = edges(".widget-html img"), edges(".jp-Notebook")
    assert shown["width"] > 400
    assert shown["right"] <= room["right"] + 1, "the picture is not cut off"

    text = browser.find_element(CSS, ".jp-Notebook").text
    assert "Traceback" not in text
    assert "Error displaying widget" not in text
    assert not all_of('[data-mime-type="application/vnd.jupyter.error"]')
    assert not all_of('[data-mime-type="application/vnd.jupyter.stderr"]'), "no warnings"

    # What the reader keeps: the notebook, saved.
    browser.find_element(CSS, "body").send_keys(CONTROL, "s")

    def saved() -> list[nbformat.NotebookNode] | None:
        cells = code_cells(nbformat.read(folder / NOTEBOOK, as_version=4))
        return cells if all(cell.execution_count for cell in cells) else None

    outputs = [output for cell in wait("the notebook to be saved", saved) for output in cell.outputs]
    assert outputs
    assert not [output for output in outputs if output.output_type == "error"]
    assert not [output for output in outputs if output.get("name") == "stderr"]
