"""What is searched around what, decided and checked at the door: keys, space, variants."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from isoformer.config import build
from isoformer.errors import ConfigError
from isoformer.schema import Modality
from isoformer.sweep.config import SweepConfig
from isoformer.sweep.default_space import VARIANTS, default_space, with_resolutions
from isoformer.sweep.population import require_constant_rate
from isoformer.sweep.sampling import require_variants
from isoformer.sweep.space import SearchSpace

if TYPE_CHECKING:
    from isoformer.sweep.data import SharedData
    from isoformer.training.config import TrainConfig


@dataclass(frozen=True)
class Searched:
    """What is searched around what."""

    config: SweepConfig
    base: TrainConfig
    space: SearchSpace
    variants: str | None


def decided(config: SweepConfig, base: TrainConfig) -> Searched:
    """With keys, space and variants decided, and checked against each other."""
    keys = _keys(config, base)
    first = {modality: listed[0] for modality, listed in keys.items()}
    base = base.edited(keys=first, epochs=config.epochs or base.epochs)
    config = config.edited(keys=keys)
    space = _space(config, keys)
    is_default = config.space is None and config.scheduler != "pbt"
    variants = config.variants or (VARIANTS if is_default else None)
    require_variants(space, variants)
    space.check(base)
    if config.scheduler == "pbt":
        require_constant_rate(base)
    if base.workers > 1 and config.scheduler not in (None, "none"):
        raise ConfigError(
            f"sweep.scheduler {config.scheduler} stops trials between epochs; one with train.workers "
            f"{base.workers} runs to its end: none"
        )
    return Searched(config, base, space, variants)


def _keys(config: SweepConfig, base: TrainConfig) -> dict[Modality, tuple[str, ...]]:
    inside = base.model.encoders
    keys = config.keys or {modality: (key,) for modality, key in base.keys.items()}
    keys = {modality: listed for modality, listed in keys.items() if modality not in inside}
    if (not keys and not inside) or not all(keys.values()):
        raise ConfigError(
            "sweep.keys names no embedding dataset: run `isoformer embed`, or list keys a modality"
        )
    missing = [m for m in base.model.modalities if m not in keys and m not in inside]
    if missing:
        raise ConfigError(
            f"train.model.modalities has {', '.join(missing)}; sweep.keys only {', '.join(keys)}"
        )
    return keys


def _space(config: SweepConfig, keys: Mapping[Modality, tuple[str, ...]]) -> SearchSpace:
    if config.space is None:
        return default_space(keys)
    if any(parameter.path.split(".")[0] == "keys" for parameter in config.space.root.values()):
        return config.space
    return build(SearchSpace, with_resolutions(config.space.model_dump(), keys))


def made_from(searched: Searched, shared: SharedData) -> dict[str, str]:
    config = searched.config
    return {
        "dataset": shared.table.transcripts_fingerprint,
        "keys": json.dumps(sorted(f"{m}={key}" for m, listed in config.keys.items() for key in listed)),
        "space": json.dumps(searched.space.model_dump(mode="json")),
        "metric": config.metric,
        "objectives": json.dumps([config.metric, config.cost]),
        "sampler": f"{config.sampler}, seed {config.seed}, variants {searched.variants}",
    }
