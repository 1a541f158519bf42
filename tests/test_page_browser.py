"""The page in headless Chromium: its tables, sorting, filtering, phones, colour schemes, and without JavaScript."""

from __future__ import annotations

import io
import json
import pathlib
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import hand_made
import pytest
from hand_made import HOSTILE, LABELS
from PIL import Image
from test_page import Parsed


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return hand_made.write_page(tmp_path_factory.mktemp("page"))


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Headless Chromium."""
    webdriver = pytest.importorskip("selenium.webdriver")
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not chromium or not driver:
        pytest.skip("needs chromium and chromedriver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for name in ("headless=new", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-sync",
                 "disable-background-networking", "disable-component-update", "disable-dev-shm-usage",
                 f"user-data-dir={tmp_path_factory.mktemp('chromium')}"):  # fmt: skip
        options.add_argument(f"--{name}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    opened = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield opened
    opened.quit()


@pytest.fixture
def opened(browser: Any, written: pathlib.Path) -> Callable[..., Any]:
    """Open the page: width in CSS pixels, colour scheme, whether JavaScript runs."""

    def show(width: int = 1280, scheme: str = "light", javascript: bool = True) -> Any:
        for log in ("browser", "performance"):
            browser.get_log(log)
        size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 600}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        browser.execute_cdp_cmd(
            "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        )
        browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": not javascript})
        browser.get(written.as_uri())
        return browser

    return show


def column(browser: Any, table: str, number: int, body: int = 0) -> list[str]:
    """What is seen in a column of a group of rows."""
    script = """return [...document.getElementById(arguments[0]).tBodies[arguments[2]].rows]
        .filter(r => r.className !== "group" && r.offsetHeight).map(r => r.cells[arguments[1]].innerText.trim())"""
    return browser.execute_script(script, table, number, body)


def head(browser: Any, table: str, number: int) -> Any:
    return browser.find_elements("css selector", f"#{table} thead tr:last-child th")[number]


def test_all_rows_are_shown_nothing_else_is_loaded_and_no_error_logged(
    opened: Callable[..., Any], written: pathlib.Path
) -> None:
    browser, parsed = opened(), Parsed(written.read_text())
    for name in dict.fromkeys(name for name, _ in parsed.rows if name):
        rows = browser.execute_script("return document.getElementById(arguments[0]).rows.length", name)
        assert rows == len(parsed.of(name)), name
    assert column(browser, "errors-severity-5", 0) == LABELS
    widths = "return [...document.images].map(i => i.naturalWidth)"
    assert browser.execute_script(widths) == [1200], "the figure is drawn"
    assert browser.get_log("browser") == []
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    sent = [e["params"] for e in events if e["method"] == "Network.requestWillBeSent"]
    asked = [s["request"]["url"] for s in sent if s["documentURL"] == browser.current_url]  # not those of the first tab
    assert browser.current_url in asked
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []


def test_a_click_sorts_numbers_as_numbers_with_failures_last_and_another_reverses(opened: Callable[..., Any]) -> None:
    browser = opened()
    place, mean = "errors-severity-5", 5
    before = column(browser, place, 0)
    button = head(browser, place, mean).find_element("css selector", "button")
    button.click()
    assert column(browser, place, mean) == ["9.5±0.4", "30.2±0.4", "40.0±0.4", "100.0±0.4", "failed"]
    assert head(browser, place, mean).get_attribute("aria-sort") == "ascending"
    button.send_keys("\ue007")  # the keyboard's Enter
    assert column(browser, place, mean) == ["100.0±0.4", "40.0±0.4", "30.2±0.4", "9.5±0.4", "failed"]
    button.click()
    assert column(browser, place, 0) == before
    head(browser, place, 0).find_element("css selector", "button").click()
    assert column(browser, place, 0) == [HOSTILE, "mgg[lr=0.01,objective=entropy]", "norm", "source", "tent"]
    assert head(browser, place, mean).get_attribute("aria-sort") == "none"


def test_the_filter_hides_rows_everywhere(opened: Callable[..., Any]) -> None:
    browser = opened()
    browser.find_element("css selector", "#filter summary").click()
    box = browser.find_element("css selector", "#filter [type=search]")
    box.send_keys("TENT resnet")
    assert column(browser, "errors-severity-5", 0) == ["tent"]
    assert column(browser, "errors-severity-5", 0, 1) == []
    assert column(browser, "summary-severity-5", 0) == ["tent"]
    assert "no row matches the filter" in browser.find_element("css selector", "#gaps").text
    browser.find_element("css selector", "#filter [type=reset]").click()
    browser.execute_async_script("setTimeout(arguments[0], 50)")
    assert column(browser, "errors-severity-5", 0, 1) == LABELS
    browser.find_element("css selector", "#filter [name=label][value=tent]").click()
    browser.find_element("css selector", "#filter [name=model][value=resnet_bn]").click()
    assert column(browser, "errors-severity-5", 0) == []
    assert column(browser, "errors-severity-5", 0, 1) == [name for name in LABELS if name != "tent"]
    assert browser.get_log("browser") == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_never_scrolls_sideways_and_text_has_contrast(opened: Callable[..., Any], scheme: str) -> None:
    browser = opened(390, scheme)
    browser.execute_script("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert browser.execute_script("return [innerWidth, document.documentElement.scrollWidth]") == [390, 390]
    dim = browser.execute_script(
        """const parts = c => c.match(/[\\d.]+/g).map(Number);
        const light = c => { const [r, g, b] = parts(c).slice(0, 3).map(v => v / 255)
            .map(v => v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4); return .2126 * r + .7152 * g + .0722 * b; };
        const ground = e => { for (; e; e = e.parentElement) { const c = getComputedStyle(e).backgroundColor;
            if (parts(c)[3] !== 0) return c; } return "rgb(255, 255, 255)"; };
        return [...document.querySelectorAll("body *")].filter(e => e.offsetHeight && ![...e.childNodes].every(
            n => n.nodeType !== 3 || !n.textContent.trim())).map(e => {
            const [a, b] = [light(getComputedStyle(e).color), light(ground(e))].sort((x, y) => y - x);
            return [(a + .05) / (b + .05), e.outerHTML.slice(0, 80)]; }).filter(([ratio]) => ratio < 4.5)"""
    )
    assert dim == []
    colour = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert (colour == "rgb(255, 255, 255)") == (scheme == "light")


def test_without_javascript_all_tables_are_there_and_no_control(opened: Callable[..., Any]) -> None:
    browser = opened(javascript=False)
    assert column(browser, "errors-severity-5", 0) == LABELS
    assert browser.find_elements("css selector", "th button") == []
    assert not browser.find_element("css selector", "#filter").is_displayed()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_figure_looks_the_same_in_both_colour_schemes(opened: Callable[..., Any], scheme: str) -> None:
    picture = opened(scheme=scheme).find_element("css selector", "figure img").screenshot_as_png
    with Image.open(io.BytesIO(picture)) as image:
        assert image.convert("RGB").getpixel((image.width // 2, image.height // 2)) == (0, 0, 0)
