"""A root as the stages leave it, made of small invented numbers and the stages' own classes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from browsing import FLAGS
from isoformer.config import to_yaml
from isoformer.evaluate import Detail, Evaluation, TissueScore
from isoformer.isoform_metrics import IsoformMetrics, Measure, SpecificityMetrics
from isoformer.manifest import Counts, Manifest, Shard, Source
from isoformer.model import ModelConfig
from isoformer.schema import TISSUES
from isoformer.scores import Score, ScoreRow, ScoreTable
from isoformer.training.config import TrainConfig
from isoformer.training.runs import RunSettings
from made_study import a_study, write_study

LABELS = "measured GTEx gene mean TPM <of the principal transcript>"
ENCODERS = {"dna": "ntv2-tiny-dna", "rna": "ntv2-tiny-rna", "protein": "esm2-tiny"}
KEYS = {m: f"{name}.1a2b3c4d.bins-16.f16.99aabbcc" for m, name in ENCODERS.items()}


def a_score(value: float) -> Score:
    return Score(value=value, low=value - 0.08, high=value + 0.07, sd=0.02)


def a_row(name: str, method: str, r2: float, trained: str) -> ScoreRow:
    modalities = tuple(m for m in ENCODERS if m in name.split("+"))
    return ScoreRow(
        name=name,
        method=method,
        modalities=modalities,
        encoders={m: ENCODERS[m] for m in modalities},
        trained=trained,
        label_provenance=LABELS,
        genes=60,
        transcripts=60,
        repeats=5,
        r2=a_score(r2),
        spearman=a_score(r2 + 0.2),
        pearson=a_score(r2 + 0.22),
        isoform_order=Score(value=0.61, low=None, high=None, sd=0.03),
    )


def a_table(rows: list[ScoreRow], protocol: str) -> ScoreTable:
    return ScoreTable(protocol=protocol, data_fingerprint="feed", target_unit="log1p_tpm", rows=tuple(rows))


def an_evaluation(run: str = "final", r2: float = 0.31, *, seed: int = 0) -> Evaluation:
    model = a_row("dna+rna+protein", "cross_attention", r2, "pre-trained")
    baseline = a_row("length", "ridge_baseline", 0.22, "none")
    random = np.random.default_rng(seed)
    per_tissue = tuple(
        TissueScore(
            tissue=tissue, name=row.name, method=row.method,
            r2=float(row.r2.value + random.normal(0, 0.05)), spearman=0.5, pearson=0.5,
        )
        for row in (model, baseline)
        for tissue in TISSUES
    )  # fmt: skip
    return Evaluation(
        run=run,
        split="test",
        data_fingerprint="feed",
        run_fingerprint="f00d" if run == "final" else f"f00d-{run}",
        transcripts_by_split={"train": 240, "validation": 30, "test": 60},
        without_any_modality=0,
        table=a_table([model, baseline], "the dataset's test split"),
        per_tissue=per_tissue,
        details=(a_detail(model), a_detail(baseline)),
    )


def a_detail(row: ScoreRow) -> Detail:
    unknown = Measure(value=None)
    return Detail(
        name=row.name,
        method=row.method,
        pooled={"r2": 0.4, "spearman": 0.6, "pearson": 0.6},
        isoforms=IsoformMetrics(
            genes=12, transcripts=30, pairs=1234, tied_pairs=3, tops=300, tied_tops=2,
            concordance=Measure(value=0.617, low=0.55, high=0.68), top1=unknown, top1_chance=0.417,
            share=unknown,
        ),
        specificity=SpecificityMetrics(
            transcripts=60, undefined=1, profile=Measure(value=0.123, low=0.05, high=0.2), tau=0.321,
            top_tissue=0.456, top_tissue_commonest=0.389,
        ),
    )  # fmt: skip


def an_ablation() -> ScoreTable:
    names = ["dna", "rna", "protein", "dna+rna", "dna+protein", "rna+protein", "dna+rna+protein"]
    rows = [
        a_row("length", "ridge_baseline", 0.2, "none"),
        a_row("composition", "ridge_baseline", 0.3, "none"),
    ]
    for shift, trained in ((0.0, "pre-trained"), (-0.35, "random")):
        for index, name in enumerate(names):
            rows.append(a_row(name, "ridge_probe", 0.12 + 0.03 * index + shift, trained))
            rows.append(a_row(name, "cross_attention", 0.1 + 0.03 * index + shift, trained))
    return a_table(rows, "5 folds by gene, 1 seed")


def a_manifest() -> Manifest:
    shard = Shard(name="shard-00000.parquet", transcripts=330, genes=330, bytes=1000, digest="aa")
    return Manifest(
        fingerprint="feedfacefeedfacefeedfacefeedface",
        sources=[
            Source(role="reference", path="chr21.fa.gz", bytes=12_000_000, digest="0123456789abcdef" * 2)
        ],
        config={},
        target_names=list(TISSUES),
        label_provenance=LABELS,
        reference_digest="abcdef",
        chromosome_aliases={},
        window_bases=12_282,
        shards=[shard],
        counts=Counts(
            rows_in=345,
            rows_out=330,
            quarantined={"cds_out_of_frame": 15},
            status={"ok": 320, "cropped": 10},
            notes={"rna cropped on the left": 10},
            splits={"train": 240, "validation": 30, "test": 60},
            sources={"transcripts in the annotation": 2000},
        ),
    )


def some_trials() -> dict[str, object]:
    random = np.random.default_rng(1)
    trials = [
        {
            "number": number,
            "state": ["complete", "pruned", "complete"][number % 3],
            "value": float(0.2 + 0.1 * random.random()),
            "params": {"fusion": "cross_attention", "learning_rate": float(10 ** random.uniform(-4, -2))},
            "epochs": 20,
            "seconds": 1.5,
            "error": "",
            "run": f"run-{number}",
        }
        for number in range(12)
    ]
    trials[4] |= {"state": "failed", "value": None, "error": "ValueError: <script>alert(1)</script>"}
    return {
        "study": "demo",
        "metric": "val_r2",
        "direction": "maximize",
        "seconds": 42.0,
        "best": 0,
        "importances": {"learning_rate": 0.7, "fusion": 0.3},
        "space": {"fusion": {}, "learning_rate": {}, "heads": {}},
        "trials": trials,
    }


def write_predictions(path: Path) -> None:
    random = np.random.default_rng(2)
    target = random.normal(size=(60, len(TISSUES))).astype(np.float32)
    prediction = target + random.normal(size=target.shape).astype(np.float32)
    columns = {
        "transcript_id": pa.array([f"t{i}" for i in range(60)]),
        "gene_id": pa.array([f"g{i // 2}" for i in range(60)]),
        "split": pa.array(["test"] * 60),
        "prediction": pa.FixedSizeListArray.from_arrays(pa.array(prediction.reshape(-1)), len(TISSUES)),
        "target": pa.FixedSizeListArray.from_arrays(pa.array(target.reshape(-1)), len(TISSUES)),
        "target_mask": pa.FixedSizeListArray.from_arrays(pa.array(np.ones(target.size, bool)), len(TISSUES)),
    }
    table = pa.table(columns).replace_schema_metadata({"target_names": json.dumps(TISSUES)})
    pq.write_table(table, path)


@pytest.fixture(scope="session")
def full_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every part that the report knows."""
    root = tmp_path_factory.mktemp("root")
    run, study = root / "runs" / "final", root / "studies" / "demo"
    for folder in (root / "transcripts", run, study):
        folder.mkdir(parents=True)
    (root / "transcripts" / "manifest.json").write_text(a_manifest().model_dump_json())
    for modality, name in ENCODERS.items():
        write_embedding(root, modality, name)
    settings = RunSettings(
        run="final", fingerprint="f00d", data_fingerprint="feed", encoders=ENCODERS,
        encoder_trained=dict.fromkeys(ENCODERS, "pre-trained"), label_provenance=LABELS,
        train=TrainConfig(keys=KEYS, model=ModelConfig()),
    )  # fmt: skip
    (run / "config.yaml").write_text(to_yaml(settings))
    summary = {"best_epoch": 7, "epochs": 12, "stopped_by": "patience", "parameters": 12345, "seconds": 8.2}
    (run / "run.json").write_text(json.dumps({**summary, "workers": 1}))
    lines = [
        {"epoch": e, "train_loss": 1 / (e + 1), "val_loss": 1.1 / (e + 1), "val_r2": 0.3 - 1 / (e + 3),
         "val_spearman": None if e == 0 else 0.5 - 1 / (e + 3)}
        for e in range(12)
    ]  # fmt: skip
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (run / "evaluation.json").write_text(an_evaluation().model_dump_json())
    (run / "ablation.json").write_text(an_ablation().model_dump_json())
    write_predictions(run / "predictions.parquet")
    (study / "trials.json").write_text(json.dumps(some_trials()))
    embed = {"predicted_tokens": 100_000, "tokens": 101_000, "predicted_bytes": 5e6, "bytes_written": 5.1e6}
    embed |= {"predicted_seconds": None, "actual_seconds": 20.0, "startup_seconds": 12.0}
    embed |= {"shards_written": 12, "shards_present": 0, "duplicates_saved": 3}
    (root / "reports").mkdir()
    (root / "reports" / "embed.json").write_text(json.dumps(embed))
    return root


