"""Windows over long sequences: the same numbers as a loop that encodes each stretch of letters alone."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from encoders.tiny import ESM2_CONFIG, NTV2_CONFIG, write_folder
from isoformer.encoders.packed_transformer import random_transformer
from isoformer.encoders.registry import EncoderChoice, get_spec, load_encoder, load_tokenizer
from isoformer.encoders.spec import Packed, pack
from isoformer.encoders.transformer_config import transformer_config
from isoformer.encoders.windows import Windows
from isoformer.errors import ConfigError

MOST = 20


@dataclass(frozen=True)
class Family:
    """How a family's letters become tokens: `special` ones go with each window."""

    name: str
    config: dict[str, Any]
    alphabet: str
    letters_per_token: int
    special: int
    counted_as: str

    @property
    def room(self) -> int:
        """A window's tokens that stand for letters."""
        return MOST - self.special

    def letters(self, tokens: int, seed: int = 0) -> str:
        rng = np.random.default_rng(seed)
        return "".join(rng.choice(list(self.alphabet), size=tokens * self.letters_per_token))


NTV1_CONFIG = {
    **NTV2_CONFIG,
    "vocab_size": 4105,
    "position_embedding_type": "absolute",
    "token_dropout": True,
}
FAMILIES = {
    family.name: family
    for family in (
        Family("esm2", ESM2_CONFIG, "ACDEFGHIKLMNPQRSTVWY", 1, 2, "windowed_residues"),
        Family("ntv1-rna", NTV1_CONFIG, "ACGU", 6, 1, "windowed_bases"),
        Family("ntv2-dna", NTV2_CONFIG, "ACGT", 6, 1, "windowed_bases"),
    )
}


@pytest.fixture(params=list(FAMILIES))
def family(request: pytest.FixtureRequest) -> Family:
    return FAMILIES[request.param]


@pytest.fixture
def folder(family: Family, tmp_path: Path) -> Path:
    gated = family.name.startswith("ntv2")
    model = random_transformer(transformer_config(family.config, gated_feed_forward=gated, file=""), 4)
    generator = torch.Generator().manual_seed(1)
    state = {
        f"esm.{name}": tensor + 0.1 * torch.randn(tensor.shape, generator=generator)
        for name, tensor in model.state_dict().items()
    }
    return write_folder(tmp_path, family.config, state)


def ordinary(family: Family, folder: Path) -> EncoderChoice:
    return EncoderChoice(name=family.name, weights=str(folder), max_tokens=MOST)


def windowed(family: Family, folder: Path, overlap: int) -> EncoderChoice:
    return EncoderChoice(
        name=family.name,
        weights=str(folder),
        max_tokens=MOST,
        long_sequences="windows",
        overlap_tokens=overlap,
    )


def encoded(choice: EncoderChoice, sequences: list[str]) -> tuple[list[Tensor], Tensor]:
    """Positions of each sequence, and each one's `<cls>`."""
    tokenizer = load_tokenizer(choice)
    out = load_encoder(choice).encode(pack([tokenizer(sequence) for sequence in sequences]))
    assert out.cls_BD is not None
    bounds = itertools.pairwise(out.offsets)
    return [out.hidden_PD[start:end] for start, end in bounds], out.cls_BD


def window_starts(tokens: int, room: int, overlap: int) -> list[int]:
    """Each window begins `overlap` tokens before the last one's end; the final one ends with the sequence."""
    starts = [0]
    while starts[-1] + room < tokens:
        starts.append(min(starts[-1] + room - overlap, tokens - room))
    return starts


