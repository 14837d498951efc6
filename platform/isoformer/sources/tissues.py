"""GTEx's detailed tissues, grouped into the 30 of the published table.

`Brain - Cortex` is Brain, `Artery - Tibial` is Blood Vessel, `Cells - Cultured fibroblasts` is Skin; the
leukaemia cell line is no tissue and is dropped. Who calls it: the readers of sample tables and of wide
matrices.
"""

from __future__ import annotations

from typing import Final

from isoformer.errors import InputError
from isoformer.schema import TISSUES

DROPPED: Final = "dropped"
_BY_PREFIX: Final = {
    "Adipose": "Adipose Tissue",
    "Artery": "Blood Vessel",
    "Cervix": "Cervix Uteri",
    "Whole Blood": "Blood",
    "Cells - EBV-transformed lymphocytes": "Blood",
    "Cells - Cultured fibroblasts": "Skin",
    "Cells - Transformed fibroblasts": "Skin",
    "Cells - Leukemia cell line": DROPPED,
    "Minor Salivary Gland": "Salivary Gland",
}


def group_tissue(detailed: str) -> str | None:
    """The tissue of the 30 that a detailed one belongs to; None for the leukaemia cell line, which is
    dropped.

    InputError for a tissue that is none of GTEx's.
    """
    name = detailed.strip()
    by_prefix = next((tissue for prefix, tissue in _BY_PREFIX.items() if name.startswith(prefix)), None)
    tissue = by_prefix or name.split(" - ")[0]
    if tissue == DROPPED:
        return None
    if tissue not in TISSUES:
        raise InputError("unknown tissue", field="tissue", value=detailed, allowed=TISSUES)
    return tissue
