"""The demo, run as a user runs it, and what it must leave behind."""

from __future__ import annotations

import json
import os
import re
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ISOFORMER = [sys.executable, "-m", "isoformer"]
FEWER = [
    f"--set={key}={value}"
    for key, value in {
        "sweep.trials": 5, "sweep.epochs": 8, "train.epochs": 10, "evaluate.folds": 2, "evaluate.draws": 50,
    }.items()
]  # fmt: skip


@dataclass(frozen=True)
class Demo:
    folder: Path
    result: dict[str, Any]


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    """One whole run in a process of its own, without credentials and without a network to ask; every step is
    there, with less of what it repeats.
    """
    folder = tmp_path_factory.mktemp("demo") / "output"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    environment["HF_HUB_OFFLINE"] = "1"
    done = subprocess.run(
        [*ISOFORMER, "demo", "--output", str(folder), "--json", *FEWER],
        capture_output=True, text=True, timeout=900, env=environment, cwd=folder.parent,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    yield Demo(folder, json.loads(done.stdout))


@pytest.mark.slow
@pytest.mark.timeout(900)
class TestDemo:
    def test_transcripts_reconcile(self, demo: Demo) -> None:
        counts = json.loads((demo.folder / "transcripts/manifest.json").read_text())["counts"]
        assert counts["rows_in"] == counts["rows_out"] + sum(counts["quarantined"].values())
        assert counts["rows_out"] == 345
        assert set(counts["splits"]) == {"train", "validation", "test"}

    def test_every_embedding_is_what_it_says(self, demo: Demo) -> None:
        done = subprocess.run(
            [*ISOFORMER, "store", "verify", "--json", "--set", f"root={demo.folder}"],
            capture_output=True, text=True,
        )  # fmt: skip
        verified = json.loads(done.stdout)
        assert (done.returncode, verified["problems"]) == (0, [])
        assert verified["objects"] >= 4 * 9  # four shards of nine embedding datasets

    def test_sweep_has_its_trials_in_an_optuna_study(self, demo: Demo) -> None:
        import optuna

        storage = f"sqlite:///{demo.folder / 'studies/demo/study.db'}"
        study = optuna.load_study(study_name="demo", storage=storage)
        states = [trial.state.name for trial in study.trials]
        assert len(states) == 5
        assert set(states) <= {"COMPLETE", "PRUNED"}
        searched = {name for trial in study.trials for name in trial.params}
        assert {"fusion", "width", "heads", "learning_rate", "modalities", "resolution"} <= searched

    def test_mlflow_has_a_parent_with_a_child_a_trial(self, demo: Demo) -> None:
        with sqlite3.connect(demo.folder / "mlflow.db") as store:
            tags = dict(store.execute("select key, count(*) from tags group by key").fetchall())
            parents = store.execute(
                "select value, count(*) from tags where key = 'mlflow.parentRunId' group by value"
            ).fetchall()
            unfinished = store.execute("select count(*) from runs where status != 'FINISHED'").fetchone()[0]
        assert [count for _, count in parents] == [5]
        assert tags["data_fingerprint"] == 6  # the trials and the final run
        assert tags["label_provenance"] == 7  # and the sweep
        assert unfinished == 0

    def test_table_holds_model_and_baselines_with_intervals(self, demo: Demo) -> None:
        rows = demo.result["evaluation"]["evaluation"]["table"]["rows"]
        assert {"length", "composition"} <= {row["name"] for row in rows}
        for row in rows:
            assert row["r2"]["low"] <= row["r2"]["value"] <= row["r2"]["high"]

    def test_ablation_holds_every_subset_trained_and_random(self, demo: Demo) -> None:
        rows = demo.result["evaluation"]["ablation"]["rows"]
        names = {row["name"] for row in rows if row["method"] == "ridge_probe"}
        assert {"dna", "rna", "protein", "dna+rna", "dna+protein", "rna+protein", "dna+rna+protein"} <= names
        assert {row["trained"] for row in rows} == {"none", "pre-trained", "random"}

    def test_report_opens_without_a_network_and_says_what_the_labels_are(self, demo: Demo) -> None:
        page = Path(demo.result["report"]).read_text()
        assert not re.findall(r"""(?:src|href)=["'](?:https?:)?//""", page)
        assert "measured: GTEx gene mean TPM" in page
        assert len(page.encode()) < 3_000_000

    def test_a_second_run_does_nothing_again(self, demo: Demo) -> None:
        done = subprocess.run(
            [*ISOFORMER, "plan", "--json", "--config", str(demo.folder / "settings.yaml")],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        encoders = json.loads(done.stdout)["encoders"]
        assert len(encoders) == 6
        assert all(encoder["missing_sequences"] == 0 for encoder in encoders)
