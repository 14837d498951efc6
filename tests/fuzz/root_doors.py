"""The doors of a storage root and of predict: manifests, shards, runs, studies, journals, inputs to predict.

A root may have been damaged, edited or made by another version: what is read from it is checked against what
the same bytes say when they are read plainly, and pages made of it show nothing of it as markup.
"""

from __future__ import annotations

import json
import math
import re
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from fuzz.door import Door
from fuzz.seeds import DAMAGE, JSON_WORDS, NOT_JSON, edited
from isoformer.config import to_yaml
from isoformer.embeddings.profile import EncoderCost, Profile, read_profile, write_profile
from isoformer.embeddings.shard_file import ShardHeader
from isoformer.embeddings.store import (
    EmbeddingDataset,
    ShardWriter,
    read_embeddings_manifest,
    sequences_digest,
    verify_content,
    write_manifest,
)
from isoformer.manifest import read_manifest, read_shard
from isoformer.storage import open_storage
from isoformer.training.config import TrainConfig
from isoformer.training.runs import RunFolder, RunSettings, run_names
from isoformer.training.seeds import read_seed_runs
from tiny_dataset import write_dataset

KEY = "composition-rna.none.pooled.f16.0a1b2c3d"


def transcripts_manifest(data: bytes, folder: Path) -> None:
    (folder / "transcripts").mkdir()
    (folder / "transcripts" / "manifest.json").write_bytes(data)
    found = read_manifest(open_storage(folder))
    (folder / "transcripts" / "manifest.json").write_text(found.model_dump_json(), encoding="utf-8")
    assert read_manifest(open_storage(folder)) == found, "written and read back"
    assert all(re.fullmatch(r"shard-\d{5,}\.parquet", shard.name) for shard in found.shards), (
        "a shard elsewhere"
    )
    assert min([shard.transcripts for shard in found.shards] + [found.counts.rows_in], default=0) >= 0, (
        "negative"
    )


def transcripts_shard(data: bytes, folder: Path) -> None:
    (folder / "transcripts").mkdir()
    (folder / "transcripts" / "shard-00000.parquet").write_bytes(data)
    table = read_shard(open_storage(folder), 0)
    assert table.num_rows == len(table.to_pylist())


def embeddings_manifest(data: bytes, folder: Path) -> None:
    prefix = _embeddings(folder)
    (folder / prefix / "manifest.json").write_bytes(data)
    dataset = EmbeddingDataset.open(open_storage(folder), "rna", KEY)
    for shard in range(min(len(dataset), 3)):
        path = (folder / dataset.shard_path(shard)).resolve()
        assert path.is_relative_to(folder.resolve()), f"{path} is outside of the root"
        _check_states(dataset.read_shard(shard), dataset.manifest["width"])


def embeddings_shard(data: bytes, folder: Path) -> None:
    prefix = _embeddings(folder)
    storage = open_storage(folder)
    name = read_embeddings_manifest(storage, f"{prefix}/manifest.json")["shards"][0]["name"]
    (folder / prefix / name).write_bytes(data)
    dataset = EmbeddingDataset.open(storage, "rna", KEY)
    lengths, quarantined = dataset.read_lengths(0)
    states = dataset.read_shard(0)
    _check_states(states, 4)
    footer = verify_content(storage, f"{prefix}/{name}")
    assert {digest: len(values) for digest, values in states.items()} == lengths
    assert footer.sequences == len(states) and footer.quarantined == quarantined
    for digest, values in _states().items():
        np.testing.assert_array_equal(states[digest], values)


def _check_states(states: dict[str, Any], width: int) -> None:
    for values in states.values():
        assert values.ndim == 2 and values.shape[1] == width and np.isfinite(values).all()


@cache
def _states() -> dict[str, Any]:
    return {f"{n:032x}": np.arange(4 * (n + 1), dtype=np.float16).reshape(-1, 4) + 1 for n in range(3)}


@cache
def _dataset_files() -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as folder:
        storage = open_storage(folder)
        header = ShardHeader(KEY, "rna", 4, "f16", "pooled", 0, sequences_digest(list(_states())))
        writer = ShardWriter(storage, header)
        for digest, values in _states().items():
            writer.add(digest, values)
        entry = writer.publish({}, {})
        write_manifest(
            storage,
            {
                "schema_version": 1,
                "key": KEY,
                "modality": "rna",
                "spec": {"name": "composition-rna"},
                "weights_digest": "none",
                "resolution": "pooled",
                "dtype": "f16",
                "width": 4,
                "transcripts_fingerprint": "abc",
                "shards": [entry],
            },
        )
        return {
            path.relative_to(folder).as_posix(): path.read_bytes()
            for path in Path(folder).rglob("*")
            if path.is_file()
        }


def _embeddings(folder: Path) -> str:
    for name, content in _dataset_files().items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return f"embeddings/rna/{KEY}"


def run_file(name: str, read: Callable[[RunFolder], None]) -> Callable[[bytes, Path], None]:
    """A file of a run's folder, the others as they should be."""

    def enter(data: bytes, folder: Path) -> None:
        for file, content in {**_run_files(), name: data}.items():
            (folder / "runs" / "final" / file).parent.mkdir(parents=True, exist_ok=True)
            (folder / "runs" / "final" / file).write_bytes(content)
        storage = open_storage(folder)
        assert run_names(storage) == ["final"]
        read(RunFolder(storage, "final"))

    return enter


def _settings(run: RunFolder) -> None:
    found = run.settings()
    assert isinstance(found, RunSettings) and found.train.epochs >= 1


def _summary(run: RunFolder) -> None:
    assert isinstance(run.summary(), dict)


