"""Attention as it is computed, against the library's; shares and their comparison, against plain numpy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from scipy.stats import ttest_rel
from transformers import EsmConfig, EsmModel

from encoders.tiny import ESM2_CONFIG, write_folder
from isoformer.encoders.esm2 import Esm2Tokenizer
from isoformer.encoders.registry import EncoderChoice, load_tokenizer, load_trainable
from isoformer.encoders.spec import pack
from isoformer.errors import EncoderError, InputError
from isoformer.explain.attention import (
    MarkedRna,
    RnaEncoder,
    attention_table,
    choose_rnas,
    recorded,
    region_shares,
)
from isoformer.explain.config import Marks
from isoformer.explain.regions import REGIONS, RnaRegions
from isoformer.explain.statistics import compare

MU = 0.02
LENGTHS = ((4, 30, 11), (10, 21, 40), (1, 60, 3))
VARIANTS: dict[str, dict[str, Any]] = {
    "rotary": {},
    "learned positions": {"position_embedding_type": "absolute", "token_dropout": False},
}


@pytest.fixture(scope="module", params=list(VARIANTS))
def pair(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[EsmModel, RnaEncoder]:
    """The library's model with weights that count, and ours with the same weights."""
    torch.manual_seed(0)
    fields = {**ESM2_CONFIG, **VARIANTS[request.param]}
    library = EsmModel(EsmConfig(**fields, attn_implementation="eager"), add_pooling_layer=False).eval()
    for parameter in library.parameters():
        parameter.data.add_(0.2 * torch.randn(parameter.shape))
    folder = write_folder(tmp_path_factory.mktemp("esm2"), fields, library.state_dict())
    choice = EncoderChoice(name="esm2", weights=str(folder))
    return library, RnaEncoder("made", load_trainable(choice).eval(), load_tokenizer(choice))


@pytest.fixture(scope="module")
def rnas() -> list[MarkedRna]:
    rng = np.random.default_rng(0)
    return [
        MarkedRna(f"T{i}", "".join(rng.choice(list("ACGT"), sum(lengths))), RnaRegions(*lengths))
        for i, lengths in enumerate(LENGTHS)
    ]


def library_attention(library: EsmModel, ids: np.ndarray) -> list[torch.Tensor]:
    """Of one sequence: (H, L, L) a layer."""
    with torch.no_grad():
        found = library(torch.from_numpy(ids.astype(np.int64))[None], output_attentions=True).attentions
    assert found is not None
    return [layer[0] for layer in found]


def test_probabilities_are_the_librarys(pair: tuple[EsmModel, RnaEncoder], rnas: list[MarkedRna]) -> None:
    """Of every layer, head and sequence of a pack; and the states stay what they are."""
    library, ours = pair
    tokens = [ours.tokenizer(rna.rna) for rna in rnas]
    packed = pack(tokens)
    seen: dict[tuple[int, int, int], torch.Tensor] = {}
    with torch.no_grad():
        plain = ours.encoder(packed).hidden_PD
        with recorded(ours.network, lambda *place: seen.__setitem__(place[:3], place[3])):
            shown = ours.encoder(packed).hidden_PD
        after = ours.encoder(packed).hidden_PD
    torch.testing.assert_close(shown, plain, rtol=1e-5, atol=1e-5)
    assert torch.equal(plain, after)
    assert len(seen) == ours.layers * len(rnas) * ours.heads == 3 * 3 * 4
    for sequence, one in enumerate(tokens):
        for layer, expected_HLL in enumerate(library_attention(library, one.token_ids)):
            for head in range(ours.heads):
                torch.testing.assert_close(
                    seen[layer, sequence, head], expected_HLL[head], rtol=1e-4, atol=1e-6
                )


@pytest.mark.parametrize("marks", ["attended", "attending"])
def test_shares_are_those_of_the_formula(
    pair: tuple[EsmModel, RnaEncoder], rnas: list[MarkedRna], marks: Marks
) -> None:
    library, ours = pair
    shares = region_shares(ours, rnas, mu=MU, marks=marks)
    assert shares.shape == (3, 3, 4, 3)
    for index, (rna, lengths) in enumerate(zip(rnas, LENGTHS, strict=True)):
        region = ["", *np.repeat(REGIONS, lengths), ""]
        for layer, alpha in enumerate(library_attention(library, ours.tokenizer(rna.rna).token_ids)):
            for head in range(ours.heads):
                over, marked = 0, dict.fromkeys(REGIONS, 0)
                for i, row in enumerate(alpha[head].tolist()):
                    for j, value in enumerate(row):
                        assert abs(value - MU) > 1e-7  # else rounding could decide
                        if value > MU:
                            over += 1
                            name = region[j] if marks == "attended" else region[i]
                            if name:
                                marked[name] += 1
                expected = [marked[name] / over for name in REGIONS]
                np.testing.assert_allclose(shares[index, layer, head], expected, rtol=1e-6)


