"""A headless Chromium that talks to this machine alone, and what tests ask of a page."""

import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

webdriver = pytest.importorskip("selenium.webdriver", reason="the package selenium is not installed")

CSS = "css selector"  # as the WebDriver standard names it
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")

# Where this is set, as in CI, tests fail that find no browser.
DEMANDED = "KDLIB_BROWSER" in os.environ
IS_HERE = bool(BROWSER and DRIVER)
needs_browser = [
    pytest.mark.browser,
    pytest.mark.skipif(
        not (IS_HERE or DEMANDED), reason="there is no Chromium or Chrome with its chromedriver here"
    ),
]


@contextmanager
def started(profile: Path, *more: str, traffic: bool = False) -> Iterator["webdriver.Chrome"]:
    """A browser with nobody's settings, kept in the folder `profile`; `more` are arguments of its command.

    `traffic`: it keeps what it asks for, in its log "performance".
    """
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    logs = ("browser", "performance") if traffic else ("browser",)
    options.set_capability("goog:loggingPrefs", dict.fromkeys(logs, "ALL"))
    for argument in (
        "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync",
        "--disable-dev-shm-usage", "--no-proxy-server", "--window-size=1280,1400",
        "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1", f"--user-data-dir={profile}", *more,
    ):  # fmt: skip
        options.add_argument(argument)
    driver = webdriver.Chrome(options, webdriver.ChromeService(executable_path=DRIVER))
    try:
        driver.set_script_timeout(10)
        driver.set_page_load_timeout(40)
        yield driver
    finally:
        driver.quit()


def wait(what: str, condition: Callable[[], object], seconds: float = 30) -> object:
    """The first true value of the condition; fails with the name of what was awaited."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if value := condition():
            return value
        time.sleep(0.2)
    pytest.fail(f"waited {seconds:.0f} s in vain for {what}")


def errors(browser: "webdriver.Chrome") -> list[str]:
    """What the console has shown as errors since it was last asked."""
    return [entry["message"] for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
