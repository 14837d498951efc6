"""The stages as the command line and the demo run them: with settings, progress, tracking and a table.

Each stage itself knows nothing of terminals or MLflow; here the three meet.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isoformer.config import to_yaml
from isoformer.console import Output, counted

if TYPE_CHECKING:
    from isoformer.embeddings.pipeline import EmbedProgress, EmbedReport
    from isoformer.embeddings.plan import Plan
    from isoformer.encoders.listing import Listed
    from isoformer.paper.rows import TableName
    from isoformer.predict.inputs import PredictInput
    from isoformer.predict.run import PredictRequest
    from isoformer.scores import ScoreTable
    from isoformer.settings import Settings
    from isoformer.tracking import Tracker
    from isoformer.training.config import TrainConfig
    from isoformer.training.data import PinnedDataset
    from isoformer.training.train import TrainResult
    from isoformer.transcripts import Manifest


def run_prepare(settings: Settings, out: Output) -> Manifest:
    """Make the transcripts dataset, or find that it is there. Ray must be connected."""
    from isoformer.transcripts import prepare

    manifest = prepare(settings.require_prepare(), settings.root, progress=out.note)
    _show_manifest(manifest, settings.root, out)
    return manifest


def _show_manifest(manifest: Manifest, root: str, out: Output) -> None:
    """What went in, what came out, and why the rest did not."""
    counts = manifest.counts
    out.facts(
        "Transcripts",
        [
            ("under", root),
            ("transcripts in", counts.rows_in),
            ("transcripts out", counts.rows_out),
            ("quarantined", counted(counts.quarantined)),
            ("status", counted(counts.status)),
            ("notes", counted(counts.notes)),
            ("split (by gene)", counted(counts.splits)),
            ("targets", f"{len(manifest.target_names)} × {manifest.target_unit}"),
            ("labels", manifest.label_provenance),
            ("shards", len(manifest.shards)),
            ("fingerprint", manifest.fingerprint),
        ],
    )


def show_plan(planned: Plan, out: Output) -> None:
    """What there is to do, an encoder pass a line; how long it takes, and what that costs."""
    columns = ("encoder", "weights", "sequences", "duplicates saved", "tokens", "padding avoided")
    out.table(
        "Plan",
        (*columns, "shards there", "MB to write", "device time"),
        [
            (
                _short(encoder.name),
                encoder.trained,
                encoder.sequences,
                encoder.duplicates_saved,
                encoder.tokens,
                f"{encoder.padding_avoided:.0%}",
                f"{encoder.shards_present}/{encoder.shards_wanted}",
                f"{encoder.missing_bytes / 1e6:,.1f}",
                _duration(encoder.missing_seconds if encoder.shards_present < encoder.shards_wanted else 0.0),
            )
            for encoder in planned.encoders
        ],
    )
    expected = planned.forecast
    out.say(
        f"  expected: {_duration(expected.seconds)} on {expected.actors} actor(s), after a start-up of "
        f"{_duration(expected.startup_seconds)}"
    )
    if expected.balance is not None:
        out.say(
            f"  device time: {_duration(expected.device_seconds)}; {expected.balance:.0%} of the actors' time"
        )
    if expected.unknown:
        names = ", ".join(_short(name) for name in expected.unknown)
        out.say(f"  not measured: {names}; to measure: isoformer benchmark profile")
    if planned.prices:
        out.table(
            "Cost",
            ("on", "nodes", "node-hours", "dollars"),
            [
                (price.name, price.nodes, _rounded(price.node_hours), _rounded(price.dollars))
                for price in planned.prices
            ],
        )


def run_embed(settings: Settings, out: Output, *, budget_hours: float | None = None) -> EmbedReport:
    """Plan, embed with a progress bar, and set predicted beside actual. Ray must be connected.

    BudgetError, before a worker is started, where by the plan it takes longer than `budget_hours`.
    """
    from isoformer.embeddings.cluster import alive_nodes
    from isoformer.embeddings.forecast import require_budget
    from isoformer.embeddings.pipeline import embed
    from isoformer.embeddings.plan import plan
    from isoformer.storage import open_storage

    planned = plan(settings.embed, settings.root, nodes=alive_nodes())
    show_plan(planned, out)
    require_budget(planned.forecast, budget_hours)
    said: list[str] = []
    with out.progress("embed") as advance:

        def told(progress: EmbedProgress) -> None:
            advance(progress.tokens_done, progress.tokens, _live(progress))
            for note in progress.notes[len(said) :]:
                said.append(note)
                out.note(note)

        report = embed(settings.embed, settings.root, planned=planned, progress=told)
    if report.shards_written:  # the HTML report sets planned beside actual
        text = json.dumps(report.to_json(), indent=1)
        open_storage(settings.root).write_bytes("reports/embed.json", text.encode())
    out.table(
        "Embedded",
        ("", "predicted", "actual"),
        [
            ("tokens", report.predicted_tokens, report.tokens),
            ("bytes", report.predicted_bytes, report.bytes_written),
            ("seconds", _seconds(report.predicted_seconds), _seconds(report.actual_seconds)),
        ],
    )
    out.facts(
        "",
        [
            ("shards written / there before", f"{report.shards_written} / {report.shards_present}"),
            ("rows copied from earlier shards", report.reused),
            (
                "tokens per second",
                "" if report.tokens_per_second is None else round(report.tokens_per_second),
            ),
            ("device busy", "" if report.device_busy is None else f"{report.device_busy:.1%}"),
            ("padding", f"{report.padding_fraction:.1%} of the tokens on the device"),
            (
                "duplicates saved",
                f"{report.duplicates_saved:,} ({report.dedup_ratio:.2f} transcripts a sequence)",
            ),
            ("failures", counted(report.failures)),
            ("quarantined", counted(report.quarantined)),
            ("letters cropped or masked", counted(report.letters)),
            *(("note", note) for note in report.notes),
        ],
    )
    return report


def _live(progress: EmbedProgress) -> str:
    """What stands beside the bar, whose unit is the token."""
    if not progress.tokens_per_second:
        return "tokens, workers are starting"
    left = (progress.tokens - progress.tokens_done) / progress.tokens_per_second
    busy = "" if progress.busy is None else f", {progress.busy:.0%} busy"
    return (
        f"tokens, {progress.tokens_per_second:,.0f}/s{busy}, {_duration(left)} left; "
        f"shard {progress.shards_done}/{progress.shards}, {progress.workers} x {progress.encoder}"
    )


def run_train(settings: Settings, out: Output, *, resume: bool = False) -> TrainResult:
    """Train on Ray Train, tracked as one MLflow run. Ray must be connected."""
    from isoformer.tracking import Tracker

    config = settings.train_config()
    with Tracker(settings.tracking.for_root(settings.root)) as tracker:
        result = _train_one(settings, config, out, tracker, run=settings.run, resume=resume)
    _show_training(result, out)
    return result


def run_train_seeds(
    settings: Settings, out: Output, seeds: Sequence[int], *, resume: bool = False
) -> dict[str, Any]:
    """A run a seed, under one parent in the tracker, on data that is read once. Ray must be connected."""
    from isoformer.storage import open_storage
    from isoformer.tracking import Tracker, flat_params, run_key
    from isoformer.training.data import load_dataset
    from isoformer.training.joined_tokens import with_located_weights
    from isoformer.training.seeds import seed_run, spreads, write_seeds

    config, storage = settings.train_config(), open_storage(settings.root)
    config = config.edited(model=with_located_weights(config.model, storage))
    data = load_dataset(settings.root, config.keys, encoders=config.model.encoders)
    results = []
    with Tracker(settings.tracking.for_root(settings.root)) as tracker:
        key = run_key(settings.root, settings.run)
        parent = tracker.start_run(settings.run, key=key, params=flat_params(config))
        for seed in seeds:
            seeded, run = config.edited(seed=seed), seed_run(settings.run, seed)
            result = _train_one(
                settings, seeded, out, tracker, run=run, resume=resume, data=data, parent=parent
            )
            results.append(result)
            _show_training(result, out)
        found = spreads([result.best for result in results])
        write_seeds(storage, settings.run, seeds, found)
        tracker.log_metrics(parent, {name: spread.mean for name, spread in found.items()})
        tracker.end_run(parent)
    shown = [
        (name, f"{spread.mean:.4g}" + (f" ± {spread.sd:.2g}" if spread.sd is not None else ""))
        for name, spread in found.items()
    ]
    out.facts(f"{len(results)} seeds, mean ± sd of their best epochs", shown)
    return {
        "run": settings.run,
        "runs": [asdict(result) for result in results],
        "metrics": {name: asdict(spread) for name, spread in found.items()},
    }


def _train_one(
    settings: Settings,
    config: TrainConfig,
    out: Output,
    tracker: Tracker,
    *,
    run: str,
    resume: bool,
    data: PinnedDataset | None = None,
    parent: str | None = None,
) -> TrainResult:
    from isoformer.tracking import flat_params, log_dataset, run_key
    from isoformer.training.train import train

    key = run_key(settings.root, run)
    tracked = tracker.start_run(run, key=key, params=flat_params(config), parent=parent)
    tracker.log_text(tracked, to_yaml(settings.edited(run=run, train=config.model_dump())), "config.yaml")
    log_dataset(tracker, tracked, settings.root)
    try:
        with out.progress("train") as advance, tracker.system_metrics(tracked):
            result = train(
                config,
                settings.root,
                run=run,
                resume=resume,
                tracker=tracker.on_run(tracked),
                progress=lambda metrics: advance(int(metrics["epoch"]) + 1, config.epochs),
                data=data,
            )
    except BaseException:
        tracker.end_run(tracked, status="FAILED")
        raise
    tracker.end_run(tracked)
    return result


def _show_training(result: TrainResult, out: Output) -> None:
    out.facts(
        "Trained",
        [
            ("run", result.uri),
            ("best epoch", f"{result.best_epoch + 1} of {result.epochs}, ended by {result.stopped_by}"),
            ("parameters", result.parameters),
            *((name.replace("_", ", "), count) for name, count in result.parameter_counts.items() if count),
            *result.best.items(),
        ],
    )


def run_evaluate(settings: Settings, out: Output, *, ablation: bool = True) -> dict[str, Any]:
    """Score the run on its test genes, then every modality subset; both tables shown and saved beside it."""
    from isoformer.evaluate import evaluate
    from isoformer.report.console_table import print_ablation, print_details, print_table
    from isoformer.tracking import Tracker, log_ablation, log_evaluation, run_key

    evaluation = evaluate(settings.root, settings.run, draws=settings.evaluate.draws)
    if not out.as_json:
        print_table(evaluation.table, out.console, title=f"Run {settings.run}, held-out test genes")
        print_details(evaluation.details, out.console)
    result = {"evaluation": evaluation.model_dump(mode="json")}
    if ablation:
        table = _ablation(settings, out)
        if not out.as_json:
            print_ablation(table, out.console, title="What each modality brings")
        result["ablation"] = table.model_dump(mode="json")
    with Tracker(settings.tracking.for_root(settings.root)) as tracker:
        run = tracker.start_run(settings.run, key=run_key(settings.root, settings.run))
        log_evaluation(tracker, run, evaluation)
        if ablation:
            log_ablation(tracker, run, table)
        tracker.end_run(run)
    return result


def run_audit(settings: Settings, out: Output) -> None:
    """What crosses the splits of the dataset."""
    from isoformer.leakage import REPORT_KEY, audit

    found = audit(settings.root)
    out.table(
        "Leakage",
        ("of", "against", "sequences", "", "pairs", "transcripts", "genes", "for example"),
        [
            (
                one.of,
                one.against,
                one.modality,
                one.what,
                one.pairs,
                one.transcripts,
                one.genes,
                " ~ ".join(one.examples[0][:2]) if one.examples else "",
            )
            for one in found.crossings
        ],
    )
    shared = ", ".join(found.genes_in_two_splits[:5]) or "none"
    out.say(f"  genes in two splits: {shared}; report: {settings.root}/{REPORT_KEY}")
    if not found.is_clean:
        out.say("  to keep near-copies on one side: prepare with split.method: homology")
    out.result(found.model_dump(mode="json"))


def run_table(settings: Settings, out: Output, name: TableName, form: str) -> None:
    """One of the paper's tables, shown in the form that is asked for. Ray must be connected."""
    from isoformer.paper.run import paper_table
    from isoformer.paper.table import print_paper_table

    with out.progress(name) as advance:
        table = paper_table(
            name, settings, progress=lambda row, done, fits: advance(done, fits, f"fits, {row}")
        )
    if form == "console":
        if not out.as_json:
            print_paper_table(table, out.console)
            out.say(f"also as {settings.root}/tables/{name}.csv, .md, .html")
        out.result(table.model_dump(mode="json"))
        return
    text = {"csv": table.to_csv, "markdown": table.to_markdown, "html": table.to_html}[form]()
    print(text, end="")


