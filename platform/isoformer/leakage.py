"""What a split lets through: genes, sequences and near-copies that stand on both of its sides.

In: a prepared root. Out: `Audit`, written to `reports/leakage.json`. A gene in two splits is a fault of the
split; a protein or RNA of one gene that is nearly that of another (a paralog, a duplicated region) is not,
but a test score on it is partly memory: `prepare` with `split.method: homology` keeps such genes on one side.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from pydantic import BaseModel, ConfigDict

from isoformer.homology import Kind, similar_pairs
from isoformer.manifest import read_manifest, read_shard
from isoformer.schema import MODALITIES, Modality, digest_column
from isoformer.sources.identifiers import without_par
from isoformer.storage import open_storage

REPORT_KEY: Final = "reports/leakage.json"
EXAMPLES: Final = 10
_SPLIT_PAIRS: Final = (("test", "train"), ("validation", "train"), ("test", "validation"))


class Crossing(BaseModel):
    """Sequences of one kind that two splits share. Counts are of the first split's transcripts and genes;
    `examples`: (transcript, transcript, identity).
    """

    model_config = ConfigDict(frozen=True)
    of: str
    against: str
    modality: str
    what: str
    pairs: int
    transcripts: int
    genes: int
    examples: tuple[tuple[str, str, float], ...]


class Audit(BaseModel):
    """What crosses the splits of a dataset. `genes_in_two_splits` must be empty."""

    model_config = ConfigDict(frozen=True)
    transcripts_fingerprint: str
    transcripts: dict[str, int]
    genes: dict[str, int]
    least_identity: dict[str, float]
    genes_in_two_splits: tuple[str, ...]
    crossings: tuple[Crossing, ...]

    @property
    def is_clean(self) -> bool:
        """No gene, and no identical or nearly identical RNA or protein, is on both sides."""
        counted = [one for one in self.crossings if one.modality != "dna"]
        return not self.genes_in_two_splits and not any(one.pairs for one in counted)


class _Rows:
    """The transcripts' columns that an audit needs."""

    def __init__(self, root: str) -> None:
        storage = open_storage(root)
        self.manifest = read_manifest(storage)
        columns = ["transcript_id", "gene_id", "split", "rna", "protein", *map(digest_column, MODALITIES)]
        tables = [read_shard(storage, index, columns) for index in range(len(self.manifest.shards))]
        self.of = {name: [v for table in tables for v in table[name].to_pylist()] for name in columns}

    def __len__(self) -> int:
        return len(self.of["split"])


def audit(root: str, *, protein_identity: float = 0.8, rna_identity: float = 0.9) -> Audit:
    """Compare every split of the dataset under `root` with every other, and write the report there."""
    rows = _Rows(root)
    splits = np.array(rows.of["split"])
    genes = [without_par(gene) for gene in rows.of["gene_id"]]
    splits_of: dict[str, set[str]] = {}
    for gene, split in zip(genes, rows.of["split"], strict=True):
        splits_of.setdefault(gene, set()).add(split)
    crossings = [crossing for modality in MODALITIES for crossing in _identical(rows, modality)]
    least: dict[Kind, float] = {"protein": protein_identity, "rna": rna_identity}
    for kind, identity in least.items():
        crossings += _near(rows, kind, identity)
    names = sorted(set(rows.of["split"]))
    found = Audit(
        transcripts_fingerprint=rows.manifest.fingerprint,
        transcripts={name: int((splits == name).sum()) for name in names},
        genes={name: sum(name in of for of in splits_of.values()) for name in names},
        least_identity={"protein": protein_identity, "rna": rna_identity},
        genes_in_two_splits=tuple(sorted(gene for gene, of in splits_of.items() if len(of) > 1)),
        crossings=tuple(crossings),
    )
    open_storage(root).write_bytes(REPORT_KEY, found.model_dump_json(indent=1).encode())
    return found


def _identical(rows: _Rows, modality: Modality) -> list[Crossing]:
    digests = rows.of[digest_column(modality)]
    places: dict[str, list[int]] = {}
    for place, digest in enumerate(digests):
        if digest is not None:
            places.setdefault(digest, []).append(place)
    shared = [members for members in places.values() if len(members) > 1]
    pairs = [(a, b, 1.0) for members in shared for a in members for b in members if a != b]
    return _crossings(rows, modality, "identical", pairs)


def _near(rows: _Rows, kind: Kind, least_identity: float) -> list[Crossing]:
    """Of distinct sequences that are not identical."""
    holders: dict[str, list[int]] = {}
    for place, sequence in enumerate(rows.of[kind]):
        if sequence:
            holders.setdefault(sequence, []).append(place)
    distinct = list(holders)
    pairs = []
    for pair in similar_pairs(distinct, kind, least_identity):
        one, other = holders[distinct[pair.first]], holders[distinct[pair.second]]
        pairs += [(a, b, pair.identity) for a in one for b in other]
        pairs += [(b, a, pair.identity) for a in one for b in other]
    return _crossings(rows, kind, f"identity of {least_identity:g} or more", pairs)


def _crossings(
    rows: _Rows, modality: str, what: str, pairs: Sequence[tuple[int, int, float]]
) -> list[Crossing]:
    split, ids, genes = rows.of["split"], rows.of["transcript_id"], rows.of["gene_id"]
    found = []
    for of, against in _SPLIT_PAIRS:
        across = [pair for pair in pairs if split[pair[0]] == of and split[pair[1]] == against]
        across.sort(key=lambda pair: (-pair[2], ids[pair[0]], ids[pair[1]]))
        found.append(
            Crossing(
                of=of,
                against=against,
                modality=modality,
                what=what,
                pairs=len(across),
                transcripts=len({pair[0] for pair in across}),
                genes=len({genes[pair[0]] for pair in across}),
                examples=tuple((ids[a], ids[b], round(i, 4)) for a, b, i in across[:EXAMPLES]),
            )
        )
    return found
