"""The sequences that a small encoder is pre-trained on, from a transcripts dataset.

In: a storage root that `prepare` filled. Out: letters of one modality, in a training and a validation part,
with the genes of the held-out splits left out of both. RNA and protein are the rows' own sequences, each
distinct one once; DNA is the window around each distinct TSS and, for training, random windows of the
genome that touch no held-out gene's window. Everything left out is counted by reason.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from isoformer.errors import InputError
from isoformer.manifest import Manifest, read_manifest, read_shard
from isoformer.schema import Modality
from isoformer.sequences import dna_window, unknown_fraction
from isoformer.storage import Storage, open_storage

if TYPE_CHECKING:
    from isoformer.sources.reference import Reference

MOST_UNKNOWN: Final = 0.1
"""Windows with a larger share of N teach nothing."""
_COLUMNS: Final = ("gene_id", "split", "chromosome", "strand", "tss_bp", "rna", "protein")


@dataclass(frozen=True)
class Corpus:
    """Distinct sequences of one modality. `counts` says what went in and what was left out, by reason."""

    train: list[str]
    validation: list[str]
    counts: dict[str, int]
    sources: list[str]


@dataclass(frozen=True)
class CorpusRequest:
    """What to read. `window_bases` and `genome_windows` count for DNA alone."""

    modality: Modality
    excluded_splits: frozenset[str]
    excluded_genes: frozenset[str]
    window_bases: int
    genome_windows: int
    seed: int
    cache_dir: str


def read_corpus(root: str, request: CorpusRequest) -> Corpus:
    """Read the sequences. InputError where a part would be empty."""
    storage = open_storage(root)
    manifest = read_manifest(storage)
    counts: Counter[str] = Counter()
    rows = _kept_rows(_rows(storage, manifest), request, counts)
    if request.modality == "dna":
        train, validation = _dna(storage, manifest, rows, request, counts)
    else:
        train, validation = _own_sequences(rows, request.modality, counts)
    if not train or not validation:
        raise InputError(
            f"pre-training corpus is empty: {len(train)} training, {len(validation)} validation sequences",
            file=storage.uri,
            field=request.modality,
            allowed="at least one sequence in the train and in the validation split",
        )
    counts["train_sequences"], counts["validation_sequences"] = len(train), len(validation)
    return Corpus(train, validation, dict(counts), [Path(source.path).name for source in manifest.sources])


def read_gene_list(path: str | None) -> frozenset[str]:
    """Gene ids, one a line, without their versions; empty for no file."""
    if path is None:
        return frozenset()
    try:
        lines = Path(path).read_text(encoding="utf-8").split()
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", file=path, field="exclude_genes") from None
    return frozenset(_bare_gene(line) for line in lines)


def _rows(storage: Storage, manifest: Manifest) -> Iterator[dict[str, Any]]:
    for index in range(len(manifest.shards)):
        yield from read_shard(storage, index, _COLUMNS).to_pylist()


def _kept_rows(
    rows: Iterable[dict[str, Any]], request: CorpusRequest, counts: Counter[str]
) -> list[dict[str, Any]]:
    """All rows, with `part`: "train", "validation" or "held_out"."""
    kept = []
    for row in rows:
        held_out = (
            row["split"] in request.excluded_splits or _bare_gene(row["gene_id"]) in request.excluded_genes
        )
        part = "held_out" if held_out else "validation" if row["split"] == "validation" else "train"
        counts[f"{part}_transcripts"] += 1
        kept.append({**row, "part": part})
    return kept


def _own_sequences(
    rows: list[dict[str, Any]], modality: Modality, counts: Counter[str]
) -> tuple[list[str], list[str]]:
    parts: dict[str, dict[str, None]] = {"train": {}, "validation": {}, "held_out": {}}
    for row in rows:
        if row[modality]:
            parts[row["part"]][row[modality]] = None
        else:
            counts["without_a_sequence"] += 1
    shared = [sequence for sequence in parts["train"] if sequence in parts["held_out"]]
    counts["same_as_a_held_out_sequence"] += len(shared)
    train = [sequence for sequence in parts["train"] if sequence not in parts["held_out"]]
    return train, [sequence for sequence in parts["validation"] if sequence not in parts["train"]]


def _dna(
    storage: Storage,
    manifest: Manifest,
    rows: list[dict[str, Any]],
    request: CorpusRequest,
    counts: Counter[str],
) -> tuple[list[str], list[str]]:
    from isoformer.sources.reference import open_dataset_reference

    reference = open_dataset_reference(storage, manifest, request.cache_dir)
    closed = _HeldOutPlaces(rows, request.window_bases)
    sites: dict[tuple[str, int], dict[str, Any]] = {(row["chromosome"], row["tss_bp"]): row for row in rows}
    train: list[str] = []
    validation: list[str] = []
    for row in sites.values():
        if row["part"] == "held_out":
            continue
        if row["part"] == "train" and closed.touches(row["chromosome"], row["tss_bp"], request.window_bases):
            counts["windows_that_touch_a_held_out_gene"] += 1
            continue
        window = dna_window(reference, row, request.window_bases)
        if unknown_fraction(window) > MOST_UNKNOWN:
            counts["windows_with_many_n"] += 1
            continue
        (train if row["part"] == "train" else validation).append(window)
    counts["tss_windows"] = len(train)
    return train + _random_windows(reference, closed, request, counts), validation


class _HeldOutPlaces:
    """Where the windows of held-out and validation genes lie, for a quick "does this touch one"."""

    def __init__(self, rows: list[dict[str, Any]], window_bases: int) -> None:
        self._reach = window_bases // 2
        sites: dict[str, list[int]] = {}
        for row in rows:
            if row["part"] != "train":
                sites.setdefault(_bare_chromosome(row["chromosome"]), []).append(row["tss_bp"])
        self._sites = {name: np.unique(places) for name, places in sites.items()}

    def touches(self, chromosome: str, centre_bp: int, window_bases: int) -> bool:
        places = self._sites.get(_bare_chromosome(chromosome))
        if places is None:
            return False
        reach = self._reach + window_bases // 2
        first, last = np.searchsorted(places, [centre_bp - reach, centre_bp + reach])
        return bool(last > first)


def _random_windows(
    reference: Reference, closed: _HeldOutPlaces, request: CorpusRequest, counts: Counter[str]
) -> list[str]:
    rng = np.random.default_rng(request.seed)
    names = [name for name, length in reference.lengths.items() if length > request.window_bases]
    lengths = np.array([reference.lengths[name] for name in names], dtype=float)
    windows: list[str] = []
    for _ in range(request.genome_windows):
        name = names[int(rng.choice(len(names), p=lengths / lengths.sum()))]
        start_bp = int(rng.integers(reference.lengths[name] - request.window_bases))
        if closed.touches(name, start_bp + request.window_bases // 2, request.window_bases):
            counts["windows_that_touch_a_held_out_gene"] += 1
            continue
        window = reference.fetch(name, start_bp, start_bp + request.window_bases)
        if unknown_fraction(window) > MOST_UNKNOWN:
            counts["windows_with_many_n"] += 1
            continue
        windows.append(window)
    counts["genome_windows"] = len(windows)
    return windows


def _bare_gene(gene_id: str) -> str:
    return gene_id.partition(".")[0]


def _bare_chromosome(name: str) -> str:
    return name.removeprefix("chr")