def _ablation(settings: Settings, out: Output) -> ScoreTable:
    from isoformer.ablation import ablation
    from isoformer.storage import open_storage
    from isoformer.training.data import load_dataset

    inside = settings.train.model.encoders
    data = load_dataset(settings.root, settings.first_keys(), encoders=inside, sketches=True)
    random_keys = settings.first_keys(random=True)
    random_data = load_dataset(settings.root, random_keys) if random_keys else None
    with out.progress("ablation") as advance:
        table = ablation(
            settings.train.edited(keys={}, model=settings.train.model.with_modalities(data.modalities)),
            data,
            settings.evaluate,
            random_data=random_data,
            progress=lambda row, done, rows: advance(done, rows, row),
        )
    storage, folder = open_storage(settings.root), f"runs/{settings.run}"
    storage.write_bytes(f"{folder}/ablation.json", table.model_dump_json(indent=1).encode())
    storage.write_bytes(f"{folder}/ablation.csv", table.to_csv().encode())
    return table


def run_predict(settings: Settings, out: Output, request: PredictRequest) -> dict[str, Any]:
    """Predict a file; into a folder of parts Ray must be connected. Counts by reason are shown."""
    from isoformer.predict.parts import PartSettings, predict_parts
    from isoformer.predict.run import is_file, predict_file
    from isoformer.sequence_model import SequenceModel, model_address

    tracking = settings.tracking.for_root(settings.root)
    source = model_address(request.source, settings.root, settings.run)
    model = SequenceModel.open(source, device=request.device, tracking_uri=tracking.resolved_uri)
    rows = _with_reference(settings, request.given).rows(model.policy)
    facts: list[tuple[str, object]] = [("model", source), ("written to", request.output)]
    with out.progress("predict") as advance:

        def told(done: int) -> None:
            advance(done, done, "transcripts")

        if is_file(request.output):
            counts = predict_file(model, rows, request.output, batch_size=request.batch_size, progress=told)
        else:
            parts = PartSettings(
                source=source,
                fingerprint=model.fingerprint,
                output=request.output,
                batch_size=request.batch_size,
                device=request.device,
                workers=request.workers,
                tracking_uri=tracking.resolved_uri,
            )
            report = predict_parts(rows, parts, rows_per_part=request.rows_per_part, progress=told)
            counts = report.counts
            facts.append(("parts / there before", f"{report.parts} / {report.present}"))
    facts += [
        ("unit", "natural log(1 + TPM)"),
        ("rows", counts.rows),
        ("predicted", counts.predicted),
        ("not predicted", counted(counts.not_predicted)),
        ("status", counted(counts.status)),
        ("modalities read", counted(counts.modalities)),
    ]
    out.facts("Predicted", facts)
    if not counts.predicted:
        out.note(f"nothing was predicted: the model reads {', '.join(model.modalities)}")
    return {"model": source, "output": request.output, **asdict(counts)}


