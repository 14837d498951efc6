"""The command line: `isoformer <verb> --config FILE --set section.key=value [--json]`.

One function a verb: read the settings, call the stage, show what came out. A user's mistake is one line on
standard error and exit status 2; an interrupt says how to go on and exits with 130; a check that failed, 1.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from isoformer import __version__
from isoformer.benchmark.commands import benchmark
from isoformer.console import Output
from isoformer.errors import IsoformerError
from isoformer.explain.commands import explain
from isoformer.storage import full_disk
from isoformer.submission_commands import cluster, submit

if TYPE_CHECKING:
    from isoformer.paper.rows import TableName
    from isoformer.settings import Settings

Verb = Callable[..., None]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit the process with its status."""
    try:
        status = commands.main(args=arguments, prog_name="isoformer", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(2)
    except (KeyboardInterrupt, click.Abort):
        click.echo("interrupted: nothing is lost; run the same command again to go on", err=True)
        sys.exit(130)
    except Exception as error:
        cause = _users_error(error) or full_disk(error)
        if cause is None:
            raise
        click.echo(f"error: {cause}", err=True)
        sys.exit(2)
    if status:  # what a verb asked for with click's Exit
        sys.exit(status)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="isoformer")
def commands() -> None:
    """From a genome, an annotation and an expression table to a tuned multi-modal model."""


def _verb(function: Verb) -> click.Command:
    """A command with the options all verbs share; the function gets the settings and where to write."""

    @click.option("--config", type=click.Path(dir_okay=False), help="YAML file with a section a verb.")
    @click.option(
        "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override, e.g. train.seed=1."
    )
    @click.option("--json", "as_json", is_flag=True, help="Print one JSON object on standard output.")
    @functools.wraps(function)
    def command(config: str | None, overrides: tuple[str, ...], as_json: bool, **options: Any) -> None:
        from isoformer.settings import load_settings

        function(load_settings(config, overrides), Output(as_json), **options)

    return commands.command()(command)


@commands.command()
@click.option(
    "--output", default="demo-output", show_default=True, help="Folder, or s3://…, for all it makes."
)
@click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override, e.g. sweep.trials=30."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on standard output.")
def demo(output: str, overrides: tuple[str, ...], as_json: bool) -> None:
    """Run the whole road on the shipped real sample: minutes on a laptop, no network."""
    from isoformer.demo import run_demo

    run_demo(output, Output(as_json), overrides)


@_verb
def doctor(settings: Settings, out: Output) -> None:
    """Check installation, storage, tracking and cluster, from the driver and from a worker."""
    from isoformer.doctor import examine

    checks = []
    for check in examine(settings.root, settings.tracking.for_root(settings.root), settings.ray):
        checks.append(check)
        out.say(f"{'ok  ' if check.passed else 'FAIL'} {check.where:6} {check.name:17} {check.found}")
        if check.mend:
            out.say(f"     to mend: {check.mend}")
    out.result({"checks": [check.to_json() for check in checks]})
    if not all(check.passed for check in checks):
        raise click.exceptions.Exit(1)


@_verb
@click.option("--open", "opens", is_flag=True, help="Open those that are up in a browser.")
def dashboard(settings: Settings, out: Output, opens: bool) -> None:
    """Say where to look (Ray, MLflow, Optuna, Prometheus, Grafana), what is up, how to start the rest."""
    import webbrowser

    from isoformer.dashboards import services

    found = services(settings)
    for service in found:
        state = "up  " if service.is_up else "down"
        out.say(f"{state} {service.name:10} {service.address:24} {service.shows}")
        if not service.is_up:
            out.say(f"     to start: {service.start}")
        elif opens:
            webbrowser.open(service.address)
    out.result({"services": [service.to_json() for service in found]})


