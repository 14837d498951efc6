"""Every encoder by name: what it is (spec), its tokenizer, and its weights. Importable without torch.

    choice = EncoderChoice(name="esm2-tiny")
    spec = get_spec(choice)                      # no torch
    tokens = load_tokenizer(choice)(sequence)    # no torch, no weights
    encoder = load_encoder(choice, "cpu")        # torch and the weights, once per actor

A new encoder is one file with the four functions of `Family`, and one entry in `FAMILIES`.
"""

from __future__ import annotations

import importlib
from typing import Final, Protocol, cast

from pydantic import Field

from isoformer.config import FrozenConfig
from isoformer.encoders.spec import Encoder, EncoderSpec, Tokenizer
from isoformer.errors import ConfigError

FAMILIES: Final[dict[str, str]] = {
    "composition-dna": "isoformer.encoders.composition",
    "composition-rna": "isoformer.encoders.composition",
    "composition-protein": "isoformer.encoders.composition",
    "esm2-tiny": "isoformer.encoders.esm2",
    "esm2": "isoformer.encoders.esm2",
    "ntv2-tiny-dna": "isoformer.encoders.nucleotide_transformer",
    "ntv2-tiny-rna": "isoformer.encoders.nucleotide_transformer",
    "ntv2-dna": "isoformer.encoders.nucleotide_transformer",
    "ntv2-rna": "isoformer.encoders.nucleotide_transformer",
    "xpresso": "isoformer.encoders.xpresso",
    "unirep-64": "isoformer.encoders.unirep",
    "unirep-256": "isoformer.encoders.unirep",
    "mxfold2": "isoformer.encoders.mxfold2",
}
"""Encoder name → the module that implements `Family` for it."""


class EncoderChoice(FrozenConfig):
    """Which encoder, with which weights."""

    name: str
    weights: str | None = Field(default=None, description="file or folder; null: those shipped, if any")
    random_seed: int | None = Field(default=None, description="random weights, and labelled so")


class Family(Protocol):
    """The four functions that an encoder's module has."""

    def get_spec(self, choice: EncoderChoice) -> EncoderSpec: ...
    def load_tokenizer(self, choice: EncoderChoice) -> Tokenizer: ...
    def load_encoder(self, choice: EncoderChoice, device: str) -> Encoder: ...
    def weights_digest(self, choice: EncoderChoice) -> str: ...


def encoder_names() -> list[str]:
    """All names that `EncoderChoice.name` may take."""
    return sorted(FAMILIES)


def get_spec(choice: EncoderChoice) -> EncoderSpec:
    """What the encoder is. ConfigError for an unknown name, EncoderError for unusable weights."""
    return _family(choice).get_spec(choice)


def load_tokenizer(choice: EncoderChoice) -> Tokenizer:
    """The encoder's tokenizer: needs neither torch nor weights; picklable."""
    return _family(choice).load_tokenizer(choice)


def load_encoder(choice: EncoderChoice, device: str = "cpu") -> Encoder:
    """The encoder with its weights on a device."""
    return _family(choice).load_encoder(choice, device)


def weights_digest(choice: EncoderChoice) -> str:
    """Digest of the weights file's bytes, or `random-<seed>`, or `none`; nothing is loaded into torch."""
    return _family(choice).weights_digest(choice)


def _family(choice: EncoderChoice) -> Family:
    if choice.name not in FAMILIES:
        raise ConfigError(f"encoder {choice.name!r} is not known; allowed: {', '.join(encoder_names())}")
    return cast(Family, importlib.import_module(FAMILIES[choice.name]))
