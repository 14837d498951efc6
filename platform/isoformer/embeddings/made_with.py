"""From an embedding dataset back to the encoder that made it.

In: what the dataset's manifest says (or a bundle, which repeats it). Out: the `EncoderChoice` that gives the
same values again, its weights found where the embedding stage finds them. The dataset's key proves it: the
key is a hash over everything that can change a value, so the choice that is found must have the same one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NotRequired, Self

from pydantic import TypeAdapter, field_validator
from typing_extensions import TypedDict

from isoformer.config import FrozenConfig, build
from isoformer.embeddings.key import DType, encoder_key
from isoformer.embeddings.store import EmbeddingsManifest
from isoformer.encoders.catalogue import PUBLISHED
from isoformer.encoders.registry import HUGGING_FACE, EncoderChoice, get_spec, weights_digest
from isoformer.encoders.resolution import max_positions
from isoformer.encoders.spec import EncoderSpec
from isoformer.encoders.weights_manifest import commit_version
from isoformer.encoders.weights_store import find_manifest, folder_uri, hub_repository, located
from isoformer.errors import ConfigError, EncoderError, FingerprintError
from isoformer.schema import Modality
from isoformer.storage import Storage

_RANDOM = "random-"


class _SpecFields(TypedDict):
    """What is read of a spec here."""

    name: str
    max_tokens: int
    identity: NotRequired[dict[str, Any]]
    hidden_states: NotRequired[list[int] | tuple[int, ...] | None]


class MadeWith(FrozenConfig):
    """How an embedding dataset was made. `spec`: the fields of `EncoderSpec`, as JSON keeps them."""

    key: str
    modality: Modality
    spec: dict[str, Any]
    weights_digest: str
    resolution: str
    dtype: DType

    @field_validator("resolution")
    @classmethod
    def _known(cls, value: str) -> str:
        try:
            max_positions(value)
        except ConfigError as error:
            raise ValueError(str(error)) from None
        return value

    @field_validator("spec")
    @classmethod
    def _has_what_finds_the_encoder(cls, spec: dict[str, Any]) -> dict[str, Any]:
        TypeAdapter(_SpecFields).validate_python(spec)
        return spec

    @classmethod
    def of(cls, manifest: EmbeddingsManifest) -> Self:
        """What the manifest says."""
        fields: Mapping[str, Any] = {**manifest}
        return build(
            cls, {name: fields[name] for name in cls.model_fields}, origin=f"dataset {fields['key']}"
        )


def find_choice(
    made: MadeWith, storage: Storage | None = None, folders: Sequence[str] = ()
) -> tuple[EncoderChoice, EncoderSpec]:
    """The encoder of a dataset, and its spec.

    Weights are looked for in `folders`, among the shipped ones, in the root and where they were. EncoderError
    where there are none; FingerprintError where those found have another digest than the dataset's, or where
    this version of the code makes other values of them.
    """
    missing: list[str] = []
    other: list[str] = []
    for plain in _candidates(made, storage, folders):
        try:
            digest = weights_digest(plain)
            choice = _with_options(plain, made.spec)
            spec = get_spec(choice)
        except (EncoderError, ConfigError) as error:
            missing.append(str(error))
            continue
        found = encoder_key(spec, digest, made.resolution, made.dtype)
        if found == made.key:
            return choice, spec
        other.append(_difference(made, plain, digest, found))
    if other:
        raise FingerprintError(f"{made.modality} embeddings {made.key}: {'; '.join(dict.fromkeys(other))}")
    raise EncoderError(f"{made.modality} embeddings {made.key}: {'; '.join(dict.fromkeys(missing))}")


def _difference(made: MadeWith, plain: EncoderChoice, digest: str, found: str) -> str:
    if digest != made.weights_digest:
        where = plain.weights or "as shipped"
        return (
            f"encoder {plain.name} has weights of digest {digest} ({where}), but the embeddings were made "
            f"with {made.weights_digest}"
        )
    return f"encoder {plain.name} gives {found} here: its code or options have changed since; embed again"


def _candidates(made: MadeWith, storage: Storage | None, folders: Sequence[str]) -> Iterator[EncoderChoice]:
    """Where the weights may be, likeliest first; layers and lengths are not set yet."""
    name, source = _name(made.spec), str(made.spec.get("source", ""))
    is_library = name.startswith(HUGGING_FACE)
    seed = made.weights_digest.removeprefix(_RANDOM)
    base = EncoderChoice(
        name=name,
        modality=made.modality if is_library else None,
        random_seed=int(seed) if seed != made.weights_digest else None,
        max_tokens=made.spec["max_tokens"] if is_library else None,
    )
    yield from (base.edited(weights=folder) for folder in folders)
    if storage is not None and hub_repository(name) is not None and base.random_seed is None:
        yield from _in_root(base, made.spec, storage)
    if name not in PUBLISHED or base.random_seed is not None:
        yield base
    if source.startswith("s3://") or Path(source).expanduser().exists():
        yield base.edited(weights=source)


def _in_root(base: EncoderChoice, spec: Mapping[str, Any], storage: Storage) -> Iterator[EncoderChoice]:
    """The version that made the embeddings, else the one that the root uses now."""
    repository, commit = hub_repository(base.name), spec.get("revision")
    if repository and commit and find_manifest(storage, repository, commit_version(commit)):
        yield base.edited(weights=folder_uri(storage, repository, commit_version(commit)))
    try:
        yield located(base, storage)
    except EncoderError:
        if not spec.get("source") or not Path(str(spec["source"])).exists():
            yield base  # whose own error says how to fetch the weights


def _name(spec: Mapping[str, Any]) -> str:
    """The name of a choice; library encoders' specs are named `hf-<last part of the repository>`."""
    name = str(spec["name"])
    if not name.startswith("hf-"):
        return name
    return HUGGING_FACE + str(spec.get("hub") or spec.get("source") or name)


def _with_options(plain: EncoderChoice, recorded: Mapping[str, Any]) -> EncoderChoice:
    """The choice with those options set in which the recorded spec differs from the plain one's."""
    spec = get_spec(plain)
    identity, ours = recorded.get("identity", {}), spec.identity
    options: dict[str, Any] = {}
    states = list(recorded.get("hidden_states") or [])
    if isinstance(identity.get("layer"), int):  # library encoders state it as it was asked for
        options = {"layer": identity["layer"], "average_layers": identity.get("average_layers", 1)}
    elif states and states != list(spec.hidden_states):
        options = {"layer": states[-1], "average_layers": len(states)}
    if recorded["max_tokens"] != spec.max_tokens:
        options["max_tokens"] = recorded["max_tokens"]
    long_sequences = identity.get("long_sequences", identity.get("crop"))
    if long_sequences != ours.get("long_sequences", ours.get("crop")):
        options["long_sequences"] = long_sequences
    if identity.get("overlap_tokens") is not None:
        options["overlap_tokens"] = identity["overlap_tokens"]
    if identity.get("precision") != ours.get("precision"):
        options["precision"] = identity.get("precision", "f32")
    return plain.edited(**options)