@_verb
def prepare(settings: Settings, out: Output) -> None:
    """Make the transcripts dataset from genome, annotation and expression."""
    from isoformer.ray_session import ray_session
    from isoformer.stages import run_prepare

    with ray_session(settings.ray):
        manifest = run_prepare(settings, out)
    out.result(manifest.model_dump(mode="json"))


_budget = click.option(
    "--budget-hours", type=click.FloatRange(0, min_open=True), help="Refuse to embed for longer than this."
)


@_verb
@_budget
def plan(settings: Settings, out: Output, budget_hours: float | None) -> None:
    """Say what embedding would do, what is there already, how long it takes and what it costs."""
    from isoformer.embeddings.forecast import require_budget
    from isoformer.embeddings.plan import plan as run
    from isoformer.stages import show_plan

    planned = run(settings.embed, settings.root)
    show_plan(planned, out)
    out.result(planned.summary())
    require_budget(planned.forecast, budget_hours)


@_verb
@_budget
def embed(settings: Settings, out: Output, budget_hours: float | None) -> None:
    """Embed the distinct sequences of the dataset; what is there already is not done again."""
    from isoformer.ray_session import ray_session
    from isoformer.stages import run_embed

    with ray_session(settings.ray):
        report = run_embed(settings, out, budget_hours=budget_hours)
    out.result(report.to_json())


@_verb
def pretrain(settings: Settings, out: Output) -> None:
    """Train a small masked language model on the dataset's sequences and export it as an encoder."""
    from isoformer.ray_session import ray_session
    from isoformer.training.pretrain import pretrain as run

    with ray_session(settings.ray):
        result = run(settings.pretrain, settings.root)
    out.facts("Pre-trained", [("encoder", result.name), ("written to", result.uri), *result.metrics.items()])
    out.result({"name": result.name, "uri": result.uri, "metrics": result.metrics})


@_verb
@click.option("--resume", is_flag=True, help="Go on with (or reuse) the run of this name.")
@click.option("--seeds", metavar="N,N,…", help="A run each; mean and spread of all. E.g. 0,1,2,3,4.")
def train(settings: Settings, out: Output, resume: bool, seeds: str | None) -> None:
    """Fit the model with Ray Train: on cached embeddings, or together with its encoders."""
    from isoformer.ray_session import ray_session
    from isoformer.stages import run_train, run_train_seeds

    if seeds is not None:
        listed = _seeds(seeds)
        with ray_session(settings.ray):
            out.result(run_train_seeds(settings, out, listed, resume=resume))
        return
    with ray_session(settings.ray):
        result = run_train(settings, out, resume=resume)
    out.result(asdict(result))


@_verb
@click.argument("action", type=click.Choice(["run", "pause", "stop", "cancel"]), default="run")
@click.option("--resume", is_flag=True, help="Go on with the study of this name.")
def sweep(
    settings: Settings, out: Output, action: Literal["run", "pause", "stop", "cancel"], resume: bool
) -> None:
    """Search architecture, encoders, resolution and learning rate with Ray Tune and Optuna.

    pause, stop, cancel: ask the sweep that runs under this root. After pause, --resume goes on with every
    trial from its checkpoint; stop lets the running ones end; cancel does not wait for them.
    """
    from isoformer.ray_session import ray_session
    from isoformer.sweep_stages import ask_sweep, run_sweep

    if action != "run":
        ask_sweep(settings, out, action)
        return
    with ray_session(settings.ray):
        result = run_sweep(settings, out, resume=resume)
    out.result(result)


