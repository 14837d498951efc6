"""The demo's data: a small real cut of genome, annotation and measured expression.

`demo_paths` names the files, `cut.py` made them, and `README.md` says where they come from.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

GENOME: Final = "genome.hg19.345_genes.fa.gz"
ANNOTATION: Final = "annotation.hg19.345_genes.gtf.gz"
EXPRESSION: Final = "gene_mean_tpm.345_transcripts.tsv.gz"
DIGESTS: Final = "published_digests.tsv"
LABEL_PROVENANCE: Final = "measured: GTEx gene mean TPM, put on the gene's principal transcript"


def demo_paths() -> dict[str, str]:
    """The settings of prepare that point at the demo's files."""
    folder = Path(__file__).parent
    return {
        "reference": str(folder / GENOME),
        "annotation": str(folder / ANNOTATION),
        "expression": str(folder / EXPRESSION),
        "label_provenance": LABEL_PROVENANCE,
    }
