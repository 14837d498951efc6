"""The page of a comparison in a real browser, on a phone and on a desk, light and dark."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from browsing import assert_quiet_and_whole, low_contrasts, opened, text_outside_figures, unreachable
from isoformer.report import build_compare_report, compare
from isoformer.storage import open_storage
from isoformer.tracking import TrackingConfig

LONG = "cross_attention-dna-rna-protein-seed0-1a2b3c4d"


@pytest.fixture(scope="module")
def address(runs_root: Path) -> str:
    compared = compare(open_storage(runs_root), ["base", LONG, "plain", "elsewhere"])
    return build_compare_report(str(runs_root), compared, tracking=TrackingConfig(enabled=False)).as_uri()


@pytest.mark.parametrize("width", [360, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_opens_quietly_fits_and_can_be_read(browser: Any, address: str, width: int, scheme: str) -> None:
    opened(browser, address, width, scheme=scheme)
    assert_quiet_and_whole(browser, width)
    assert text_outside_figures(browser) == [] and low_contrasts(browser) == []
    assert unreachable(browser) == 0