@_verb
@click.option("--ablation/--no-ablation", default=True, show_default=True, help="Also every modality subset.")
@click.option("--audit", is_flag=True, help="Instead: what crosses the dataset's splits, near-copies too.")
@click.option(
    "--table",
    type=click.Choice(["modalities", "fusions", "transfer", "encoders"]),
    help="Instead: a table of the paper on this root's data, beside its published numbers.",
)
@click.option(
    "--format", "form", type=click.Choice(["console", "csv", "markdown", "html"]), default="console",
    show_default=True, help="Of the table.",
)  # fmt: skip
def evaluate(
    settings: Settings, out: Output, ablation: bool, audit: bool, table: TableName | None, form: str
) -> None:
    """Score a run on the held-out genes, with the baselines and the modality ablation beside it."""
    from isoformer.ray_session import ray_session
    from isoformer.stages import run_audit, run_evaluate, run_table

    if audit:
        run_audit(settings, out)
        return
    if table is not None:
        with ray_session(settings.ray):
            run_table(settings, out, table, form)
        return
    out.result(run_evaluate(settings, out, ablation=ablation))


@_verb
@click.option("--output", default=None, help="File to write; default: reports/ under a local root.")
@click.option("--sweep", "is_sweep", is_flag=True, help="Instead: the page of sweep.study, beside the study.")
def report(settings: Settings, out: Output, output: str | None, is_sweep: bool) -> None:
    """Write one static HTML page: data, curves, scores, ablation, sweep."""
    from isoformer.stages import run_report, run_sweep_report

    path = (run_sweep_report if is_sweep else run_report)(settings, Path(output) if output else None)
    out.say(f"report: {path}")
    out.result({"report": str(path)})


@_verb
@click.argument("runs", nargs=-1, required=True, metavar="RUN RUN [RUN]...")
@click.option("--output", type=click.Path(path_type=Path), help="File to write; default: in reports/.")
def compare(settings: Settings, out: Output, runs: tuple[str, ...], output: Path | None) -> None:
    """Set finished runs side by side: configuration, scores, curves, tissues; in the terminal and as HTML."""
    from isoformer.stages import run_compare

    run_compare(settings, out, runs, output)


@_verb
@click.argument("action", type=click.Choice(["ls", "verify", "gc"]))
@click.option("--delete", is_flag=True, help="gc: delete; without it, only say what would go.")
def store(settings: Settings, out: Output, action: str, delete: bool) -> None:
    """List (ls), re-hash (verify) or clean (gc) the embedding datasets under the root."""
    from isoformer.stages import run_store

    if not run_store(settings, out, action, delete=delete):
        raise click.exceptions.Exit(1)


@_verb
@click.argument("action", type=click.Choice(["replay", "status"]))
def track(settings: Settings, out: Output, action: str) -> None:
    """Send what a tracking server missed (replay), or say what waits and where (status)."""
    from isoformer.stages import run_track

    if not run_track(settings, out, action):
        raise click.exceptions.Exit(1)


@_verb
def encoders(settings: Settings, out: Output) -> None:
    """List every encoder: what it reads, its size, licence and parity, and where its weights are."""
    from isoformer.stages import run_encoders

    run_encoders(settings, out)


@_verb
@click.argument("action", type=click.Choice(["pull", "ls", "import-isoformer"]))
@click.argument("name", required=False)
@click.option("--revision", help="pull: a commit (or a branch) to change this root over to.")
@click.option("--from", "folder", type=click.Path(file_okay=False), help="pull: a folder instead of the hub.")
@click.option("--output", type=click.Path(path_type=Path), help="import-isoformer: the folder to make.")
@click.option("--reference", type=click.Path(path_type=Path), help="import-isoformer: compare with these.")
def weights(
    settings: Settings,
    out: Output,
    action: str,
    name: str | None,
    revision: str | None,
    folder: str | None,
    output: Path | None,
    reference: Path | None,
) -> None:
    """Put an encoder's published weights into the root (pull NAME), or list those there (ls)."""
    from isoformer.stages import run_weights_import, run_weights_list, run_weights_pull

    if action == "ls":
        run_weights_list(settings, out)
    elif action == "import-isoformer":
        if name is None or output is None:
            raise click.UsageError("weights import-isoformer needs a FILE and --output FOLDER")
        run_weights_import(out, Path(name), output, reference)
    elif name is None:
        raise click.UsageError("weights pull needs an encoder's name, or hf:<organisation>/<repository>")
    else:
        run_weights_pull(settings, out, name, revision=revision, folder=Path(folder) if folder else None)


