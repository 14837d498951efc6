"""Train, validation or test: a property of the gene, never of the transcript or the shard.

In: genes with their chromosomes, or a table's own column. Out: one split a gene. The hash split looks at the
gene's id alone, so adding genes moves none; the id's version and a PAR copy's suffix do not count.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Final, Literal, Self

from pydantic import Field, model_validator

from isoformer.config import FrozenConfig
from isoformer.errors import InputError
from isoformer.schema import SPLITS, Split
from isoformer.sources.identifiers import without_par

COLUMN_VALUES: Final[Mapping[str, Split]] = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "evaluation": "validation",
    "eval": "validation",
    "test": "test",
    "testing": "test",
}
"""How a table's own words are read. The published table has train, test and evaluation."""


class SplitConfig(FrozenConfig):
    """How genes are split. `column` needs a table that has one; `chromosome` sends the rest to train."""

    method: Literal["hash", "chromosome", "column", "homology"] = Field(
        default="hash", description="homology: genes with nearly the same protein or RNA stay together"
    )
    protein_identity: float = Field(default=0.8, ge=0.5, le=1, description="homology: from here on")
    rna_identity: float = Field(default=0.9, ge=0.8, le=1, description="homology: from here on")
    validation: float = Field(default=0.1, ge=0, lt=1)
    test: float = Field(default=0.1, ge=0, lt=1)
    seed: int = 0
    validation_chromosomes: tuple[str, ...] = ()
    test_chromosomes: tuple[str, ...] = ()
    allow_empty: bool = Field(default=False, description="accept a split without a row (pre-training data)")

    @model_validator(mode="after")
    def _room_for_train(self) -> Self:
        if self.validation + self.test >= 1:
            raise ValueError("validation + test must be below 1")
        both = {_bare(name) for name in self.validation_chromosomes} & {
            _bare(name) for name in self.test_chromosomes
        }
        if both:
            raise ValueError(f"chromosomes in validation and in test: {', '.join(sorted(both))}")
        return self


def split_genes(chromosomes_by_gene: Mapping[str, Iterable[str]], config: SplitConfig) -> dict[str, Split]:
    """The split of every gene id, by hash or by chromosome. A gene on several chromosomes goes where the
    first says.
    """
    if config.method in ("hash", "homology"):  # homology moves genes to their cluster's split later
        return {gene: hash_split(gene, config) for gene in chromosomes_by_gene}
    return {gene: _chromosome_split(names, config) for gene, names in chromosomes_by_gene.items()}


def hash_split(gene_id: str, config: SplitConfig) -> Split:
    """A gene's split from its id alone: the same in every dataset with the same seed and shares."""
    text = f"{config.seed}:{without_par(gene_id)}"
    place = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") / 2**64
    if place < config.test:
        return "test"
    return "validation" if place < config.test + config.validation else "train"


def column_splits(rows: Iterable[tuple[str, str | None]], *, file: str) -> dict[str, Split]:
    """Splits from a table's (gene_id, value) rows. InputError for another word, or a gene in two splits."""
    splits: dict[str, Split] = {}
    for gene, value in rows:
        split = COLUMN_VALUES.get((value or "").strip().lower())
        if split is None:
            raise InputError(
                "split is not one", file=file, record=gene, field="split", value=value, allowed=COLUMN_VALUES
            )
        if splits.setdefault(gene, split) != split:
            raise InputError(
                f"gene is in two splits, {splits[gene]} and {split}",
                file=file,
                record=gene,
                field="split",
                allowed="one split a gene",
            )
    return splits


def require_no_empty_split(counts: Mapping[str, int], config: SplitConfig) -> None:
    """InputError where a split has no row, given rows by split: a score on it would be made of nothing."""
    empty = [split for split in SPLITS if not counts.get(split)]
    if empty and not config.allow_empty:
        found = ", ".join(f"{split} {counts.get(split, 0)}" for split in SPLITS)
        raise InputError(
            f"split {', '.join(empty)} is empty ({found} transcripts)",
            field="split",
            allowed="more genes, other shares or chromosomes, or split.allow_empty: true",
        )


def _chromosome_split(names: Iterable[str], config: SplitConfig) -> Split:
    first = _bare(next(iter(names)))
    if first in {_bare(name) for name in config.test_chromosomes}:
        return "test"
    return "validation" if first in {_bare(name) for name in config.validation_chromosomes} else "train"


def _bare(chromosome: str) -> str:
    return chromosome.removeprefix("chr")