def _with_reference(settings: Settings, given: PredictInput) -> PredictInput:
    """With the root's own genome where none is named, and its names of chromosomes."""
    from isoformer.manifest import MANIFEST_KEY, read_manifest
    from isoformer.sources.reference import open_dataset_reference
    from isoformer.storage import open_storage

    storage = open_storage(settings.root)
    if not given.is_gene_models or not storage.exists(MANIFEST_KEY):
        return given
    manifest = read_manifest(storage)
    reference = given.reference
    if reference is None and manifest.reference_digest is not None:
        reference = str(open_dataset_reference(storage, manifest).path)
    return replace(given, reference=reference, chromosome_aliases=manifest.chromosome_aliases)


def run_export(
    settings: Settings,
    out: Output,
    folder: Path | None,
    *,
    with_weights: bool = False,
    as_mlflow: bool = False,
    register: str | None = None,
    alias: str | None = None,
) -> None:
    """A run's model and its encoders as a bundle or an MLflow model; `register`: in the tracking server,
    where the version may get an alias.
    """
    from isoformer.predict.bundle import save_bundle
    from isoformer.sequence_model import SequenceModel

    model = SequenceModel.from_run(settings.root, settings.run)
    if folder is None:
        from isoformer.predict.pyfunc import log_model

        made = log_model(
            model,
            tracking=settings.tracking.for_root(settings.root),
            registered_name=str(register),
            alias=alias,
            with_weights=with_weights,
        )
    elif as_mlflow:
        from isoformer.predict.pyfunc import save_pyfunc

        made = str(save_pyfunc(model, folder, with_weights=with_weights))
    else:
        made = str(save_bundle(model, folder, with_weights=with_weights))
    facts = {
        "run": settings.run,
        "written to": made,
        "fingerprint": model.fingerprint,
        "encoders": ", ".join(encoder.made.key for encoder in model.encoders.values()) or "in the model",
        "encoders' weights": "inside" if with_weights else "not inside",
        **({"also": f"models:/{register}@{alias}"} if alias else {}),
    }
    out.facts("Exported", list(facts.items()))
    out.result({**facts, "with_weights": with_weights})