@_verb
@click.argument("path", metavar="INPUT")
@click.option("--output", required=True, help="A .parquet or .csv file, or a folder of part files (on Ray).")
@click.option("--run", help="A finished run under the root; default: the configured one.")
@click.option("--model", "source", help="Instead: root/runs/RUN, a bundle's folder, models:/… or runs:/…")
@click.option("--reference", help="Genome of gene models (GTF, GFF3); default: the root's.")
@click.option("--protein", help="FASTA of proteins, beside an INPUT of RNA; the same ids.")
@click.option("--dna", help="FASTA of TSS-centred windows, beside an INPUT of RNA; the same ids.")
@click.option("--batch-size", type=click.IntRange(1), default=32, show_default=True)
@click.option("--device", default="cpu", show_default=True, help="cpu or cuda.")
@click.option("--workers", type=click.IntRange(1), default=1, show_default=True, help="Of a folder's parts.")
@click.option("--rows-per-part", type=click.IntRange(1), default=512, show_default=True)
def predict(settings: Settings, out: Output, path: str, run: str | None, **options: Any) -> None:
    """Predict expression of the transcripts in INPUT: FASTA, GTF or GFF3, CSV, Parquet, a prepared shard."""
    from isoformer.predict.inputs import PredictInput
    from isoformer.predict.run import PredictRequest, is_file
    from isoformer.ray_session import ray_session
    from isoformer.stages import run_predict

    if run is not None:
        settings = settings.edited(run=run)
    if is_file(options["output"]) and options["workers"] > 1:
        raise click.UsageError("--workers is of a folder of part files; give --output a folder's name")
    given = PredictInput(path, options.pop("reference"), options.pop("dna"), options.pop("protein"))
    request = PredictRequest(given, **options)
    with nullcontext() if is_file(request.output) else ray_session(settings.ray):
        out.result(run_predict(settings, out, request))


@_verb
@click.argument("folder", required=False, type=click.Path(path_type=Path))
@click.option("--run", help="A finished run under the root; default: the configured one.")
@click.option(
    "--with-weights", is_flag=True, help="Put the encoders' weights in: it needs nothing beside it."
)
@click.option("--mlflow", "as_mlflow", is_flag=True, help="As an MLflow model, for `mlflow models serve`.")
@click.option("--register", metavar="NAME", help="Instead of FOLDER: into the tracking server's registry.")
@click.option("--alias", help="With --register: a name of the new version, as best; others lose it.")
def export(settings: Settings, out: Output, folder: Path | None, run: str | None, **options: Any) -> None:
    """Write a run's model and its encoders into FOLDER: a bundle, or an MLflow model."""
    from isoformer.stages import run_export

    if (folder is None) == (options["register"] is None):
        raise click.UsageError("export needs a FOLDER, or --register NAME")
    if options["alias"] is not None and options["register"] is None:
        raise click.UsageError("--alias is of a registered version: give --register NAME")
    if run is not None:
        settings = settings.edited(run=run)
    run_export(settings, out, folder, **options)


commands.add_command(benchmark)
commands.add_command(explain)
commands.add_command(submit)
commands.add_command(cluster)


def _seeds(text: str) -> list[int]:
    """Distinct whole numbers. UsageError for anything else."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts) or len(set(parts)) != len(parts):
        raise click.UsageError(f"--seeds {text}: must be distinct whole numbers, as 0,1,2")
    return [int(part) for part in parts]


def _users_error(error: BaseException) -> IsoformerError | None:
    """The error of ours that this one is, wraps (as Ray's do) or was raised from; None for a bug."""
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        if isinstance(current, IsoformerError):
            return current
        wrapped = getattr(current, "cause", None)
        current = wrapped if isinstance(wrapped, BaseException) else current.__cause__ or current.__context__
    return None
