"""Numbers of the authors' own JAX code for small random Nucleotide Transformers. To write them anew, with JAX
and dm-haiku installed and a clone of their repository (github.com/instadeepai/nucleotide-transformer):

    PYTHONPATH=<clone> python tests/encoders/nucleotide_transformer_jax.py <commit of the clone>

Weights come from a seed here, under the names of the published torch files; only their outputs are stored.
Tests read `expected()` and need neither JAX nor the clone.

Their JAX code has its layer norms at 1e-5, the published torch files' config.json says 1e-12: the small
configurations here have 1e-5, as nothing else would agree.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import sys
from importlib.metadata import version as package_version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

FILE = Path(__file__).with_name("nucleotide_transformer_jax.json")
LAYERS_SAVED = (1, 3)
_COMMON = {
    "model_type": "esm",
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "intermediate_size": 40,
    "max_position_embeddings": 82,
    "layer_norm_eps": 1e-5,
    "mask_token_id": 2,
    "pad_token_id": 1,
    "emb_layer_norm_before": False,
}
CONFIGS: dict[int, dict[str, Any]] = {
    1: {**_COMMON, "vocab_size": 4105, "token_dropout": True, "position_embedding_type": "absolute"},
    2: {**_COMMON, "vocab_size": 4107, "token_dropout": False, "position_embedding_type": "rotary"},
}


def expected() -> dict[str, Any]:
    """What the authors' code gave: by version, token ids, states of every position, and a digest of ids."""
    return json.loads(FILE.read_text(encoding="utf-8"))


def sequences(count: int, *, most_letters: int) -> list[str]:
    """DNA with some N, of any length from 1."""
    rng = np.random.default_rng(11)
    lengths = rng.integers(1, most_letters + 1, size=count)
    return ["".join(rng.choice(list("ACGTN"), p=[0.24] * 4 + [0.04], size=length)) for length in lengths]


def digest(token_ids: list[list[int]]) -> str:
    return hashlib.sha256(json.dumps(token_ids).encode()).hexdigest()


