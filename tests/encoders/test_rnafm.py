"""RNA-FM: parity with the authors' package in every state, both layouts of its weights, and the contract."""

from __future__ import annotations

import json
import re
from argparse import Namespace
from dataclasses import replace
from pathlib import Path
from typing import Any

import fm
import numpy as np
import pytest
import torch
from fm.pretrained import load_model_and_alphabet_core
from torch import Tensor

from encoders.contract import EncoderContract
from encoders.library import library_states, with_values_that_count
from encoders.tiny import write_folder
from isoformer.encoders import prepacked, rnafm
from isoformer.encoders.catalogue import PUBLISHED
from isoformer.encoders.packed_transformer import random_transformer
from isoformer.encoders.registry import (
    EncoderChoice,
    get_spec,
    load_encoder,
    load_tokenizer,
    weights_digest,
)
from isoformer.encoders.rnafm_weights import TOKENS
from isoformer.encoders.spec import Tokenized, pack
from isoformer.encoders.transformer_config import transformer_config
from isoformer.errors import ConfigError, EncoderError

WIDTH, LAYERS, HEADS, INNER, POSITIONS = 32, 3, 4, 80, 128
SMALL = {
    "num_hidden_layers": LAYERS,
    "hidden_size": WIDTH,
    "num_attention_heads": HEADS,
    "intermediate_size": INNER,
    "max_position_embeddings": POSITIONS + 2,
}
CONVERSIONS_CONFIG = {
    "model_type": "rnafm",
    **SMALL,
    "vocab_size": 28,
    "codon": False,
    "hidden_act": "gelu",
    "position_embedding_type": "absolute",
    "layer_norm_eps": 1e-12,
    "pad_token_id": 0,
    "mask_token_id": 4,
}
ALPHABETS = {26: "ACGUNRYSWKMBDHV.X*-I", 28: "ACGUNRYSWKMBDHVIX|.*-?"}
LENGTHS = (1, 3, 40, 17, 17, 100, 126)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """The published name with small sizes."""
    entry = PUBLISHED["rnafm"]
    monkeypatch.setitem(PUBLISHED, "rnafm", replace(entry, config={**entry.config, **SMALL}))


@pytest.fixture(scope="module")
def authors_model() -> Any:
    torch.manual_seed(0)
    alphabet = fm.Alphabet.from_architecture("roberta_large", theme="rna")
    model = with_values_that_count(fm.BioBertModel(settings(), alphabet))
    model.embed_tokens.weight.data[alphabet.mask_idx] = 0  # as their loader does
    return model


@pytest.fixture
def authors_file(authors_model: Any, tmp_path: Path) -> Path:
    torch.save({"args": settings(), "model": checkpoint_names(authors_model)}, tmp_path / "RNA-FM.pth")
    return tmp_path / "RNA-FM.pth"


@pytest.fixture(params=sorted(ALPHABETS))
def conversion(request: pytest.FixtureRequest, authors_model: Any, tmp_path: Path) -> Path:
    config = {**CONVERSIONS_CONFIG, "vocab_size": request.param}
    return write_folder(tmp_path / "conversion", config, converted(authors_model, request.param))


def settings() -> Namespace:
    return Namespace(
        arch="roberta_large",
        layers=LAYERS,
        embed_dim=WIDTH,
        ffn_embed_dim=INNER,
        attention_heads=HEADS,
        max_positions=POSITIONS,
        emb_layer_norm_before=True,
        token_dropout=False,
    )


def checkpoint_names(model: Any) -> dict[str, Tensor]:
    """As a training checkpoint of the authors' names its tensors."""
    return {
        f"encoder.{'' if name.startswith(('lm_head', 'contact_head')) else 'sentence_encoder.'}{name}": tensor
        for name, tensor in model.state_dict().items()
    }


