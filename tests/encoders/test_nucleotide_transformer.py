"""Nucleotide Transformer v1 and v2: parity of version 1 with the library's own ESM model, of version 2 with a
plain implementation, of both with numbers of the authors' JAX code; the tokenizer by hand, and the contract.
"""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import EsmConfig, EsmForMaskedLM

from encoders.contract import EncoderContract
from encoders.library import library_states, with_values_that_count
from encoders.nucleotide_transformer_jax import (
    CONFIGS,
    LAYERS_SAVED,
    digest,
    expected,
    published_names,
    random_state,
    sequences,
)
from encoders.tiny import NTV2_CONFIG, write_folder
from isoformer.encoders import prepacked
from isoformer.encoders.catalogue import PUBLISHED
from isoformer.encoders.nucleotide_transformer import SixMerTokenizer
from isoformer.encoders.packed_encoder import for_inference
from isoformer.encoders.packed_transformer import load_transformer
from isoformer.encoders.registry import EncoderChoice, get_spec, load_encoder, load_tokenizer
from isoformer.encoders.spec import pack
from isoformer.encoders.transformer_config import TransformerConfig, transformer_config
from isoformer.errors import ConfigError, EncoderError

WORDS = ["".join(word) for word in itertools.product("ATCG", repeat=6)]
SPECIAL = {
    "ntv1": ("<unk>", "<pad>", "<mask>", "<cls>"),
    "ntv2": ("<unk>", "<pad>", "<mask>", "<cls>", "<eos>", "<bos>"),
}
VOCABULARY = {version: [*special, *WORDS, *"ATCGN"] for version, special in SPECIAL.items()}
ID = {token: index for index, token in enumerate(VOCABULARY["ntv2"])}
NTV1_CONFIG: dict[str, Any] = {
    **NTV2_CONFIG,
    "vocab_size": 4105,
    "max_position_embeddings": 132,
    "position_embedding_type": "absolute",
    "token_dropout": True,
    "tie_word_embeddings": False,
}
LENGTHS = (1, 6, 13, 100, 100, 400, 774)


def rna(lengths: tuple[int, ...]) -> list[str]:
    rng = np.random.default_rng(3)
    return ["".join(rng.choice(list("ACGUN"), p=[0.24] * 4 + [0.04], size=length)) for length in lengths]


@pytest.fixture(scope="module")
def library_model() -> EsmForMaskedLM:
    torch.manual_seed(0)
    return with_values_that_count(EsmForMaskedLM(EsmConfig(**NTV1_CONFIG)))


@pytest.fixture(scope="module")
def state_1(library_model: EsmForMaskedLM) -> dict[str, Tensor]:
    """The published file's names: the trunk, both heads, and the positions' numbers."""
    extra = {
        "esm.embeddings.position_ids": torch.arange(132)[None],
        "esm.contact_head.regression.weight": torch.zeros(1, 12),
        "esm.contact_head.regression.bias": torch.zeros(1),
        "lm_head.decoder.weight": torch.zeros(4105, 32),
    }
    return {**library_model.state_dict(), **extra}


