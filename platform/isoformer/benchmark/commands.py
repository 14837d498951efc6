"""`isoformer benchmark <what>`: the options of each benchmark. What is heavy is imported when one runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from isoformer.console import Output

if TYPE_CHECKING:
    from isoformer.benchmark.rounds import Benchmark

_DEVICES = click.Choice(["cpu", "cuda"])
_PRECISIONS = click.Choice(["f32", "bf16", "f16"])


@click.group()
def benchmark() -> None:
    """Measure against named alternatives, all run here: every figure is a ratio within one run."""


def _shared(most_rounds: int) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """The options of every benchmark that runs in rounds."""

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        rounds = click.option(
            "--rounds", default=most_rounds, show_default=True, type=click.IntRange(1), help="Interleaved."
        )
        as_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
        return rounds(as_json(function))

    return decorate


@benchmark.command()
@click.option("--encoder", default="esm2-35m", show_default=True, help="A published ESM-2 size.")
@click.option("--seconds", default=4.0, show_default=True, help="About how long one pass takes.")
@click.option("--threads", default=1, show_default=True, type=click.IntRange(1), help="Of every contestant.")
@click.option("--device", default="cpu", show_default=True, type=_DEVICES)
@click.option("--precision", default="f32", show_default=True, type=_PRECISIONS)
@_shared(4)
def encoders(as_json: bool, **options: Any) -> None:
    """Our packed forward pass against padded batches, one by one, and ONNX Runtime."""
    from isoformer.benchmark.encoders import benchmark_encoders

    _run(Output(as_json), benchmark_encoders, options)


@benchmark.command()
@click.option("--encoder", default="esm2-35m", show_default=True, help="A published ESM-2 size.")
@click.option("--precision", default="f32", show_default=True, type=_PRECISIONS)
@click.option("--device", default="cpu", show_default=True, type=_DEVICES)
@_shared(3)
def embed(as_json: bool, **options: Any) -> None:
    """The whole engine under Ray against a bare loop, Ray Data and the script a user would write."""
    from isoformer.benchmark.embed import benchmark_embed

    _run(Output(as_json), benchmark_embed, options)


@benchmark.command()
@click.option("--encoder", default="esm2-8m", show_default=True, help="A published ESM-2 size.")
@click.option("--times", default=8, show_default=True, type=click.IntRange(2), help="The larger input.")
@_shared(3)
def scale(as_json: bool, **options: Any) -> None:
    """Memory and cost per sequence at 1 and 8 times the input; two nodes against one."""
    from isoformer.benchmark.scale import benchmark_scale

    _run(Output(as_json), benchmark_scale, options)


@benchmark.command()
@click.option("--megabytes", default=256, show_default=True, type=click.IntRange(8), help="Of one shard.")
@_shared(3)
def store(as_json: bool, **options: Any) -> None:
    """Layouts of per-token arrays in Parquet: size, write, read, random access."""
    from isoformer.benchmark.store import benchmark_store

    _run(Output(as_json), benchmark_store, options)


@benchmark.command()
@click.option("--encoder", default="esm2-35m", show_default=True, help="A published ESM-2 size.")
@_shared(3)
def train(as_json: bool, **options: Any) -> None:
    """The streaming loop against tensors in memory; cached embeddings against the encoder in the loop."""
    from isoformer.benchmark.train import benchmark_train

    _run(Output(as_json), benchmark_train, options)


@benchmark.command()
@click.option("--runs", default=20, show_default=True, type=click.IntRange(1), help="Trials of a turn.")
@click.option("--epochs", default=20, show_default=True, type=click.IntRange(1), help="Of a trial.")
@click.option("--page-runs", default=500, show_default=True, type=click.IntRange(1), help="On the page.")
@_shared(3)
def track(as_json: bool, **options: Any) -> None:
    """A sweep's runs into a real MLflow server, against a call a metric; its page in Chromium."""
    from isoformer.benchmark.track import benchmark_track

    _run(Output(as_json), benchmark_track, options)


@benchmark.command()
@click.option("--trials", default=16, show_default=True, type=click.IntRange(4), help="Of a turn.")
@click.option("--epochs", default=10, show_default=True, type=click.IntRange(2), help="Of a trial.")
@click.option("--memory-trials", default=200, show_default=True, help="Of the sweep watched for its memory.")
@_shared(3)
def sweep(as_json: bool, **options: Any) -> None:
    """Finished trials a minute against plain Ray Tune and plain Optuna, on the demo's data."""
    from isoformer.benchmark.sweep import benchmark_sweep

    _run(Output(as_json), benchmark_sweep, options)


@benchmark.command()
@click.option("--dollars-per-gpu-hour", default=4.10, show_default=True, type=click.FloatRange(0))
@click.option("--rounds", default=3, show_default=True, type=click.IntRange(0), help="Of real runs; 0: none.")
@click.option("--large/--no-large", default=True, help="Also 100 million sequences on 10,000 workers.")
@click.option("--seed", default=0, show_default=True, help="Of stragglers and losses.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def schedule(as_json: bool, **options: Any) -> None:
    """The real driver on simulated GPU clusters: hours, money, losses, and where the driver is the limit."""
    from isoformer.benchmark.schedule import benchmark_schedule

    _run(Output(as_json), benchmark_schedule, options)


@benchmark.command()
@click.option("--config", type=click.Path(dir_okay=False), help="YAML file with a section a verb.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override, e.g. embed.actors=2.")
@click.option("--again", is_flag=True, help="Measure also what the root's profile knows.")
@click.option(
    "--seconds", default=0.6, show_default=True, type=click.FloatRange(0, min_open=True), help="Of a timing."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def profile(
    config: str | None, overrides: tuple[str, ...], again: bool, seconds: float, as_json: bool
) -> None:
    """What each configured encoder costs on this hardware, for `plan`; kept in the root's profile.json."""
    from isoformer.benchmark.profile import benchmark_profile, show_profile
    from isoformer.ray_session import ray_session
    from isoformer.settings import load_settings

    settings, out = load_settings(config, overrides), Output(as_json)
    with ray_session(settings.ray):
        measured = benchmark_profile(
            settings.embed, settings.root, again=again, seconds=seconds, progress=out.note
        )
    show_profile(measured, out)


def _run(out: Output, function: Callable[..., Benchmark], options: dict[str, Any]) -> None:
    out.note("every contestant in turn, some minutes; keep the machine quiet meanwhile")
    result = function(**options)
    shown = [("ran on", f"{result.hardware['device']}, {result.hardware['threads']} thread(s)")]
    out.facts(f"Benchmark: {result.what}", [*shown, *result.settings.items(), *result.ratios.items()])
    out.result(result.to_json())
