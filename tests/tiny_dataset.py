"""A prepared dataset of a few made-up transcripts, for tests of what comes after prepare."""

from __future__ import annotations

import hashlib
import io
import random
import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from isoformer.manifest import MANIFEST_KEY, Counts, Manifest, Shard
from isoformer.schema import SPLITS, shard_name, transcripts_schema
from isoformer.sequences import dna_window, sequence_digest, window_bounds
from isoformer.sources.reference import INDEX_SUFFIXES, Reference, build_reference, reference_key
from isoformer.storage import open_storage

CHROMOSOME_BASES = 60_000
NUCLEOTIDES, RESIDUES = "ACGT", "ACDEFGHIKLMNPQRSTVWY"


def write_dataset(
    root: str,
    *,
    shards: int = 3,
    genes_per_shard: int = 4,
    window_bases: int = 8192,
    poison_protein: bool = False,
    seed: int = 0,
) -> Manifest:
    """Two isoforms a gene, with a common TSS and, in every other gene, a common protein.

    `poison_protein` gives the first gene a protein without a valid residue.
    """
    storage, rng = open_storage(root), random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        fasta = Path(folder, "genome.fa")
        bases = "".join(rng.choices(NUCLEOTIDES, k=CHROMOSOME_BASES))
        fasta.write_text(f">chr1\n{bases}\n", encoding="ascii")
        path, digest = build_reference([fasta], Path(folder, "built"))
        for suffix in INDEX_SUFFIXES:
            storage.put_file(Path(f"{path}{suffix}"), reference_key(digest) + suffix)
        reference = Reference.open(path)
        entries = []
        for shard in range(shards):
            genes = range(shard * genes_per_shard, (shard + 1) * genes_per_shard)
            rows = [row for gene in genes for row in _gene(gene, rng, reference, window_bases)]
            if poison_protein and shard == 0:
                for row in rows[:2]:
                    row["protein"], row["protein_digest"] = "XXXX", sequence_digest("XXXX")
            entries.append(_write_shard(storage, shard, rows))
    count = sum(entry.transcripts for entry in entries)
    made_of = f"{seed} {shards} {genes_per_shard} {window_bases}".encode()
    manifest = Manifest(
        fingerprint=hashlib.blake2b(made_of, digest_size=16).hexdigest(),
        sources=[], config={}, target_names=["Liver", "Brain"], label_provenance="made up",
        reference_digest=digest, chromosome_aliases={}, window_bases=window_bases, shards=entries,
        counts=Counts(
            rows_in=count, rows_out=count, quarantined={}, status={"ok": count}, notes={}, splits={},
            sources={},
        ),
    )  # fmt: skip
    storage.write_bytes(MANIFEST_KEY, manifest.model_dump_json().encode())
    return manifest


def _gene(gene: int, rng: random.Random, reference: Reference, window_bases: int) -> list[dict[str, Any]]:
    tss_bp, strand = rng.randrange(CHROMOSOME_BASES), "+-"[gene % 2]
    start_bp, end_bp = window_bounds(tss_bp, strand, window_bases)
    shared = "M" + "".join(rng.choices(RESIDUES, k=rng.randrange(20, 300)))
    place = {"chromosome": "chr1", "strand": strand, "tss_bp": tss_bp}
    place |= {"window_start_bp": start_bp, "window_end_bp": end_bp}
    dna_digest = sequence_digest(dna_window(reference, place))
    rows = []
    for isoform in range(2):
        rna = "".join(rng.choices(NUCLEOTIDES, k=rng.randrange(200, 3000)))
        protein = None if gene % 5 == 4 else shared if gene % 2 == 0 else shared + "G" * (isoform + 1)
        rows.append(
            {
                **place, "transcript_id": f"T{gene}.{isoform}", "gene_id": f"G{gene}",
                "gene_name": f"gene{gene}", "biotype": "protein_coding" if protein else "lncRNA",
                "split": SPLITS[gene % 3], "dna": None, "dna_digest": dna_digest,
                "rna": rna, "rna_digest": sequence_digest(rna), "protein": protein,
                "protein_digest": sequence_digest(protein) if protein else None, "five_utr_bases": 10,
                "cds_bases": 3 * len(protein or ""), "three_utr_bases": 10, "status": "ok", "notes": "",
                "targets": [float(gene % 7), rng.random()], "target_mask": [True, True],
            }
        )  # fmt: skip
    return rows


def _write_shard(storage: Any, index: int, rows: list[dict[str, Any]]) -> Shard:
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema=transcripts_schema(2)), sink)
    data = sink.getvalue()
    storage.write_bytes(f"transcripts/{shard_name(index)}", data)
    digest = hashlib.blake2b(data, digest_size=16).hexdigest()
    genes = len({row["gene_id"] for row in rows})
    return Shard(name=shard_name(index), transcripts=len(rows), genes=genes, bytes=len(data), digest=digest)