def run_report(settings: Settings, output: Path | None = None) -> Path:
    """The HTML report, beside the data of a local root unless `output` says where."""
    from isoformer.report import build_report

    return build_report(
        settings.root, output, run=settings.run, study=settings.sweep.study, tracking=settings.tracking
    )


def run_sweep_report(settings: Settings, output: Path | None = None) -> Path:
    """The page of the configured study, beside it unless `output` says where."""
    from isoformer.report import build_sweep_report

    return build_sweep_report(settings.root, settings.sweep.study, output, tracking=settings.tracking)


def run_compare(settings: Settings, out: Output, runs: Sequence[str], output: Path | None = None) -> None:
    """Runs side by side: scores and differing configuration as tables, all of it as a page."""
    from isoformer.report import build_compare_report, compare
    from isoformer.storage import open_storage

    compared = compare(open_storage(settings.root), runs)
    path = build_compare_report(settings.root, compared, output, tracking=settings.tracking)
    out.table("Runs", *compared.score_table())
    if compared.configuration:
        rows = [(key, *values) for key, values in compared.configuration.items()]
        out.table("Configuration that differs", ("key", *runs), rows)
    for reason in compared.unfair:
        out.say(f"  not a fair comparison: {reason}")
    out.say(f"report: {path}")
    out.result({"report": str(path), **compared.to_json()})


