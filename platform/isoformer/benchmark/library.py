"""The library's ESM-2 with the random weights of ours: what the benchmarks compare with."""

from __future__ import annotations

from typing import cast

from torch import nn
from transformers import EsmConfig, EsmModel

from isoformer.encoders.catalogue import PUBLISHED
from isoformer.encoders.packed_encoder import DTYPES
from isoformer.encoders.packed_transformer import random_transformer
from isoformer.encoders.registry import EncoderChoice
from isoformer.encoders.transformer_config import transformer_config


def library_model(choice: EncoderChoice, device: str) -> EsmModel:
    """In evaluation mode, in the choice's precision; its seed (null: 0) makes the weights."""
    published = PUBLISHED[choice.name].config
    config = transformer_config(published, gated_feed_forward=False, file=choice.name)
    model = EsmModel(EsmConfig(**published), add_pooling_layer=False)
    model.load_state_dict(random_transformer(config, choice.random_seed or 0).state_dict(), strict=False)
    cast(nn.Module, model).eval().to(device=device, dtype=DTYPES[choice.precision])
    return model
