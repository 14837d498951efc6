"""A finished model together with the encoders that it reads: from sequences to expression.

    TranscriptSequences → crop and tokenise → encode → round and reduce as the cached embeddings were
                        → the model's inputs → natural log(1 + TPM)

What each encoder is, how its states are reduced and rounded, and which part of a DNA window it reads is taken
from the manifests of the embedding datasets that the run was trained on, and done by the code that made them.
Used by predict, explain and the served model. No Ray here.

Shapes: N transcripts, K tissues, S distinct sequences, P positions of all of them, D width.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field

from isoformer.config import FrozenConfig
from isoformer.embeddings.config import CPU_BUDGET_TOKENS, GPU_BUDGET_TOKENS
from isoformer.embeddings.encode import Output, encode_sequences
from isoformer.embeddings.key import NUMPY_DTYPES
from isoformer.embeddings.made_with import MadeWith, find_choice
from isoformer.embeddings.store import EmbeddingDataset
from isoformer.embeddings.token_budget import TokenBudget
from isoformer.encoders.registry import EncoderChoice, load_encoder, load_tokenizer
from isoformer.encoders.spec import Encoder, EncoderSpec, Tokenizer
from isoformer.errors import InputError
from isoformer.extraction import Policy
from isoformer.manifest import Manifest, read_manifest
from isoformer.model import IsoFormer, ModalityInput
from isoformer.planning import PrepareConfig
from isoformer.schema import Modality
from isoformer.storage import open_storage
from isoformer.tokenised_batch import (
    TokenisedBatch,
    end_to_end,
    inside_tokenizer,
    offsets_of,
    tokenised_batch,
)
from isoformer.training.batches import distinct_sequences, padded
from isoformer.training.data import SequenceStates, SequenceTokens
from isoformer.training.runs import RunFolder

RUNS: Final = "/runs/"


@dataclass(frozen=True)
class TranscriptSequences:
    """One transcript's normalised sequences, 5'→3'; None where the modality is missing.

    `dna`: a window around the TSS, which is its base `len(dna) // 2`.
    """

    transcript_id: str
    dna: str | None = None
    rna: str | None = None
    protein: str | None = None

    def of(self, modality: Modality) -> str | None:
        """The sequence of a modality."""
        return {"dna": self.dna, "rna": self.rna, "protein": self.protein}[modality]


@dataclass(frozen=True, eq=False)
class ModalityEncoder:
    """One encoder with how its states are reduced, as the embedding dataset's manifest says."""

    choice: EncoderChoice
    spec: EncoderSpec
    resolution: str
    dtype: str
    made: MadeWith
    device: str = "cpu"

    @classmethod
    def of(cls, made: MadeWith, choice: EncoderChoice, spec: EncoderSpec, device: str) -> Self:
        return cls(choice, spec, made.resolution, made.dtype, made, device)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        return load_tokenizer(self.choice)

    @cached_property
    def encoder(self) -> Encoder:
        """With its weights on the device; loaded when it is first asked for."""
        return load_encoder(self.choice, self.device)


@dataclass(frozen=True)
class ReadBatch:
    """A batch as the model reads it. `unusable`: of each transcript, why a sequence that it has is not read;
    `read`: which modalities are.
    """

    inputs: dict[Modality, ModalityInput]
    unusable: list[dict[Modality, str]]
    read: list[tuple[Modality, ...]]