def test_six_mers_carry_their_region() -> None:
    """With μ = 0 every pair counts: a region's share is that of its tokens, special ones in the whole."""
    choice = EncoderChoice(name="ntv2-tiny-rna", random_seed=1)
    ours = RnaEncoder("random", load_trainable(choice).eval(), load_tokenizer(choice))
    rna = MarkedRna("T", "ACGTAC" * 10 + "AC", RnaRegions(14, 30, 18))
    shares = region_shares(ours, [rna], mu=0.0, marks="attended")
    # tokens: <cls>, 10 six-mers, 2 letters; 12-18 has 2 bases of the 5' UTR, 42-48 has 2 of the CDS
    np.testing.assert_allclose(shares[0], np.broadcast_to(np.array([2, 5, 5]) / 13, (4, 4, 3)), rtol=1e-6)


def test_a_head_that_attends_to_nothing_over_mu_has_no_share() -> None:
    choice = EncoderChoice(name="ntv2-tiny-rna", random_seed=1)
    ours = RnaEncoder("random", load_trainable(choice).eval(), load_tokenizer(choice))
    rna = MarkedRna("T", "ACGTAC" * 60, RnaRegions(60, 180, 120))
    shares = region_shares(ours, [rna], mu=0.9, marks="attended")
    assert np.isnan(shares).all()
    assert attention_table(shares, None, 0.05)["rho_A"].null_count() == 4 * 4 * 3


def made_shares(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    second = rng.uniform(0.1, 0.5, (12, 2, 3, 3))
    first = second * rng.choice([0.5, 1.0, 3.0], (1, 2, 3, 3)) + 0.03 * rng.normal(size=second.shape)
    first[2, 0, 1], second[5, 0, 1] = np.nan, np.nan
    return first, second


def test_the_comparison_is_a_paired_t_test() -> None:
    first, second = made_shares()
    found = compare(first, second, 0.05)
    table = attention_table(first, second, 0.05)
    kinds = set()
    for place in np.ndindex(2, 3, 3):
        a, b = first[:, *place], second[:, *place]
        both = np.isfinite(a) & np.isfinite(b)
        expected = ttest_rel(a[both], b[both])
        mean_A, mean_B = a[both].mean(), b[both].mean()
        delta = min((mean_A - mean_B) / mean_B, 1.0) if expected.pvalue < 0.05 else 0.0
        assert found.p[place] == pytest.approx(expected.pvalue, rel=1e-9)
        assert found.delta[place] == pytest.approx(delta)
        assert found.n[place] == both.sum()
        layer, head, region = place[0] + 1, place[1] + 1, REGIONS[place[2]]
        row = table.filter(pl.col("layer") == layer, pl.col("head") == head, pl.col("region") == region)
        assert row["delta"][0] == pytest.approx(delta)
        kinds.add("zero" if delta == 0 else "cap" if delta == 1 else "down" if delta < 0 else "up")
    assert {"zero", "cap", "down"} <= kinds


@pytest.mark.filterwarnings("error")
def test_what_cannot_be_tested_is_not_called_a_change() -> None:
    one = np.full((1, 1, 1, 3), 0.5)
    assert np.isnan(compare(one, one / 2, 0.05).p).all() and not compare(one, one / 2, 0.05).delta.any()
    same = np.full((4, 1, 1, 3), 0.5)
    assert (compare(same, same, 0.05).p == 1).all()
    steady = compare(same, same / 4, 0.05)
    assert (steady.p == 0).all() and (steady.delta == 1.0).all()
    from_nothing = compare(same, np.zeros_like(same), 0.05)
    assert (from_nothing.delta == 1.0).all()


def test_encoders_of_other_sizes_are_not_compared() -> None:
    with pytest.raises(InputError, match=r"encoders of other sizes.*allowed: \(3, 4\)"):
        attention_table(np.zeros((5, 2, 4, 3)), np.zeros((5, 3, 4, 3)), 0.05)


def test_what_is_not_read_is_counted(pair: tuple[EsmModel, RnaEncoder]) -> None:
    _, ours = pair
    short = RnaEncoder("short", ours.encoder, Esm2Tokenizer(10_000, "windows"))
    regions = RnaRegions(2, 6, 2)
    rows = [
        ("A", "ACGTACGTAC", regions),
        ("B", "ACGTACGTAC", regions),
        ("C", None, None),
        ("D", "ACGT", None),
        ("E", "A" * 9000, RnaRegions(0, 9000, 0)),
        ("F", "CCGTACGTAC", regions),
        ("G", "GCGTACGTAC", regions),
    ]
    chosen = choose_rnas(rows, [short], most=2)
    assert [rna.transcript_id for rna in chosen.rnas] == ["A", "F"]
    assert chosen.skipped == {
        "same_rna_as_another": 1, "no_rna": 1, "no_regions": 1, "longer_than_the_encoder_reads_at_once": 1,
        "over_explain.transcripts": 1,
    }  # fmt: skip


def test_an_encoder_without_attention_is_refused(tmp_path: Path) -> None:
    from encoders.test_enformer import CONFIG
    from isoformer.encoders.enformer import EnformerConfig
    from isoformer.encoders.enformer_model import EnformerModel

    fields = {name: CONFIG[name] for name in EnformerConfig.model_fields if name in CONFIG}
    state = EnformerModel(EnformerConfig(**fields)).state_dict()
    folder = write_folder(tmp_path / "enformer", CONFIG, state)
    choice = EncoderChoice(name="enformer", weights=str(folder))
    encoder = RnaEncoder("enformer", load_trainable(choice), load_tokenizer(choice))
    with pytest.raises(EncoderError, match="its attention cannot be read"):
        _ = encoder.network