def _history(run: RunFolder) -> None:
    for entry in run.history():
        assert all(isinstance(value, int | float) for value in entry.values()), entry


def _newest(run: RunFolder) -> None:
    with run.newest_checkpoint() as found:
        assert found is not None and (found / "state.pt").read_bytes() == b"whole"


def _seeds(run: RunFolder) -> None:
    assert all(isinstance(name, str) and "/" not in name for name in read_seed_runs(run.storage, run.run))


@cache
def _run_files() -> dict[str, bytes]:
    settings = RunSettings(
        run="final",
        fingerprint="f",
        data_fingerprint="d",
        encoders={"rna": "x"},
        encoder_trained={"rna": "none"},
        label_provenance="l",
        train=TrainConfig(),
    )
    position = "epoch-00001-step-0000002"
    return {
        "config.yaml": to_yaml(settings).encode(),
        "run.json": b'{"run": "final", "best": {"val_r2": 0.5}, "epochs": 2}',
        "metrics.jsonl": b'{"epoch": 0, "val_r2": null}\n{"epoch": 1, "val_r2": 0.5}\n',
        "seeds.json": b'{"runs": ["final-seed0", "final-seed1"], "metrics": {}}',
        "resume/latest.json": b'{"position": "%s"}' % position.encode(),
        **{
            f"resume/{position}/{name}": b"whole"
            for name in ("latest.safetensors", "model.safetensors", "state.pt")
        },
    }


def profile(data: bytes, folder: Path) -> None:
    (folder / "profile.json").write_bytes(data)
    storage = open_storage(folder)
    found = read_profile(storage)
    write_profile(storage, found)
    assert read_profile(storage) == found
    for cost in found.costs.values():
        assert isinstance(cost.seconds_per_token, int | float) and math.isfinite(cost.seconds_per_token), (
            "no number"
        )


@cache
def _profile() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        cost = EncoderCost(1.0, 0.1, 0.01, 0.001, 0.0, "cpu x2", 5000)
        write_profile(open_storage(folder), Profile({"a|cpu-1": cost}, 3.0))
        return Path(folder, "profile.json").read_bytes()


@cache
def prepared_files() -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as folder:
        write_dataset(folder, shards=1, genes_per_shard=2, window_bases=64)
        return {
            path.relative_to(folder).as_posix(): path.read_bytes()
            for path in Path(folder).rglob("*")
            if path.is_file()
        }


def shard_bytes() -> bytes:
    return prepared_files()["transcripts/shard-00000.parquet"]


MANIFEST = prepared_files()["transcripts/manifest.json"]
EMBEDDINGS = _dataset_files()[f"embeddings/rna/{KEY}/manifest.json"]
SHARD = next(content for name, content in _dataset_files().items() if name.endswith(".parquet"))


RUN = _run_files()
DOORS = (
    Door(
        "transcripts manifest",
        transcripts_manifest,
        (
            MANIFEST,
            edited(MANIFEST, shards=[{**json.loads(MANIFEST)["shards"][0], "name": "../../x"}]),
            *NOT_JSON,
        ),
        JSON_WORDS,
        ("manifest.json", "schema"),
    ),
    Door("transcripts shard", transcripts_shard, (shard_bytes(),), DAMAGE, ("shard-00000.parquet",)),
    Door(
        "embeddings manifest",
        embeddings_manifest,
        (
            EMBEDDINGS,
            edited(EMBEDDINGS, shards=[{**json.loads(EMBEDDINGS)["shards"][0], "name": "../../../x"}]),
            edited(EMBEDDINGS, shards=3),
            edited(EMBEDDINGS, modality="../.."),
            edited(EMBEDDINGS, shards=[{}]),
            *NOT_JSON,
        ),
        JSON_WORDS,
        ("manifest.json", "shard-"),
    ),
    Door(
        "embeddings shard",
        embeddings_shard,
        (
            SHARD,
            SHARD.replace(b'"width": 4', b'"width": 5'),
            SHARD.replace(b'"f16"', b'"f99"'),
            SHARD.replace(b'"positions": 6', b'"positions": 7'),
        ),
        (*DAMAGE, b'"f32"', b'"width"'),
        ("shard-00000",),
    ),
    Door(
        "run config",
        run_file("config.yaml", _settings),
        (RUN["config.yaml"], b"train: &a [*a]\n", b"- 1\n", *NOT_JSON),
        (b"!!binary ", b"null", b"&a ", b"*a", b".nan", b"\0", b"2024-99-99"),
        ("config.yaml",),
    ),
    Door(
        "run summary", run_file("run.json", _summary), (RUN["run.json"], *NOT_JSON), JSON_WORDS, ("run.json",)
    ),
    Door(
        "run history",
        run_file("metrics.jsonl", _history),
        (RUN["metrics.jsonl"], b'{"epoch": "x"}\n', b"3\n", *NOT_JSON),
        JSON_WORDS,
        ("metrics.jsonl",),
    ),
    Door(
        "run position",
        run_file("resume/latest.json", _newest),
        (RUN["resume/latest.json"], b'{"position": "../../x"}', b'{"position": 3}', *NOT_JSON),
        JSON_WORDS,
        ("latest.json", "resume", "key"),
    ),
    Door(
        "seed runs",
        run_file("seeds.json", _seeds),
        (RUN["seeds.json"], b'{"runs": 3}', b'{"runs": ["../x"]}', *NOT_JSON),
        JSON_WORDS,
        ("seeds.json",),
    ),
    Door(
        "profile",
        profile,
        (_profile(), edited(_profile(), costs=3), edited(_profile(), costs={"a": {}}), *NOT_JSON),
        JSON_WORDS,
        ("profile.json",),
    ),
)
