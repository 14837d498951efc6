"""Nucleotide Transformer v2: an independent plain implementation, the tokenizer by hand, and the contract."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from encoders.contract import EncoderContract
from encoders.tiny import NTV2_CONFIG, write_folder
from isoformer.encoders.nucleotide_transformer import SixMerTokenizer
from isoformer.encoders.registry import EncoderChoice, get_spec, load_encoder, load_tokenizer
from isoformer.encoders.spec import pack

VOCABULARY = [
    *("<unk>", "<pad>", "<mask>", "<cls>", "<eos>", "<bos>"),
    *("".join(word) for word in itertools.product("ATCG", repeat=6)),
    *"ATCGN",
]
ID = {token: index for index, token in enumerate(VOCABULARY)}


def published_names(config: dict[str, int]) -> dict[str, tuple[int, ...]]:
    """The tensors of a published Nucleotide Transformer v2 file, by name (from its public model code)."""
    width, inner = config["hidden_size"], config["intermediate_size"]
    names: dict[str, tuple[int, ...]] = {
        "esm.embeddings.word_embeddings.weight": (config["vocab_size"], width)
    }
    for i in range(config["num_hidden_layers"]):
        layer = f"esm.encoder.layer.{i}."
        for part in (
            "attention.self.query",
            "attention.self.key",
            "attention.self.value",
            "attention.output.dense",
        ):
            names |= {f"{layer}{part}.weight": (width, width), f"{layer}{part}.bias": (width,)}
        for part in ("attention.LayerNorm", "LayerNorm"):
            names |= {f"{layer}{part}.weight": (width,), f"{layer}{part}.bias": (width,)}
        names |= {f"{layer}intermediate.dense.weight": (2 * inner, width)}
        names |= {f"{layer}output.dense.weight": (width, inner)}
        names |= {
            f"{layer}attention.self.rotary_embeddings.inv_freq": (
                width // config["num_attention_heads"] // 2,
            )
        }
    names |= {f"esm.encoder.emb_layer_norm_after.{kind}": (width,) for kind in ("weight", "bias")}
    names |= {"lm_head.bias": (config["vocab_size"],), "lm_head.dense.weight": (width, width)}
    return names


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        name: 0.3 * torch.randn(shape, generator=generator) + ("LayerNorm.weight" in name)
        for name, shape in published_names(NTV2_CONFIG).items()
    }


@pytest.fixture(scope="module")
def folder(state: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("ntv2"), NTV2_CONFIG, state)


def plain_forward(ids: Tensor, state: dict[str, Tensor], config: dict[str, int]) -> Tensor:
    """One sequence, from the model's description: explicit softmax, complex rotation, no packing."""

    def linear(values: Tensor, name: str) -> Tensor:
        out = values @ state[f"{name}.weight"].T
        return out + state[f"{name}.bias"] if f"{name}.bias" in state else out

    def norm(values: Tensor, name: str) -> Tensor:
        centred = values - values.mean(-1, keepdim=True)
        scaled = centred / torch.sqrt((centred**2).mean(-1, keepdim=True) + 1e-12)
        return scaled * state[f"{name}.weight"] + state[f"{name}.bias"]

    def rotate(values: Tensor) -> Tensor:  # (length, heads, head width): pairs are (j, j + half)
        half = values.shape[-1] // 2
        frequency = 10000.0 ** (-torch.arange(half, dtype=torch.float64) / half)
        turn = torch.polar(
            torch.ones(len(values), half, dtype=torch.float64),
            torch.arange(len(values), dtype=torch.float64)[:, None] * frequency,
        )
        pairs = torch.complex(values[..., :half], values[..., half:]) * turn[:, None]
        return torch.cat([pairs.real, pairs.imag], dim=-1)

    heads = config["num_attention_heads"]
    hidden = state["esm.embeddings.word_embeddings.weight"][ids]
    for i in range(config["num_hidden_layers"]):
        layer = f"esm.encoder.layer.{i}."
        normed = norm(hidden, layer + "attention.LayerNorm")
        query, key, value = (
            linear(normed, f"{layer}attention.self.{name}").reshape(len(ids), heads, -1)
            for name in ("query", "key", "value")
        )
        query, key = rotate(query), rotate(key)
        mixed = []
        for head in range(heads):
            scores = query[:, head] @ key[:, head].T / math.sqrt(query.shape[-1])
            mixed.append(torch.softmax(scores, dim=-1) @ value[:, head])
        hidden = hidden + linear(torch.cat(mixed, dim=-1), layer + "attention.output.dense")
        inner = linear(norm(hidden, layer + "LayerNorm"), layer + "intermediate.dense")
        gate, up = inner[:, : inner.shape[1] // 2], inner[:, inner.shape[1] // 2 :]
        hidden = hidden + linear(gate * torch.sigmoid(gate) * up, layer + "output.dense")
    return norm(hidden, "esm.encoder.emb_layer_norm_after")


class TestNucleotideTransformerDna(EncoderContract):
    @pytest.fixture
    def choice(self, folder: Path) -> EncoderChoice:
        return EncoderChoice(name="ntv2-dna", weights=str(folder))


class TestNucleotideTransformerRna(EncoderContract):
    @pytest.fixture
    def choice(self, folder: Path) -> EncoderChoice:
        return EncoderChoice(name="ntv2-rna", weights=str(folder))


def test_parity_with_a_plain_implementation_at_all_positions(folder: Path, state: dict[str, Tensor]) -> None:
    choice = EncoderChoice(name="ntv2-rna", weights=str(folder))
    rng = np.random.default_rng(3)
    sequences = [
        "".join(rng.choice(list("ACGUN"), p=[0.24] * 4 + [0.04], size=n)) for n in (6, 6, 13, 100, 400)
    ]
    tokens = [load_tokenizer(choice)(sequence) for sequence in sequences]
    encoded = load_encoder(choice).encode(pack(tokens))
    exact = {name: tensor.double() for name, tensor in state.items()}
    for index, one in enumerate(tokens):
        expected = plain_forward(torch.from_numpy(one.token_ids).long(), exact, NTV2_CONFIG)[1:]
        got = encoded.hidden_PD[encoded.offsets[index] : encoded.offsets[index + 1]]
        torch.testing.assert_close(got, expected.float(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("sequence", "tokens"),
    [
        ("ATCGATTT", ["ATCGAT", "T", "T"]),
        ("aucgau", ["ATCGAT"]),
        ("ACGNTTTTTTG", ["A", "C", "G", "N", "TTTTTT", "G"]),
        ("NNACGTACGNN", ["N", "N", "ACGTAC", "G", "N", "N"]),
        ("GGGGGGRCCCCCC", ["GGGGGG", "N", "CCCCCC"]),
    ],
)
def test_the_tokenizer_by_hand(sequence: str, tokens: list[str]) -> None:
    assert SixMerTokenizer("rna", 64)(sequence).token_ids.tolist() == [ID["<cls>"], *(ID[t] for t in tokens)]


def test_the_vocabulary_has_4107_tokens() -> None:
    assert len(VOCABULARY) == 4107 == NTV2_CONFIG["vocab_size"]
    assert (ID["AAAAAA"], ID["GGGGGG"], ID["A"], ID["N"]) == (6, 4101, 4102, 4106)


def test_many_n_are_cropped_by_tokens_with_the_letters_counted() -> None:
    sequence = "N" * 30 + "ACGTAC" * 4 + "N" * 6  # 40 tokens
    rna, dna = SixMerTokenizer("rna", 21)(sequence), SixMerTokenizer("dna", 21)(sequence)
    assert rna.counts == {"ambiguous_bases": 36, "cropped_bases": 20}
    assert rna.token_ids[1:].tolist() == [ID["N"]] * 10 + [ID["ACGTAC"]] * 4 + [ID["N"]] * 6
    assert np.array_equal(dna.token_ids, rna.token_ids)  # the middle base is the first of the 6-mers
    right_heavy = SixMerTokenizer("dna", 21)(sequence[::-1])
    assert right_heavy.token_ids[1:].tolist() == [ID["N"]] * 6 + [ID["CATGCA"]] * 4 + [ID["N"]] * 10


def test_the_dna_window_is_what_the_tokens_can_read(folder: Path) -> None:
    spec = get_spec(EncoderChoice(name="ntv2-dna", weights=str(folder)))
    assert spec.window_bases is not None
    assert sum(spec.window_bases) == 6 * (spec.max_tokens - 1)
    assert get_spec(EncoderChoice(name="ntv2-rna", weights=str(folder))).window_bases is None
