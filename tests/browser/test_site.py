"""The site as a reader meets it: built once, served on loopback, walked by a browser without a network."""

import functools
import http.server
import importlib.resources
import json
import re
import shutil
import threading
import urllib.parse
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

pytest.importorskip("furo", reason="the package furo is not installed")

from chromium import CSS, errors, needs_browser, started, wait  # noqa: E402

import kdlib  # noqa: E402
from kdlib.course.site.build import build_site  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
RIGHT = "\ue014"  # as the WebDriver standard names the key
SCREENSHOTS = ROOT / "build" / "screenshots" / "site"
DESKTOP, TELEPHONE, PROJECTOR = (1280, 1000), (390, 844), (1280, 720)
# Pages that hold every kind of text, for what takes axe longest: is each letter told from its background?
PALETTE = ("index.html", "notebooks/00_start_here.html", "kdlib/course/site/api.html")
# What axe calls serious or critical; the rest is advice.
AXE = """
const done = arguments[arguments.length - 1];
const contrast = arguments[0];
// Thousands of coloured words of code have nothing but a colour: without it they are one text each.
if (!contrast)
    document.querySelectorAll(".highlight pre").forEach(code => { code.textContent = code.textContent; });
axe.run(document, {
    preload: false,
    resultTypes: ["violations"],
    runOnly: contrast ? ["color-contrast"] : ["wcag2a", "wcag2aa"],
    rules: contrast ? {} : {"color-contrast": {enabled: false}},
}).then(found => done(
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
    unread: [...document.querySelectorAll("article p, article li, article td")].map(one => {
        const copy = one.cloneNode(true);
        copy.querySelectorAll("code, pre").forEach(code => code.remove());
        return copy.textContent;
    }).filter(text => /\\$[^$]+\\$|<!--|\\]\\(/.test(text)),
};
"""

# The heading of the slide that is shown, if there is room for all of it, else what there is none for.
SLIDE = """
const slide = Reveal.getCurrentSlide(), room = Reveal.getConfig();
const over = slide.scrollHeight > room.height || slide.scrollWidth > room.width;
return over ? `no room: ${slide.textContent.trim().slice(0, 40)}` : "";
"""

pytestmark = needs_browser


@dataclass
class Walk:
    """What a walk through all pages has found."""

    pages: dict[str, set[str]] = field(default_factory=dict)  # address below the start: the anchors there
    links: dict[str, str] = field(default_factory=dict)  # address with anchor: a page that has it
    complaints: list[str] = field(default_factory=list)
    slides: dict[str, int] = field(default_factory=dict)  # how many a page has


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
def browser(tmp_path_factory) -> Iterator:
    with started(tmp_path_factory.mktemp("browser"), "--hide-scrollbars", traffic=True) as driver:
        driver.set_page_load_timeout(60)
        driver.set_script_timeout(60)
        yield driver


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
        browser.execute_script(axe)
        for theme in ["light", "dark"] if page in PALETTE else ["light"]:
            choose(browser, theme)
            browser.save_screenshot(str(shot.with_suffix(f".{theme}.png")))
            if page in PALETTE:
                complain(f"axe, {theme}", browser.execute_async_script(AXE, True))
        choose(browser, "light")
        resize(browser, TELEPHONE)
        browser.save_screenshot(str(shot.with_suffix(".telephone.png")))
        width = browser.execute_script("return document.documentElement.scrollWidth")
        complain("wider than a telephone", [width] if width > TELEPHONE[0] else [])
        resize(browser, DESKTOP)
        complain("axe", browser.execute_async_script(AXE, False))  # changes the page
        if browser.execute_script("return Boolean(window.Reveal)"):
            found.slides[page] = show_slides(browser, shot, functools.partial(complain, "slide"))
        asked = requests(browser)
        outside = re.compile(rf"(?!{re.escape(start)})(https?|wss?):")
        complain("asks the network", list(filter(outside.match, asked)))
        complain("console", errors(browser))
    for link, page in found.links.items():
        target, _, anchor = link.partition("#")
        if target in found.slides and anchor.startswith("/"):  # a slide by its number
            continue
        if target.endswith(".html") and urllib.parse.unquote(anchor) not in {"", *found.pages[target]}:
            found.complaints.append(f"{page}: no such place: {link}")
    return found


