"""What is searched where nothing is said: what the paper compared, and what its model leaves open.

The fusions with parameters of their own, each with the same budget (`SweepConfig.variants`), width, learning
rate, dropout and the sets of modalities; embeddings (encoder, layer, resolution) where there is a choice.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from typing import Any, Final

from isoformer.config import build
from isoformer.model_config import FUSION_NAMES
from isoformer.schema import MODALITIES, Modality
from isoformer.sweep.space import SearchSpace, key_parts

VARIANTS: Final = "fusion"
"""The parameter of the default space whose choices are compared, as the paper does, with equal budgets."""
_WITH_LATENTS: Final = ("perceiver_shared", "perceiver_per_modality", "c_abstractor")
_WITH_HEADS: Final = ("cross_attention", *_WITH_LATENTS)


def default_space(keys: Mapping[Modality, tuple[str, ...]]) -> SearchSpace:
    """The default space over these embeddings."""
    modalities = [modality for modality in MODALITIES if modality in keys]
    data: dict[str, Any] = {
        VARIANTS: {"path": "model.fusion", "choices": FUSION_NAMES},
        "width": {"path": "model.width", "choices": [16, 32, 64]},
        "heads": {"path": "model.heads", "choices": [1, 2, 4, 8], "when": {VARIANTS: _WITH_HEADS}},
        "latents": {"path": "model.latents", "choices": [4, 8, 16], "when": {VARIANTS: _WITH_LATENTS}},
        "learning_rate": {"path": "learning_rate", "low": 3e-4, "high": 1e-2, "log": True},
        "dropout": {"path": "model.dropout", "choices": [0.0, 0.2]},
    }
    if len(modalities) > 1:
        data["modalities"] = {"path": "model.modalities", "choices": _modality_sets(modalities)}
    return build(SearchSpace, with_resolutions(data, keys))


def with_resolutions(data: Mapping[str, Any], keys: Mapping[Modality, tuple[str, ...]]) -> dict[str, Any]:
    """Add which embeddings are read, the i-th key of every modality together: `resolution` where that is what
    tells them apart, else `encoders`.

    Where modalities have different numbers of keys, each gets a parameter of its own (`encoder_dna`, …).
    """
    counts = {len(listed) for listed in keys.values()}
    if counts <= {1}:
        return dict(data)
    if len(counts) == 1:
        choices = [dict(zip(keys, picked, strict=True)) for picked in zip(*keys.values(), strict=True)]
        resolutions = [_resolutions(choice.values()) for choice in choices]
        if all(resolutions) and len(set(resolutions)) == len(choices):
            return {**data, "resolution": {"path": "keys", "choices": choices, "labels": resolutions}}
        return {**data, "encoders": {"path": "keys", "choices": choices}}
    own = {
        f"encoder_{m}": {"path": f"keys.{m}", "choices": listed}
        for m, listed in keys.items()
        if len(listed) > 1
    }
    return {**data, **own}


def _resolutions(keys: Iterable[str]) -> str:
    """The resolutions of encoder keys; empty where one is not a full key."""
    parts = [key_parts(key) for key in keys]
    return "+".join(dict.fromkeys(part[2] for part in parts)) if all(len(p) >= 4 for p in parts) else ""


def _modality_sets(modalities: list[Modality]) -> list[list[Modality]]:
    """All of them first, then every smaller set, larger sets first."""
    sizes = range(len(modalities), 0, -1)
    return [list(chosen) for size in sizes for chosen in itertools.combinations(modalities, size)]
