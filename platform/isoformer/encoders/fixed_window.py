"""What DNA encoders that read one fixed window share and that needs no torch: tokenizer, sizes, cost.

In: exactly as many bases as the published model reads, half of them upstream of the TSS. Eight bases share a
token, so that a token budget means what it does elsewhere. Used by `enformer.py` and `borzoi.py`; the
networks are in `enformer_model.py` and `borzoi_model.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

from pydantic import Field

from isoformer.config import FrozenConfig, build
from isoformer.encoders.catalogue import PUBLISHED
from isoformer.encoders.letters import NUCLEOTIDES, clean_sequence, joined_letters
from isoformer.encoders.registry import EncoderChoice
from isoformer.encoders.spec import EncoderSpec, Tokenized
from isoformer.encoders.weights_files import config_folder, origin, read_config
from isoformer.errors import ConfigError, EncoderError

LETTERS_PER_TOKEN: Final = 8
QUERIES_AT_ONCE: Final = 256


class WindowConfig(FrozenConfig):
    """Sizes under their published names; `sequence_bases`, for small models, is in no published file."""

    sequence_bases: int = Field(ge=2 * LETTERS_PER_TOKEN, multiple_of=LETTERS_PER_TOKEN)
    dim: int = Field(ge=1)
    depth: int = Field(ge=1)
    heads: int = Field(ge=1)


C = TypeVar("C", bound=WindowConfig)


@dataclass(frozen=True)
class Product:
    """A matrix product that one sequence needs: `rows` vectors of `inputs` values to `outputs` values each.

    `weights`: the matrix is a parameter, with or without a `bias`; the products within attention have none.
    """

    inputs: int
    outputs: int
    rows: int
    bias: bool = True
    weights: bool = True

    @property
    def flops(self) -> float:
        return 2.0 * self.inputs * self.outputs * self.rows

    @property
    def parameters(self) -> int:
        return self.outputs * (self.inputs + self.bias) if self.weights else 0


@dataclass(frozen=True)
class WindowTokenizer:
    """Eight bases to a token. EncoderError where there are not exactly `bases` of them."""

    name: str
    bases: int

    def __call__(self, sequence: str) -> Tokenized:
        clean = clean_sequence(sequence, "dna", max_letters=None)
        if len(clean.letters) != self.bases:
            raise EncoderError(
                f"{self.name} reads exactly {self.bases} bases ({self.bases // 2} up- and {self.bases // 2} "
                f"downstream of the TSS), got {len(clean.letters)}"
            )
        return Tokenized(joined_letters(clean.letters, NUCLEOTIDES, LETTERS_PER_TOKEN), clean.counts)


@dataclass(frozen=True)
class Trunk:
    """What follows from a network's sizes.

    `output`: what its positions are, in words. `products`: every one that a window needs. `other_parameters`:
    those of norms and attention's biases, in no product.
    """

    family: str
    code_version: int
    width: int
    output: str
    products: Sequence[Product]
    other_parameters: int

    @property
    def parameters(self) -> int:
        return sum(product.parameters for product in self.products) + self.other_parameters


def window_spec(choice: EncoderChoice, config: WindowConfig, trunk: Trunk) -> EncoderSpec:
    """The spec of a fixed-window network."""
    published = PUBLISHED[choice.name]
    source, revision = origin(choice)
    tokens = config.sequence_bases // LETTERS_PER_TOKEN
    reach_bases = config.sequence_bases // 2
    return EncoderSpec(
        name=choice.name,
        family=trunk.family,
        modality="dna",
        width=trunk.width,
        max_tokens=tokens,
        letters_per_token=float(LETTERS_PER_TOKEN),
        licence=published.licence,
        trained="supervised" if choice.random_seed is None else "random",
        source=source,
        identity={
            "code": trunk.code_version,
            "architecture": config.model_dump(),
            "letters": NUCLEOTIDES,
            "layer": trunk.output,
            "precision": choice.precision,
        },
        parameter_count=trunk.parameters,
        window_bases=(reach_bases, reach_bases),
        layers=config.depth,
        hub=published.hub,
        revision=revision,
        flops_per_token=sum(product.flops for product in trunk.products) / tokens,
    )


def transformer_products(positions: int, dim: int, depth: int, attention: list[Product]) -> list[Product]:
    """Attention and feed-forward of every layer."""
    return [*attention, Product(dim, 2 * dim, positions), Product(2 * dim, dim, positions)] * depth


def query_blocks(positions: int) -> list[slice]:
    """Attention runs for some queries at a time, whose scores stay small."""
    return [
        slice(start, min(start + QUERIES_AT_ONCE, positions))
        for start in range(0, positions, QUERIES_AT_ONCE)
    ]


def relative_attention_products(
    positions: int, dim: int, heads: int, *, key: int, value: int, features: int
) -> list[Product]:
    """Of one layer. Each of 2L - 1 distances has its own key; a block of queries scores those it sees."""
    distances, rows = 2 * positions - 1, heads * positions
    blocks = [block.stop - block.start for block in query_blocks(positions)]
    return [
        Product(dim, heads * key, positions, bias=False),
        Product(dim, heads * key, positions, bias=False),
        Product(dim, heads * value, positions, bias=False),
        Product(features, heads * key, distances, bias=False),
        Product(key, positions, rows, weights=False),
        *(Product(key, positions + queries - 1, heads * queries, weights=False) for queries in blocks),
        Product(positions, value, rows, weights=False),
        Product(heads * value, dim, positions),
    ]


def window_config(choice: EncoderChoice, config_class: type[C], *, model_type: str) -> C:
    """Sizes from the folder's config.json, or the published ones where no folder is given.

    EncoderError for another kind of model, or for sizes that do not fit together.
    """
    published = read_config(config_folder(choice)) if choice.weights else PUBLISHED[choice.name].config
    file = f"{choice.weights or choice.name}/config.json"
    if (got := published.get("model_type", model_type)) != model_type:
        raise EncoderError(f"{file}: model_type must be {model_type!r}, got {got!r}")
    fields = {name: published[name] for name in config_class.model_fields if name in published}
    try:
        return build(config_class, fields)
    except ConfigError as error:
        raise EncoderError(f"{file}: {error}") from None
