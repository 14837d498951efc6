"""One shard: planned rows and a genome in; a Parquet file with RNA, protein, window coordinates and digests
out.

`extract_and_write_shard` is what Ray runs, one task a shard; it also works alone. It cuts each gene once from
the reference, writes the shard's file atomically and returns a small summary. Nothing is dropped in silence:
a row is written with a status and notes, or goes to quarantine with a reason.
"""

from __future__ import annotations

import hashlib
import io
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from isoformer.errors import InputError
from isoformer.schema import STATUSES, Modality, shard_name, transcripts_schema
from isoformer.sequences import (
    Genome,
    dna_window,
    genetic_code,
    normalise,
    sequence_digest,
    translate,
    unknown_fraction,
    window_bounds,
)
from isoformer.sources.gene_cut import GeneCut
from isoformer.sources.reference import Reference, open_stored_reference
from isoformer.splicing import NO_LENGTHS, BrokenCds, InternalTga, Lengths, QuarantinedError, splice
from isoformer.storage import open_storage

COPIED: Final = (
    "transcript_id",
    "gene_id",
    "gene_name",
    "chromosome",
    "strand",
    "biotype",
    "split",
    "targets",
    "target_mask",
)


@dataclass(frozen=True)
class Policy:
    """The settings that decide what a row becomes; `PrepareConfig` says what they mean."""

    dna_window_bases: int
    rna_max_bases: int
    max_unknown_fraction: float
    broken_cds: BrokenCds
    internal_tga: InternalTga


@dataclass(frozen=True)
class ShardSettings:
    """What all shards of a run share."""

    root: str
    target_count: int
    policy: Policy
    reference_digest: str | None
    chromosome_aliases: Mapping[str, str]
    cache_dir: str | None


def plan_schema(target_count: int) -> pa.Schema:
    """A planned row: what is known before the genome is read. Sequences are given only where a table brings
    them.
    """
    positions = pa.list_(pa.int64())
    final = transcripts_schema(target_count)
    fields = [final.field(name).with_nullable(True) for name in (*COPIED, "tss_bp")]
    lists = [
        pa.field(name, positions)
        for name in (
            "exon_starts",
            "exon_ends",
            "cds_starts",
            "cds_ends",
            "cds_frames",
            "stop_starts",
            "stop_ends",
            "sec_starts",
        )
    ]
    flags = [pa.field(name, pa.bool_()) for name in ("cds_start_nf", "cds_end_nf", "seleno")]
    given = [pa.field(name, pa.large_string()) for name in ("dna", "rna", "protein")]
    lengths = [pa.field(name, pa.int32()) for name in ("five_utr_bases", "cds_bases", "three_utr_bases")]
    return pa.schema([*fields, *lists, *flags, *given, *lengths])


def extract_and_write_shard(index: int, plan_ipc: bytes, settings: ShardSettings) -> dict[str, Any]:
    """Make and publish one shard from planned rows (an Arrow IPC stream of `plan_schema`).

    Returns its manifest entry, its counts by status, split and note, and its quarantined rows.
    """
    storage = open_storage(settings.root)
    planned = pa.ipc.open_stream(plan_ipc).read_all().to_pylist()
    reference = None
    if settings.reference_digest:
        reference = open_stored_reference(
            storage, settings.reference_digest, settings.cache_dir, settings.chromosome_aliases
        )
    rows, quarantined, notes = extract_rows(planned, reference, settings.policy)
    data = _parquet_bytes(pa.Table.from_pylist(rows, schema=transcripts_schema(settings.target_count)))
    storage.write_bytes(f"transcripts/{shard_name(index)}", data)
    return {
        "name": shard_name(index),
        "transcripts": len(rows),
        "genes": len({row["gene_id"] for row in rows}),
        "bytes": len(data),
        "digest": hashlib.blake2b(data, digest_size=16).hexdigest(),
        "status": dict(Counter(row["status"] for row in rows)),
        "splits": dict(Counter(row["split"] for row in rows)),
        "notes": dict(notes),
        "quarantined": quarantined,
    }


def extract_rows(
    planned: Sequence[Mapping[str, Any]], reference: Reference | None, policy: Policy
) -> tuple[list[dict[str, Any]], list[dict[str, str]], Counter[str]]:
    """Finished rows, quarantined rows (id, gene, reason, detail), and how many rows carry each note."""
    rows, quarantined, noted = [], [], Counter[str]()
    for row, genome in _with_genome(planned, reference, policy.dna_window_bases):
        try:
            finished, notes = extract_row(row, genome, policy)
        except QuarantinedError as problem:
            quarantined.append(
                {
                    "transcript_id": row["transcript_id"],
                    "gene_id": row["gene_id"],
                    "reason": problem.reason,
                    "detail": problem.detail,
                }
            )
            continue
        rows.append(finished)
        noted.update(reason for reason, count in notes.items() if count)
    return rows, quarantined, noted


def extract_row(
    row: Mapping[str, Any], genome: Genome | None, policy: Policy
) -> tuple[dict[str, Any], Counter[str]]:
    """One finished row of the transcripts table and its notes; raises QuarantinedError where it cannot be
    used.
    """
    notes: Counter[str] = Counter()
    if row["rna"] is None and genome is not None and row["exon_starts"]:
        spliced = splice(row, genome, broken_cds=policy.broken_cds, internal_tga=policy.internal_tga)
        notes.update(spliced.notes)
        whole, protein, lengths = spliced.rna or None, spliced.protein, spliced.lengths
    else:
        whole, protein, lengths = _given(row, notes)
    rna, lengths = _cropped(whole, lengths, policy, notes)
    protein = _known_protein(protein, policy, notes)
    finished = {
        **{name: row[name] for name in COPIED},
        **_window(row, genome, policy, notes),
        "rna": rna,
        "protein": protein,
        "rna_digest": sequence_digest(rna) if rna else None,
        "protein_digest": sequence_digest(protein) if protein else None,
        **dict(zip(("five_utr_bases", "cds_bases", "three_utr_bases"), lengths, strict=True)),
    }
    if not (finished["dna_digest"] or rna or protein):
        raise QuarantinedError("no_sequence", "neither DNA, RNA nor protein")
    text = "; ".join(f"{reason}={count}" for reason, count in sorted(notes.items()) if count)
    return {**finished, "status": _status(notes, protein), "notes": text}, notes


