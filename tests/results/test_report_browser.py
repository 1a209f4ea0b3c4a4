"""The report in a real browser: it draws, fits a phone, follows the colour scheme, and asks nobody
for anything.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from raysft.results.report import write_report
from tests.results.made import make_run

selenium = pytest.importorskip("selenium", reason="selenium is not installed")
CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
CHROMEDRIVER = shutil.which("chromedriver")

pytestmark = pytest.mark.skipif(
    CHROMIUM is None or CHROMEDRIVER is None, reason="needs chromium and chromedriver on PATH"
)

DESKTOP, PHONE = (1280, 900), (390, 844)
NAMES = (
    "<script>alert(1)</script>",
    "a class of a name that is longer than a column of a table should be",
    "cow",
    "d",
)


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> Path:
    run = make_run(tmp_path_factory.mktemp("made"), NAMES, rows=40, shard_rows=20, size=28)
    return Path(write_report(run.folder))


@pytest.fixture(scope="module")
def browser(tmp_path_factory) -> Iterator[Any]:
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    assert CHROMIUM is not None  # or the module is skipped
    options.binary_location = CHROMIUM
    for word in (
        "headless=new",
        "no-sandbox",
        "disable-gpu",
        "disable-quic",
        "no-first-run",
        "disable-sync",
        "disable-background-networking",
        "disable-component-update",
        "disable-dev-shm-usage",
        f"user-data-dir={tmp_path_factory.mktemp('profile')}",
    ):
        options.add_argument(f"--{word}")
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(CHROMEDRIVER))
    yield driver
    driver.quit()


class Opened:
    """A report in the browser, at one size and in one colour scheme."""

    def __init__(self, browser: Any, file: Path, size: tuple[int, int], scheme: str) -> None:
        from selenium.webdriver.support.ui import WebDriverWait

        self.browser = browser
        width, height = size
        browser.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500},
        )
        self.choose(scheme)
        browser.get_log("browser"), browser.get_log("performance")  # what went before
        browser.get(file.as_uri())
        WebDriverWait(browser, 30).until(
            lambda _: self.ask("return document.documentElement.dataset.drawn")
        )

    def choose(self, scheme: str) -> None:
        self.browser.execute_cdp_cmd(
            "Emulation.setEmulatedMedia",
            {"features": [{"name": "prefers-color-scheme", "value": scheme}]},
        )

    def ask(self, script: str, *words: Any) -> Any:
        return self.browser.execute_script(script, *words)

    def color(self, selector: str, what: str) -> str:
        return self.ask(
            "return getComputedStyle(document.querySelector(arguments[0]))[arguments[1]]",
            selector,
            what,
        )

    def keep_picture(self, file: Path) -> None:
        """A PNG of the whole page."""
        import base64

        height = self.ask("return document.documentElement.scrollHeight")
        width = self.ask("return document.documentElement.clientWidth")
        shot = self.browser.execute_cdp_cmd(
            "Page.captureScreenshot",
            {
                "captureBeyondViewport": True,
                "clip": {"x": 0, "y": 0, "width": width, "height": height, "scale": 1},
            },
        )
        file.write_bytes(base64.b64decode(shot["data"]))


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_it_draws_fits_and_asks_nobody(browser, report, tmp_path, size, scheme):
    opened = Opened(browser, report, size, scheme)
    opened.keep_picture(tmp_path / f"{size[0]}-{scheme}.png")
    marks = opened.ask("""return Object.fromEntries([...document.querySelectorAll('.chart')].map(chart => [chart.id,
        chart.querySelectorAll('svg .mark-line path, svg .mark-symbol path, svg .mark-rect path').length]))""")
    assert set(marks) == {
        "curve-metric",
        "curve-val-loss",
        "curve-train-loss",
        "rates",
        "progress",
        "reliability",
        "certainty",
    }
    assert min(marks.values()) > 1, marks
    assert opened.ask("return document.documentElement.scrollWidth") <= size[0]
    assert (
        opened.ask(
            "return [...document.querySelectorAll('section, .chart svg')].filter("
            "part => part.getBoundingClientRect().right > innerWidth + 1).length"
        )
        == 0
    )
    assert browser.get_log("browser") == []
    sent = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = {
        message["params"]["request"]["url"]
        for message in sent
        if message["method"] == "Network.requestWillBeSent"
    }
    assert report.as_uri() in asked
    assert {url.partition(":")[0] for url in asked} <= {"file", "data"}
    assert {url for url in asked if url.startswith("file")} == {report.as_uri()}
    assert report.stat().st_size < 3_000_000


def test_colours_follow_the_scheme_while_it_is_open(browser, report):
    opened = Opened(browser, report, DESKTOP, "light")
    line, text = "#curve-metric svg .mark-line path", "#curve-metric svg .role-axis-label text"
    light = [
        opened.color("html", "backgroundColor"),
        opened.color(line, "stroke"),
        opened.color(text, "fill"),
    ]
    opened.choose("dark")
    dark = [
        opened.color("html", "backgroundColor"),
        opened.color(line, "stroke"),
        opened.color(text, "fill"),
    ]
    assert all(before != after for before, after in zip(light, dark, strict=True))
    assert brightness(light[0]) > 200 > 60 > brightness(dark[0])
    assert brightness(light[2]) < 128 < brightness(dark[2])


def brightness(color: str) -> float:
    red, green, blue = (float(word) for word in color.strip("rgba()").split(",")[:3])
    return 0.3 * red + 0.6 * green + 0.1 * blue


def test_injected_script_does_not_run(browser, report, tmp_path):
    changed = tmp_path / "changed.html"
    changed.write_text(
        report.read_text().replace(
            "<header>",
            "<script>document.title = 'run'</script><img src='http://127.0.0.1:9/x.png'><header>",
        )
    )
    opened = Opened(browser, changed, DESKTOP, "light")
    assert opened.ask("return document.title") == "r · raysft"
    refused = [entry["message"] for entry in browser.get_log("browser")]
    assert len(refused) == 2
    assert all("Content Security Policy" in line for line in refused)


def test_points_tell_what_they_are(browser, report):
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.by import By

    opened = Opened(browser, report, DESKTOP, "light")
    point = browser.find_element(By.CSS_SELECTOR, "#rates svg .mark-symbol path")
    opened.ask("arguments[0].scrollIntoView({block: 'center'})", point)
    ActionChains(browser).move_to_element(point).perform()
    told = browser.find_element(By.ID, "vg-tooltip-element").text
    assert told.splitlines()[0] == "trial t1"
    assert "0.9000" in told
    assert "0.001" in told


def test_a_click_sorts_a_table(browser, report):
    from selenium.webdriver.common.by import By

    opened = Opened(browser, report, DESKTOP, "light")
    header = browser.find_element(By.XPATH, "//section[@id='classes']//th[.='F1']/button")
    shown = (
        "return [...document.querySelectorAll('#classes tbody tr')].map(row => "
        "Number(row.cells[3].dataset.value))"
    )
    for reverse in (True, False):
        opened.ask("arguments[0].click()", header)
        values = opened.ask(shown)
        assert values == sorted(values, reverse=reverse)
        assert len(set(values)) > 1
