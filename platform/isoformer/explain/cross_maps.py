"""The fusion's own cross-attention for one transcript: which positions of another modality a modality asks.

Of every `CrossAttention` unit of the model: softmax(q · k / sqrt(head width)) a head, from the unit's own
projections. Where the fusion reads latents (perceivers, C-Abstractor), the positions are latents.

Shapes: H heads, L positions that ask, S positions that are asked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import polars as pl
import torch
from einops import rearrange
from numpy.typing import NDArray
from torch import Tensor, nn

from isoformer.explain.regions import RnaRegions, region_names
from isoformer.fusion import CrossAttention, Tokens
from isoformer.model import ModalityInput
from isoformer.schema import Modality
from isoformer.sequence_model import SequenceModel


@dataclass(frozen=True, eq=False)
class CrossMap:
    """What one unit attends to. `asking` adds to itself what it finds in `asked`."""

    block: int
    asking: str
    asked: str
    weights_HLS: NDArray[np.float32]


def cross_maps(model: SequenceModel, inputs: Mapping[Modality, ModalityInput]) -> list[CrossMap]:
    """Every unit's map for the one transcript of `inputs`, padding and missing modalities left out."""
    found: list[CrossMap] = []
    units = {name: unit for name, unit in model.model.named_modules() if isinstance(unit, CrossAttention)}
    handles = [unit.register_forward_hook(partial(_note, found, name)) for name, unit in units.items()]
    try:
        with torch.inference_mode():
            model.model.predict(inputs)
    finally:
        for handle in handles:
            handle.remove()
    return found


def attention_weights(unit: CrossAttention, tokens: Tokens, context: Tokens) -> Tensor:
    """(H, L, S) of the one sample, without padding."""
    query_HLE, key_HSE = (
        rearrange(
            project(norm(states.hidden_BLD[0][states.is_token_BL[0]])), "l (h e) -> h l e", h=unit.heads
        )
        for project, norm, states in (
            (unit.query, unit.norm_tokens, tokens),
            (unit.key, unit.norm_context, context),
        )
    )
    scores_HLS = query_HLE @ key_HSE.transpose(1, 2) * query_HLE.shape[-1] ** -0.5
    return torch.softmax(scores_HLS.float(), dim=-1)


def map_table(
    maps: Sequence[CrossMap],
    spans: Mapping[Modality, NDArray[np.int64] | None],
    regions: RnaRegions | None,
) -> pl.DataFrame:
    """A row a unit, head and position that is asked: the mean over all positions that ask, in all 1 a head.

    `spans`: letters of each modality's positions, null where they are not known. head and block from 1.
    """
    frames = [_asked_rows(one, spans.get(one.asked), regions) for one in maps]  # type: ignore[call-overload]
    return pl.concat(frames) if frames else pl.DataFrame(schema=_MAP_SCHEMA)


_MAP_SCHEMA = {
    "block": pl.Int64, "asking": pl.String, "asked": pl.String, "head": pl.Int64, "position": pl.Int64,
    "start": pl.Int64, "end": pl.Int64, "region": pl.String, "attention": pl.Float32,
}  # fmt: skip


def _note(found: list[CrossMap], name: str, unit: nn.Module, states: tuple[Any, ...], _out: object) -> None:
    tokens, context = states
    assert isinstance(unit, CrossAttention)
    if bool(tokens.is_present[0]) and bool(context.is_present[0]):
        *_, block, asking, asked = name.split(".")
        weights_HLS = attention_weights(unit, tokens, context).cpu().numpy()
        found.append(CrossMap(int(block) + 1, asking, asked, weights_HLS))


def _asked_rows(
    one: CrossMap, spans_S2: NDArray[np.int64] | None, regions: RnaRegions | None
) -> pl.DataFrame:
    heads, _, positions = one.weights_HLS.shape
    spans_S2 = spans_S2 if spans_S2 is not None and len(spans_S2) == positions else None
    names: list[str | None] = [None] * positions
    if spans_S2 is not None and one.asked == "rna":
        names = region_names(spans_S2, regions)
    head_N, position_N = (index.ravel() for index in np.indices((heads, positions)))
    told = {
        "block": np.full(len(head_N), one.block),
        "asking": [one.asking] * len(head_N),
        "asked": [one.asked] * len(head_N),
        "head": head_N + 1,
        "position": position_N,
        "start": None if spans_S2 is None else spans_S2[position_N, 0],
        "end": None if spans_S2 is None else spans_S2[position_N, 1],
        "region": names * heads,
        "attention": one.weights_HLS.mean(axis=1).ravel(),
    }
    return pl.DataFrame(told, schema=_MAP_SCHEMA)