@pytest.fixture(scope="module")
def folder_1(state_1: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("ntv1"), NTV1_CONFIG, state_1)


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    """Version 2, with what its published file has besides the trunk: unused positions, and the head."""
    width, head_width = 32, 8
    names = published_names(NTV2_CONFIG) | {
        "esm.embeddings.position_embeddings.weight": (130, width),
        "lm_head.bias": (4107,),
        "lm_head.dense.weight": (width, width),
        **{
            f"esm.encoder.layer.{i}.attention.self.rotary_embeddings.inv_freq": (head_width // 2,)
            for i in range(3)
        },
    }
    generator = torch.Generator().manual_seed(0)
    return {
        name: 0.3 * torch.randn(shape, generator=generator) + ("LayerNorm.weight" in name)
        for name, shape in names.items()
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


class TestVersion1Dna(EncoderContract):
    @pytest.fixture
    def choice(self, folder_1: Path) -> EncoderChoice:
        return EncoderChoice(name="ntv1-dna", weights=str(folder_1))


class TestVersion1Rna(EncoderContract):
    @pytest.fixture
    def choice(self, folder_1: Path) -> EncoderChoice:
        return EncoderChoice(name="ntv1-rna", weights=str(folder_1))


class TestVersion2Dna(EncoderContract):
    @pytest.fixture
    def choice(self, folder: Path) -> EncoderChoice:
        return EncoderChoice(name="ntv2-dna", weights=str(folder))


class TestVersion2Rna(EncoderContract):
    @pytest.fixture
    def choice(self, folder: Path) -> EncoderChoice:
        return EncoderChoice(name="ntv2-rna", weights=str(folder))


@pytest.mark.parametrize("prepack", [True, False])
@pytest.mark.parametrize("padding_side", ["left", "right"])
@pytest.mark.parametrize("layer", [0, 1, 2, 3])
def test_version_1_is_the_librarys_esm_in_every_state_at_all_positions(
    library_model: EsmForMaskedLM,
    folder_1: Path,
    layer: int,
    padding_side: str,
    prepack: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(prepacked, "is_available", lambda: prepack)
    choice = EncoderChoice(name="ntv1-rna", weights=str(folder_1), layer=layer)
    tokens = [load_tokenizer(choice)(sequence) for sequence in rna(LENGTHS)]
    assert max(map(len, tokens)) == 130  # every learned position is used
    encoder = load_encoder(choice)
    ours = encoder.encode(pack(tokens))
    for row, states in enumerate(library_states(library_model.esm, tokens, padding_side)):
        got = ours.hidden_PD[ours.offsets[row] : ours.offsets[row + 1]]
        torch.testing.assert_close(got, states[layer][1:], rtol=1e-5, atol=1e-5)
        assert ours.cls_BD is not None
        torch.testing.assert_close(ours.cls_BD[row], states[layer][0], rtol=1e-5, atol=1e-5)
        alone = encoder.encode(pack([tokens[row]])).hidden_PD
        torch.testing.assert_close(alone, states[layer][1:], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("prepack", [True, False])
@pytest.mark.parametrize("layer", LAYERS_SAVED)
@pytest.mark.parametrize("version", [1, 2])
def test_the_authors_jax_code_gives_the_same_numbers(
    version: int, layer: int, prepack: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`<mask>` tokens included. How the numbers were made: `nucleotide_transformer_jax.py`."""
    monkeypatch.setattr(prepacked, "is_available", lambda: prepack)
    config = CONFIGS[version]
    tensors = {name: torch.from_numpy(values) for name, values in random_state(config).items()}
    model = load_transformer(
        transformer_config(config, gated_feed_forward=version == 2, file="config.json"),
        write_folder(tmp_path, config, tensors),
    )
    model, _ = for_inference(model, "cpu", torch.float32)
    theirs = expected()[str(version)]
    ids, offsets = theirs["token_ids"], np.cumsum([0, *map(len, theirs["token_ids"])]).tolist()
    with torch.inference_mode():
        got = model(torch.tensor(np.concatenate(ids)), offsets, (layer,))
    states = torch.tensor(np.concatenate(theirs["states"][str(layer)]), dtype=torch.float32)
    torch.testing.assert_close(got, states, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("precision", "bound"), [("bf16", 0.05), ("f16", 0.01)])
@pytest.mark.parametrize("version", [1, 2])
def test_half_precision_stays_near(version: int, precision: Any, bound: float, tmp_path: Path) -> None:
    """Relative to a position's norm: 0.05 for bfloat16's 8 bits, 0.01 for float16's 11."""
    tensors = {name: torch.from_numpy(values) for name, values in random_state(CONFIGS[version]).items()}
    weights = str(write_folder(tmp_path, CONFIGS[version], tensors))
    exact = EncoderChoice(name=f"ntv{version}-dna", weights=weights)
    half = EncoderChoice(name=f"ntv{version}-dna", weights=weights, precision=precision)
    packed = pack([load_tokenizer(exact)(text) for text in sequences(20, most_letters=400)])
    states, got = (load_encoder(choice).encode(packed).hidden_PD for choice in (exact, half))
    assert got.dtype == torch.float32
    assert 0 < float(((got - states).norm(dim=1) / states.norm(dim=1)).max()) < bound


@pytest.mark.parametrize("modality", ["dna", "rna"])
@pytest.mark.parametrize("version", [1, 2])
def test_the_authors_tokenizer_gives_the_same_ids_for_200_sequences(version: int, modality: Any) -> None:
    tokenizer = SixMerTokenizer(modality, 400, version)
    texts = sequences(200, most_letters=300)
    ids = [tokenizer(text.replace("T", "U")).token_ids.tolist() for text in texts]
    assert digest(ids) == expected()[str(version)]["digest_of_200"]


def test_version_2_is_a_plain_implementation_at_all_positions(folder: Path, state: dict[str, Tensor]) -> None:
    choice = EncoderChoice(name="ntv2-rna", weights=str(folder))
    tokens = [load_tokenizer(choice)(sequence) for sequence in rna((6, 6, 13, 100, 400))]
    encoded = load_encoder(choice).encode(pack(tokens))
    exact = {name: tensor.double() for name, tensor in state.items()}
    for index, one in enumerate(tokens):
        exact_states = plain_forward(torch.from_numpy(one.token_ids).long(), exact, NTV2_CONFIG)[1:]
        got = encoded.hidden_PD[encoded.offsets[index] : encoded.offsets[index + 1]]
        torch.testing.assert_close(got, exact_states.float(), rtol=1e-5, atol=1e-5)


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


def test_the_vocabularies_are_the_published_ones() -> None:
    assert len(VOCABULARY["ntv2"]) == 4107 == NTV2_CONFIG["vocab_size"]
    assert (ID["AAAAAA"], ID["GGGGGG"], ID["A"], ID["N"]) == (6, 4101, 4102, 4106)
    assert len(VOCABULARY["ntv1"]) == 4105 == NTV1_CONFIG["vocab_size"]
    first = {token: index for index, token in enumerate(VOCABULARY["ntv1"])}
    tokens = SixMerTokenizer("dna", 64, version=1)("AAAAAATCGCATGN").token_ids.tolist()
    assert tokens == [first[token] for token in ("<cls>", "AAAAAA", "TCGCAT", "G", "N")]


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("ntv1-500m-human-ref", 485.7),
        ("ntv1-2.5b-multi-species", 2547.8),
        ("ntv2-50m", 55.9),
        ("ntv2-100m", 97.9),
        ("ntv2-250m", 235.1),
        ("ntv2-500m", 498.3),
    ],
)
def test_the_catalogues_sizes_add_up_to_the_published_files(name: str, millions: float) -> None:
    """The hub states 55.9, 97.9 and, rounded, 250 and 500 million for version 2: with the head, and with the
    positions that version 2's files hold and nothing uses."""
    entry = PUBLISHED[f"{name}-dna"]
    is_second = name.startswith("ntv2")
    config = transformer_config(entry.config, gated_feed_forward=is_second, file=name)
    unused = config.max_position_embeddings * config.hidden_size if is_second else 0
    total = config.parameter_count + head_parameters(config) + unused
    assert round(total / 1e6, 1) == millions
    assert get_spec(EncoderChoice(name=entry.name, random_seed=0)).max_tokens == (2050 if is_second else 1000)


def head_parameters(config: TransformerConfig) -> int:
    width, vocabulary = config.hidden_size, config.vocab_size
    return width * width + 3 * width + vocabulary * width + vocabulary


def test_learned_positions_are_the_limit(folder_1: Path) -> None:
    choice = EncoderChoice(name="ntv1-dna", weights=str(folder_1))
    assert get_spec(choice).max_tokens == 130
    with pytest.raises(
        ConfigError, match="max_tokens must be at most 130, the positions that it has learned"
    ):
        get_spec(choice.model_copy(update={"max_tokens": 131}))


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("ntv1-dna", "position_embedding_type must be 'absolute', got 'rotary'"),
        ("ntv2-50m-dna", r"not the weights of ntv2-50m-dna: .*num_hidden_layers is 3, must be 12"),
    ],
)
def test_weights_of_another_version_or_size_are_refused(folder: Path, name: str, problem: str) -> None:
    with pytest.raises(EncoderError, match=problem):
        get_spec(EncoderChoice(name=name, weights=str(folder)))


@pytest.mark.parametrize("name", ["ntv1-dna", "ntv2-dna"])
def test_missing_surplus_and_misshapen_tensors_are_refused(
    name: str, state_1: dict[str, Tensor], state: dict[str, Tensor], tmp_path: Path
) -> None:
    config, whole = (NTV1_CONFIG, state_1) if name == "ntv1-dna" else (NTV2_CONFIG, state)
    missing = {key: tensor for key, tensor in whole.items() if "layer.1.output.dense.weight" not in key}
    surplus = {**whole, "esm.encoder.layer.0.adapter.weight": torch.zeros(2)}
    reshaped = {**whole, "esm.encoder.layer.2.LayerNorm.bias": torch.zeros(31)}
    for broken, problem in (
        (missing, r"missing: encoder\.layer\.1\.output\.dense\.weight"),
        (surplus, r"not known: encoder\.layer\.0\.adapter\.weight"),
        (reshaped, r"is \(31,\), must be \(32,\)"),
    ):
        with pytest.raises(EncoderError, match=problem):
            load_encoder(EncoderChoice(name=name, weights=str(write_folder(tmp_path, config, broken))))
