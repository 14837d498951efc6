"""That memory does not grow with every size of pack a process has seen."""

from __future__ import annotations

import subprocess
import sys

import pytest

from isoformer.encoders import prepacked

PACKS_OF_MANY_SIZES = """
import gc, os, psutil, torch
from isoformer.encoders.prepacked import Product

def unshared_megabytes():
    gc.collect()
    return psutil.Process().memory_full_info().uss / 2**20

product = Product(torch.ones(320, 320), torch.ones(320))
with torch.inference_mode():
    for tokens in range(1000, 1300):
        product(torch.ones(tokens, 320))
        if tokens == 1100:
            before = unshared_megabytes()
print(unshared_megabytes() - before)
"""


@pytest.mark.skipif(not prepacked.is_available(), reason="PyTorch without oneDNN's prepacked products")
def test_packs_of_many_sizes_leave_nothing_behind() -> None:
    result = subprocess.run(
        [sys.executable, "-c", PACKS_OF_MANY_SIZES], capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stderr
    assert float(result.stdout) < 20  # for 200 sizes; 209 with the caches as they come