class Origin(FrozenConfig):
    """Where a model comes from: what a prediction is to be filed under."""

    run: str = ""
    fingerprint: str = ""
    label_provenance: str = ""
    encoder_trained: dict[str, str] = Field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class SequenceModel:
    """A finished model together with the encoders that it reads: from sequences to expression.

    `encoders` holds those outside the model; a modality whose encoder learned with the model has none here.
    `policy`: how its training data were prepared, and so how what it reads is to be.
    """

    model: IsoFormer
    encoders: dict[Modality, ModalityEncoder]
    policy: Policy
    origin: Origin
    device: str = "cpu"

    @classmethod
    def from_run(cls, root: str, run: str, *, device: str = "cpu") -> SequenceModel:
        """The best model of a finished run under a storage root.

        StorageError where the run or one of its embedding datasets is not there; EncoderError where an
        encoder's weights are not, FingerprintError where they are others than those of the datasets.
        """
        storage = open_storage(root)
        folder = RunFolder(storage, run)
        settings, model = folder.settings(), folder.model()
        encoders = {}
        for modality in model.config.modalities:
            if modality not in model.config.encoders:
                dataset = EmbeddingDataset.open(storage, modality, settings.train.keys[modality])
                made = MadeWith.of(dataset.manifest)
                encoders[modality] = ModalityEncoder.of(made, *find_choice(made, storage), device)
        origin = Origin(
            run=run,
            fingerprint=settings.fingerprint,
            label_provenance=settings.label_provenance,
            encoder_trained=settings.encoder_trained,
        )
        policy = policy_of(read_manifest(storage))
        return cls(model.to(device).eval(), encoders, policy, origin, device)

    @classmethod
    def open(cls, source: str, *, device: str = "cpu", tracking_uri: str | None = None) -> SequenceModel:
        """From a run's address `root/runs/<run>`, a bundle's folder or an MLflow model (`models:/…`,
        `runs:/…`).

        InputError where `source` is none of these; else as `from_run` and `load_bundle`.
        """
        from isoformer.predict.bundle import find_bundle, load_bundle

        bundle = find_bundle(source, tracking_uri=tracking_uri)
        if bundle is not None:
            return load_bundle(bundle, device=device)
        root, runs, run = source.rstrip("/").rpartition(RUNS)
        if not runs or "/" in run:
            raise InputError(
                "not a model",
                value=source,
                allowed="<root>/runs/<run>, a bundle's folder, models:/<name>/<version>, runs:/<id>/<path>",
            )
        return cls.from_run(root, run, device=device)

    @property
    def target_names(self) -> tuple[str, ...]:
        """The K tissues, in the order of `predict`'s columns."""
        return self.model.target_names

    @cached_property
    def fingerprint(self) -> str:
        """One digest over weights, encoders and preparation: what a prediction depends on."""
        stated = {m: encoder.made.key for m, encoder in self.encoders.items()}
        digest = hashlib.blake2b(digest_size=8)
        digest.update(
            repr((self.model.config, self.target_names, sorted(stated.items()), self.policy)).encode()
        )
        for name, tensor in sorted(self.model.state_dict().items()):
            digest.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    @property
    def modalities(self) -> tuple[Modality, ...]:
        """What the model reads."""
        return self.model.config.modalities

    def tokens(self, batch: Sequence[TranscriptSequences]) -> dict[Modality, ModalityInput]:
        """The model's inputs: exactly what the cached embeddings hold, padded; or, for a modality whose
        encoder is inside the model, its tokens.
        """
        return self.read(batch).inputs

    def read(self, batch: Sequence[TranscriptSequences]) -> ReadBatch:
        """As `tokens`, and which sequences could not be read, and why. Each distinct sequence is encoded
        once.
        """
        inputs: dict[Modality, ModalityInput] = {}
        unusable: list[dict[Modality, str]] = [{} for _ in batch]
        for modality in self.modalities:
            sequences = [transcript.of(modality) for transcript in batch]
            tokenised = tokenised_batch(sequences, self.spec_of(modality), self.tokenizer_of(modality))
            if modality in self.encoders:
                inputs[modality] = self._states(self.encoders[modality], tokenised)
            else:
                inputs[modality] = self._token_ids(modality, tokenised)
            for reasons, digest in zip(unusable, tokenised.digest_N, strict=True):
                if digest in tokenised.shard.quarantined:
                    reasons[modality] = tokenised.shard.quarantined[digest]
        read = [
            tuple(m for m in self.modalities if transcript.of(m) and m not in reasons)
            for transcript, reasons in zip(batch, unusable, strict=True)
        ]
        return ReadBatch(inputs, unusable, read)

    def predict(self, batch: Sequence[TranscriptSequences], *, batch_size: int = 32) -> NDArray[np.float32]:
        """Natural log(1 + TPM), (N, K); NaN for a transcript of which no modality can be read."""
        parts = [self.predict_read(batch[start : start + batch_size])[0]
                 for start in range(0, len(batch), batch_size)]  # fmt: skip
        return np.concatenate([np.empty((0, len(self.target_names)), np.float32), *parts])

    def predict_read(self, batch: Sequence[TranscriptSequences]) -> tuple[NDArray[np.float32], ReadBatch]:
        """As `predict`, all at once, with what was read of each transcript."""
        read = self.read(batch)
        with torch.inference_mode():
            predicted = self.model.predict(read.inputs).float().cpu().numpy()
        predicted = predicted.copy()
        predicted[[not modalities for modalities in read.read]] = np.nan
        return predicted, read

    def spec_of(self, modality: Modality) -> EncoderSpec:
        """The encoder of a modality, inside the model or outside."""
        if modality in self.encoders:
            return self.encoders[modality].spec
        return self.model.encoder_inside(modality).spec

    def tokenizer_of(self, modality: Modality) -> Tokenizer:
        """Of the encoder of a modality, inside the model or outside."""
        if modality in self.encoders:
            return self.encoders[modality].tokenizer
        return self._inside_tokenizers[modality]

    @cached_property
    def _inside_tokenizers(self) -> dict[Modality, Tokenizer]:
        config = self.model.config.encoders
        return {m: inside_tokenizer(config[m], self.model.encoder_inside(m).config_json) for m in config}

    def _states(self, encoder: ModalityEncoder, tokenised: TokenisedBatch) -> ModalityInput:
        """Encoded, reduced and rounded as the embedding dataset; refused sequences join the quarantined."""
        output = Output(encoder.made.key, encoder.spec.hidden_states, encoder.resolution)
        budget = TokenBudget(CPU_BUDGET_TOKENS if self.device == "cpu" else GPU_BUDGET_TOKENS)
        rows: dict[str, NDArray[Any]] = {}
        shard = tokenised.shard
        if shard.digests:
            for one in encode_sequences(encoder.encoder, shard, [output], encoder.dtype, budget):
                if one.reason is None:
                    rows[one.digest] = one.rows[output.key]
                else:
                    shard.quarantined[one.digest] = one.reason
        empty = np.empty((0, encoder.spec.width), NUMPY_DTYPES[encoder.dtype])
        flat_PD = np.concatenate([empty, *rows.values()])
        states = SequenceStates(flat_PD, offsets_of(list(rows.values())), tokenised.places(list(rows)))
        return padded(states, np.arange(len(tokenised.digest_N))).to(torch.device(self.device))

    def _token_ids(self, modality: Modality, tokenised: TokenisedBatch) -> ModalityInput:
        """For an encoder inside the model. Where no transcript has the modality, a sequence that none uses
        is read all the same.
        """
        spec, shard = self.spec_of(modality), tokenised.shard
        if not shard.digests:
            letters = "A" * sum(spec.window_bases or (1,))
            shard = end_to_end({"": self.tokenizer_of(modality)(letters).token_ids}, {})
        places = tokenised.places(shard.digests)
        tokens = SequenceTokens(shard.token_ids, shard.offsets, places, spec.width)
        return distinct_sequences(tokens, np.arange(len(places))).to(torch.device(self.device))


def policy_of(manifest: Manifest) -> Policy:
    """How a dataset was prepared; what its manifest does not say is as prepare does it unasked."""
    defaults = {name: option.default for name, option in PrepareConfig.model_fields.items()}
    options = {**defaults, **manifest.config}
    if manifest.window_bases is not None:
        options["dna_window_bases"] = manifest.window_bases
    return Policy(**{item.name: options[item.name] for item in fields(Policy)})


def model_address(source: str | None, root: str, run: str) -> str:
    """Where workers in other folders find the model: `source`, or `root/runs/<run>` where that is null.

    StorageError where there is no such run, or where it is not finished.
    """
    if source is not None:
        local = Path(source).expanduser()
        return str(local.absolute()) if local.exists() else source
    folder = RunFolder(open_storage(root), run)
    folder.settings()
    folder.summary()
    return folder.uri