def converted(model: Any, tokens: int) -> dict[str, Tensor]:
    """As the conversion on the hub names and orders them; rows that the authors lack are noise."""
    names = {
        "self_attn.q_proj": "attention.self.query",
        "self_attn.k_proj": "attention.self.key",
        "self_attn.v_proj": "attention.self.value",
        "self_attn.out_proj": "attention.output.dense",
        "self_attn_layer_norm": "attention.layer_norm",
        "final_layer_norm": "layer_norm",
        "fc1": "intermediate.dense",
        "fc2": "output.dense",
    }
    theirs = model.state_dict()
    special = ("<pad>", "<cls>", "<eos>", "<unk>", "<mask>", "<null>")
    vocabulary = [*special, *ALPHABETS[tokens]]
    words = torch.randn(tokens, WIDTH, generator=torch.Generator().manual_seed(1))
    for row, token in enumerate(TOKENS):
        words[vocabulary.index(token)] = theirs["embed_tokens.weight"][row]
    state = {
        "model.embeddings.word_embeddings.weight": words,
        "model.embeddings.position_embeddings.weight": theirs["embed_positions.weight"],
        "lm_head.decoder.weight": words,
        "lm_head.bias": torch.zeros(tokens),
        "ss_head.decoder.weight": torch.zeros(1, LAYERS * HEADS),
    }
    for kind in ("weight", "bias"):
        state[f"model.embeddings.layer_norm.{kind}"] = theirs[f"emb_layer_norm_before.{kind}"]
        state[f"model.encoder.layer_norm.{kind}"] = theirs[f"emb_layer_norm_after.{kind}"]
        for i in range(LAYERS):
            for old, new in names.items():
                state[f"model.encoder.layer.{i}.{new}.{kind}"] = theirs[f"layers.{i}.{old}.{kind}"]
    return state


def rna(lengths: tuple[int, ...]) -> list[str]:
    rng = np.random.default_rng(1)
    return ["".join(rng.choice(list("ACGUN"), p=[0.24] * 4 + [0.04], size=length)) for length in lengths]


def authors_states(model: Any, tokens: list[Tokenized], padding_side: str) -> list[tuple[Tensor, ...]]:
    """The authors' forward behind the call that `library_states` makes."""

    def forward(ids: Tensor, attention_mask: Tensor, output_hidden_states: bool) -> Namespace:
        states = model(ids, repr_layers=list(range(LAYERS + 1)))["representations"]
        return Namespace(hidden_states=[states[index] for index in range(LAYERS + 1)])

    return library_states(forward, tokens, padding_side)


class TestRnaFmAuthorsFile(EncoderContract):
    @pytest.fixture
    def choice(self, authors_file: Path) -> EncoderChoice:
        return EncoderChoice(name="rnafm", weights=str(authors_file))


class TestRnaFmConversion(EncoderContract):
    @pytest.fixture
    def choice(self, conversion: Path) -> EncoderChoice:
        return EncoderChoice(name="rnafm", weights=str(conversion))


class TestRnaFmRandom(EncoderContract):
    @pytest.fixture
    def choice(self) -> EncoderChoice:
        return EncoderChoice(name="rnafm", random_seed=3)


