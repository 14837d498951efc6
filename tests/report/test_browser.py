"""The page in a real browser: no console message, no request, whole on a phone, usable by keyboard."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from browsing import TAB, assert_quiet_and_whole, opened, text_outside_figures, unreachable
from isoformer.report import build_report


@pytest.fixture(scope="module")
def address(full_root: Path) -> str:
    return build_report(str(full_root), run="final", study="demo").as_uri()


@pytest.mark.parametrize("width", [360, 1280])
def test_it_opens_without_a_message_or_a_request_and_fits(browser: Any, address: str, width: int) -> None:
    opened(browser, address, width)
    assert_quiet_and_whole(browser, width)
    sizes = browser.execute_script(
        "return [...document.querySelectorAll('figure svg')].map(s => [s.clientWidth, s.clientHeight])"
    )
    assert len(sizes) == 7 and all(w > 0.8 * min(width, 480) and h > 60 for w, h in sizes)


def test_text_of_figures_stays_inside_them(browser: Any, address: str) -> None:
    opened(browser, address, 1280)
    assert text_outside_figures(browser) == []


def test_the_keyboard_reaches_the_skip_link_and_every_scrolling_table(browser: Any, address: str) -> None:
    opened(browser, address, 360)
    browser.switch_to.active_element.send_keys(TAB)
    assert browser.execute_script("return document.activeElement.className") == "skip"
    assert unreachable(browser) == 0


def test_dark_readers_get_a_dark_page(browser: Any, address: str) -> None:
    backgrounds = []
    for scheme in ("light", "dark"):
        opened(browser, address, 1280, scheme=scheme)
        backgrounds.append(browser.execute_script("return getComputedStyle(document.body).backgroundColor"))
    assert backgrounds == ["rgb(255, 255, 255)", "rgb(20, 24, 29)"]
