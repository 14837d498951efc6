"""Which letters a token stands for, and the region that it belongs to."""

from __future__ import annotations

import numpy as np
import pytest

from isoformer.encoders.esm2 import Esm2Tokenizer
from isoformer.encoders.letters import LongPolicy
from isoformer.encoders.nucleotide_transformer import SixMerTokenizer, six_mer_ids
from isoformer.encoders.registry import EncoderChoice, load_tokenizer
from isoformer.encoders.rnafm import RnaFmTokenizer
from isoformer.errors import EncoderError
from isoformer.explain.regions import (
    REGIONS,
    RnaRegions,
    even_spans,
    reduced_spans,
    region_names,
    span_regions,
    token_spans,
)


def random_letters(count: int, alphabet: str = "ACGT", seed: int = 0) -> str:
    return "".join(np.random.default_rng(seed).choice(list(alphabet), count))


@pytest.mark.parametrize("policy", ["left", "right", "center"])
@pytest.mark.parametrize("letters", [50, 240, 241, 700, 1001])
@pytest.mark.parametrize("alphabet", ["ACGT", "ACGTN"])
def test_six_mers_are_placed_where_they_stand(policy: LongPolicy, letters: int, alphabet: str) -> None:
    """Whatever was cropped, a token's letters make that token."""
    tokenizer = SixMerTokenizer("dna", 41, long_sequences=policy)
    sequence = random_letters(letters, alphabet)
    ids = tokenizer(sequence).token_ids
    spans = token_spans(tokenizer, sequence, "dna")
    assert (spans[0] == -1).all() and len(spans) == len(ids)
    for token, (start, end) in zip(ids[1:], spans[1:], strict=True):
        assert six_mer_ids(sequence[start:end]).tolist() == [token]
    assert (spans[2:, 0] == spans[1:-1, 1]).all()


@pytest.mark.parametrize("policy", ["left", "right", "center"])
@pytest.mark.parametrize("length", [5, 30, 31, 95])
def test_single_letters_are_placed_where_they_stand(policy: LongPolicy, length: int) -> None:
    protein = Esm2Tokenizer(32, policy)
    sequence = random_letters(length, "ACDEFGHIKLMNPQRSTVWY")
    spans = token_spans(protein, sequence, "protein")
    kept = protein(sequence).token_ids[1:-1]
    alone = [protein(sequence[start:end]).token_ids[1] for start, end in spans[1:-1]]
    assert alone == kept.tolist()
    assert (spans[[0, -1]] == -1).all()
    rna = RnaFmTokenizer(32, policy)
    assert len(token_spans(rna, random_letters(length), "rna")) == min(length, 30) + 2


def test_a_tokenizer_without_places_is_refused() -> None:
    tokenizer = load_tokenizer(EncoderChoice(name="composition-rna"))
    with pytest.raises(EncoderError, match="CompositionTokenizer: its tokens cannot be placed"):
        token_spans(tokenizer, "ACGT", "rna")


def test_a_token_belongs_to_the_region_of_most_of_its_bases() -> None:
    regions = RnaRegions.of(8, 15, 7, bases=30)
    assert regions is not None
    spans = np.array([[-1, -1], [0, 6], [6, 12], [12, 18], [18, 24], [24, 30], [20, 26]])
    assert region_names(spans, regions) == [None, "5utr", "cds", "cds", "cds", "3utr", "cds"]
    #                                        6-12: 2 of the 5' UTR, 4 of the CDS; 20-26: 3 and 3, a tie


def test_ties_go_to_the_five_prime_side() -> None:
    regions = RnaRegions(3, 3, 3)
    assert REGIONS[span_regions(np.array([[0, 6]]), regions.of_letters())[0]] == "5utr"
    assert REGIONS[span_regions(np.array([[3, 9]]), regions.of_letters())[0]] == "cds"
    assert REGIONS[span_regions(np.array([[0, 9]]), regions.of_letters())[0]] == "5utr"


def test_lengths_that_do_not_add_up_make_no_regions() -> None:
    assert RnaRegions.of(1, 3, 1, bases=6) is None
    assert RnaRegions.of(None, None, None, bases=6) is None
    assert RnaRegions.of(None, 6, None, bases=6) == RnaRegions(0, 6, 0)


@pytest.mark.parametrize("length", [1, 5, 16, 17, 40])
def test_reduced_positions_cover_what_the_mean_is_over(length: int) -> None:
    import torch
    from torch.nn import functional

    spans = even_spans(length * 6, length)
    reduced = reduced_spans(spans, "bins:16")
    if length <= 16:
        assert (reduced == spans).all()
        return
    for place, (start, end) in enumerate(reduced):
        marks = torch.zeros(length)
        marks[start // 6 : end // 6] = 1
        pooled = functional.adaptive_avg_pool1d(marks[None, None], 16)[0, 0]
        assert pooled[place] == 1
        marks[start // 6] = 0
        assert functional.adaptive_avg_pool1d(marks[None, None], 16)[0, 0, place] < 1
    assert reduced_spans(spans, "pooled").tolist() == [[0, length * 6]]