def write_embedding(root: Path, modality: str, name: str) -> None:
    folder = root / "embeddings" / modality / KEYS[modality]
    folder.mkdir(parents=True)
    spec = {
        "name": name,
        "trained": "random" if modality == "rna" else "pre-trained",
        "licence": "Apache-2.0",
    }
    manifest = {
        "key": KEYS[modality], "modality": modality, "spec": spec, "resolution": "bins:16", "width": 64,
        "shards": [{"sequences": 100, "bytes": 1_000_000}],
    }  # fmt: skip
    (folder / "manifest.json").write_text(json.dumps(manifest))


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Headless Chromium; skips where it, its driver or selenium is not installed."""
    chromium, driver_path = shutil.which("chromium"), shutil.which("chromedriver")
    if not (chromium and driver_path):
        pytest.skip("chromium and chromedriver are not installed (Debian: chromium-driver)")
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(executable_path=driver_path))
    yield driver
    driver.quit()


@pytest.fixture(scope="session")
def study_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with a study of 60 trials and its final models."""
    root = tmp_path_factory.mktemp("study-root")
    write_study(root, a_study())
    return root


def write_run(
    root: Path, name: str, *, is_evaluated: bool = True, r2: float = 0.31, data: str = "feed", **train: Any
) -> None:
    """A finished run, another for another seed."""
    folder = root / "runs" / name
    folder.mkdir(parents=True)
    config = TrainConfig(keys=KEYS, **train)
    settings = RunSettings(
        run=name, fingerprint=f"f00d-{name}", data_fingerprint=data, encoders=ENCODERS,
        encoder_trained=dict.fromkeys(ENCODERS, "pre-trained"), label_provenance=LABELS, train=config,
    )  # fmt: skip
    (folder / "config.yaml").write_text(to_yaml(settings))
    summary = {"best_epoch": 9, "epochs": 12, "stopped_by": "patience", "workers": 1}
    summary |= {"parameters": 1000 * (config.model.width or 64), "seconds": 8.2}
    (folder / "run.json").write_text(json.dumps(summary))
    lines = [
        {"epoch": e, "train_loss": 1 / (e + 1), "val_loss": 1.1 / (e + 1) + 0.3 - r2,
         "val_r2": r2 + 0.05 - 1 / (e + 2), "val_spearman": None if e == 0 else r2 + 0.2 - 1 / (e + 3)}
        for e in range(12)
    ]  # fmt: skip
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if is_evaluated:
        evaluation = an_evaluation(name, r2, seed=config.seed)
        (folder / "evaluation.json").write_text(evaluation.model_dump_json())


@pytest.fixture(scope="session")
def runs_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs that compare (`base`, `wide`, `plain`), and some that do not."""
    root = tmp_path_factory.mktemp("runs-root")
    write_run(root, "base", r2=0.31)
    write_run(root, "wide", r2=0.36, seed=1, model=ModelConfig(width=32), learning_rate=3e-4)
    write_run(root, "plain", is_evaluated=False, r2=0.22, model=ModelConfig(fusion="concat"))
    write_run(root, "cross_attention-dna-rna-protein-seed0-1a2b3c4d", r2=0.33)
    write_run(root, "elsewhere", r2=0.5, data="beef")
    write_run(root, "redrawn", r2=0.3, validation="redraw")
    write_run(root, "unfinished")
    (root / "runs" / "unfinished" / "run.json").unlink()
    (root / "runs" / "many").mkdir()
    (root / "runs" / "many" / "seeds.json").write_text(json.dumps({"runs": ["base", "wide"], "metrics": {}}))
    return root