def show_slides(browser, shot: Path, complain: Callable[[list[str]], None]) -> int:
    """Go through the slides of a page with the keyboard, as a projector shows them; how many there are."""
    resize(browser, PROJECTOR)
    browser.refresh()
    count = "return Reveal.isReady() && Reveal.getTotalSlides()"
    total = wait("slides", lambda: browser.execute_script(count))
    for number in range(total):
        wait(f"slide {number}", lambda number=number: browser.execute_script(
            "return Reveal.getSlidePastCount() === arguments[0]", number))  # fmt: skip
        complain(list(filter(None, [browser.execute_script(SLIDE)])))
        browser.save_screenshot(str(shot.with_suffix(f".{number + 1:02}.png")))
        browser.switch_to.active_element.send_keys(RIGHT)
    return total


def complaint(complaints: list[str], page: str, what: str, values: list) -> None:
    complaints.extend(f"{page}: {what}: {value}" for value in values)


def test_every_page_is_whole_without_a_network(site, address, browser):
    shutil.rmtree(SCREENSHOTS, ignore_errors=True)
    SCREENSHOTS.mkdir(parents=True)
    found = walk(browser, address, SCREENSHOTS)
    assert not found.complaints, "\n".join(found.complaints)
    pages = [path.relative_to(site) for path in site.rglob("*.html")]
    built = {page.as_posix() for page in pages if "_static" not in page.parts}
    unlinked = {"genindex.html", "search.html", "zh/genindex.html", "zh/search.html", "zh/index.html"}
    assert set(found.pages) >= built - unlinked
    assert len([link for link in found.links if "glossary.html#" in link]) > 50
    slides = ("slides/notebooks/slides.html", "slides/notebooks/zh/slides.html")
    assert {page: count > 15 for page, count in found.slides.items()} == dict.fromkeys(slides, True)
    assert len({*found.slides.values()}) == 1, "as many in Chinese"
    for link in found.links:
        target, _, _ = urllib.parse.unquote(link).partition("#")
        assert (site / target.partition("?")[0]).exists(), link


def test_the_reference_holds_every_public_name(site):
    page = (site / "kdlib/course/site/api.html").read_text(encoding="utf-8")
    assert {f"kdlib.{name}" for name in kdlib.__all__} <= set(re.findall(r'id="([\w.]+)"', page))


@pytest.fixture
def opened(address, browser) -> Callable[[str], None]:
    """Opens a page as somebody does who has never been here."""

    def go(page: str) -> None:
        resize(browser, DESKTOP)
        browser.get(address + page)
        browser.execute_script("localStorage.clear()")
        browser.get(address + page)

    return go


@pytest.mark.parametrize(("page", "word"), [("index.html", "temperature"), ("zh/index.html", "温度")])
def test_search_finds_temperature(opened, browser, page, word):
    opened(page)
    errors(browser)  # of the pages before
    browser.find_element(CSS, ".sidebar-search").send_keys(f"{word}\n")
    results = wait("results", lambda: browser.find_elements(CSS, "ul.search li a"))
    assert any("02_temperature.html" in result.get_attribute("href") for result in results)
    assert not errors(browser)


def test_dark_mode_is_a_click_and_stays(opened, address, browser):
    def look() -> tuple[str, str]:
        find = "return [document.body.dataset.theme, getComputedStyle(document.body).backgroundColor]"
        return tuple(browser.execute_script(find))

    opened("notebooks/02_temperature.html")
    button = browser.find_element(CSS, ".content-icon-container .theme-toggle")
    seen = {look()[0]: look()[1]}
    for _ in range(3):  # as the system has it, light, dark
        button.click()
        seen.setdefault(*look())
    assert set(seen) == {"auto", "light", "dark"}
    assert seen["light"] != seen["dark"]
    while look()[0] != "dark":
        button.click()
    browser.get(address + "notebooks/glossary.html")
    assert look() == ("dark", seen["dark"])


