"""Runs: their folder, and training on a real Ray with a worker that is killed on the way."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from isoformer.errors import FingerprintError, InputError, StorageError
from isoformer.model import ModelConfig
from isoformer.s3_requests import s3_client
from isoformer.storage import open_storage
from isoformer.training.config import TrainConfig
from isoformer.training.loop import fit, predict
from isoformer.training.runs import RunFolder, run_names, run_settings
from isoformer.training.train import train
from isoformer.training.workers import fit_in_folder
from made_dataset import made_dataset
from services import S3Server

CONFIG = TrainConfig(
    model=ModelConfig(width=8, heads=2, dropout=0.1), epochs=5, batch_size=8, learning_rate=5e-3
)
TIMING = ("wait_share", "transcripts_per_second")


def curve(history: list[dict[str, float]]) -> list[dict[str, float]]:
    return [{key: value for key, value in entry.items() if key not in TIMING} for entry in history]


def claimed(root: Path, config: TrainConfig = CONFIG, run: str = "one") -> RunFolder:
    folder = RunFolder(open_storage(root), run)
    folder.claim(run_settings(config, made_dataset(), run), resume=False)
    return folder


class TestRunFolder:
    def test_a_fit_finishes_its_folder(self, tmp_path: Path) -> None:
        data, folder, sent = made_dataset(), claimed(tmp_path), []
        fit_in_folder(CONFIG, data, folder, outbox=sent.append)
        undisturbed = fit(CONFIG, data)
        assert curve(folder.history()) == curve(undisturbed.history)
        assert [message["metrics"]["epoch"] for message in sent] == [0, 1, 2, 3, 4]
        assert sorted(os.listdir(tmp_path / "runs/one")) == [
            "checkpoint", "config.yaml", "metrics.jsonl", "run.json",
        ]  # fmt: skip
        rows = data.rows("test")
        np.testing.assert_array_equal(
            predict(folder.model(), data, rows), predict(undisturbed.model, data, rows)
        )
        assert folder.settings().train.keys == {m: f"made-{m}.key" for m in data.modalities}
        assert run_names(open_storage(tmp_path)) == ["one"]

    def test_a_killed_fit_goes_on_in_its_folder(self, tmp_path: Path) -> None:
        data, folder = made_dataset(), claimed(tmp_path)

        def killed(message: dict[str, Any]) -> None:
            if message["metrics"]["epoch"] == 2:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            fit_in_folder(CONFIG, data, folder, outbox=killed)
        assert not folder.is_finished
        with pytest.raises(StorageError, match="the run is not finished"):
            folder.model()
        sent: list[dict[str, Any]] = []
        fit_in_folder(CONFIG, data, folder, outbox=sent.append)
        assert [message["metrics"]["epoch"] for message in sent] == [3, 4]
        assert curve(folder.history()) == curve(fit(CONFIG, data).history)

    def test_a_taken_folder_is_named_with_both_fingerprints(self, tmp_path: Path) -> None:
        folder = claimed(tmp_path)
        same = run_settings(CONFIG.edited(workers=2), made_dataset(), "one")
        other = run_settings(CONFIG.edited(seed=1), made_dataset(), "one")
        with pytest.raises(StorageError, match=f"unfinished .fingerprint {same.fingerprint}"):
            folder.claim(same, resume=False)
        folder.claim(same, resume=True)
        with pytest.raises(FingerprintError, match=f"{same.fingerprint}.*{other.fingerprint}"):
            folder.claim(other, resume=True)

    def test_a_run_that_is_not_there_is_named_with_those_that_are(self, tmp_path: Path) -> None:
        claimed(tmp_path)
        with pytest.raises(StorageError, match="no such run; there are: one"):
            RunFolder(open_storage(tmp_path), "two").settings()

    def test_names_follow_what_a_run_is(self) -> None:
        first = run_settings(CONFIG, made_dataset())
        assert first.run.startswith("cross_attention-dna-rna-protein-seed0-")
        assert first.run == run_settings(CONFIG, made_dataset()).run
        assert first.run != run_settings(CONFIG.edited(epochs=6), made_dataset()).run


class Recorder:
    def __init__(self) -> None:
        self.steps: list[int] = []
        self.files: list[str] = []
        self.tags: dict[str, str] = {}

    def log_metrics(self, metrics: Any, step: int) -> None:
        self.steps.append(step)

    def log_artifact(self, path: str) -> None:
        assert Path(path).is_file()
        self.files.append(Path(path).name)

    def set_tags(self, tags: Any) -> None:
        self.tags.update(tags)


def train_workers() -> list[psutil.Process]:
    """Ray Train's workers among this process's own descendants."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if "RayTrainWorker" in " ".join(process.cmdline()):
                found.append(process)
        except psutil.NoSuchProcess:
            continue
    return found


