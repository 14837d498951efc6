"""A table or gene models through the whole of prepare, and what must hold of the dataset that comes out."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

from isoformer.config import build
from isoformer.manifest import read_manifest, read_shard
from isoformer.storage import open_storage
from isoformer.transcripts import PrepareConfig, prepare, run_here


def check_prepared(folder: Path, settings: dict[str, object], data: bytes) -> None:
    """Counts reconcile; nothing is in the rows that was not in the files."""
    split = {"allow_empty": True}
    config = build(PrepareConfig, {"dna_window_bases": 16, "shards": 1, "split": split, **settings})
    manifest = prepare(config, str(folder / "root"), run_shards=run_here)
    counts, storage = manifest.counts, open_storage(folder / "root")
    assert read_manifest(storage) == manifest, "read back"
    rows = [row for shard in range(len(manifest.shards)) for row in read_shard(storage, shard).to_pylist()]
    assert counts.rows_in == counts.rows_out + sum(counts.quarantined.values()), "rows in and out"
    assert len(rows) == counts.rows_out == sum(Counter(row["status"] for row in rows).values())
    assert len({row["transcript_id"] for row in rows}) == len(rows), "an id twice"
    for row in rows:
        assert row["transcript_id"].strip() and row["gene_id"].strip(), "an id that is empty"
        assert set(row["dna"] or "") | set(row["rna"] or "") <= set("ACGTN"), "letters of no alphabet"
        assert set(row["protein"] or "") <= set("ACDEFGHIKLMNPQRSTVWYBJOUXZ"), "residues of no alphabet"
        assert all(math.isfinite(value) and value >= 0 for value in row["targets"]), "targets"
        lengths = [row[name] for name in ("five_utr_bases", "cds_bases", "three_utr_bases")]
        assert None in lengths or (min(lengths) >= 0 and sum(lengths) == len(row["rna"])), (
            f"regions {lengths}"
        )
