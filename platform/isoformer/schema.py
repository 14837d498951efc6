"""What the tables look like, in Arrow, and nothing else says it.

Three tables make a dataset under a storage root:

    <root>/transcripts/                            manifest.json and a shard-00000.parquet … of whole genes,
                                                   one row a transcript
    <root>/reference/<digest>.fa.gz (.fai, .gzi)   the genome that the windows are cut from
    <root>/embeddings/<modality>/<encoder key>/    manifest.json and the same shards, one row a distinct
                                                   sequence

Coordinates (`*_bp`) are 0-based, half-open, on the plus strand. Sequences read 5'→3' on
the transcript's strand.
"""

from __future__ import annotations

from typing import Final, Literal, get_args

import pyarrow as pa

SCHEMA_VERSION: Final = 1

Modality = Literal["dna", "rna", "protein"]
Split = Literal["train", "validation", "test"]
Status = Literal["ok", "cropped", "masked_residues", "no_protein", "quarantined"]
MODALITIES: Final[tuple[Modality, ...]] = get_args(Modality)
SPLITS: Final[tuple[Split, ...]] = get_args(Split)
STATUSES: Final[tuple[Status, ...]] = get_args(Status)

TISSUES: Final[tuple[str, ...]] = (
    "Adipose Tissue", "Adrenal Gland", "Bladder", "Blood", "Blood Vessel", "Brain", "Breast", "Cervix Uteri",
    "Colon", "Esophagus", "Fallopian Tube", "Heart", "Kidney", "Liver", "Lung", "Muscle", "Nerve", "Ovary",
    "Pancreas", "Pituitary", "Prostate", "Salivary Gland", "Skin", "Small Intestine", "Spleen", "Stomach",
    "Testis", "Thyroid", "Uterus", "Vagina",
)  # fmt: skip
"""The 30 tissues in the order of the published table's columns 9..38."""


def transcripts_schema(target_count: int) -> pa.Schema:
    """One row a transcript. `targets` are natural log(1 + TPM), not standardised; masked targets hold 0.

    `window_start_bp` may be negative and `window_end_bp` past the chromosome's end: the rest is N.
    `dna` is null where the window is cut from the reference (routes with a FASTA); a table that brings its
    own DNA stores it. `status` is the most severe that applies; `notes` names every departure, with counts.
    """
    return pa.schema(
        [
            pa.field("transcript_id", pa.string(), nullable=False),
            pa.field("gene_id", pa.string(), nullable=False),
            pa.field("gene_name", pa.string()),
            pa.field("chromosome", pa.string()),
            pa.field("strand", pa.string()),
            pa.field("tss_bp", pa.int64()),
            pa.field("window_start_bp", pa.int64()),
            pa.field("window_end_bp", pa.int64()),
            pa.field("biotype", pa.string()),
            pa.field("split", pa.string(), nullable=False),
            pa.field("dna_digest", pa.string()),
            pa.field("rna_digest", pa.string()),
            pa.field("protein_digest", pa.string()),
            pa.field("dna", pa.large_string()),
            pa.field("rna", pa.large_string()),
            pa.field("protein", pa.large_string()),
            pa.field("five_utr_bases", pa.int32()),
            pa.field("cds_bases", pa.int32()),
            pa.field("three_utr_bases", pa.int32()),
            pa.field("status", pa.string(), nullable=False),
            pa.field("notes", pa.string(), nullable=False),
            pa.field("targets", pa.list_(pa.float32(), target_count), nullable=False),
            pa.field("target_mask", pa.list_(pa.bool_(), target_count), nullable=False),
        ]
    )


EMBEDDINGS_SCHEMA: Final = pa.schema(
    [
        pa.field("digest", pa.string(), nullable=False),
        pa.field("positions", pa.int32(), nullable=False),
        pa.field("embedding", pa.large_binary(), nullable=False),
    ]
)
"""One row a distinct sequence of a shard, most tokens first, then by digest.

`embedding` is the raw little-endian bytes of a C-ordered (positions, width) array; width and dtype stand in
the file's metadata. Raw bytes read at memory speed and need no Arrow extension.
"""


def shard_name(index: int) -> str:
    """`shard-00000.parquet`: the same number is the same genes in every dataset of a root."""
    return f"shard-{index:05d}.parquet"


def digest_column(modality: Modality) -> str:
    """The transcripts column that holds the digest of this modality's sequence; null where it is missing."""
    return f"{modality}_digest"