@pytest.mark.parametrize("overlap", [0, 5, MOST // 2])
def test_the_average_is_that_of_a_plain_loop(family: Family, folder: Path, overlap: int) -> None:
    room, step = family.room, family.letters_per_token
    lengths = [room - 1, room, room + 1, 3 * room - 2 * overlap, 97, 4]
    sequences = [family.letters(tokens, seed) for seed, tokens in enumerate(lengths)]
    got, got_cls_BD = encoded(windowed(family, folder, overlap), sequences)
    for row, (sequence, tokens) in enumerate(zip(sequences, lengths, strict=True)):
        total, coverage = torch.zeros(tokens, 32), torch.zeros(tokens, 1)
        starts = window_starts(tokens, room, overlap) if tokens > room else [0]
        cls = torch.zeros(32)
        for start in starts:
            stretch = sequence[start * step : (start + room) * step]
            (alone,), alone_cls_BD = encoded(ordinary(family, folder), [stretch])
            total[start : start + room] += alone
            coverage[start : start + room] += 1
            cls += alone_cls_BD[0] / len(starts)
        assert int(coverage.min()) == 1
        torch.testing.assert_close(got[row], total / coverage, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(got_cls_BD[row], cls, rtol=1e-5, atol=1e-5)


def test_where_one_window_covers_it_is_the_ordinary_encoding_of_that_stretch(
    family: Family, folder: Path
) -> None:
    room, step, overlap = family.room, family.letters_per_token, 3
    sequence = family.letters(2 * room - overlap)
    (whole,), _ = encoded(windowed(family, folder, overlap), [sequence])
    (first,), _ = encoded(ordinary(family, folder), [sequence[: room * step]])
    (last,), _ = encoded(ordinary(family, folder), [sequence[-room * step :]])
    torch.testing.assert_close(whole[: room - overlap], first[:-overlap], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(whole[room:], last[overlap:], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        whole[room - overlap : room], (first[-overlap:] + last[:overlap]) / 2, rtol=1e-5, atol=1e-5
    )


def test_a_sequence_within_the_limit_has_no_windows(family: Family, folder: Path) -> None:
    sequences = [family.letters(tokens) for tokens in (1, family.room - 1, family.room)]
    got, got_cls_BD = encoded(windowed(family, folder, 4), sequences)
    expected, expected_cls_BD = encoded(ordinary(family, folder), sequences)
    assert all(map(torch.equal, got, expected))
    assert torch.equal(got_cls_BD, expected_cls_BD)


def test_letters_read_in_windows_are_counted_and_none_is_cropped(family: Family, folder: Path) -> None:
    tokenizer = load_tokenizer(windowed(family, folder, 4))
    above = family.letters(family.room + 1)
    assert tokenizer(above).counts.get(family.counted_as) == len(above)
    assert not [reason for reason in tokenizer(above).counts if reason.startswith("cropped")]
    assert family.counted_as not in tokenizer(family.letters(family.room)).counts
    assert len(tokenizer(above)) == MOST + 1


def test_many_n_make_windows_of_tokens(tmp_path: Path) -> None:
    """Letters would fit in the limit of six to a token; N are tokens of their own."""
    family = FAMILIES["ntv2-dna"]
    folder = write_folder(tmp_path, family.config, {"unread": torch.zeros(1)})
    sequence = "ACGTAC" + 24 * "N" + "ACGTAC"
    tokens = load_tokenizer(windowed(family, folder, 4))(sequence)
    assert len(tokens) == 27
    assert tokens.counts == {"ambiguous_bases": 24, "windowed_bases": 36}


@pytest.mark.parametrize("overlap", [0, 1, 7, MOST // 2])
def test_windows_share_no_more_than_asked_except_the_last(overlap: int) -> None:
    is_special = np.zeros(63, dtype=bool)
    is_special[[0, 52, 53, 62]] = True  # a sequence of 53 tokens and one of 10
    packed = Packed(np.arange(63, dtype=np.int32), np.array([0, 53, 63]))
    windows = Windows.of(packed, most_tokens=MOST, overlap_tokens=overlap, is_special_T=is_special)
    bounds = windows.packed.offsets
    pieces = [windows.token_of_W[start:end] for start, end in itertools.pairwise(bounds)]
    assert pieces[-1].tolist() == list(range(53, 63))
    assert all(len(piece) == MOST and piece[0] == 0 and piece[-1] == 52 for piece in pieces[:-1])
    shared = [len(np.intersect1d(one[1:-1], other[1:-1])) for one, other in itertools.pairwise(pieces[:-1])]
    assert shared[:-1] == [overlap] * (len(shared) - 1)
    assert overlap <= shared[-1] < MOST - 2
    assert set(windows.token_of_W.tolist()) == set(range(63))


def test_an_overlap_of_more_than_half_a_window_is_refused(family: Family, folder: Path) -> None:
    get_spec(windowed(family, folder, MOST // 2))
    with pytest.raises(
        ConfigError, match=r"overlap_tokens must be at most half of a window's 20 tokens, got 11"
    ):
        get_spec(windowed(family, folder, MOST // 2 + 1))


def test_an_overlap_without_windows_is_refused() -> None:
    with pytest.raises(ConfigError, match="got 10 with long_sequences 'right': set that to windows"):
        get_spec(EncoderChoice(name="esm2-tiny", overlap_tokens=10))


def test_windows_change_the_identity(family: Family, folder: Path) -> None:
    specs = [get_spec(ordinary(family, folder)), *(get_spec(windowed(family, folder, n)) for n in (3, 4))]
    assert len({str(spec.identity) for spec in specs}) == 3
    assert specs[1].window_bases is None