def _with_genome(
    planned: Sequence[Mapping[str, Any]], reference: Reference | None, window_bases: int
) -> Iterator[tuple[Mapping[str, Any], Genome | None]]:
    for _, group in groupby(planned, key=lambda row: (row["gene_id"], row["chromosome"])):
        rows = list(group)
        located = reference is not None and all(row["tss_bp"] is not None for row in rows)
        cut = GeneCut.of(rows, reference, window_bases) if reference is not None and located else None
        yield from ((row, cut) for row in rows)


def _given(row: Mapping[str, Any], notes: Counter[str]) -> tuple[str | None, str | None, Lengths]:
    """Sequences that the table brought, normalised."""
    rna = _normalised(row, "rna", notes)
    protein = _normalised(row, "protein", notes)
    lengths: Lengths = (row["five_utr_bases"], row["cds_bases"], row["three_utr_bases"])
    if rna is not None and lengths[1] is not None and sum(bases or 0 for bases in lengths) != len(rna):
        notes["utr_lengths_disagree"] = 1
        return rna, protein, NO_LENGTHS
    if rna and protein and lengths[0] is not None and lengths[1]:
        coding = rna[lengths[0] : lengths[0] + lengths[1]]
        made = translate(coding, code=genetic_code(row["chromosome"]), any_tga_is_selenocysteine=True)
        notes["protein_disagrees"] = int(made.protein != protein)
    return rna, protein, lengths


def _normalised(row: Mapping[str, Any], modality: Modality, notes: Counter[str]) -> str | None:
    if not row[modality]:
        return None
    try:
        letters, counts = normalise(row[modality], modality)
    except InputError as error:
        raise QuarantinedError(f"{modality}_letters", str(error)) from None
    notes.update({f"{modality}_{reason}": count for reason, count in counts.items() if reason != "unknown"})
    return letters or None


def _cropped(
    rna: str | None, lengths: Lengths, policy: Policy, notes: Counter[str]
) -> tuple[str | None, Lengths]:
    """Keep the 3' end; what is cut off on the left comes from the 5' UTR first, then from the CDS, then from
    the rest.
    """
    if rna is None:
        return None, lengths
    unknown = unknown_fraction(rna)
    if unknown > policy.max_unknown_fraction:
        raise QuarantinedError("rna_unknown", f"{unknown:.0%} of the RNA's bases are N in the reference")
    excess = max(0, len(rna) - policy.rna_max_bases)
    kept = rna[excess:]
    notes["rna_cropped"], notes["rna_unknown"] = excess, kept.count("N")
    if not excess or lengths[1] is None:
        return kept, lengths
    left = []
    for bases in lengths:
        taken = min(excess, bases or 0)
        excess -= taken
        left.append((bases or 0) - taken)
    return kept, (left[0], left[1], left[2])


def _known_protein(protein: str | None, policy: Policy, notes: Counter[str]) -> str | None:
    """A protein that is mostly X counts as missing."""
    if not protein:
        return None
    unknown = protein.count("X")
    notes["protein_x"] = unknown
    if unknown > policy.max_unknown_fraction * len(protein):
        notes["protein_missing"] = 1
        return None
    return protein


def _window(
    row: Mapping[str, Any], genome: Genome | None, policy: Policy, notes: Counter[str]
) -> dict[str, Any]:
    """Window coordinates and digest, or the table's own DNA. A window that is mostly N counts as missing."""
    nothing = {
        "tss_bp": row["tss_bp"],
        "window_start_bp": None,
        "window_end_bp": None,
        "dna": None,
        "dna_digest": None,
    }
    if row["dna"]:
        dna = _normalised(row, "dna", notes)
        return {**nothing, "dna": dna, "dna_digest": sequence_digest(dna) if dna else None}
    if genome is None:
        return nothing
    start_bp, end_bp = window_bounds(row["tss_bp"], row["strand"], policy.dna_window_bases)
    placed = {**nothing, "window_start_bp": start_bp, "window_end_bp": end_bp}
    window = dna_window(genome, {**row, **placed})
    notes["dna_unknown"] = window.count("N")
    if unknown_fraction(window) > policy.max_unknown_fraction:
        notes["dna_missing"] = 1
        return placed
    return {**placed, "dna_digest": sequence_digest(window)}


def _status(notes: Mapping[str, int], protein: str | None) -> str:
    """The most severe status that applies, in the schema's order."""
    masked = ("rna_unknown", "rna_ambiguous_to_n", "protein_x", "protein_stop_to_x")
    applying = {
        "cropped": notes.get("rna_cropped", 0) > 0,
        "masked_residues": any(notes.get(reason, 0) for reason in masked),
        "no_protein": protein is None,
    }
    return max((status for status in STATUSES if applying.get(status)), key=STATUSES.index, default="ok")


def _parquet_bytes(table: pa.Table) -> bytes:
    """The file's bytes, read back and counted before anyone sees them."""
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd", row_group_size=4096)
    data = sink.getvalue()
    written = pq.ParquetFile(io.BytesIO(data)).metadata.num_rows
    if written != table.num_rows:
        raise InputError(f"shard has {written} rows after writing, {table.num_rows} before")
    return data