def run_store(settings: Settings, out: Output, action: str, *, delete: bool = False) -> bool:
    """`store ls|verify|gc`. False where verification found something wrong."""
    from isoformer.embeddings.admin import collect_garbage, listing, verify

    if action == "verify":
        checked = verify(settings.root, progress=None)
        out.facts(
            "Verified",
            [("objects", checked.objects), ("MB", checked.bytes / 1e6), *_numbered(checked.problems)],
        )
        out.result(checked.to_json())
        return checked.ok
    if action == "gc":
        garbage = collect_garbage(settings.root, delete=delete)
        done = "Deleted" if delete else "Would delete (say --delete to do it)"
        out.table(
            done, ("object", "MB", "why"), [(item.key, item.bytes / 1e6, item.reason) for item in garbage]
        )
        out.result({"deleted": delete, "objects": [asdict(item) for item in garbage]})
        return True
    listed = listing(settings.root)
    out.table(
        settings.root,
        ("dataset", "kind", "objects", "MB", "finished", "detail"),
        [
            (item.name, item.kind, item.objects, item.bytes / 1e6, item.finished, item.detail)
            for item in listed
        ],
    )
    out.result({"root": settings.root, "datasets": [asdict(item) for item in listed]})
    return True


def run_track(settings: Settings, out: Output, action: str) -> bool:
    """`track replay|status`. False where events still wait."""
    from isoformer.tracking import replay, tracking_status

    config = settings.tracking.for_root(settings.root)
    if action == "replay":
        report = replay(config)
        rejected = [(f"{one.op}, run {one.run}", one.reason) for one in report.refusals]
        counts = {"sent": report.sent, "rejected": report.rejected, "waiting": report.waiting}
        facts = [("to", config.shown_uri), *counts.items(), ("journals in use by live runs", report.in_use)]
        out.facts("Replayed", [*facts, *rejected])
        out.result({"to": config.shown_uri, **asdict(report)})
        return not report.waiting
    found = tracking_status(config)
    out.facts("Tracking", [("store", found.answer), ("answers", found.answers), ("waiting", found.waiting)])
    columns = ("journal", "waiting", "runs", "events", "in use by a live run")
    rows = [
        (journal.path.name, journal.waiting, journal.runs, counted(journal.events), journal.in_use)
        for journal in found.journals
    ]
    if rows:
        out.table(str(config.journal_folder), columns, rows)
    for journal in found.journals:
        for one in journal.refusals:
            out.say(f"  refused by MLflow: {one.op}, run {one.run}: {one.reason}")
    out.result(found.to_json())
    return not found.waiting