def test_claims_hints_and_solutions_are_folded_and_open(opened, browser):
    for page, folded, what in (
        ("notebooks/02_temperature.html", ".tag_claim details", "pre"),
        ("notebooks/02_temperature.html", "article > section details:not([class])", "p"),
        ("notebooks/solutions/02_temperature.html", ".tag_solution-1 details", "pre"),
    ):
        opened(page)
        details = browser.find_element(CSS, folded)
        inside = details.find_element(CSS, what)
        assert not inside.is_displayed()
        details.find_element(CSS, "summary").send_keys("\n")
        wait("what was folded", inside.is_displayed)


def test_cells_have_a_copy_button_and_outputs_have_none(opened, browser):
    opened("notebooks/02_temperature.html")
    wait("copy buttons", lambda: browser.find_elements(CSS, ".cell_input button.copybtn"))
    buttons, cells, others = browser.execute_script(
        "return ['.cell_input button.copybtn', '.cell_input pre', '.cell_output button.copybtn']"
        ".map(one => document.querySelectorAll(one).length)"
    )
    assert buttons == cells > 10
    assert others == 0


def test_a_reader_goes_on_from_page_to_page(opened, browser):
    opened("notebooks/02_temperature.html")
    assert len(browser.find_elements(CSS, ".toc-tree a[href^='#']")) > 5, "the contents of the page"
    for way, page in (
        ("next", "03_distillation_loss"), ("prev", "02_temperature"), ("prev", "01_hard_and_soft_labels"),
    ):  # fmt: skip
        browser.find_element(CSS, f"a.{way}-page").send_keys("\n")
        wait(page, lambda page=page: browser.current_url.endswith(f"notebooks/{page}.html"))


def test_terms_say_on_hover_what_they_mean(opened, browser):
    opened("notebooks/02_temperature.html")
    link = browser.find_element(CSS, "a[href='glossary.html#temperature']")
    assert link.get_attribute("title").startswith("The T in softmax(z/T).")


# --- the walk complains of what is wrong -------------------------------------------------------------


FAULTS = {
    "no such place: second.html#nowhere": '<a href="second.html#nowhere">x</a>',
    "console: ": '<a href="missing.html">x</a>',
    "asks the network: http://outside.example/x.png": '<img alt="x" src="http://outside.example/x.png">',
    "silent: ": '<img src="dot.svg">',
    "broken: ": '<img alt="a picture" src="broken.png">',
    "unread: a $T$": "<article><p>a $T$</p></article>",
    "wider than a telephone": '<div style="width: 900px">x</div>',
    "axe: image-alt": '<img src="dot.svg">',
    "axe, light: color-contrast": '<p style="color: #eee; background: #fff">pale</p>',
    "slide: no room: much": """<div id="slide" style="width: 90px">much<hr style="width: 99px"></div>
    <script>Reveal = {
        isReady: () => true, getTotalSlides: () => 1, getSlidePastCount: () => 0,
        getCurrentSlide: () => document.getElementById("slide"), getConfig: () => ({width: 90, height: 90}),
    }</script>""",
}


def test_the_walk_names_every_fault(tmp_path, browser):
    page = (
        '<!DOCTYPE html><html lang="en"><title>a</title><link rel="icon" href="dot.svg">'
        '<meta name="viewport" content="width=device-width"><body>'
    )
    (tmp_path / "dot.svg").write_text('<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>')
    (tmp_path / "broken.png").write_text("no picture")
    (tmp_path / "second.html").write_text(f'{page}<a href="index.html">x</a>')
    (tmp_path / "index.html").write_text(f'{page}<a href="second.html">x</a>{" ".join(FAULTS.values())}')
    for address in serve(tmp_path):
        found = walk(browser, address, tmp_path)
    complaints = "\n".join(found.complaints)
    for fault in FAULTS:
        assert fault in complaints
    assert "second.html: " not in complaints.replace("no such place: second.html", "")
