"""Every dataset that a trial of the sweep may ask for, read once and shared.

Transcripts, targets and each embedding dataset stand in one object of plain numpy arrays. In Ray's object
store all trials on a node map the same memory; a trial puts its own dataset together without copying an
array.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from isoformer.errors import ConfigError
from isoformer.model_config import EncoderInside
from isoformer.schema import Modality
from isoformer.training.data import PinnedDataset, SequenceStates, load_dataset


@dataclass(frozen=True)
class SharedData:
    """`table` has no embeddings of its own; `states` holds them by (modality, encoder key)."""

    table: PinnedDataset
    states: dict[tuple[Modality, str], SequenceStates]
    names: dict[tuple[Modality, str], tuple[str, str]]

    def dataset(self, keys: Mapping[Modality, str]) -> PinnedDataset:
        """The dataset with these embeddings. ConfigError where one was not loaded."""
        missing = [
            f"{modality}: {key}" for modality, key in keys.items() if (modality, key) not in self.states
        ]
        if missing:
            loaded = ", ".join(f"{modality}: {key}" for modality, key in self.states)
            raise ConfigError(f"encoder keys {', '.join(missing)} are not in this sweep; allowed: {loaded}")
        return replace(
            self.table,
            states={modality: self.states[modality, key] for modality, key in keys.items()},
            encoder_keys={**self.table.encoder_keys, **keys},
            encoder_names={**self.table.encoder_names, **{m: self.names[m, k][0] for m, k in keys.items()}},
            encoder_trained={
                **self.table.encoder_trained,
                **{m: self.names[m, k][1] for m, k in keys.items()},
            },
        )


def load_shared(
    root: str,
    keys: Mapping[Modality, tuple[str, ...]],
    encoders: Mapping[Modality, EncoderInside] | None = None,
) -> SharedData:
    """Read the transcripts and every listed embedding dataset under `root`; sequences for `encoders` that are
    part of the model.

    The test split's targets never leave this function: its rows are dropped, so no trial can see them.
    """
    states: dict[tuple[Modality, str], SequenceStates] = {}
    names: dict[tuple[Modality, str], tuple[str, str]] = {}
    table: PinnedDataset | None = None
    for picked in _rounds(keys) or [{}]:
        loaded = without_test(load_dataset(root, picked, encoders=encoders or {}, mode="pinned"))
        table = table or _without_embeddings(loaded)
        for modality, key in picked.items():
            pinned = loaded.states[modality]
            assert isinstance(pinned, SequenceStates)
            states[modality, key] = pinned
            names[modality, key] = (loaded.encoder_names[modality], loaded.encoder_trained[modality])
    assert table is not None
    return SharedData(table, states, names)


def _without_embeddings(data: PinnedDataset) -> PinnedDataset:
    """The transcripts, with what is read by encoders inside the model only."""
    inside = list(data.tokens)
    return replace(
        data,
        states={},
        encoder_keys={m: data.encoder_keys[m] for m in inside},
        encoder_names={m: data.encoder_names[m] for m in inside},
        encoder_trained={m: data.encoder_trained[m] for m in inside},
    )


def without_test(data: PinnedDataset) -> PinnedDataset:
    """The dataset without its test rows. Embeddings that only they used stay, unreferenced."""
    kept = data.split != "test"
    return replace(
        data,
        transcript_ids=data.transcript_ids[kept],
        gene_ids=data.gene_ids[kept],
        split=data.split[kept],
        targets=data.targets[kept],
        target_mask=data.target_mask[kept],
        features=data.features[kept],
        rna_sketches=None if data.rna_sketches is None else data.rna_sketches[kept],
        states={
            modality: replace(states, sequence_of_N=states.sequence_of_N[kept])
            for modality, states in data.states.items()
        },
        tokens={
            modality: replace(tokens, sequence_of_N=tokens.sequence_of_N[kept])
            for modality, tokens in data.tokens.items()
        },
    )


def _rounds(keys: Mapping[Modality, tuple[str, ...]]) -> list[dict[Modality, str]]:
    """As few loads as cover every key: the i-th key of each modality together."""
    longest = max((len(listed) for listed in keys.values()), default=0)
    return [{m: listed[i] for m, listed in keys.items() if i < len(listed)} for i in range(longest)]