def run_encoders(settings: Settings, out: Output) -> None:
    """Every encoder that can be named."""
    from isoformer.encoders.listing import listing
    from isoformer.storage import open_storage

    listed = listing(open_storage(settings.root))
    columns = (
        "name",
        "reads",
        "width",
        "layers",
        "tokens",
        "params",
        "weights",
        "parity with",
        "licence",
    )
    out.table("Encoders", columns, [_encoder_row(item) for item in listed])
    out.say("any other: hf:<repository or folder>; pull: isoformer weights pull NAME; by path: weights: PATH")
    out.say(
        "parity: every float32 value within 1e-5 (xpresso: 1e-4) of the implementation named, random weights"
    )
    out.result({"encoders": [asdict(item) for item in listed]})


def _encoder_row(item: Listed) -> tuple[object, ...]:
    spec = item.spec
    if spec is None:
        return (item.name, *[""] * 5, item.weights, "", "")
    sizes = (
        spec.modality,
        f"{spec.width:,}",
        spec.layers or "",
        f"{spec.max_tokens:,}",
        _count(spec.parameter_count),
    )
    return (item.name, *sizes, item.weights, item.compared_with, spec.licence.partition(" (")[0])


def run_weights_pull(
    settings: Settings, out: Output, name: str, *, revision: str | None = None, folder: Path | None = None
) -> None:
    """Published weights, from the hub or a folder, into the root."""
    from isoformer.encoders.weights_pull import pull
    from isoformer.storage import open_storage

    pulled = pull(name, open_storage(settings.root), revision=revision, folder=folder, say=out.note)
    manifest = pulled.manifest
    out.facts(
        "Pulled" if pulled.fetched else "There already",
        [
            ("encoder", name),
            ("repository", manifest.repository),
            ("commit", manifest.commit or "not known: from a folder"),
            ("licence", manifest.licence),
            ("MB", manifest.size_bytes / 1e6),
            ("under", pulled.uri),
        ],
    )
    out.result({"uri": pulled.uri, "fetched": pulled.fetched, "manifest": manifest.model_dump(mode="json")})


def run_weights_list(settings: Settings, out: Output) -> None:
    """The published weights that the root holds."""
    from isoformer.encoders.weights_store import listing
    from isoformer.storage import open_storage

    listed = listing(open_storage(settings.root))
    out.table(
        settings.root,
        ("encoders", "version", "in use", "licence", "MB"),
        [
            (", ".join(item.encoders), item.version, item.in_use, item.licence, item.bytes / 1e6)
            for item in listed
        ],
    )
    out.result({"root": settings.root, "weights": [asdict(item) for item in listed]})


def run_weights_import(out: Output, checkpoint: Path, output: Path, reference: Path | None) -> None:
    """The published IsoFormer as encoders and a model; compared with the authors' predictions where given."""
    from isoformer.published_checkpoint import MODEL_FILE, compare_published, import_published

    choices = import_published(checkpoint, output)
    made = {str(modality): str(choice.weights) for modality, choice in choices.items()}
    made["model"] = str(output / MODEL_FILE)
    out.facts("Imported", list(made.items()))
    compared = asdict(compare_published(output, reference)) if reference else None
    if compared is not None:
        out.facts("Largest differences", list(compared.items()))
    out.result({**made, "compared": compared})


def _numbered(problems: list[str]) -> list[tuple[str, object]]:
    return [(f"problem {number}", problem) for number, problem in enumerate(problems, 1)]


def _short(name: str) -> str:
    """An encoder's name with the first digits of its weights' digest."""
    encoder, _, weights = name.rpartition(".")
    return f"{encoder} {weights[:8]}" if weights not in ("none", "") else encoder


def _count(number: int) -> str:
    return "" if not number else f"{number / 1e6:.1f}M" if number < 1e9 else f"{number / 1e9:.1f}B"


def _duration(seconds: float | None) -> str:
    """In seconds, or in hours where there are many."""
    return _seconds(seconds) if seconds is None or seconds < 3600 else f"{seconds / 3600:,.1f} h"


def _rounded(value: float | None) -> str:
    if value is None:
        return "unknown"
    return f"{value:,.2f}" if value >= 1 else f"{value:.2g}"


def _seconds(value: float | None) -> str:
    return "unknown" if value is None else f"{value:,.1f} s"
