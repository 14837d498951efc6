"""What is read and what is held out."""

from __future__ import annotations

from pathlib import Path

import pytest

from isoformer.errors import InputError
from isoformer.schema import Modality
from isoformer.storage import open_storage
from isoformer.training.pretrain_corpus import CorpusRequest, read_corpus, read_gene_list
from isoformer.transcripts import read_manifest, read_shard
from tiny_dataset import write_dataset


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = str(tmp_path_factory.mktemp("pretrain-corpus"))
    write_dataset(folder, shards=3, genes_per_shard=4, window_bases=2048)
    return folder


def request(modality: Modality, folder: Path, **changes: object) -> CorpusRequest:
    values: dict[str, object] = {
        "modality": modality,
        "excluded_splits": frozenset({"test"}),
        "excluded_genes": frozenset(),
        "window_bases": 300,
        "genome_windows": 50,
        "seed": 0,
        "cache_dir": str(folder),
    }
    return CorpusRequest(**{**values, **changes})  # type: ignore[arg-type]


def rows_of(root: str) -> list[dict[str, object]]:
    storage = open_storage(root)
    shards = range(len(read_manifest(storage).shards))
    return [row for index in shards for row in read_shard(storage, index).to_pylist()]


@pytest.mark.parametrize("modality", ["rna", "protein"])
def test_each_distinct_sequence_once_and_none_of_a_held_out_gene(
    root: str, tmp_path: Path, modality: Modality
) -> None:
    corpus = read_corpus(root, request(modality, tmp_path))
    rows = rows_of(root)
    held_out = {row[modality] for row in rows if row["split"] == "test"}
    expected = {row[modality] for row in rows if row["split"] == "train" and row[modality]} - held_out
    assert len(corpus.train) == len(set(corpus.train))
    assert set(corpus.train) == expected
    assert not set(corpus.train) & set(corpus.validation)
    assert sum(corpus.counts[f"{part}_transcripts"] for part in ("train", "validation", "held_out")) == len(
        rows
    )


def test_genes_by_name_are_held_out_with_or_without_their_version(root: str, tmp_path: Path) -> None:
    first = next(row for row in rows_of(root) if row["split"] == "train")
    listed = tmp_path / "genes.txt"
    listed.write_text(f"{str(first['gene_id']).partition('.')[0]}.99\n", encoding="utf-8")
    corpus = read_corpus(root, request("rna", tmp_path, excluded_genes=read_gene_list(str(listed))))
    assert first["rna"] not in corpus.train
    assert len(corpus.train) < len(read_corpus(root, request("rna", tmp_path)).train)


def test_dna_windows_touch_no_held_out_window(root: str, tmp_path: Path) -> None:
    corpus = read_corpus(root, request("dna", tmp_path))
    counts = corpus.counts
    assert all(len(window) == 300 for window in corpus.train)
    assert len(corpus.train) == counts["tss_windows"] + counts["genome_windows"]
    assert counts["genome_windows"] + counts["windows_that_touch_a_held_out_gene"] >= 50 - counts.get(
        "windows_with_many_n", 0
    )
    for window in corpus.validation:
        for start in range(0, 300 - 20, 20):
            assert all(window[start : start + 20] not in other for other in corpus.train)


def test_an_empty_part_is_an_error(root: str, tmp_path: Path) -> None:
    everything = frozenset({"train", "validation", "test"})
    with pytest.raises(InputError, match="pre-training corpus is empty: 0 training"):
        read_corpus(root, request("rna", tmp_path, excluded_splits=everything))


def test_a_missing_gene_list_is_named() -> None:
    with pytest.raises(InputError, match=r"nowhere\.txt.*exclude_genes"):
        read_gene_list("/nowhere.txt")
