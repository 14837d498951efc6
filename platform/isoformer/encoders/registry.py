"""Every encoder by name: what it is (spec), its tokenizer, and its weights. Importable without torch.

    choice = EncoderChoice(name="esm2-tiny")
    spec = get_spec(choice)                      # no torch
    tokens = load_tokenizer(choice)(sequence)    # no torch, no weights
    encoder = load_encoder(choice, "cpu")        # torch and the weights, once per actor

A new encoder is one file with the four functions of `Family`, and one entry in `FAMILIES`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Final, Literal, Protocol, cast

from pydantic import Field

from isoformer.config import FrozenConfig
from isoformer.encoders.catalogue import PUBLISHED
from isoformer.encoders.letters import LongPolicy
from isoformer.encoders.spec import Encoder, EncoderSpec, Tokenizer
from isoformer.errors import ConfigError
from isoformer.schema import Modality

if TYPE_CHECKING:
    from isoformer.encoders.trainable import TrainableEncoder

FAMILIES: Final[dict[str, str]] = {
    "composition-dna": "isoformer.encoders.composition",
    "composition-rna": "isoformer.encoders.composition",
    "composition-protein": "isoformer.encoders.composition",
    "esm2-tiny": "isoformer.encoders.esm2",
    "esm2": "isoformer.encoders.esm2",
    "ntv2-tiny-dna": "isoformer.encoders.nucleotide_transformer",
    "ntv2-tiny-rna": "isoformer.encoders.nucleotide_transformer",
    "ntv1-dna": "isoformer.encoders.nucleotide_transformer",
    "ntv1-rna": "isoformer.encoders.nucleotide_transformer",
    "ntv2-dna": "isoformer.encoders.nucleotide_transformer",
    "ntv2-rna": "isoformer.encoders.nucleotide_transformer",
    "xpresso": "isoformer.encoders.xpresso",
    "unirep-64": "isoformer.encoders.unirep",
    "unirep-256": "isoformer.encoders.unirep",
    "mxfold2": "isoformer.encoders.mxfold2",
}
"""Encoder name → the module that implements `Family` for it; `catalogue.PUBLISHED` names further ones."""

HUGGING_FACE: Final = "hf:"
Precision = Literal["f32", "bf16", "f16"]
TRAINABLE_FAMILIES: Final = ("ESM-2", "Nucleotide Transformer", "RNA-FM", "Enformer", "Borzoi")
_COMMON_OPTIONS: Final = frozenset(
    {"layer", "average_layers", "max_tokens", "long_sequences", "overlap_tokens", "precision"}
)


class EncoderChoice(FrozenConfig):
    """Which encoder, with which weights, and which of its states. What a family lacks is refused."""

    name: str = Field(description="a name of `isoformer encoders`, or hf:<repository or folder>")
    weights: str | None = Field(
        default=None, description="file, folder or s3:// prefix; null: shipped, or pulled into the root"
    )
    random_seed: int | None = Field(default=None, description="random weights, and labelled so")
    modality: Modality | None = Field(
        default=None, description="an hf: encoder's, which does not say; of others a check"
    )
    layer: int = Field(default=-1, description="hidden state: 0 the embedding's output, -1 the last")
    average_layers: int = Field(default=1, ge=1, description="mean of this many, the last being `layer`")
    max_tokens: int | None = Field(default=None, ge=8, description="a sequence's most; null: as published")
    long_sequences: LongPolicy | None = Field(default=None, description="null: the modality's crop policy")
    overlap_tokens: int = Field(default=64, ge=0, description="of neighbouring windows")
    precision: Precision = Field(default="f32", description="of weights and arithmetic on the device")


class Family(Protocol):
    """What an encoder's module has: the options that it honours, and four functions."""

    OPTIONS: frozenset[str]

    def get_spec(self, choice: EncoderChoice) -> EncoderSpec: ...
    def load_tokenizer(self, choice: EncoderChoice) -> Tokenizer: ...
    def load_encoder(self, choice: EncoderChoice, device: str) -> Encoder: ...
    def weights_digest(self, choice: EncoderChoice) -> str: ...


def encoder_names() -> list[str]:
    """All names that `EncoderChoice.name` may take, apart from `hf:`."""
    return [*FAMILIES, *PUBLISHED]


def get_spec(choice: EncoderChoice) -> EncoderSpec:
    """What the encoder is.

    ConfigError for an unknown name, an option that it lacks, another modality than it reads or weights for a
    fixed transform; EncoderError for unusable weights.
    """
    spec = _family(choice).get_spec(choice)
    if choice.modality not in (None, spec.modality):
        raise ConfigError(f"encoder {choice.name} reads {spec.modality}; got modality {choice.modality!r}")
    if spec.trained == "none" and (choice.weights, choice.random_seed) != (None, None):
        raise ConfigError(f"{choice.name} is a fixed transform: it takes neither weights nor random_seed")
    return spec


def load_tokenizer(choice: EncoderChoice) -> Tokenizer:
    """The encoder's tokenizer: needs neither torch nor weights; picklable."""
    return _family(choice).load_tokenizer(choice)


def load_encoder(choice: EncoderChoice, device: str = "cpu") -> Encoder:
    """The encoder with its weights on a device."""
    return _family(choice).load_encoder(choice, device)


def load_trainable(choice: EncoderChoice, device: str = "cpu") -> TrainableEncoder:
    """The encoder as a module with gradients. ConfigError where the family has no such form, or where the
    weights are to be held in half precision: `train.precision` says what is computed in.
    """
    from isoformer.encoders.trainable import TrainableEncoder

    family = _family(choice)
    if not getattr(family, "TRAINABLE", False):
        raise ConfigError(
            f"encoder {choice.name} cannot be trained, only read; allowed: {', '.join(TRAINABLE_FAMILIES)}"
        )
    if choice.precision != "f32":
        raise ConfigError(
            f"encoder {choice.name}: precision {choice.precision!r} is of frozen weights; trained ones are "
            "held in f32: set train.precision instead"
        )
    return TrainableEncoder(family.load_encoder(choice, device, trainable=True))  # type: ignore[call-arg]


def weights_digest(choice: EncoderChoice) -> str:
    """Digest of the weights file's bytes, or `random-<seed>`, or `none`; nothing is loaded into torch."""
    return _family(choice).weights_digest(choice)


def _family(choice: EncoderChoice) -> Family:
    family = cast(Family, importlib.import_module(_module(choice.name)))
    for option in sorted(_COMMON_OPTIONS - family.OPTIONS):
        default = EncoderChoice.model_fields[option].default
        if (asked := getattr(choice, option)) != default:
            raise ConfigError(f"encoder {choice.name} has no option {option}: got {asked!r}; leave it out")
    return family


def _module(name: str) -> str:
    if name.startswith(HUGGING_FACE):
        return "isoformer.encoders.huggingface"
    if name in PUBLISHED:
        return PUBLISHED[name].module
    if name not in FAMILIES:
        known = ", ".join(encoder_names())
        raise ConfigError(f"encoder {name!r} is not known; allowed: {known}, hf:<repository or folder>")
    return FAMILIES[name]
