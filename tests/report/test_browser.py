"""The page in a real browser: no console message, no request, whole on a phone, usable by keyboard."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from isoformer.report import build_report

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    not (CHROMIUM and DRIVER), reason="chromium and chromedriver are not installed (Debian: chromium-driver)"
)
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(executable_path=DRIVER))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def address(full_root: Path) -> str:
    return build_report(str(full_root), run="final", study="demo").as_uri()


def opened(browser: Any, address: str, width: int) -> None:
    metrics = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    browser.get(address)


@pytest.mark.parametrize("width", [360, 1280])
def test_it_opens_without_a_message_or_a_request_and_fits(browser: Any, address: str, width: int) -> None:
    opened(browser, address, width)
    assert browser.get_log("browser") == []
    assert browser.execute_script("return performance.getEntriesByType('resource').length") == 0
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    sizes = browser.execute_script(
        "return [...document.querySelectorAll('figure svg')].map(s => [s.clientWidth, s.clientHeight])"
    )
    assert len(sizes) == 7 and all(w > 0.8 * min(width, 480) and h > 60 for w, h in sizes)


def test_text_of_figures_stays_inside_them(browser: Any, address: str) -> None:
    opened(browser, address, 1280)
    outside = browser.execute_script(
        "return [...document.querySelectorAll('figure svg')].flatMap(svg => {"
        "const box = svg.getBoundingClientRect();"
        "return [...svg.querySelectorAll('text')].filter(text => {"
        "const t = text.getBoundingClientRect();"
        "return t.left < box.left - 2 || t.right > box.right + 2 }).map(text => text.textContent) })"
    )
    assert outside == []


def test_the_keyboard_reaches_the_skip_link_and_every_scrolling_table(browser: Any, address: str) -> None:
    opened(browser, address, 360)
    browser.switch_to.active_element.send_keys("\ue004")  # Tab
    assert browser.execute_script("return document.activeElement.className") == "skip"
    unreachable = browser.execute_script(
        "return [...document.querySelectorAll('.scroll')].filter(s => s.tabIndex !== 0).length"
    )
    assert unreachable == 0


def test_dark_readers_get_a_dark_page(browser: Any, address: str) -> None:
    opened(browser, address, 1280)
    backgrounds = []
    for scheme in ("light", "dark"):
        features = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", features)
        backgrounds.append(browser.execute_script("return getComputedStyle(document.body).backgroundColor"))
    assert backgrounds == ["rgb(255, 255, 255)", "rgb(20, 24, 29)"]
