"""The page of a sweep in a real browser, on a phone and on a desk, light and dark, by keyboard alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from browsing import (
    ENTER,
    SPACE,
    TAB,
    assert_quiet_and_whole,
    low_contrasts,
    opened,
    text_outside_figures,
    unreachable,
)
from isoformer.report import build_sweep_report
from isoformer.tracking import TrackingConfig
from made_study import a_study, write_study

QUIET = TrackingConfig(enabled=False)


@pytest.fixture(scope="module")
def address(study_root: Path) -> str:
    return build_sweep_report(str(study_root), "made", tracking=QUIET).as_uri()


@pytest.mark.parametrize("width", [360, 1280])
def test_it_opens_without_a_message_or_a_request_and_fits(browser: Any, address: str, width: int) -> None:
    opened(browser, address, width)
    assert_quiet_and_whole(browser, width)
    assert text_outside_figures(browser) == []
    sizes = browser.execute_script(
        "return [...document.querySelectorAll('figure svg')].map(s => [s.clientWidth, s.clientHeight])"
    )
    assert len(sizes) == 16 and all(w > 200 and h > 60 for w, h in sizes)


def test_500_trials_fit_a_phone(browser: Any, tmp_path: Path) -> None:
    write_study(tmp_path, a_study(500))
    opened(browser, build_sweep_report(str(tmp_path), "made", tracking=QUIET).as_uri(), 360)
    assert_quiet_and_whole(browser, 360)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_texts_can_be_read_in_both_modes(browser: Any, address: str, scheme: str) -> None:
    opened(browser, address, 1280, scheme=scheme)
    assert low_contrasts(browser) == []


def test_the_keyboard_reaches_all_that_scrolls_opens_or_sorts(browser: Any, address: str) -> None:
    opened(browser, address, 360)
    assert unreachable(browser) == 0
    wanted = browser.execute_script(
        "const all = [...document.querySelectorAll('a[href], .scroll, summary, th button')];"
        "window.order = new Map(all.map((node, place) => [node, place]));"
        "return all.filter(node => node.checkVisibility()).map(node => window.order.get(node))"
    )
    reached = []
    for _ in range(len(wanted)):
        browser.switch_to.active_element.send_keys(TAB)
        reached.append(browser.execute_script("return window.order.get(document.activeElement)"))
    assert reached == wanted, "every one of them, in the order of the page"


def test_columns_sort_by_keyboard_and_say_so(browser: Any, address: str) -> None:
    opened(browser, address, 1280)
    shown = "return [...document.querySelectorAll('.sortable tbody tr')].map(r => r.cells[{}].textContent)"
    before = browser.execute_script(shown.format(0))
    button = browser.execute_script("return document.querySelectorAll('.sortable th button')[2]")
    button.send_keys(ENTER)
    scores = browser.execute_script(shown.format(2))
    known = [float(score) for score in scores if score != "–"]
    assert known == sorted(known) and len(known) < len(scores)
    assert set(scores[len(known) :]) == {"–"}, "what has no score is last"
    button.send_keys(SPACE)
    scores = browser.execute_script(shown.format(2))
    assert [float(score) for score in scores[: len(known)]] == known[::-1] and scores[-1] == "–"
    sorted_by = "return [...document.querySelectorAll('.sortable th')].map(h => h.getAttribute('aria-sort'))"
    assert [s for s in browser.execute_script(sorted_by) if s] == ["descending"]
    assert sorted(browser.execute_script(shown.format(0))) == sorted(before), "no row is lost"
    assert browser.get_log("browser") == []


def test_without_script_the_table_is_read_as_it_is(browser: Any, address: str) -> None:
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        opened(browser, address, 1280)
    finally:
        browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
    assert browser.execute_script("return document.querySelectorAll('.sortable tbody tr').length") == 60
    assert browser.execute_script("return document.querySelectorAll('th button').length") == 0
