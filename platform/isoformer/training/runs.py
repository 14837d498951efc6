"""The folder of a run on a storage root: what a fit leaves behind, and what continues one that was killed.

    runs/<run>/config.yaml                     resolved configuration and fingerprints, written first
    runs/<run>/resume/<position>/…, latest.json  the newest checkpoint while the run goes on; latest.json is
    put last runs/<run>/metrics.jsonl                   one line an epoch
    runs/<run>/checkpoint/model.safetensors, state.pt runs/<run>/run.json                        the summary,
    written last: a run with it is finished

`evaluate` adds predictions.parquet and evaluation.json. Every object appears whole or not at all, so a reader
of `latest.json` always finds a whole checkpoint.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from isoformer.config import FrozenConfig, build, to_yaml
from isoformer.documents import DocumentError, parse_mapping, parse_yaml, stored_mapping
from isoformer.errors import FingerprintError, StorageError, shortened
from isoformer.model import IsoFormer, load_model
from isoformer.storage import Storage
from isoformer.training.checkpoint import LATEST_FILE, MODEL_FILE, STATE_FILE
from isoformer.training.config import TrainConfig
from isoformer.training.data import PinnedDataset

CHECKPOINT_FILES: Final = (LATEST_FILE, MODEL_FILE, STATE_FILE)
_POSITION: Final = re.compile(r"epoch-\d{5,}-step-\d{7,}")


class RunSettings(FrozenConfig):
    """config.yaml of a run: everything needed to do it again."""

    run: str
    fingerprint: str
    data_fingerprint: str
    encoders: dict[str, str]
    encoder_trained: dict[str, str]
    label_provenance: str
    train: TrainConfig


def run_settings(config: TrainConfig, data: PinnedDataset, run: str | None = None) -> RunSettings:
    """The settings of this fit; its name, where none is given, is made of what it is."""
    cached = [modality for modality in config.model.modalities if modality in data.states]
    keys = {modality: data.encoder_keys[modality] for modality in cached}
    resolved = config.edited(keys=keys)
    options = resolved.model_dump(mode="json", exclude=set(RUNNING_OPTIONS))
    stated = {"data": data.fingerprint, "train": options}
    fingerprint = hashlib.blake2b(json.dumps(stated, sort_keys=True).encode(), digest_size=8).hexdigest()
    modalities = "-".join(config.model.modalities)
    return RunSettings(
        run=run or f"{config.model.fusion}-{modalities}-seed{config.seed}-{fingerprint[:8]}",
        fingerprint=fingerprint,
        data_fingerprint=data.fingerprint,
        encoders={modality: data.encoder_names[modality] for modality in config.model.modalities},
        encoder_trained={modality: data.encoder_trained[modality] for modality in config.model.modalities},
        label_provenance=data.label_provenance,
        train=resolved,
    )


RUNNING_OPTIONS: Final = ("workers", "max_failures", "checkpoint_steps", "threads", "device")
"""How a fit is run, not what it gives: they may change between a kill and the resume."""


class RunFolder:
    """One run on a storage root. Picklable: workers write checkpoints through it."""

    def __init__(self, storage: Storage, run: str) -> None:
        self.storage, self.run = storage, run
        self.prefix = f"runs/{run}/"

    @property
    def uri(self) -> str:
        return f"{self.storage.uri}/runs/{self.run}"

    @property
    def is_finished(self) -> bool:
        return self.storage.exists(self.prefix + "run.json")

    def claim(self, settings: RunSettings, *, resume: bool) -> None:
        """Write config.yaml, or accept the one that is there.

        FingerprintError where the folder holds another run; StorageError where it holds this one and `resume`
        is not asked for.
        """
        text = to_yaml(settings).encode()
        if self.storage.write_bytes(self.prefix + "config.yaml", text, if_absent=True):
            return
        found = self.settings()
        if found.fingerprint != settings.fingerprint:
            raise FingerprintError(
                f"{self.uri}: holds a run with fingerprint {found.fingerprint}, "
                f"this one has {settings.fingerprint}: give it another name"
            )
        if not resume:
            state = "finished" if self.is_finished else "unfinished"
            raise StorageError(
                f"{self.uri}: holds this run already, {state} (fingerprint {found.fingerprint}, "
                f"the same as here); resume it, or give another name"
            )

    def settings(self) -> RunSettings:
        """config.yaml, checked. StorageError where there is no such run."""
        key = self.prefix + "config.yaml"
        if not self.storage.exists(key):
            there = ", ".join(run_names(self.storage)) or "none"
            raise StorageError(f"{self.uri}: there is no such run; there are: {there}")
        try:
            found = parse_yaml(self.storage.read_bytes(key))
        except DocumentError as error:
            raise StorageError(f"{self.uri}/config.yaml: {error}") from None
        if not isinstance(found, dict):
            raise StorageError(f"{self.uri}/config.yaml: must be a mapping, got {type(found).__name__}")
        return build(RunSettings, found, origin=f"{self.uri}/config.yaml")

    def summary(self) -> dict[str, Any]:
        """run.json. StorageError where the run is not finished."""
        if not self.is_finished:
            raise StorageError(f"{self.uri}: the run is not finished; train it again with resume")
        return stored_mapping(self.storage, self.prefix + "run.json")

    def history(self) -> list[dict[str, float]]:
        """metrics.jsonl, an entry an epoch; what was undefined is NaN again. StorageError for other texts."""
        lines = self.storage.read_bytes(self.prefix + "metrics.jsonl").splitlines()
        return [self._epoch(number, line) for number, line in enumerate(lines, 1)]

    def _epoch(self, number: int, line: bytes) -> dict[str, float]:
        where = f"{self.uri}/metrics.jsonl, line {number}"
        try:
            entry = parse_mapping(line)
        except DocumentError as error:
            raise StorageError(f"{where}: {error}") from None
        for name, value in entry.items():
            if value is not None and not isinstance(value, int | float):
                raise StorageError(f"{where}: {name} must be a number or null, got {shortened(value)}")
        return {name: math.nan if value is None else value for name, value in entry.items()}

    def model(self) -> IsoFormer:
        """The best model of a finished run."""
        self.summary()
        with tempfile.TemporaryDirectory(prefix="isoformer-run-") as folder:
            key = f"{self.prefix}checkpoint/{MODEL_FILE}"
            return load_model(self.storage.download(key, Path(folder, MODEL_FILE)))

    def publish_checkpoint(self, write: Callable[[Path], None], epoch: int, step: int) -> None:
        """Put a checkpoint and then point to it; the one before is deleted."""
        before = self._latest()
        position = f"epoch-{epoch:05d}-step-{step:07d}"
        with tempfile.TemporaryDirectory(prefix="isoformer-checkpoint-") as folder:
            write(Path(folder))
            for name in CHECKPOINT_FILES:
                self.storage.put_file(Path(folder, name), f"{self.prefix}resume/{position}/{name}")
        pointer = json.dumps({"position": position}).encode()
        self.storage.write_bytes(self.prefix + "resume/latest.json", pointer)
        if before is not None and before != position:
            self.delete(f"resume/{before}/")

    @contextmanager
    def newest_checkpoint(self) -> Iterator[Path | None]:
        """The newest checkpoint as a local folder, for the length of a block; None where there is none."""
        position = self._latest()
        if position is None:
            yield None
            return
        with tempfile.TemporaryDirectory(prefix="isoformer-checkpoint-") as folder:
            for name in CHECKPOINT_FILES:
                self.storage.download(f"{self.prefix}resume/{position}/{name}", Path(folder, name))
            yield Path(folder)

    def finish(self, history: list[dict[str, float]], summary: Mapping[str, Any]) -> None:
        """Keep the newest checkpoint, put what the run gave, the summary last, and drop what a resume
        needed.
        """
        with self.newest_checkpoint() as newest:
            assert newest is not None, "a fit publishes a checkpoint an epoch"
            for name in (MODEL_FILE, STATE_FILE):
                self.storage.put_file(newest / name, f"{self.prefix}checkpoint/{name}")
        lines = "".join(json.dumps(without_nan(entry)) + "\n" for entry in history)
        self.storage.write_bytes(self.prefix + "metrics.jsonl", lines.encode())
        text = json.dumps(without_nan(summary), indent=2)
        self.storage.write_bytes(self.prefix + "run.json", text.encode())
        self.delete("resume/")

    def tidy(self) -> None:
        """Delete what a kill after `finish` has left of a finished run."""
        for under in ("resume/", "ray/"):
            self.delete(under)

    def delete(self, under: str) -> None:
        """Delete the objects of the run below a folder."""
        self.storage.delete_folder(self.prefix + under)

    def _latest(self) -> str | None:
        key = self.prefix + "resume/latest.json"
        if not self.storage.exists(key):
            return None
        position: str = stored_mapping(self.storage, key, {"position": str})["position"]
        if not _POSITION.fullmatch(position):
            raise StorageError(
                f"{self.storage.uri}/{key}: position {shortened(position)} is none of a checkpoint"
            )
        return position


def run_names(storage: Storage) -> list[str]:
    """Runs under a root, finished or not."""
    found = {key.split("/")[1] for key in storage.list("runs/") if key.endswith("/config.yaml")}
    return sorted(found)


def without_nan(value: Any) -> Any:
    """The same with null for what is not finite, because JSON has no NaN."""
    if isinstance(value, Mapping):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