def published_names(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Trunk tensors of a published file, by name: (out, in) for weights of products."""
    width, inner = config["hidden_size"], config["intermediate_size"]
    is_gated = config["position_embedding_type"] == "rotary"
    names: dict[str, tuple[int, ...]] = {
        "esm.embeddings.word_embeddings.weight": (config["vocab_size"], width)
    }
    if not is_gated:
        names["esm.embeddings.position_embeddings.weight"] = (config["max_position_embeddings"], width)
    for i in range(config["num_hidden_layers"]):
        layer = f"esm.encoder.layer.{i}."
        for part in ("self.query", "self.key", "self.value", "output.dense"):
            names |= {f"{layer}attention.{part}.weight": (width, width)}
            names |= {f"{layer}attention.{part}.bias": (width,)}
        for part in ("attention.LayerNorm", "LayerNorm"):
            names |= {f"{layer}{part}.{kind}": (width,) for kind in ("weight", "bias")}
        names |= {f"{layer}intermediate.dense.weight": (2 * inner if is_gated else inner, width)}
        names |= {f"{layer}output.dense.weight": (width, inner)}
        if not is_gated:
            names |= {f"{layer}intermediate.dense.bias": (inner,), f"{layer}output.dense.bias": (width,)}
    return names | {f"esm.encoder.emb_layer_norm_after.{kind}": (width,) for kind in ("weight", "bias")}


def random_state(config: dict[str, Any]) -> dict[str, NDArray[np.float32]]:
    """Weights whose every part counts: norms off one, biases off zero, products of order one."""
    rng = np.random.default_rng(5)
    state = {}
    for name, shape in published_names(config).items():
        values = 2 * rng.random(shape) - 1
        if len(shape) == 2 and "embeddings" not in name:
            values *= 2 * shape[1] ** -0.5
        elif "LayerNorm.weight" in name or "layer_norm_after.weight" in name:
            values = 1 + 0.5 * values
        state[name] = values.astype(np.float32)
    return state


def main(commit: str) -> None:
    """Run the authors' code on the weights above and write what it gives."""
    jax = importlib.import_module("jax")
    haiku = importlib.import_module("haiku")
    made_with = {"commit": commit, "jax": jax.__version__, "dm-haiku": package_version("dm-haiku")}
    jax.config.update("jax_default_matmul_precision", "highest")
    versions = {str(version): _version(version, jax, haiku) for version in CONFIGS}
    FILE.write_text(json.dumps({"made_with": made_with, **versions}) + "\n", encoding="utf-8")


def _version(version: int, jax: Any, haiku: Any) -> dict[str, Any]:
    model = importlib.import_module("nucleotide_transformer.model")
    tokenizer = _tokenizer(version)
    ids = [tokenizer.tokenize(sequence)[1] for sequence in sequences(5, most_letters=150)]
    ids[3][5] = ids[3][9] = tokenizer.mask_token_id
    batch = np.full((len(ids), max(map(len, ids)) + 3), tokenizer.pad_token_id)
    for row, one in enumerate(ids):
        batch[row, : len(one)] = one
    forward = model.build_nucleotide_transformer_fn(_config(version, model), model_name="small")
    parameters = _parameters(random_state(CONFIGS[version]))
    out = haiku.transform(forward).apply(parameters, jax.random.PRNGKey(0), batch)
    states = {
        str(layer): [
            [
                [float(f"{value:.7g}") for value in position]
                for position in out[f"embeddings_{layer}"][row][: len(one)]
            ]
            for row, one in enumerate(ids)
        ]
        for layer in LAYERS_SAVED
    }
    many = [tokenizer.tokenize(sequence)[1] for sequence in sequences(200, most_letters=300)]
    return {"token_ids": ids, "states": states, "digest_of_200": digest(many)}


def _tokenizer(version: int) -> Any:
    tokenizers = importlib.import_module("nucleotide_transformer.tokenizers")
    ids = tokenizers.compute_tokens_to_ids_v2(k_mers=6)[0] if version == 2 else None
    return tokenizers.NucleotidesKmersTokenizer(k_mers=6, prepend_cls_token=True, tokens_to_ids=ids)


def _config(version: int, model: Any) -> Any:
    ours = CONFIGS[version]
    second = {
        "positional_embedding": None,
        "use_rotary_embedding": True,
        "add_bias_ffn": False,
        "use_glu_in_ffn": True,
        "ffn_activation_name": "swish",
    }
    return model.NucleotideTransformerConfig(
        alphabet_size=ours["vocab_size"],
        pad_token_id=ours["pad_token_id"],
        mask_token_id=ours["mask_token_id"],
        max_positions=ours["max_position_embeddings"] - ours["pad_token_id"] - 1,
        attention_heads=ours["num_attention_heads"],
        embed_dim=ours["hidden_size"],
        ffn_embed_dim=ours["intermediate_size"],
        num_layers=ours["num_hidden_layers"],
        token_dropout=ours["token_dropout"],
        masking_ratio=0.15,
        masking_prob=0.8,
        embeddings_layers_to_save=LAYERS_SAVED,
        **(second if version == 2 else {}),
    )


def _parameters(state: dict[str, NDArray[np.float32]]) -> dict[str, dict[str, NDArray[np.float32]]]:
    """The same weights as haiku names and lays them out: products as (in, out)."""
    parts = {
        "attention.self.query": "self_attention/query",
        "attention.self.key": "self_attention/key",
        "attention.self.value": "self_attention/value",
        "attention.output.dense": "self_attention/mha_output",
        "attention.LayerNorm": "self_attention_layer_norm",
        "LayerNorm": "final_layer_norm",
        "intermediate.dense": "fc1",
        "output.dense": "fc2",
    }
    head = "small/~/roberta_lm_head/~/"
    width = len(state["esm.encoder.emb_layer_norm_after.weight"])
    vocabulary = len(state["esm.embeddings.word_embeddings.weight"])
    flat = np.zeros(width, np.float32)
    parameters: dict[str, dict[str, NDArray[np.float32]]] = {
        f"{head}lm_head_fc_1": {"w": np.zeros((width, width), np.float32), "b": flat},
        f"{head}lm_head_layer_norm": {"scale": flat, "offset": flat},
        f"{head}lm_final_fc": {
            "w": np.zeros((width, vocabulary), np.float32),
            "b": np.zeros(vocabulary, np.float32),
        },
    }
    for name, values in state.items():
        module, _, kind = name.removeprefix("esm.").rpartition(".")
        if module == "embeddings.word_embeddings":
            place, leaf = "small/~/embed", "embeddings"
        elif module == "embeddings.position_embeddings":
            place, leaf = "small/~/esm_learned_positional_embeddings/~/embed", "embeddings"
        elif module == "encoder.emb_layer_norm_after":
            place, leaf = f"{head}emb_layer_norm_after", {"weight": "scale", "bias": "offset"}[kind]
        else:
            index, _, part = module.removeprefix("encoder.layer.").partition(".")
            place = f"small/attention_layer_{index}/~/{parts[part]}"
            is_norm = part.endswith("LayerNorm")
            leaf = {"weight": "scale" if is_norm else "w", "bias": "offset" if is_norm else "b"}[kind]
        parameters.setdefault(place, {})[leaf] = values.T if leaf == "w" else values
    return parameters


if __name__ == "__main__":
    main(sys.argv[1])
