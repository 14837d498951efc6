"""What `isoformer encoders` lists: each by name, what it is, where its weights are. Needs no torch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from isoformer.encoders.catalogue import PUBLISHED
from isoformer.encoders.registry import EncoderChoice, encoder_names, get_spec
from isoformer.encoders.spec import EncoderSpec
from isoformer.encoders.weights_files import SHIPPED, origin
from isoformer.encoders.weights_store import located
from isoformer.errors import EncoderError
from isoformer.storage import Storage

COMPARED_WITH: Final = {
    "esm2": "transformers",
    "nucleotide-transformer-v1": "transformers, JAX",
    "nucleotide-transformer-v2": "plain torch, JAX",
    "enformer": "enformer-pytorch",
    "borzoi": "borzoi-pytorch",
    "rnafm": "rna-fm",
}
"""By family: the independent implementation of the parity test; of the others a plain one in the tests."""


@dataclass(frozen=True)
class Listed:
    """One encoder. `spec` is null where only a folder of the user's can tell.

    `weights`: shipped, pulled, pull (`isoformer weights pull NAME`), by path, or none needed; `uri`: of those
    pulled.
    """

    name: str
    spec: EncoderSpec | None
    weights: str
    uri: str
    compared_with: str


def listing(storage: Storage) -> list[Listed]:
    """All names, with where their weights are as seen from this root."""
    return [_listed(name, storage) for name in encoder_names()]


def _listed(name: str, storage: Storage) -> Listed:
    choice = EncoderChoice(name=name)
    try:
        spec = get_spec(choice)
    except EncoderError:
        return Listed(name, None, "by path", "", "")
    weights, uri = _weights(choice, spec, storage)
    if uri:
        spec = replace(spec, revision=origin(choice.edited(weights=uri))[1])
    return Listed(name, spec, weights, uri, COMPARED_WITH.get(spec.family, "plain code"))


def _weights(choice: EncoderChoice, spec: EncoderSpec, storage: Storage) -> tuple[str, str]:
    if choice.name in PUBLISHED:
        try:
            return "pulled", str(located(choice, storage).weights)
        except EncoderError:
            return "pull", ""
    if spec.trained == "none":
        return "none needed", ""
    return ("shipped" if (SHIPPED / choice.name).is_dir() else "by path"), ""
