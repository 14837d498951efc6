"""Files of a run and a root that were damaged or edited: an error that names them, no way out of the root."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from isoformer.config import to_yaml
from isoformer.embeddings.profile import EncoderCost, Profile, read_profile, write_profile
from isoformer.errors import InputError, IsoformerError, StorageError
from isoformer.manifest import read_manifest, read_shard
from isoformer.model import IsoFormer, ModelConfig, load_model, save_model
from isoformer.storage import open_storage
from isoformer.sweep.control import Control
from isoformer.training.checkpoint import FitState, Progress, read_checkpoint, write_checkpoint
from isoformer.training.config import TrainConfig
from isoformer.training.runs import RunFolder, RunSettings
from isoformer.training.seeds import read_seed_runs
from tiny_dataset import write_dataset

NOT_JSON = [b"", b"[]", b"3", b"null", b"\xff", b"[" * 100_000]
MADE_FROM = {"fingerprint": "abc"}


def run_folder(root: Path, name: str, data: bytes) -> RunFolder:
    storage = open_storage(root)
    for required in ("config.yaml", "run.json"):
        storage.write_bytes(f"runs/final/{required}", b"{}")
    storage.write_bytes(f"runs/final/{name}", data)
    return RunFolder(storage, "final")


def newest(run: RunFolder) -> None:
    with run.newest_checkpoint():
        pass


READERS: dict[str, Callable[[RunFolder], object]] = {
    "run.json": RunFolder.summary,
    "metrics.jsonl": RunFolder.history,
    "resume/latest.json": newest,
    "seeds.json": lambda run: read_seed_runs(run.storage, run.run),
}


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("data", NOT_JSON[1:])
def test_a_damaged_file_of_a_run_is_named(name: str, data: bytes, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=rf"runs/final/{name}"):
        READERS[name](run_folder(tmp_path, name, data))


@pytest.mark.parametrize(
    ("name", "data", "problem"),
    [
        (
            "metrics.jsonl",
            b'{"epoch": 0}\n{"epoch": "x"}\n',
            "line 2: epoch must be a number or null, got 'x'",
        ),
        ("resume/latest.json", b'{"position": "../../x"}', "position '../../x' is none of a checkpoint"),
        ("resume/latest.json", b'{"position": 3}', "position must be a str, got 3"),
        ("seeds.json", b'{"runs": ["../x"]}', r"runs must be names of runs, got \['../x'\]"),
    ],
)
def test_what_a_file_of_a_run_may_not_say(name: str, data: bytes, problem: str, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=rf"{name}[:,] {problem}"):
        READERS[name](run_folder(tmp_path, name, data))


@pytest.mark.parametrize(
    "data", [b"", b"- 1", b"[", b"\xff", b"train: &a [*a]", b"[" * 5000, b"x: 2024-99-99"]
)
def test_a_damaged_configuration_of_a_run_is_named(data: bytes, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"runs/final/config\.yaml: (must be a mapping|is not valid YAML)"):
        run_folder(tmp_path, "config.yaml", data).settings()


def test_a_configuration_of_a_run_is_read_back(tmp_path: Path) -> None:
    settings = RunSettings(
        run="final", fingerprint="f", data_fingerprint="d", encoders={}, encoder_trained={},
        label_provenance="l", train=TrainConfig(),
    )  # fmt: skip
    assert run_folder(tmp_path, "config.yaml", to_yaml(settings).encode()).settings() == settings


@pytest.mark.parametrize("data", NOT_JSON)
def test_a_request_that_is_none_does_not_end_a_sweep(data: bytes, tmp_path: Path) -> None:
    storage = open_storage(tmp_path)
    storage.write_bytes("studies/x/request.json", data)
    assert Control(storage, "x").request is None


def test_a_damaged_profile_is_named_and_may_be_deleted(tmp_path: Path) -> None:
    storage = open_storage(tmp_path)
    profile = Profile({"a|cpu-1": EncoderCost(1.0, 0.1, 0.01, 0.001, 0.0, "cpu", 5000)}, 3.0)
    write_profile(storage, profile)
    assert read_profile(storage) == profile
    described = json.loads(storage.read_bytes("profile.json"))
    costs: list[Any] = [
        3,
        {"a": {}},
        {"a": {**described["costs"]["a|cpu-1"], "seconds_per_token": float("nan")}},
    ]
    for data in [*NOT_JSON, *(json.dumps({**described, "costs": cost}).encode() for cost in costs)]:
        storage.write_bytes("profile.json", data)
        with pytest.raises(StorageError, match=r"profile\.json: "):
            read_profile(storage)


@pytest.mark.parametrize(
    ("field", "value"), [("name", "../../x"), ("transcripts", -1), ("name", "shard-00000.parquet\n")]
)
def test_a_manifest_names_shards_beside_it(field: str, value: object, tmp_path: Path) -> None:
    write_dataset(str(tmp_path), shards=1, genes_per_shard=1)
    path = tmp_path / "transcripts" / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["shards"][0][field] = value
    path.write_text(json.dumps(manifest))
    with pytest.raises(StorageError, match=rf"transcripts/manifest\.json: not a manifest .*{field}"):
        read_manifest(open_storage(tmp_path))


def test_a_shard_of_transcripts_that_is_damaged_anywhere_is_one_error(tmp_path: Path) -> None:
    write_dataset(str(tmp_path), shards=1, genes_per_shard=2)
    path, storage = tmp_path / "transcripts" / "shard-00000.parquet", open_storage(tmp_path)
    whole = path.read_bytes()
    for place in range(4, len(whole), 61):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x5A]) + whole[place + 1 :])
        try:
            read_shard(storage, 0).to_pylist()
        except StorageError as error:
            assert "shard-00000.parquet" in str(error)


def tiny_model() -> IsoFormer:
    config = ModelConfig(modalities=("rna",), fusion="concat", width=4, heads=1)
    return IsoFormer(config, {"rna": 4}, ["Liver", "Brain"])


@pytest.mark.parametrize(
    "state", [[1], {}, {"made_from": 3}, {"made_from": MADE_FROM, "progress": {"epoch": "x"}}]
)
def test_a_state_that_is_none_is_no_checkpoint(state: object, tmp_path: Path) -> None:
    net = tiny_model()
    write_checkpoint(tmp_path, net, FitState(net.state_dict(), net.state_dict(), {}), Progress(), MADE_FROM)
    assert read_checkpoint(tmp_path, MADE_FROM)[0] == Progress()
    torch.save(state, tmp_path / "state.pt")
    with pytest.raises(InputError, match=r"state\.pt: not a checkpoint"):
        read_checkpoint(tmp_path, MADE_FROM)
    whole = (tmp_path / "state.pt").read_bytes()
    (tmp_path / "state.pt").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"state\.pt: not a checkpoint") as refused:
        read_checkpoint(tmp_path, MADE_FROM)
    assert "weights_only" not in str(refused.value)


@pytest.mark.parametrize(
    "changes",
    [{"config": None}, {"input_widths": {"rna": 10**12}}, {"input_widths": 3}, {"target_names": []}],
)
def test_a_model_whose_description_is_not_its_own_is_refused(changes: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_model(tiny_model(), path)
    assert load_model(path).target_names == ("Liver", "Brain")
    save_model(tiny_model(), path, changes)
    with pytest.raises(IsoformerError, match=r"model\.safetensors"):
        load_model(path)


def test_a_column_whose_name_is_no_text_is_one_error(tmp_path: Path) -> None:
    write_dataset(str(tmp_path), shards=1, genes_per_shard=1)
    path = tmp_path / "transcripts" / "shard-00000.parquet"
    path.write_bytes(path.read_bytes().replace(b"gene_name", b"g\xb5ne_name"))
    with pytest.raises(StorageError, match=r"shard-00000\.parquet: .*name of a column is no text"):
        read_shard(open_storage(tmp_path), 0)
