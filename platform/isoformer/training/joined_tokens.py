"""Tokenise what an encoder inside the model reads, shard by shard: the work behind `load_dataset`.

In: the transcripts' own sequences (DNA windows are cut from the dataset's reference). Out: each distinct
sequence once, as token ids laid end to end.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from isoformer.embeddings.shard_sequences import TranscriptsSource, require_fit, tokenise
from isoformer.encoders.registry import get_spec
from isoformer.encoders.weights_store import located
from isoformer.errors import ConfigError, InputError
from isoformer.manifest import Manifest
from isoformer.model_config import EncoderInside, ModelConfig
from isoformer.schema import Modality, digest_column
from isoformer.storage import Storage
from isoformer.training.data import SequenceTokens


class JoinedTokens:
    """Collects one modality's tokens; a digest met in an earlier shard keeps its first ones."""

    def __init__(
        self, storage: Storage, manifest: Manifest, modality: Modality, settings: EncoderInside
    ) -> None:
        self.choice = located(settings.encoder, storage)
        self.modality, self.settings = modality, settings
        self.spec = get_spec(self.choice)
        if self.spec.modality != modality:
            raise ConfigError(
                f"model.encoders.{modality}: encoder {self.choice.name} reads {self.spec.modality}"
            )
        require_fit(self.spec, manifest.window_bases, storage.uri)
        self.source = TranscriptsSource.of(storage, manifest)
        self.pieces: list[NDArray[Any]] = []
        self.sequence_of_digest: dict[str, int] = {}
        self.rows: list[int] = []
        self.counts: Counter[str] = Counter()
        self._quarantined: Counter[str] = Counter()

    @property
    def key(self) -> str:
        """Of what is read, not of the weights, which are the run's."""
        text = json.dumps(self.spec.identity, sort_keys=True, default=list)
        digest = hashlib.blake2b(text.encode(), digest_size=4).hexdigest()
        return f"{self.spec.name}.{self.settings.resolution}.tokens.{digest}"

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def trained(self) -> str:
        """What the numbers may claim of the encoder."""
        if self.settings.regime == "scratch":
            return "from scratch"
        return f"{self.spec.trained}, {'adapted' if self.settings.regime == 'lora' else 'fine-tuned'}"

    @property
    def quarantined(self) -> dict[str, int]:
        return dict(self._quarantined)

    def add(self, table: pa.Table, index: int) -> None:
        """Tokenise one shard's distinct sequences and join its rows with them."""
        shard = tokenise(self.source, index, self.choice)
        for place, digest in enumerate(shard.digests):
            if digest not in self.sequence_of_digest:
                self.sequence_of_digest[digest] = len(self.pieces)
                self.pieces.append(shard.token_ids[shard.offsets[place] : shard.offsets[place + 1]])
        self.counts.update(shard.counts)
        for digest in table[digest_column(self.modality)].to_pylist():
            if digest in shard.quarantined:
                self._quarantined[shard.quarantined[digest]] += 1
            self.rows.append(self.sequence_of_digest.get(digest, -1))

    def tokens(self) -> SequenceTokens:
        """The modality, whole. InputError where no transcript has it."""
        if not self.pieces:
            raise InputError("no transcript has this modality", field="modality", value=self.modality)
        offsets = np.concatenate([[0], np.cumsum([len(piece) for piece in self.pieces])]).astype(np.int64)
        rows = np.array(self.rows, dtype=np.int64)
        return SequenceTokens(np.concatenate(self.pieces), offsets, rows, self.spec.width, dict(self.counts))


def with_located_weights(config: ModelConfig, storage: Storage) -> ModelConfig:
    """The model with the root's folder as `weights` wherever an encoder inside names published ones."""
    if not config.encoders:
        return config
    encoders = {
        modality: inside.edited(encoder=located(inside.encoder, storage))
        for modality, inside in config.encoders.items()
    }
    return config.edited(encoders=encoders)
