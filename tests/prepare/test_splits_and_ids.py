"""Splits by gene that stay put, and ids that find each other with or without a version."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from isoformer.errors import InputError
from isoformer.sources.identifiers import is_par_y, match_ids, stem, without_par
from isoformer.splits import SplitConfig, column_splits, hash_split, require_no_empty_split, split_genes

GENES = [f"ENSG{number:011d}" for number in range(4000)]


def test_hash_split_has_the_shares_asked_for() -> None:
    counts = Counter(
        split_genes({gene: ["chr1"] for gene in GENES}, SplitConfig(validation=0.1, test=0.2)).values()
    )
    assert abs(counts["validation"] - 400) < 80
    assert abs(counts["test"] - 800) < 100


@settings(max_examples=20, deadline=None)
@given(st.sets(st.sampled_from(GENES), min_size=1), st.sets(st.sampled_from(GENES)))
def test_adding_genes_moves_none(before: set[str], added: set[str]) -> None:
    config = SplitConfig()
    first = split_genes({gene: ["chr1"] for gene in before}, config)
    second = split_genes({gene: ["chr1"] for gene in before | added}, config)
    assert all(second[gene] == split for gene, split in first.items())


def test_version_and_par_copy_do_not_move_a_gene_and_the_seed_does() -> None:
    config = SplitConfig()
    for gene in GENES[:200]:
        assert (
            hash_split(gene, config)
            == hash_split(f"{gene}.7", config)
            == hash_split(f"{gene}.7_PAR_Y", config)
        )
    moved = sum(hash_split(gene, config) != hash_split(gene, SplitConfig(seed=1)) for gene in GENES)
    assert moved > 500


def test_a_hash_split_is_pinned() -> None:
    assert [hash_split(gene, SplitConfig()) for gene in GENES[:12]] == PINNED


PINNED = [
    "train", "train", "train", "validation", "train", "train",
    "train", "train", "test", "test", "train", "test",
]  # fmt: skip


def test_chromosome_lists_with_or_without_chr() -> None:
    config = SplitConfig(
        method="chromosome", validation_chromosomes=("chr21",), test_chromosomes=("22", "chrX")
    )
    genes = {"A": ["chr21"], "B": ["chr22"], "C": ["1"], "D": ["chrX", "chrY"], "E": ["21"]}
    assert split_genes(genes, config) == {
        "A": "validation", "B": "test", "C": "train", "D": "test", "E": "validation"
    }  # fmt: skip


def test_own_column_and_its_mistakes() -> None:
    rows = [("A", "train"), ("A", "Train"), ("B", "evaluation"), ("C", "test")]
    assert column_splits(rows, file="t.csv") == {"A": "train", "B": "validation", "C": "test"}
    with pytest.raises(InputError, match=r"t.csv, A, field 'split': gene is in two splits, train and test"):
        column_splits([("A", "train"), ("A", "test")], file="t.csv")
    with pytest.raises(
        InputError, match=r"t.csv, A, field 'split': split is not one: got 'both'; allowed: train"
    ):
        column_splits([("A", "both")], file="t.csv")


def test_an_empty_split_is_an_error_unless_allowed() -> None:
    with pytest.raises(
        InputError, match=r"split validation is empty \(train 1, validation 0, test 1 transcripts\)"
    ):
        require_no_empty_split({"train": 1, "test": 1}, SplitConfig())
    require_no_empty_split({"train": 1}, SplitConfig(allow_empty=True))


def test_impossible_split_settings() -> None:
    with pytest.raises(ValidationError, match="below 1"):
        SplitConfig(validation=0.5, test=0.5)
    with pytest.raises(ValidationError, match="chromosomes in validation and in test: 21"):
        SplitConfig(method="chromosome", validation_chromosomes=("21",), test_chromosomes=("chr21",))


@pytest.mark.parametrize(
    ("identifier", "found"),
    [
        ("ENST00000269844.4", "ENST00000269844"), ("ENST00000269844", "ENST00000269844"),
        ("ENST00000652531.1_3", "ENST00000652531"), ("ENSG00000235724.10_10", "ENSG00000235724"),
        ("ENST00000381192.10_PAR_Y", "ENST00000381192_PAR_Y"), ("NM_022115.7", "NM_022115"),
        ("ENST00000381192.10_PAR_Y_2", "ENST00000381192_PAR_Y"), ("my.gene.1", "my.gene.1"),
        ("ENSMUST00000000001.5", "ENSMUST00000000001"),
    ],
)  # fmt: skip
def test_stems(identifier: str, found: str) -> None:
    assert stem(identifier) == found


def test_par_copies_share_a_stem() -> None:
    assert without_par("ENST00000381192.10_PAR_Y") == without_par("ENST00000381192.3") == "ENST00000381192"
    assert without_par("ENSTR0000381192.3") == "ENST00000381192"
    assert (
        is_par_y("ENST00000381192.10_PAR_Y")
        and is_par_y("ENSTR0000381192")
        and not is_par_y("ENST00000381192")
    )


def test_matching_prefers_the_same_id_and_counts_the_ambiguous() -> None:
    present = [
        "ENST01.1",
        "ENST01.2",
        "ENST02.5",
        "ENST03",
        "ENST04.1",
        "ENST04.1_PAR_Y",
        "ENST05.1",
        "ENST05.2",
    ]
    found = match_ids(
        ["ENST01.2", "ENST02.7", "ENST03.1", "ENST04", "ENST04.1_PAR_Y", "ENST05", "ENST06"], present
    )
    assert found.rows == {"ENST01.2": 1, "ENST02.7": 2, "ENST03.1": 3, "ENST04": 4, "ENST04.1_PAR_Y": 5}
    assert found.counts == {"exact": 2, "by_stem": 3, "ambiguous": 1, "absent": 1}
    assert found.ambiguous == {"ENST05"}
