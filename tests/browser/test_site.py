"""The site as a reader meets it: built once, served on this machine, walked by a browser without a network."""

import functools
import html.parser
import http.server
import importlib.resources
import json
import re
import shutil
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

pytest.importorskip("furo", reason="the package furo is not installed")
webdriver = pytest.importorskip("selenium.webdriver", reason="the package selenium is not installed")

from kdlib.course.site.build import build_site  # noqa: E402

CSS = "css selector"
ROOT = Path(__file__).resolve().parents[2]
SCREENSHOTS = ROOT / "build" / "screenshots" / "site"
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")
DESKTOP, TELEPHONE = (1280, 1000), (390, 844)
# What axe calls serious or critical; the rest is advice.
AXE = """
const done = arguments[arguments.length - 1];
axe.run(document, {resultTypes: ["violations"], runOnly: arguments[0]}).then(found => done(
    found.violations.filter(one => ["serious", "critical"].includes(one.impact)).map(
        one => `${one.id}: ${one.nodes.slice(0, 3).map(node => node.html.slice(0, 150)).join(" | ")}`)),
    error => done([String(error)]));
"""
FACTS = """
const wide = document.documentElement;
return {
    links: [...document.querySelectorAll("a[href]")].map(link => link.href),
    ids: [...document.querySelectorAll("[id]")].map(one => one.id),
    broken: [...document.images].filter(one => one.complete && !one.naturalWidth).map(one => one.src),
    silent: [...document.images].filter(one => !one.alt).map(one => one.src),
    left: [...document.querySelectorAll("article p, article li, article td")]
        .map(one => one.textContent).filter(text => /\\$[^$]+\\$|<!--|\\]\\(/.test(text)),
};
"""


@dataclass
class Walk:
    """What a walk through all pages has found."""

    pages: dict[str, set[str]] = field(default_factory=dict)  # address below the start: the anchors there
    links: dict[str, str] = field(default_factory=dict)  # address with anchor: a page that has it
    complaints: list[str] = field(default_factory=list)


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        pass


def serve(folder: Path) -> Iterator[str]:
    """The address of a folder, served on loopback."""
    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder))
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    return build_site(ROOT, tmp_path_factory.mktemp("site") / "site").parent


@pytest.fixture(scope="module")
def address(site) -> Iterator[str]:
    yield from serve(site)


@pytest.fixture(scope="module")
def browser(tmp_path_factory) -> Iterator["webdriver.Chrome"]:
    """A browser to which every address but this machine's is unknown, and which notes what it asks for."""
    if BROWSER is None or DRIVER is None:
        pytest.skip("no browser: chromium or google-chrome, and chromedriver, are not here")
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    for argument in (
        "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync",
        "--disable-dev-shm-usage", "--no-proxy-server", "--hide-scrollbars",
        "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
        f"--user-data-dir={tmp_path_factory.mktemp('browser')}",
    ):  # fmt: skip
        options.add_argument(argument)
    driver = webdriver.Chrome(options, webdriver.ChromeService(executable_path=DRIVER))
    try:
        driver.set_page_load_timeout(60)
        driver.set_script_timeout(60)
        yield driver
    finally:
        driver.quit()


def wait(what: str, condition: Callable[[], object], seconds: float = 30) -> object:
    """The first true value of the condition; fails with the name of what was awaited."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if value := condition():
            return value
        time.sleep(0.1)
    pytest.fail(f"waited {seconds:.0f} s in vain for {what}")


def resize(browser, size: tuple[int, int]) -> None:
    width, height = size
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": size == TELEPHONE},
    )


def choose(browser, theme: str) -> None:
    """Light or dark, as a click on the button would, without its animation."""
    browser.execute_script("document.body.dataset.theme = arguments[0]", theme)


def requests(browser) -> list[str]:
    """What was asked for since the last call."""
    messages = (json.loads(entry["message"])["message"] for entry in browser.get_log("performance"))
    return [
        message["params"]["request"]["url"]
        for message in messages
        if message["method"] == "Network.requestWillBeSent"
    ]


def walk(browser, start: str, screenshots: Path) -> Walk:
    """Open the first page and every page that links lead to, each in both sizes and themes."""
    found, waiting = Walk(), ["index.html"]
    axe = (importlib.resources.files("axe_core_python") / "axe.min.js").read_text(encoding="utf-8")
    while waiting:
        page = waiting.pop(0)
        complain = functools.partial(complaint, found.complaints, page)
        resize(browser, DESKTOP)
        browser.get(start + page)
        facts = browser.execute_script(FACTS)
        found.pages[page] = set(facts.pop("ids"))
        for link in facts.pop("links"):
            target, _, _ = link.removeprefix(start).partition("#")
            if link.startswith(start):
                found.links.setdefault(link.removeprefix(start), page)
                if target.endswith(".html") and target not in (*found.pages, *waiting):
                    waiting.append(target)
        for name, values in facts.items():
            complain(name, values)
        shot = screenshots / page.replace("/", "-")
        for theme in ("light", "dark"):
            choose(browser, theme)
            browser.save_screenshot(str(shot.with_suffix(f".{theme}.png")))
            if theme == "light":
                browser.execute_script(axe)
            rules = {"type": "tag", "values": ["wcag2a", "wcag2aa"]}
            if theme == "dark":
                rules = {"type": "rule", "values": ["color-contrast"]}
            complain(f"axe, {theme}", browser.execute_async_script(AXE, rules))
        choose(browser, "light")
        resize(browser, TELEPHONE)
        browser.save_screenshot(str(shot.with_suffix(".telephone.png")))
        width = browser.execute_script("return document.documentElement.scrollWidth")
        complain("wider than a telephone", [width] if width > TELEPHONE[0] else [])
        asked = requests(browser)
        complain("asks the network", [one for one in asked if not one.startswith((start, "data:", "blob:"))])
        complain("console", [e["message"] for e in browser.get_log("browser") if e["level"] == "SEVERE"])
    for link, page in found.links.items():
        target, _, anchor = link.partition("#")
        if target.endswith(".html") and urllib.parse.unquote(anchor) not in {"", *found.pages[target]}:
            found.complaints.append(f"{page}: no such place: {link}")
    return found


def complaint(complaints: list[str], page: str, what: str, values: list) -> None:
    complaints.extend(f"{page}: {what}: {value}" for value in values)


@pytest.mark.browser
def test_every_page_is_whole_without_a_network(site, address, browser):
    shutil.rmtree(SCREENSHOTS, ignore_errors=True)
    SCREENSHOTS.mkdir(parents=True)
    found = walk(browser, address, SCREENSHOTS)
    assert not found.complaints, "\n".join(found.complaints)
    built = {path.relative_to(site).as_posix() for path in site.rglob("*.html")}
    assert set(found.pages) >= built - {"genindex.html", "search.html"}
    assert len([link for link in found.links if "glossary.html#" in link]) > 50
    for link in found.links:
        target, _, _ = urllib.parse.unquote(link).partition("#")
        assert (site / target.partition("?")[0]).exists(), link
