"""Near-copies are found, counted and kept on one side of a split."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from isoformer.homology import candidates, clusters, identity_of, kmers, similar_pairs, sketch
from isoformer.homology_split import gene_clusters
from isoformer.leakage import REPORT_KEY, audit
from isoformer.planning import PrepareConfig
from isoformer.splits import SplitConfig, hash_split
from isoformer.storage import open_storage
from isoformer.transcripts import prepare, run_here

RESIDUES, BASES = "ACDEFGHIKLMNPQRSTVWY", "ACGT"


def mutated(text: str, letters: str, share: float, rng: random.Random) -> str:
    """Exactly that share of the letters is another one."""
    changed = list(text)
    for place in rng.sample(range(len(text)), round(share * len(text))):
        changed[place] = rng.choice([letter for letter in letters if letter != changed[place]])
    return "".join(changed)


def made_sequences(letters: str, length: int, count: int, rng: random.Random) -> list[str]:
    return ["".join(rng.choices(letters, k=length)) for _ in range(count)]


def test_a_sketch_estimates_the_jaccard_index() -> None:
    rng = random.Random(0)
    one = made_sequences(RESIDUES, 900, 1, rng)[0]
    other = mutated(one, RESIDUES, 0.1, rng)
    sets = [set(kmers(text, "protein").tolist()) for text in (one, other)]
    exact = len(sets[0] & sets[1]) / len(sets[0] | sets[1])
    sketches = [sketch(text, "protein") for text in (one, other)]
    assert float(np.mean(sketches[0] == sketches[1])) == pytest.approx(exact, abs=0.1)
    words = {one[i : i + 4] for i in range(len(one) - 3)}
    assert len(kmers(one, "protein")) == len(words)
    assert len(kmers("ACGU" * 5 + "N" + "ACGT" * 5, "rna")) == 4  # U is T, N is left out


@pytest.mark.parametrize(("kind", "letters", "length"), [("protein", RESIDUES, 300), ("rna", BASES, 2000)])
def test_planted_near_copies_are_found_and_unrelated_ones_are_not(
    kind: Any, letters: str, length: int
) -> None:
    rng = random.Random(1)
    originals = made_sequences(letters, length, 60, rng)
    copies = [mutated(text, letters, 0.05, rng) for text in originals[:20]]
    found = similar_pairs(originals + copies, kind, 0.9)
    assert {(pair.first, pair.second) for pair in found} == {(i, 60 + i) for i in range(20)}
    assert all(pair.identity == pytest.approx(0.95, abs=0.012) for pair in found)


def test_identity_counts_over_the_longer_one() -> None:
    rng = random.Random(2)
    text = made_sequences(RESIDUES, 200, 1, rng)[0]
    assert identity_of(text, text, "protein") == 1.0
    assert identity_of(text, mutated(text, RESIDUES, 0.1, rng), "protein") == pytest.approx(0.9, abs=0.02)
    assert identity_of(text, text[:150], "protein") == pytest.approx(0.75)
    assert identity_of(text, text[:100], "protein", 0.8) == 0.0


def test_clusters_are_single_linkage() -> None:
    from isoformer.homology import Pair

    found = clusters(6, [Pair(0, 3, 1), Pair(3, 5, 1), Pair(1, 2, 1)])
    assert found[0] == found[3] == found[5] and found[1] == found[2]
    assert len(set(found.tolist())) == 3
    assert list(candidates(np.empty((0, 4), np.uint32))) == []


def table(path: Path, *, related: int = 30, alone: int = 60, seed: int = 3) -> Path:
    """Pairs of paralogs of 92% identity, and genes without relatives."""
    rng = random.Random(seed)
    lines = ["transcript_id\tgene_id\tdna\trna\tprotein\tLiver"]
    for gene in range(related + alone):
        protein = made_sequences(RESIDUES, 240, 1, rng)[0]
        members = [protein, mutated(protein, RESIDUES, 0.08, rng)] if gene < related else [protein]
        for copy, text in enumerate(members):
            rna = made_sequences(BASES, 900, 1, rng)[0]
            dna = made_sequences(BASES, 400, 1, rng)[0]
            lines.append(f"T{gene}.{copy}\tG{gene}c{copy}\t{dna}\t{rna}\t{text}\t{rng.random()}")
    path.write_text("\n".join(lines) + "\n", encoding="ascii")
    return path


def prepared(folder: Path, method: str, **options: Any) -> str:
    root = str(folder / method)
    config = PrepareConfig(
        route="table",
        table=str(table(folder / f"{method}.tsv", **options)),
        targets=("Liver",),
        split=SplitConfig(method=method, test=0.2, validation=0.2),  # type: ignore[arg-type]
    )
    prepare(config, root, run_shards=run_here)
    return root


def test_the_audit_counts_what_crosses_and_a_homology_split_lets_nothing_through(tmp_path: Path) -> None:
    by_hash, by_homology = (audit(prepared(tmp_path, method)) for method in ("hash", "homology"))
    config = SplitConfig(test=0.2, validation=0.2)
    crossing = [g for g in range(30) if hash_split(f"G{g}c0", config) != hash_split(f"G{g}c1", config)]
    proteins = [one for one in by_hash.crossings if one.modality == "protein" and one.what != "identical"]
    assert sum(one.pairs for one in proteins) == len(crossing) > 5
    assert not by_hash.is_clean and by_hash.genes_in_two_splits == ()
    assert by_homology.is_clean
    assert all(one.pairs == 0 for one in by_homology.crossings)
    assert set(by_homology.genes) == {"train", "validation", "test"}
    assert sum(by_homology.genes.values()) == 120
    assert open_storage(str(tmp_path / "hash")).exists(REPORT_KEY)
    example = proteins[0].examples[0] if proteins[0].examples else proteins[1].examples[0]
    assert example[0].split(".")[0] == example[1].split(".")[0]


def test_homology_clusters_are_counted_and_an_unrelated_gene_moves_none(tmp_path: Path) -> None:
    from isoformer.manifest import read_manifest, read_shard

    def splits(root: str) -> dict[str, str]:
        storage = open_storage(root)
        tables = [read_shard(storage, i) for i in range(len(read_manifest(storage).shards))]
        return {
            g: s
            for t in tables
            for g, s in zip(t["gene_id"].to_pylist(), t["split"].to_pylist(), strict=True)
        }

    first = prepared(tmp_path, "homology")
    counts = read_manifest(open_storage(first)).counts.sources
    assert (counts["homology_clusters"], counts["homology_largest_cluster_genes"]) == (90, 2)
    assert counts["homology_genes_with_relatives"] == 60
    (tmp_path / "more").mkdir()
    more = splits(prepared(tmp_path / "more", "homology", alone=70))
    before = splits(first)
    assert all(more[gene] == split for gene, split in before.items())
    for gene in range(30):
        assert before[f"G{gene}c0"] == before[f"G{gene}c1"]


def test_isoforms_of_one_gene_are_no_pair() -> None:
    rng = random.Random(5)
    protein = made_sequences(RESIDUES, 200, 1, rng)[0]
    rows = [{"gene_id": gene, "protein": protein, "rna": None} for gene in ("A", "A", "B")]
    rows.append({"gene_id": "C", "protein": None, "rna": made_sequences(BASES, 300, 1, rng)[0]})
    found = gene_clusters(rows, SplitConfig())
    assert found["A"] == found["B"] != found["C"]
