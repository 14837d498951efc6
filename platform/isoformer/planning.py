"""What prepare is asked for (`PrepareConfig`), the planned rows it works from (`Plan`), and how they are
dealt into shards.

`routes.py` fills a plan from the sources; `transcripts.py` runs it. Needs neither Ray nor storage.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

import pyarrow as pa
from pydantic import BeforeValidator, Field, model_validator

from isoformer.config import FrozenConfig
from isoformer.sources.identifiers import without_par
from isoformer.splicing import BrokenCds, InternalTga
from isoformer.splits import SplitConfig

Paths = Annotated[
    tuple[str, ...], BeforeValidator(lambda value: (value,) if isinstance(value, str) else value)
]
_PATH_FIELDS = ("reference", "annotation", "expression", "sample_tissues", "table", "cache_dir")


class PrepareConfig(FrozenConfig):
    """What to prepare from, and how.

    Routes: "annotation" (reference + annotation + expression), "published" (table in the published layout +
    reference), "table" (a plain table with dna, rna, protein and target columns).
    """

    route: Literal["annotation", "published", "table"] = "annotation"
    reference: Paths = ()
    annotation: str | None = None
    expression: str | None = None
    sample_tissues: str | None = None
    table: str | None = None
    targets: tuple[str, ...] | None = Field(default=None, description="target columns; null: the 30 tissues")
    target_values: Literal["tpm", "log1p_tpm"] = Field(
        default="tpm", description="what a table's target columns hold"
    )
    label_provenance: str = Field(
        default="not stated", description="what the labels are: measured, derived, from where"
    )
    keep_unmeasured: bool = Field(
        default=False, description="keep transcripts without an expression row, masked"
    )
    chromosome_aliases: dict[str, str] = Field(
        default_factory=dict, description="annotation's name: reference's name"
    )
    dna_window_bases: int = Field(
        default=16_384, ge=2, description="window around the TSS; Enformer reads 196,608"
    )
    rna_max_bases: int = Field(
        default=12_282, ge=1, description="2,047 6-mers; longer RNA is cropped on the left"
    )
    max_unknown_fraction: float = Field(
        default=0.5, ge=0, le=1, description="more N than this counts as no sequence"
    )
    broken_cds: BrokenCds = Field(
        default="quarantine", description="CDS out of frame or with an internal stop"
    )
    internal_tga: InternalTga = Field(
        default="known_selenoproteins", description="where an internal TGA without annotation reads U"
    )
    split: SplitConfig = SplitConfig()
    shards: int | None = Field(
        default=None, ge=1, description="null: one for every 512 transcripts, at least 4"
    )
    cache_dir: str | None = Field(
        default=None, description="where a node keeps the reference; null: a temporary folder"
    )

    @model_validator(mode="after")
    def _route_has_its_files(self) -> Self:
        needed = {
            "annotation": ("annotation", "reference"),
            "published": ("table", "reference"),
            "table": ("table",),
        }
        missing = [name for name in needed[self.route] if not getattr(self, name)]
        if self.route == "annotation" and not self.expression and not self.keep_unmeasured:
            missing.append("expression (or keep_unmeasured: true)")
        if missing:
            raise ValueError(f"route {self.route!r} needs {', '.join(missing)}")
        if self.split.method == "column" and self.route == "annotation":
            raise ValueError("split.method 'column' needs a table; route 'annotation' has none")
        return self

    def source_paths(self) -> list[tuple[str, str]]:
        """(role, path) of every file that is read."""
        single = [
            (role, getattr(self, role)) for role in ("annotation", "expression", "sample_tissues", "table")
        ]
        return [
            *(("reference", path) for path in self.reference),
            *((role, path) for role, path in single if path),
        ]

    def content(self) -> dict[str, Any]:
        """The settings that can change a row: all but where the files lie."""
        return {
            name: value for name, value in self.model_dump(mode="json").items() if name not in _PATH_FIELDS
        }


@dataclass(frozen=True)
class Plan:
    """`rows`: planned rows sorted by gene (`plan_schema`). `rows_in` = rows + quarantined."""

    rows: pa.Table
    target_names: list[str]
    rows_in: int
    quarantined: list[dict[str, str]]
    source_counts: dict[str, int]
    dna_bases: int | None = None
    """The length of the DNA that the rows bring, where all have the same."""


def deal_into_shards(rows: pa.Table, config: PrepareConfig) -> list[list[int]]:
    """Row numbers of every shard: whole genes, the costliest first, each to the lightest shard so far.

    A gene is taken by its stem without PAR suffix, so that copies on X and Y stay together.
    """
    numbers_by_gene: dict[str, list[int]] = defaultdict(list)
    for number, gene in enumerate(rows["gene_id"].to_pylist()):
        numbers_by_gene[without_par(gene)].append(number)
    costs = estimated_tokens(rows, config)
    count = config.shards or max(4, -(-rows.num_rows // 512))
    count = min(count, len(numbers_by_gene))
    lightest = [(0.0, shard) for shard in range(count)]
    shards: list[list[int]] = [[] for _ in range(count)]
    weighed = sorted(((-sum(costs[n] for n in numbers), gene) for gene, numbers in numbers_by_gene.items()))
    for cost, gene in weighed:
        total, shard = heapq.heappop(lightest)
        shards[shard].extend(numbers_by_gene[gene])
        heapq.heappush(lightest, (total - cost, shard))
    return [sorted(numbers) for numbers in shards]


def estimated_tokens(rows: pa.Table, config: PrepareConfig) -> list[float]:
    """Tokens a row will cost its encoders: 6-mers of window and RNA, residues of the protein."""
    window = config.dna_window_bases / 6 if config.reference else 0.0
    costs = []
    for row in rows.select(
        ["exon_starts", "exon_ends", "cds_starts", "cds_ends", "dna", "rna", "protein"]
    ).to_pylist():
        rna = sum(row["exon_ends"] or []) - sum(row["exon_starts"] or []) or len(row["rna"] or "")
        protein = (sum(row["cds_ends"] or []) - sum(row["cds_starts"] or [])) / 3 or len(row["protein"] or "")
        costs.append(max(window, len(row["dna"] or "") / 6) + min(rna, config.rna_max_bases) / 6 + protein)
    return costs
