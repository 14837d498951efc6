"""What the paper reports, to stand beside ours: test split of its own data, mean of 5 seeds.

Source: arXiv 2406.14150, section 5 and its figures. A number that the text does not give is null. The paper's
data are 170,000 transcripts' measured isoform TPM, and its encoders have hundreds of millions of parameters:
the columns stand side by side to be read together, not to be subtracted.
"""

from __future__ import annotations

from typing import Final

from pydantic import BaseModel, ConfigDict


class PaperResult(BaseModel):
    """Mean over tissues; `encoders`: which ones; `note`: what the text says where it gives no number."""

    model_config = ConfigDict(frozen=True)
    encoders: str
    r2: float | None = None
    spearman: float | None = None
    note: str = ""


_NT: Final = "NT v2 250M, ESM-2 150M"
ISOFORMER: Final = PaperResult(encoders="Enformer, NT v2 250M, ESM-2 150M", r2=0.53, spearman=0.72)

MODALITIES_TABLE: Final = {
    ("dna",): PaperResult(encoders="NT v2 250M", r2=0.13, spearman=0.43),
    ("rna",): PaperResult(encoders="NT v2 250M", r2=0.36, spearman=0.61),
    ("protein",): PaperResult(encoders="ESM-2 150M", r2=0.20, spearman=0.46),
    ("dna", "rna"): PaperResult(encoders="NT v2 250M", r2=0.39),
    ("dna", "rna", "protein"): PaperResult(
        encoders=_NT, r2=0.43, note="0.53 with Enformer for DNA (Spearman 0.72)"
    ),
}
FUSIONS_TABLE: Final = {
    "cross_attention": ISOFORMER,
    "perceiver_per_modality": PaperResult(encoders=ISOFORMER.encoders, note="always worse"),
    "perceiver_shared": PaperResult(encoders=ISOFORMER.encoders, note="always worse"),
    "c_abstractor": PaperResult(encoders=ISOFORMER.encoders, note="no benefit"),
}
TRANSFER_TABLE: Final = {
    (): ISOFORMER,
    ("dna",): PaperResult(encoders=ISOFORMER.encoders, r2=0.41),
    ("rna",): PaperResult(encoders=ISOFORMER.encoders, r2=0.48),
    ("dna", "rna", "protein"): PaperResult(encoders=ISOFORMER.encoders, r2=0.10),
}
"""By the modalities whose encoders start from scratch."""
ENCODERS_TABLE: Final = {
    "enformer": ISOFORMER,
    "ntv2": PaperResult(encoders=_NT, r2=0.43),
}
"""By the family of the DNA encoder, with NT v2 250M for RNA and ESM-2 150M for the protein."""
