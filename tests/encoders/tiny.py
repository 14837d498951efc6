"""Small encoders written to a folder in the published layout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ESM2_CONFIG: dict[str, Any] = {
    "model_type": "esm",
    "vocab_size": 33,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 80,
    "max_position_embeddings": 514,
    "layer_norm_eps": 1e-5,
    "mask_token_id": 32,
    "pad_token_id": 1,
    "token_dropout": True,
    "position_embedding_type": "rotary",
    "emb_layer_norm_before": False,
}
NTV2_CONFIG: dict[str, Any] = {
    **ESM2_CONFIG,
    "vocab_size": 4107,
    "intermediate_size": 48,
    "max_position_embeddings": 130,
    "layer_norm_eps": 1e-12,
    "mask_token_id": 2,
    "token_dropout": False,
}


def write_folder(folder: Path, config: dict[str, Any], state: dict[str, Any]) -> Path:
    """`config.json` and `model.safetensors`, as they are published."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    save_file(
        {name: tensor.contiguous().clone() for name, tensor in state.items()}, folder / "model.safetensors"
    )
    return folder


def write_library_folder(folder: Path) -> Path:
    """ESM-2 as transformers reads it, for random weights; no file of it was written by a library."""
    letters = "LAGVSERTIDPKQNFYMHWCXBUZO"
    vocabulary = ["<cls>", "<pad>", "<eos>", "<unk>", *letters, ".", "-", "<null_1>", "<mask>"]
    settings = {"tokenizer_class": "EsmTokenizer", "model_max_length": 256}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(ESM2_CONFIG), encoding="utf-8")
    (folder / "vocab.txt").write_text("\n".join(vocabulary), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return folder
