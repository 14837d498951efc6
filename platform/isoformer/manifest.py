"""What a transcripts dataset says about itself: where it came from, what is in it, and what is not and why.

`transcripts/manifest.json` is written last: a dataset without one does not exist. Readers trust it, never a
listing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, ValidationError

from isoformer.errors import FingerprintError, InputError, StorageError
from isoformer.parquet_file import open_parquet
from isoformer.schema import SCHEMA_VERSION, shard_name
from isoformer.storage import Storage

MANIFEST_KEY: Final = "transcripts/manifest.json"
QUARANTINE_KEY: Final = "transcripts/quarantine.parquet"


class Source(BaseModel):
    """A file that went in. The digest is blake2b over its bytes."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    role: str
    path: str
    bytes: int
    digest: str


class Shard(BaseModel):
    """A file that came out. The digest is blake2b over its bytes."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: str = Field(pattern=r"^shard-\d{5,}\.parquet$")
    transcripts: NonNegativeInt
    genes: NonNegativeInt
    bytes: NonNegativeInt
    digest: str


class Counts(BaseModel):
    """`rows_in` = `rows_out` + the sum of `quarantined`; the other tables count by reason and do not add up
    to it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    rows_in: NonNegativeInt
    rows_out: NonNegativeInt
    quarantined: dict[str, NonNegativeInt]
    status: dict[str, NonNegativeInt]
    notes: dict[str, NonNegativeInt]
    splits: dict[str, NonNegativeInt]
    sources: dict[str, int]

    def require_reconciled(self) -> None:
        """InputError where rows were lost without a reason: a fault that must never be published."""
        quarantined = sum(self.quarantined.values())
        if self.rows_in != self.rows_out + quarantined or sum(self.status.values()) != self.rows_out:
            raise InputError(
                f"counts do not reconcile: {self.rows_in} rows in, {self.rows_out} out, "
                f"{quarantined} quarantined, {sum(self.status.values())} with a status; nothing was published"
            )


class Manifest(BaseModel):
    """All that a reader must know. `config` is the resolved configuration, paths included."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    schema_version: int = SCHEMA_VERSION
    fingerprint: str
    sources: list[Source]
    config: dict[str, Any]
    target_names: list[str]
    target_unit: str = "log1p_tpm"
    label_provenance: str
    reference_digest: str | None
    chromosome_aliases: dict[str, str]
    window_bases: int | None
    shards: list[Shard]
    counts: Counts


def fingerprint_of(sources: Sequence[Source], config: Mapping[str, Any], code_version: int) -> str:
    """One digest over everything that can change a row: the files' bytes, the configuration, the code's
    version.
    """
    stated = {
        "schema_version": SCHEMA_VERSION,
        "code_version": code_version,
        "sources": [(source.role, source.digest) for source in sources],
        "config": config,
    }
    return hashlib.blake2b(json.dumps(stated, sort_keys=True).encode(), digest_size=16).hexdigest()


def read_manifest(storage: Storage) -> Manifest:
    """The manifest of the dataset under this root. StorageError where there is none, or it cannot be
    understood.
    """
    if not storage.exists(MANIFEST_KEY):
        raise StorageError(
            f"{storage.uri}: holds no transcripts dataset ({MANIFEST_KEY} is missing); run prepare first"
        )
    try:
        manifest = Manifest.model_validate_json(storage.read_bytes(MANIFEST_KEY))
    except ValidationError as error:
        problem = error.errors()[0]
        raise StorageError(
            f"{storage.uri}/{MANIFEST_KEY}: not a manifest ({problem['loc']}: {problem['msg']})"
        ) from None
    if manifest.schema_version != SCHEMA_VERSION:
        raise StorageError(
            f"{storage.uri}: dataset has schema {manifest.schema_version}, "
            f"this version reads {SCHEMA_VERSION}: prepare again"
        )
    return manifest


def existing_manifest(storage: Storage, fingerprint: str) -> Manifest | None:
    """The dataset that is already there, if it is the one wanted; FingerprintError where it is another."""
    if not storage.exists(MANIFEST_KEY):
        return None
    found = read_manifest(storage)
    if found.fingerprint != fingerprint:
        raise FingerprintError(
            f"{storage.uri}: holds a transcripts dataset with fingerprint {found.fingerprint}, "
            f"but these inputs and settings make {fingerprint}; "
            "choose another root, or delete that dataset first"
        )
    return found


def read_shard(storage: Storage, index: int, columns: Sequence[str] | None = None) -> pa.Table:
    """One shard of the transcripts table, whole or some columns. StorageError where it is not there or
    damaged.
    """
    key = f"transcripts/{shard_name(index)}"
    try:
        with storage.open_input(key) as file:
            table = open_parquet(file).read(columns=None if columns is None else list(columns))
            table.validate(full=True)  # a damaged page may hold texts that are none
            return table
    except (pa.ArrowException, OSError) as error:
        raise StorageError(f"{storage.uri}/{key}: cannot be read as Parquet ({error})") from None
