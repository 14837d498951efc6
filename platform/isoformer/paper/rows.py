"""The rows of each of the paper's tables, as training configurations of a root's own data."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, get_args

from isoformer.ablation import subsets
from isoformer.errors import ConfigError
from isoformer.model_config import FUSION_NAMES, EncoderInside
from isoformer.paper.results import (
    ENCODERS_TABLE,
    FUSIONS_TABLE,
    MODALITIES_TABLE,
    TRANSFER_TABLE,
    PaperResult,
)
from isoformer.schema import MODALITIES, Modality
from isoformer.training.config import TrainConfig

if TYPE_CHECKING:
    from isoformer.settings import Settings

TableName = Literal["modalities", "fusions", "transfer", "encoders"]
TABLES: Final = get_args(TableName)


@dataclass(frozen=True)
class Row:
    """A way of predicting: what it is called, how it is fitted, and the paper's figure for it."""

    name: str
    config: TrainConfig
    paper: PaperResult | None = None


def table_rows(name: TableName, settings: Settings) -> list[Row]:
    """ConfigError where the configuration names neither embeddings nor encoders that learn along."""
    return list(_ROWS[name](settings))


def modality_rows(settings: Settings) -> Iterator[Row]:
    """Cached embeddings of every subset of the modalities, or encoders inside where they are configured."""
    base = _base(settings)
    for modalities in subsets(base.model.modalities):
        yield Row("+".join(modalities), _with(base, modalities=modalities), MODALITIES_TABLE.get(modalities))


def fusion_rows(settings: Settings) -> Iterator[Row]:
    """All modalities, every fusion."""
    base = _base(settings)
    for fusion in FUSION_NAMES:
        config = base.edited(model=base.model.with_fusion(fusion))
        yield Row(fusion, config, FUSIONS_TABLE.get(fusion))


def transfer_rows(settings: Settings) -> Iterator[Row]:
    """The configured encoders inside the model, pre-trained or from scratch; and the same encoders frozen."""
    base = _base(settings)
    encoders = base.model.encoders or _encoders_of_embeddings(settings)
    inside = base.model.edited(modalities=tuple(encoders), encoders=encoders)
    for scratch in [(), *(s for s in subsets(inside.modalities) if len(s) in (1, len(encoders)))]:
        regimes = {
            m: one.edited(regime="scratch") if m in scratch else one for m, one in inside.encoders.items()
        }
        name = f"{'+'.join(scratch)} from scratch" if scratch else "all pre-trained"
        config = base.edited(keys={}, model=inside.edited(encoders=regimes))
        yield Row(name, config, TRANSFER_TABLE.get(scratch))
    for keys, name in (
        (settings.first_keys(), "frozen"),
        (settings.first_keys(random=True), "frozen, random"),
    ):
        if keys:
            model = base.model.edited(encoders={}).with_modalities(tuple(m for m in MODALITIES if m in keys))
            yield Row(name, base.edited(keys=keys, model=model))


def encoder_rows(settings: Settings) -> Iterator[Row]:
    """Every embedding dataset that `embed` makes, the other modalities keeping their first."""
    base, first = _base(settings), settings.first_keys()
    model = base.model.edited(encoders={}).with_modalities(tuple(m for m in MODALITIES if m in first))
    seen: set[str] = set()
    for modality, keys in settings.available_keys().items():
        for key in keys:
            chosen = {**first, modality: key}
            if (text := json.dumps(chosen, sort_keys=True)) in seen:
                continue
            seen.add(text)
            family = next((name for name in ENCODERS_TABLE if key.startswith(name)), "")
            paper = ENCODERS_TABLE.get(family) if modality == "dna" else None
            yield Row(f"{modality}: {_readable(key)}", base.edited(keys=chosen, model=model), paper)


_ROWS: Final[dict[str, Callable[[Settings], Iterator[Row]]]] = {
    "modalities": modality_rows,
    "fusions": fusion_rows,
    "transfer": transfer_rows,
    "encoders": encoder_rows,
}


def _base(settings: Settings) -> TrainConfig:
    """The configured training, all modalities that there are."""
    config = settings.train_config()
    if not config.keys and not config.model.encoders:
        raise ConfigError("the table needs embeddings (embed.encoders) or encoders inside (model.encoders)")
    there = tuple(m for m in MODALITIES if m in config.keys or m in config.model.encoders)
    return config.edited(model=config.model.with_modalities(there))


def _with(base: TrainConfig, *, modalities: tuple[Modality, ...]) -> TrainConfig:
    rates = {
        part: rate
        for part, rate in base.learning_rates.items()
        if part not in MODALITIES or part in modalities
    }
    keys = {modality: key for modality, key in base.keys.items() if modality in modalities}
    return base.edited(keys=keys, learning_rates=rates, model=base.model.with_modalities(modalities))


def _encoders_of_embeddings(settings: Settings) -> dict[Modality, EncoderInside]:
    """The first encoder of each modality under `embed`, tuned whole at the same resolution."""
    from isoformer.encoders.registry import get_spec

    found: dict[Modality, EncoderInside] = {}
    for job in settings.embed.encoders:
        choice = job.choice()
        if choice.random_seed is None and (modality := get_spec(choice).modality) not in found:
            found[modality] = EncoderInside(encoder=choice, resolution=job.resolution)
    return found


def _readable(key: str) -> str:
    """An encoder key without the digests: name and resolution."""
    name, _, rest = key.partition(".")
    parts = [part for part in rest.split(".") if part.startswith(("bins", "pooled", "tokens", "max", "cls"))]
    return " ".join([name, *parts])
