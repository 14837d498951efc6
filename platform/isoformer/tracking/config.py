"""Where MLflow runs go, what every run says about its inputs, and the command that opens the UI."""

from __future__ import annotations

import hashlib
import os
import shlex
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Self
from urllib.parse import unquote, urlsplit

from pydantic import BaseModel, ConfigDict, Field, field_validator

from isoformer import __version__
from isoformer.config import Address, FrozenConfig, without_password
from isoformer.schema import Modality

DEFAULT_FOLDER = "isoformer-work"
UI_PORT = 5000
SERVER_SCHEMES = ("http://", "https://")
PARAM_LIMIT = 500


class TrackingConfig(FrozenConfig):
    """`uri` null: a SQLite store `<folder>/mlflow.db` with artefacts beside it; or the address of a server.

    `folder` also holds the journals of events that a server has not taken yet (`<folder>/tracking-journal/`).
    A server's credentials come from the environment alone. A database's password may stand in `uri`; it is
    never shown, logged or saved.
    """

    model_config = ConfigDict(hide_input_in_errors=True)

    uri: Address | None = None
    experiment: str = Field(default="isoformer", min_length=1)
    folder: str | None = Field(default=None, description="null: the storage root where that is local")
    enabled: bool = True
    retry_seconds: float = Field(
        default=15.0, gt=0, description="pause before a failed delivery is tried again"
    )
    close_seconds: float = Field(
        default=60.0, gt=0, description="longest wait for outstanding events at the end"
    )
    batch_seconds: float = Field(
        default=2.0, ge=0, description="events are collected for so long before they go off together"
    )
    system_metrics_seconds: float | None = Field(
        default=30.0, gt=0, description="between two samples of processor, memory and GPUs; null: none"
    )

    @field_validator("uri")
    @classmethod
    def _known_scheme(cls, uri: str | None) -> str | None:
        allowed = ("sqlite:///", "http://", "https://", "postgresql", "mysql")
        if uri is not None and not uri.startswith(allowed):
            raise ValueError(f"must be null or start with one of {', '.join(allowed)}")
        if uri is not None and uri.startswith(SERVER_SCHEMES) and "@" in urlsplit(uri).netloc:
            raise ValueError(
                "must hold no user name or password: set MLFLOW_TRACKING_USERNAME and "
                "MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN, in the environment"
            )
        return uri

    @property
    def local_folder(self) -> Path:
        """Where the default store and the journals lie."""
        return Path(self.folder or DEFAULT_FOLDER).resolve()

    def for_root(self, root: str) -> Self:
        """A copy whose folder is decided: the one configured, a local storage root, or `isoformer-work`."""
        if self.folder:
            return self
        return self.edited(folder=str(local_path(root) or DEFAULT_FOLDER))

    @property
    def resolved_uri(self) -> str:
        """The tracking address, with the default store spelled out."""
        return self.uri or f"sqlite:///{self.local_folder / 'mlflow.db'}"

    @property
    def shown_uri(self) -> str:
        """The address without the password it may hold."""
        return without_password(self.resolved_uri)

    @property
    def is_server(self) -> bool:
        """Whether the runs go to an MLflow server; else straight into a database."""
        return self.resolved_uri.startswith(SERVER_SCHEMES)

    @property
    def is_missing(self) -> bool:
        """Whether this is a SQLite store that nobody has made yet: asking would make it."""
        _, is_sqlite, path = self.resolved_uri.partition("sqlite:///")
        try:
            return bool(is_sqlite) and not Path(path).exists()
        except OSError:  # a name that no file can have: opening it says so
            return False

    @property
    def ui_address(self) -> str:
        """Where the UI is, without a slash at the end: the server, or where `open_line` serves a store."""
        return self.resolved_uri.rstrip("/") if self.is_server else f"http://127.0.0.1:{UI_PORT}"

    @property
    def journal_folder(self) -> Path:
        """Where events wait that MLflow has not acknowledged."""
        return self.local_folder / "tracking-journal"

    @property
    def artifact_location(self) -> str | None:
        """Artefacts of a local store lie beside it; a server decides for itself (null)."""
        if self.is_server:
            return None
        return (self.local_folder / "mlartifacts").as_uri()


def local_path(root: str) -> Path | None:
    """The folder that a storage root is; None for a bucket."""
    if "://" in root and not root.startswith("file://"):
        return None
    return Path(unquote(urlsplit(root).path) if root.startswith("file://") else root).resolve()


def open_line(config: TrackingConfig, *, port: int = UI_PORT) -> str:
    """The command (or address) that opens these runs in a browser; a password is left to fill in."""
    if config.is_server:
        return config.resolved_uri
    store = shlex.quote(config.shown_uri)
    return f"{_mlflow_command()} ui --backend-store-uri {store} --host 127.0.0.1 --port {port}"


def run_key(root: str, run: str) -> str:
    """The tracker's key of a run folder: training and evaluation write to the same MLflow run."""
    place = str(local_path(root) or root.rstrip("/"))
    return hashlib.blake2b(f"{place}|{run}".encode(), digest_size=16).hexdigest()


def dataset_tags(
    fingerprint: str, encoder_keys: Mapping[Modality, str], label_provenance: str
) -> dict[str, str]:
    """The tags that every run carries: which data, which encoders, what the labels are, which code."""
    keys = {f"encoder_key.{modality}": key for modality, key in encoder_keys.items()}
    return {
        "data_fingerprint": fingerprint,
        "label_provenance": label_provenance,
        "code_version": code_version(),
        **keys,
    }


def flat_params(config: BaseModel | Mapping[str, Any]) -> dict[str, str]:
    """A configuration as dotted MLflow parameters; the whole of it belongs in an artefact as well."""
    data = config.model_dump(mode="json") if isinstance(config, BaseModel) else dict(config)
    flat = dict(_flattened(data, ""))
    return {key: str(value)[:PARAM_LIMIT] for key, value in flat.items()}


@cache
def code_version() -> str:
    """Version and digest of the package's own source: known without git, the same on every node."""
    digest = hashlib.blake2b(digest_size=4)
    package = Path(__file__).resolve().parents[1]
    for path in sorted(package.rglob("*.py")):
        digest.update(path.relative_to(package).as_posix().encode())
        digest.update(path.read_bytes())
    return f"{__version__}+{digest.hexdigest()}"


def _flattened(data: Mapping[str, Any], prefix: str) -> list[tuple[str, Any]]:
    items: list[tuple[str, Any]] = []
    for key, value in data.items():
        name = f"{prefix}{key}"
        items += _flattened(value, f"{name}.") if isinstance(value, Mapping) else [(name, value)]
    return items


def _mlflow_command() -> str:
    beside_python = Path(sys.executable).parent / "mlflow"
    if not beside_python.exists():
        return "mlflow"
    relative = os.path.relpath(beside_python)
    return shlex.quote(str(beside_python) if relative.startswith("..") else relative)