@pytest.mark.parametrize("prepack", [True, False])
@pytest.mark.parametrize("padding_side", ["left", "right"])
@pytest.mark.parametrize("layer", range(LAYERS + 1))
def test_parity_with_the_authors_package_in_every_state_at_all_positions(
    authors_model: Any,
    authors_file: Path,
    layer: int,
    padding_side: str,
    prepack: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(prepacked, "is_available", lambda: prepack)
    choice = EncoderChoice(name="rnafm", weights=str(authors_file), layer=layer)
    tokens = [load_tokenizer(choice)(sequence) for sequence in rna(LENGTHS)]
    encoder = load_encoder(choice)
    ours = encoder.encode(pack(tokens))
    for row, states in enumerate(authors_states(authors_model, tokens, padding_side)):
        got = ours.hidden_PD[ours.offsets[row] : ours.offsets[row + 1]]
        assert got.shape == (LENGTHS[row], WIDTH)
        torch.testing.assert_close(got, states[layer][1:-1], rtol=1e-5, atol=1e-5)
        assert ours.cls_BD is not None
        torch.testing.assert_close(ours.cls_BD[row], states[layer][0], rtol=1e-5, atol=1e-5)
        alone = encoder.encode(pack([tokens[row]])).hidden_PD
        torch.testing.assert_close(alone, states[layer][1:-1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("precision", "bound"), [("bf16", 0.05), ("f16", 0.01)])
def test_half_precision_stays_near(authors_file: Path, precision: Any, bound: float) -> None:
    """Relative to a position's norm: 0.05 for bfloat16's 8 bits, 0.01 for float16's 11."""
    exact = EncoderChoice(name="rnafm", weights=str(authors_file))
    half = EncoderChoice(name="rnafm", weights=str(authors_file), precision=precision)
    packed = pack([load_tokenizer(exact)(sequence) for sequence in rna(LENGTHS)])
    states, got = (load_encoder(choice).encode(packed).hidden_PD for choice in (exact, half))
    assert 0 < float(((got - states).norm(dim=1) / states.norm(dim=1)).max()) < bound


def test_the_authors_loader_reads_the_same_checkpoint(authors_model: Any) -> None:
    """So the names that the tests make are those that the authors' files may have."""
    content = {"args": settings(), "model": checkpoint_names(authors_model)}
    model, alphabet = load_model_and_alphabet_core("rna-fm", content, theme="rna")
    ids = torch.tensor([[alphabet.cls_idx, 4, 5, 6, 7, alphabet.eos_idx]])
    with torch.no_grad():
        expected, got = (
            one(ids, repr_layers=[LAYERS])["representations"] for one in (authors_model, model.eval())
        )
    assert torch.equal(got[LAYERS], expected[LAYERS])


def test_the_conversions_layout_gives_the_same_states(authors_file: Path, conversion: Path) -> None:
    choices = [EncoderChoice(name="rnafm", weights=str(path)) for path in (authors_file, conversion)]
    packed = pack([load_tokenizer(choices[0])(sequence) for sequence in rna(LENGTHS)])
    first, second = (load_encoder(choice).encode(packed).hidden_PD for choice in choices)
    assert torch.equal(first, second)


def test_older_names_of_the_conversion_are_read(
    authors_file: Path, authors_model: Any, tmp_path: Path
) -> None:
    state = {
        re.sub("^model.encoder.layer_norm", "model.encoder.emb_layer_norm_after", name).replace(
            "model.", "rnafm.", 1
        ): tensor
        for name, tensor in converted(authors_model, 26).items()
    }
    folder = write_folder(tmp_path / "old", CONVERSIONS_CONFIG, state)
    choices = [EncoderChoice(name="rnafm", weights=str(path)) for path in (authors_file, folder)]
    packed = pack([load_tokenizer(choices[0])(sequence) for sequence in rna(LENGTHS)])
    first, second = (load_encoder(choice).encode(packed).hidden_PD for choice in choices)
    assert torch.equal(first, second)


@pytest.mark.parametrize("padding_side", ["left", "right"])
def test_parity_with_the_package_that_made_the_conversion(padding_side: str, tmp_path: Path) -> None:
    multimolecule = pytest.importorskip(
        "multimolecule",
        reason="multimolecule (AGPL-3.0) is no test dependency; run by hand where it is there",
    )
    torch.manual_seed(0)
    config = multimolecule.RnaFmConfig(**{**CONVERSIONS_CONFIG, "layer_norm_eps": 1e-5})
    model = with_values_that_count(multimolecule.RnaFmModel(config))
    state = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    choice = EncoderChoice(name="rnafm", weights=str(write_folder(tmp_path, CONVERSIONS_CONFIG, state)))
    tokens = [load_tokenizer(choice)(sequence) for sequence in rna(LENGTHS)]
    theirs = [Tokenized(conversions_ids(one.token_ids)) for one in tokens]
    ours = load_encoder(choice).encode(pack(tokens))
    for row, states in enumerate(library_states(model, theirs, padding_side, pad_token_id=0)):
        got = ours.hidden_PD[ours.offsets[row] : ours.offsets[row + 1]]
        torch.testing.assert_close(got, states[-1][1:-1], rtol=1e-5, atol=1e-5)


def conversions_ids(token_ids: Any) -> Any:
    vocabulary = ["<pad>", "<cls>", "<eos>", "<unk>", "<mask>", "<null>", *ALPHABETS[28]]
    return np.array([vocabulary.index(TOKENS[token]) for token in token_ids], dtype=np.int32)


def test_the_tokens_are_the_authors() -> None:
    alphabet = fm.Alphabet.from_architecture("roberta_large", theme="rna")
    assert [token.split("_")[0].rstrip(">") for token in alphabet.all_toks] == [
        token.rstrip(">") for token in TOKENS
    ]
    sequences = [sequence.replace("T", "U") for sequence in rna((1, 50, 126))]
    _, _, batch = alphabet.get_batch_converter()([("", sequence) for sequence in sequences])
    tokenizer = rnafm.RnaFmTokenizer(128)
    for row, sequence in zip(batch, sequences, strict=True):
        assert tokenizer(sequence).token_ids.tolist() == row[row != alphabet.padding_idx].tolist()
    assert tokenizer("aTR").token_ids.tolist() == tokenizer("AUN").token_ids.tolist()
    assert tokenizer("aUR").counts == {"lower_case_bases": 1, "ambiguous_bases": 1, "uracil_bases": 1}


def test_the_published_sizes_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """99.52 million with the head, as the conversion's card states."""
    monkeypatch.undo()
    spec = get_spec(EncoderChoice(name="rnafm", random_seed=0))
    assert (spec.width, spec.layers, spec.max_tokens, spec.modality) == (640, 12, 1024, "rna")
    head = 640 * 640 + 3 * 640 + 25
    assert round((spec.parameter_count + head) / 1e6, 2) == 99.52


def test_the_name_stands_for_its_sizes_and_its_alphabet(conversion: Path) -> None:
    for field, value in (("num_attention_heads", 8), ("codon", True), ("hidden_act", "relu")):
        config = {**CONVERSIONS_CONFIG, field: value}
        (conversion / "config.json").write_text(json.dumps(config), encoding="utf-8")
        with pytest.raises(EncoderError, match=f"not the weights of rnafm: {field} is"):
            get_spec(EncoderChoice(name="rnafm", weights=str(conversion)))


def test_learned_positions_are_the_limit() -> None:
    with pytest.raises(ConfigError, match="max_tokens must be at most 128"):
        get_spec(EncoderChoice(name="rnafm", random_seed=0, max_tokens=129))


def test_weights_of_another_shape_or_name_are_refused(authors_model: Any, tmp_path: Path) -> None:
    state = converted(authors_model, 28)
    missing = {name: tensor for name, tensor in state.items() if "layer.1.output.dense.bias" not in name}
    surplus = {**state, "model.encoder.layer.0.adapter.weight": torch.zeros(2)}
    words = {**state, "model.embeddings.word_embeddings.weight": torch.zeros(30, WIDTH)}
    for broken, problem in (
        (missing, r"missing: encoder\.layer\.1\.output\.dense\.bias"),
        (surplus, r"not known: encoder\.layer\.0\.adapter\.weight"),
        (words, r"must have 26 or 28 rows, has 30"),
        ({}, "missing: "),
    ):
        folder = write_folder(tmp_path, CONVERSIONS_CONFIG, broken)
        with pytest.raises(EncoderError, match=problem):
            load_encoder(EncoderChoice(name="rnafm", weights=str(folder)))


def test_a_checkpoint_trained_otherwise_or_with_more_than_tensors_is_refused(
    authors_model: Any, tmp_path: Path
) -> None:
    path = tmp_path / "RNA-FM.pth"
    model = checkpoint_names(authors_model)
    other = settings()
    other.token_dropout = True
    for content, problem in (
        ({"args": other, "model": model}, "args.token_dropout must be False, got True"),
        ({"args": Path("x"), "model": model}, "not a readable file of plain tensors"),
        ({"args": settings(), "model": {"embed_tokens.weight": [1]}}, "must hold plain tensors by name"),
    ):
        torch.save(content, path)
        with pytest.raises(EncoderError, match=problem):
            load_encoder(EncoderChoice(name="rnafm", weights=str(path)))


def test_a_file_of_the_authors_tensors_alone_is_read(authors_file: Path, tmp_path: Path) -> None:
    content = torch.load(authors_file, weights_only=False)["model"]
    torch.save(content, tmp_path / "alone.pth")
    choices = [
        EncoderChoice(name="rnafm", weights=str(path)) for path in (authors_file, tmp_path / "alone.pth")
    ]
    packed = pack([load_tokenizer(choices[0])("ACGU")])
    first, second = (load_encoder(choice).encode(packed).hidden_PD for choice in choices)
    assert torch.equal(first, second)
    assert weights_digest(choices[0]) != weights_digest(choices[1])


def test_long_sequences_are_read_in_windows_where_asked() -> None:
    choice = EncoderChoice(name="rnafm", random_seed=5, long_sequences="windows", overlap_tokens=10)
    tokenizer = load_tokenizer(choice)
    tokens = tokenizer(300 * "ACGU")
    assert (len(tokens), tokens.counts) == (1202, {"windowed_bases": 1200, "uracil_bases": 300})
    assert "windowed_bases" not in tokenizer(126 * "A").counts
    assert load_encoder(choice).encode(pack([tokens])).hidden_PD.shape == (1200, WIDTH)


def test_random_weights_are_those_of_the_seed() -> None:
    choice = EncoderChoice(name="rnafm", random_seed=5)
    config = transformer_config(PUBLISHED["rnafm"].config, gated_feed_forward=False, file="")
    expected = random_transformer(config, 5).state_dict()["embeddings.word_embeddings.weight"]
    got = load_encoder(choice).model.state_dict()["embeddings.word_embeddings.weight"]
    assert torch.equal(got, expected)
    assert (get_spec(choice).trained, weights_digest(choice)) == ("random", "random-5")