def test_what_a_kill_kept_from_the_tracker_is_told_when_the_run_is_gone_on_with(tmp_path: Path) -> None:
    """A driver that died when its worker had just finished: no epoch was tracked, and rests lie about."""
    data, config = made_dataset(), CONFIG.edited(data="pinned")
    folder = claimed(tmp_path, config)
    fit_in_folder(config, data, folder, outbox=lambda message: None)
    folder.storage.write_bytes("runs/one/resume/latest.json", b"{}")
    recorder = Recorder()
    result = train(config, str(tmp_path), run="one", data=data, resume=True, tracker=recorder)
    assert result.reused and recorder.steps == [0, 1, 2, 3, 4]
    assert recorder.files == ["config.yaml", "metrics.jsonl", "run.json"]
    assert not folder.storage.list("runs/one/resume/")


@pytest.mark.timeout(900)
@pytest.mark.usefixtures("ray_local")
@pytest.mark.parametrize(
    "workers", [pytest.param(1, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.long)]
)
def test_a_killed_worker_goes_on_as_if_nothing_had_happened(
    workers: int, s3_root: str, s3_server: S3Server
) -> None:
    data, recorder, killed = made_dataset(), Recorder(), []

    def kill_one_worker(metrics: dict[str, float]) -> None:
        if metrics["epoch"] == 1 and not killed:
            killed.append(train_workers()[-1].pid)
            os.kill(killed[0], signal.SIGKILL)

    config = CONFIG.edited(workers=workers, model=CONFIG.model.edited(dropout=0.0), epochs=60, patience=60)
    result = train(config, s3_root, run="run", data=data, tracker=recorder, progress=kill_one_worker)
    assert killed and set(recorder.steps) == set(range(60))
    undisturbed = curve(fit(config, data).history)
    if workers == 1:
        assert curve(result.history) == undisturbed
    for entry, expected in zip(curve(result.history), undisturbed, strict=True):
        assert entry == pytest.approx(expected, rel=2e-3, abs=2e-3)
    assert recorder.files == ["config.yaml", "metrics.jsonl", "run.json"]
    assert recorder.tags["encoder_key.rna"] == "made-rna.key"

    assert objects(s3_server, f"{s3_root}/runs/run/") - {""} == {
        "checkpoint/model.safetensors", "checkpoint/state.pt", "config.yaml", "metrics.jsonl", "run.json",
    }, "of Ray Train's own state only what marks the run's folder"  # fmt: skip

    again = train(config, s3_root, run="run", data=data, resume=True)
    assert again.reused and again.history == result.history
    with pytest.raises(StorageError, match="holds this run already, finished"):
        train(config, s3_root, run="run", data=data)
    with pytest.raises(InputError, match="the split has no transcripts"):
        train(config, s3_root, data=data.with_split(np.full(len(data), "test")))


def objects(server: S3Server, address: str) -> set[str]:
    """All below a prefix, as the server has it."""
    bucket, _, prefix = address.removeprefix("s3://").partition("/")
    listed = s3_client(server.endpoint).list_objects_v2(Bucket=bucket, Prefix=prefix)
    return {item["Key"].removeprefix(prefix) for item in listed["Contents"]}


WORKER = """
import json, sys
import torch
from made_dataset import made_dataset
from isoformer.training.config import TrainConfig
from isoformer.training.loop import fit

rank, store, out = int(sys.argv[1]), sys.argv[2], sys.argv[3]
torch.distributed.init_process_group("gloo", init_method="file://" + store, rank=rank, world_size=2)
result = fit(TrainConfig.model_validate_json(sys.argv[4]), made_dataset(), rank=rank, world_size=2)
with open(out, "w") as file:
    json.dump(result.history, file)
torch.distributed.destroy_process_group()
"""


def test_two_workers_follow_the_path_of_one(tmp_path: Path) -> None:
    config = CONFIG.edited(model=CONFIG.model.edited(dropout=0.0), batch_size=7)  # the last batch has one row
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "GLOO_SOCKET_IFNAME": "lo"}
    commands = [
        [sys.executable, "-c", WORKER, str(rank), str(tmp_path / "store"), str(tmp_path / f"{rank}.json")]
        for rank in range(2)
    ]
    running = [
        subprocess.Popen([*command, config.model_dump_json()], env=environment) for command in commands
    ]
    assert [process.wait(timeout=200) for process in running] == [0, 0]
    histories = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    assert curve(histories[0]) == curve(histories[1])
    for entry, expected in zip(curve(histories[0]), curve(fit(config, made_dataset()).history), strict=True):
        assert entry == pytest.approx(expected, rel=2e-3, abs=2e-3)
