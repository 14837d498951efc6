"""Parts on a real Ray: what one process makes, though a worker is killed; a run that was cut off goes on."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from isoformer.cli import _users_error
from isoformer.errors import ClusterError, IsoformerError
from isoformer.predict.parts import PartSettings, predict_here, predict_parts
from isoformer.predict.rows import PredictRow
from isoformer.sequence_model import SequenceModel
from predict.trained import transcripts_of


@pytest.fixture
def rows(root: Path) -> list[PredictRow]:
    """Enough for parts to be still under way when the first is done."""
    given = transcripts_of(root)
    numbered = [
        replace(one, transcript_id=f"{one.transcript_id}-{turn}") for turn in range(6) for one in given
    ]
    return [
        *(PredictRow(one.transcript_id, one, "ok") for one in numbered),
        PredictRow.set_aside("bad", "rna_letters", "position 3"),
    ]


@pytest.fixture
def settings(model: SequenceModel, root: Path, tmp_path: Path) -> PartSettings:
    return PartSettings(f"{root}/runs/one", model.fingerprint, str(tmp_path / "ray"), batch_size=4, workers=2)


def workers() -> Iterator[psutil.Process]:
    """Ours only: descendants of this process."""
    for process in psutil.Process().children(recursive=True):
        try:
            if "PartWorker" in " ".join(process.cmdline()):
                yield process
        except psutil.NoSuchProcess:
            continue


def contents(folder: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir())}


@pytest.mark.slow
def test_a_killed_worker_costs_nothing(
    ray_local: None, rows: list[PredictRow], settings: PartSettings, tmp_path: Path
) -> None:
    killed: list[int] = []

    def kill_one(done: int) -> None:
        if not killed:
            killed.extend(process.pid for process in list(workers())[:1])
            for pid in killed:
                os.kill(pid, signal.SIGKILL)

    report = predict_parts(iter(rows), settings, rows_per_part=8, progress=kill_one)
    assert killed and (report.parts, report.present) == (19, 0)
    assert report.counts.not_predicted == {"rna_letters": 1} and report.counts.predicted == 144
    alone = replace(settings, output=str(tmp_path / "alone"), workers=1)
    predict_parts(iter(rows), alone, rows_per_part=8, predictor=predict_here)
    assert contents(settings.output) == contents(alone.output)
    assert not psutil.wait_procs(list(workers()), timeout=60)[1]


@pytest.mark.slow
def test_a_run_that_was_cut_off_goes_on(
    ray_local: None, rows: list[PredictRow], settings: PartSettings
) -> None:
    def cut_off(done: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        predict_parts(iter(rows), settings, rows_per_part=8, progress=cut_off)
    there = [name for name in contents(settings.output) if name.startswith("part-")]
    assert there and "_manifest.json" not in contents(settings.output)
    report = predict_parts(iter(rows), settings, rows_per_part=8)
    assert report.parts == 19 and report.present >= len(there) and report.counts.rows == len(rows)
    again = predict_parts(iter(rows), settings, rows_per_part=8)
    assert (again.present, again.counts) == (19, report.counts)


@pytest.mark.slow
def test_a_workers_error_reaches_the_user(
    ray_local: None, rows: list[PredictRow], settings: PartSettings
) -> None:
    with pytest.raises(Exception) as raised:
        predict_parts(iter(rows), replace(settings, fingerprint="0123456789abcdef"), rows_per_part=8)
    cause = _users_error(raised.value)
    assert isinstance(cause, IsoformerError) and isinstance(raised.value, ClusterError)
    assert "they must see the same files" in str(cause)
