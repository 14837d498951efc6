"""The published checkpoint's layout, made small: to the number against plain einsums, and refused by name."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from enformer_pytorch import Enformer, str_to_one_hot
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import EsmConfig, EsmForMaskedLM

from encoders.tiny import ESM2_CONFIG, NTV2_CONFIG
from isoformer.encoders.esm_like import sizes
from isoformer.encoders.packed_transformer import load_transformer, random_transformer
from isoformer.encoders.registry import get_spec, load_tokenizer
from isoformer.encoders.transformer_config import transformer_config
from isoformer.encoders.weights_files import read_config
from isoformer.errors import EncoderError, InputError
from isoformer.fusion import Tokens
from isoformer.model import load_model
from isoformer.published_checkpoint import compare_published, import_published
from isoformer.schema import TISSUES, Modality

WIDTHS: dict[Modality, int] = {"dna": 48, "rna": 32, "protein": 64}
ENFORMER = dict(
    dim=24,
    depth=2,
    heads=2,
    output_heads={"human": 3},
    target_length=896,
    num_downsamples=7,
    dim_divisible_by=12,
)
State = dict[str, Tensor]


@pytest.fixture(scope="module")
def encoder_states() -> dict[Modality, State]:
    """Under the names that each family publishes."""
    torch.manual_seed(0)
    state: dict[Modality, State] = {"dna": Enformer.from_hparams(**ENFORMER, use_tf_gamma=False).state_dict()}
    for modality, config in (("rna", NTV2_CONFIG), ("protein", {**ESM2_CONFIG, "hidden_size": 64})):
        size = transformer_config(config, gated_feed_forward=modality == "rna", file=modality)
        own = {f"esm.{name}": tensor for name, tensor in random_transformer(size, 1).state_dict().items()}
        head_width = size.hidden_size // size.num_attention_heads
        for layer in range(size.num_hidden_layers):
            table = f"esm.encoder.layer.{layer}.attention.self.rotary_embeddings.inv_freq"
            own[table] = 10_000.0 ** -(torch.arange(0, head_width, 2) / head_width)
        state[modality] = {**own, "lm_head.bias": torch.zeros(size.vocab_size)}
    return state


def checkpoint_of(encoder_states: dict[Modality, State], roots: dict[Modality, str]) -> State:
    """The whole file; `roots` are the attributes that hold the encoders."""
    generator = torch.Generator().manual_seed(1)
    state = {
        f"{roots[m]}.{name}": tensor for m, part in encoder_states.items() for name, tensor in part.items()
    }
    shapes = {}
    for asked in ("rna", "protein"):
        shapes |= {f"cross_attention_layer_{asked}.query": (WIDTHS[asked], WIDTHS["dna"])}
        shapes |= {f"cross_attention_layer_{asked}.{c}": (WIDTHS[asked],) * 2 for c in ("key", "value")}
        shapes |= {f"cross_attention_layer_{asked}.dense": (WIDTHS["dna"], WIDTHS[asked])}
    shapes["head"] = (len(TISSUES), WIDTHS["dna"])
    for name, shape in shapes.items():
        state[f"{name}.weight"] = torch.randn(shape, generator=generator) * 0.3
        state[f"{name}.bias"] = torch.randn(shape[:1], generator=generator) * 0.3
    return state


@pytest.fixture(scope="module")
def checkpoint(encoder_states: dict[Modality, State]) -> State:
    return checkpoint_of(
        encoder_states, {"dna": "dna_encoder", "rna": "rna_encoder", "protein": "protein_encoder"}
    )


def saved(state: State, path: Path) -> Path:
    save_file({name: tensor.contiguous().clone() for name, tensor in state.items()}, path)
    return path


def plain_forward(state: State, hidden: dict[Modality, Tensor], heads: int) -> tuple[Tensor, Tensor]:
    """DNA's states (L, D) and the predictions (1, K) of one sample, from the published unit's equations."""

    def linear(name: str, x: Tensor) -> Tensor:
        return torch.einsum("ld,od->lo", x, state[f"{name}.weight"].double()) + state[f"{name}.bias"].double()

    states = hidden["dna"].double()
    for asked in ("rna", "protein"):
        unit, context = f"cross_attention_layer_{asked}", hidden[asked].double()
        query, key, value = (
            linear(f"{unit}.{name}", x).unflatten(-1, (heads, -1))
            for name, x in (("query", states), ("key", context), ("value", context))
        )
        scores = torch.einsum("lhe,she->hls", query * math.sqrt(1 / query.shape[-1]), key)
        mixed = torch.einsum("hls,she->lhe", scores.softmax(dim=-1), value)
        states = states + linear(f"{unit}.dense", mixed.flatten(1))
    return states, linear("head", states.mean(dim=0, keepdim=True))


@pytest.mark.parametrize("heads", [8, 2])
def test_the_imported_model_is_the_published_equations(checkpoint: State, tmp_path: Path, heads: int) -> None:
    import_published(saved(checkpoint, tmp_path / "file.safetensors"), tmp_path / "out", heads=heads)
    model = load_model(tmp_path / "out" / "model.safetensors")
    assert model.target_names == TISSUES
    generator = torch.Generator().manual_seed(2)
    lengths: dict[Modality, tuple[int, int]] = {"dna": (5, 5), "rna": (7, 2), "protein": (3, 9)}
    hidden = {m: [torch.randn(n, WIDTHS[m], generator=generator) for n in lengths[m]] for m in WIDTHS}
    batch = {
        m: Tokens(
            torch.nn.utils.rnn.pad_sequence(parts, batch_first=True, padding_value=9.0),
            torch.arange(max(lengths[m]))[None] < torch.tensor(lengths[m])[:, None],
        )
        for m, parts in hidden.items()
    }
    with torch.no_grad():
        got = model.predict(batch)
    for sample in range(2):
        _, expected = plain_forward(checkpoint, {m: parts[sample] for m, parts in hidden.items()}, heads)
        torch.testing.assert_close(got[[sample]].double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "roots",
    [
        {"dna": "dna_encoder", "rna": "rna_encoder", "protein": "protein_encoder"},
        {"dna": "enformer_model", "rna": "nt_model", "protein": "esm_model"},
    ],
)
def test_each_encoder_gets_its_own_tensors_whatever_holds_it(
    encoder_states: dict[Modality, State], roots: dict[Modality, str], tmp_path: Path
) -> None:
    file = saved(checkpoint_of(encoder_states, roots), tmp_path / "model.safetensors")
    choices = import_published(tmp_path, tmp_path / "out")
    assert file.is_file()
    for modality, choice in choices.items():
        assert get_spec(choice).modality == modality and get_spec(choice).width == WIDTHS[modality]
        written = load_file(tmp_path / "out" / modality / "model.safetensors")
        own = {name: t for name, t in encoder_states[modality].items() if not name.startswith("_trunk.")}
        assert written.keys() == own.keys()
        assert all(torch.equal(written[name], tensor.float()) for name, tensor in own.items())


def test_sizes_are_read_from_the_shapes(checkpoint: State, tmp_path: Path) -> None:
    choices = import_published(saved(checkpoint, tmp_path / "file.safetensors"), tmp_path / "out")
    for modality, expected in (("rna", NTV2_CONFIG), ("protein", {**ESM2_CONFIG, "hidden_size": 64})):
        config = read_config(Path(choices[modality].weights or ""))
        assert config == {**expected, "max_position_embeddings": 2048}
    enformer = read_config(Path(choices["dna"].weights or ""))
    published = Enformer.from_hparams(**ENFORMER, use_tf_gamma=False).config
    assert {name: getattr(published, name) for name in enformer} == enformer


def without(state: State, *names: str) -> State:
    return {name: tensor for name, tensor in state.items() if name not in names}


BROKEN: dict[str, tuple[Callable[[State], State], str]] = {
    "no bias in a cross-attention": (
        lambda state: without(state, "cross_attention_layer_protein.dense.bias"),
        r"missing: cross_attention_layer_protein\.dense\.bias",
    ),
    "a norm in a cross-attention": (
        lambda state: {**state, "cross_attention_layer_rna.LayerNorm.weight": torch.ones(32)},
        r"not known: cross_attention_layer_rna\.LayerNorm\.weight",
    ),
    "a query of another width": (
        lambda state: {**state, "cross_attention_layer_rna.query.weight": torch.ones(32, 47)},
        r"cross_attention_layer_rna\.query\.weight is \(32, 47\), must be \(32, 48\)",
    ),
    "no head": (
        lambda state: without(state, "head.weight", "head.bias"),
        r"missing: head\.bias, head\.weight",
    ),
    "a head of two layers": (
        lambda state: {**state, "head_0.weight": torch.ones(48, 48), "head_0.bias": torch.ones(48)},
        r"not known: head_0\.bias, head_0\.weight",
    ),
    "a head over all three": (
        lambda state: {**state, "head.weight": torch.ones(30, 144)},
        r"head\.weight is \(30, 144\), must be \(30, 48\)",
    ),
    "a gap in an encoder": (
        lambda state: without(state, "rna_encoder.esm.encoder.layer.1.output.dense.weight"),
        r"the rna encoder: .*missing: encoder\.layer\.1\.output\.dense\.weight",
    ),
    "a surplus in an encoder": (
        lambda state: {**state, "protein_encoder.esm.adapter.weight": torch.ones(2)},
        r"the protein encoder: .*not known: adapter\.weight",
    ),
    "no Enformer": (
        lambda state: {name: t for name, t in state.items() if not name.startswith("dna_encoder.")},
        r"one Enformer \(a tensor …stem\.0\.weight\), got 0",
    ),
    "no protein encoder": (
        lambda state: {name: t for name, t in state.items() if not name.startswith("protein_encoder.")},
        "no protein encoder",
    ),
    "an unknown vocabulary": (
        lambda state: {**state, "rna_encoder.esm.embeddings.word_embeddings.weight": torch.ones(26, 32)},
        r"word_embeddings\.weight has 26 tokens; must be, each once: 4107 \(rna\), 33 \(protein\)",
    ),
    "heads that nothing tells": (
        lambda state: {name: t for name, t in state.items() if not name.endswith("inv_freq")},
        r"nothing tells the heads of the encoder of width \d+ and 3 layers",
    ),
    "two trunks that differ": (
        lambda state: {**state, "dna_encoder._trunk.1.0.bias": torch.full((12,), 7.0)},
        r"dna_encoder\.: the two copies of stem\.0\.bias differ",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_does_not_fit_is_named_and_nothing_is_left_behind(
    checkpoint: State, tmp_path: Path, case: str
) -> None:
    broken, problem = BROKEN[case]
    file = saved(broken(checkpoint), tmp_path / "file.safetensors")
    with pytest.raises(EncoderError, match=problem):
        import_published(file, tmp_path / "out")
    assert list(tmp_path.iterdir()) == [file]


def test_a_pickle_of_code_is_refused(tmp_path: Path) -> None:
    torch.save({"head.weight": print}, tmp_path / "pytorch_model.bin")
    with pytest.raises(EncoderError, match="not a readable file of plain tensors"):
        import_published(tmp_path, tmp_path / "out")


def test_an_existing_output_is_kept(checkpoint: State, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="exists already"):
        import_published(saved(checkpoint, tmp_path / "file.safetensors"), tmp_path)


def test_whole_predictions_are_compared_with_those_of_other_code(
    checkpoint: State, encoder_states: dict[Modality, State], tmp_path: Path
) -> None:
    """The reference is made here by the package, the library and plain sums, on every token."""
    rng = np.random.default_rng(5)
    letters: dict[Modality, tuple[str, int]] = {
        "dna": ("ACGT", 196_608), "rna": ("ACGU", 100), "protein": ("ACDEFGHIKLMNPQRSTVWY", 40),
    }  # fmt: skip
    sequences = {m: "".join(rng.choice(list(alphabet), size=size)) for m, (alphabet, size) in letters.items()}
    choices = import_published(saved(checkpoint, tmp_path / "file.safetensors"), tmp_path / "out")
    enformer = Enformer.from_hparams(**ENFORMER, use_tf_gamma=False).eval()
    enformer.load_state_dict(encoder_states["dna"])
    esm = EsmForMaskedLM(EsmConfig(**ESM2_CONFIG | {"hidden_size": 64})).eval()
    esm.load_state_dict(encoder_states["protein"], strict=False)
    rna = load_transformer(sizes(choices["rna"], gated_feed_forward=True), Path(choices["rna"].weights or ""))
    ids = {
        m: torch.from_numpy(load_tokenizer(choices[m])(sequences[m]).token_ids).long()
        for m in ("rna", "protein")
    }
    with torch.no_grad():
        hidden: dict[Modality, Tensor] = {
            "dna": enformer(str_to_one_hot(sequences["dna"]), return_only_embeddings=True).squeeze(0),
            "rna": rna(ids["rna"], [0, len(ids["rna"])]),
            "protein": esm.esm(ids["protein"][None]).last_hidden_state[0],
        }
    fused_dna, predictions = plain_forward(checkpoint, hidden, 8)
    save_file(
        {"predictions": predictions.float(), "fused_dna": fused_dna[None].float().contiguous()},
        tmp_path / "reference.safetensors",
        metadata={"sequences": json.dumps(sequences), "revision": "abc"},
    )
    found = compare_published(tmp_path / "out", tmp_path / "reference.safetensors")
    assert found.revision == "abc"
    assert found.with_special_tokens < 1e-4 and found.fused_dna < 1e-4
    assert found.as_stored_here > 1e-3


def test_a_reference_that_is_none_is_named(tmp_path: Path) -> None:
    saved({"predictions": torch.zeros(1)}, tmp_path / "reference.safetensors")
    with pytest.raises(InputError, match=r"reference\.safetensors: not a reference file"):
        compare_published(tmp_path, tmp_path / "reference.safetensors")
