"""`isoformer benchmark profile`: what each configured encoder pass costs on the hardware that will run it.

In: a configuration and a root; where nothing is prepared there, the shipped sample stands in. Out: an
`EncoderCost` a pass in the root's profile.json, from which `isoformer plan` says how long a run takes. As
many Ray actors as a node will have, with the configured CPUs, GPUs and threads, measure at the same time
(`measure.py`), since they share what the node has; here are the root, the actors and what is shown.
"""

from __future__ import annotations

import math
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

import numpy as np

from isoformer.benchmark.measure import SECONDS_EACH, measure
from isoformer.config import build
from isoformer.console import Output
from isoformer.demo_data import demo_paths
from isoformer.embeddings.cluster import alive_nodes, require_room
from isoformer.embeddings.config import EmbedConfig, EncoderPass, encoder_passes
from isoformer.embeddings.profile import EncoderCost, read_profile, write_profile
from isoformer.embeddings.shard_sequences import TokenizedShard, TranscriptsSource, require_fit, tokenise
from isoformer.embeddings.workload import Workload
from isoformer.encoders.spec import EncoderSpec
from isoformer.manifest import MANIFEST_KEY, read_manifest
from isoformer.planning import PrepareConfig
from isoformer.storage import Storage, open_storage
from isoformer.transcripts import prepare, run_here

SHOWN_LENGTHS: Final = (128, 512, 2048)
_SAMPLE_TOKENS: Final = 200_000
_MOST_SHARDS: Final = 4
_TYPICAL: Final = Workload.of([512] * 100, 512)


@dataclass(frozen=True)
class Measured:
    """One pass. Speeds are by a sequence's length in tokens, of those that the encoder reads in one piece."""

    encoder: str
    cost: EncoderCost
    tokens_per_second: dict[int, float]
    gigaflops_per_second: dict[int, float]
    was_known: bool


def benchmark_profile(
    config: EmbedConfig,
    root: str,
    *,
    again: bool = False,
    seconds: float = SECONDS_EACH,
    progress: Callable[[str], None] = lambda _: None,
) -> list[Measured]:
    """Measure every configured pass that the root's profile does not know, or all of them `again`.

    Ray must be connected. `seconds`: about how long one timing takes. EncoderError where there is nothing
    that an encoder reads, StorageError and ClusterError as for a run.
    """
    storage = open_storage(root)
    profile, threads = read_profile(storage), config.threads(alive_nodes())
    measured = []
    if (load := os.getloadavg()[0]) > (cores := len(os.sched_getaffinity(0))):
        progress(
            f"load average {load:.1f} on {cores} cores: what a busy machine is measured at, a quiet one beats"
        )
    with _prepared(storage, config, progress) as (source, shards), _actors(config, threads) as actors:
        for encoder_pass in encoder_passes(config, root):
            name = encoder_pass.name
            known = None if again else profile.cost(name, config.device, threads)
            cost = known
            if cost is None:
                progress(f"measuring {name}")
                require_fit(encoder_pass.spec, source.window_bases, source.storage.uri)
                cost, started_after = actors(encoder_pass, source, shards, seconds)
                profile = profile.with_cost(name, config.device, threads, cost)
                if profile.startup_seconds is None:
                    profile = replace(profile, startup_seconds=started_after)
                write_profile(storage, profile)
            measured.append(_shown(encoder_pass, cost, was_known=known is not None))
    return measured


def show_profile(measured: Sequence[Measured], out: Output) -> None:
    """A line a pass: speeds by length, and what it was measured on."""
    columns = ("encoder", "tokens/s (at tokens a sequence)", "GFLOP/s", "load s", "observed/modelled")
    rows = [
        (
            _short(one.encoder),
            _by_length(one.tokens_per_second),
            _by_length(one.gigaflops_per_second),
            one.cost.load_seconds,
            one.cost.observed_over_modelled,
        )
        for one in measured
    ]
    for name in sorted({one.cost.hardware for one in measured}):
        out.say(f"measured on {name}")
    out.table("Profile", columns, rows)
    out.result({"encoders": [asdict(one) for one in measured]})


def _short(encoder: str) -> str:
    """With the first digits of its weights' digest."""
    name, _, weights = encoder.rpartition(".")
    return f"{name}.{weights if weights.startswith('random-') else weights[:8]}"


def _by_length(values: Mapping[int, float]) -> str:
    return " · ".join(f"{value:,.0f} ({length:,})" for length, value in values.items())


class _MeasureActor:
    """Measures one pass after another in a process of its own."""

    def __init__(self, config: EmbedConfig, threads: int) -> None:
        import torch

        torch.set_num_threads(threads)
        self._config, self._threads = config, threads

    def measure(
        self, encoder_pass: EncoderPass, source: TranscriptsSource, shards: int, seconds: float
    ) -> tuple[EncoderCost, float]:
        """The cost, and at what time the encoder was loaded."""
        sequences = _sample(source, shards, encoder_pass)
        began = time.time()
        cost = measure(self._config, encoder_pass, sequences, self._threads, seconds=seconds)
        return cost, began + cost.load_seconds


Measure = Callable[[EncoderPass, TranscriptsSource, int, float], tuple[EncoderCost, float]]


@contextmanager
def _actors(config: EmbedConfig, threads: int) -> Iterator[Measure]:
    """A function that measures in Ray actors: the middling cost, seconds from here to a loaded encoder."""
    import ray

    require_room(config, config.actors)
    began = time.time()
    remote: Any = ray.remote(num_cpus=config.cpus_per_actor, num_gpus=config.gpus_per_actor)(_MeasureActor)
    count = math.ceil((config.least_actors or config.actors) / alive_nodes())
    actors = [remote.remote(config, threads) for _ in range(count)]

    def run(*arguments: Any) -> tuple[EncoderCost, float]:
        found = ray.get([actor.measure.remote(*arguments) for actor in actors])
        costs = sorted((cost for cost, _ in found), key=lambda cost: cost.seconds(_TYPICAL))
        return costs[len(costs) // 2], max(loaded_at for _, loaded_at in found) - began

    try:
        yield run
    finally:
        for actor in actors:
            ray.kill(actor)


@contextmanager
def _prepared(
    storage: Storage, config: EmbedConfig, progress: Callable[[str], None]
) -> Iterator[tuple[TranscriptsSource, int]]:
    """The root's own transcripts, or the shipped sample's in a temporary folder, and the number of shards."""
    if storage.exists(MANIFEST_KEY):
        manifest = read_manifest(storage)
        yield TranscriptsSource.of(storage, manifest, config.cache_dir), len(manifest.shards)
        return
    progress(f"{storage.uri}: nothing is prepared; the shipped human sample stands in")
    with tempfile.TemporaryDirectory(prefix="isoformer-profile-") as folder:
        manifest = prepare(build(PrepareConfig, {**demo_paths(), "shards": 1}), folder, run_shards=run_here)
        yield TranscriptsSource.of(open_storage(folder), manifest, config.cache_dir), 1


def _sample(source: TranscriptsSource, shards: int, encoder_pass: EncoderPass) -> TokenizedShard:
    """Tokenised sequences of the first shards."""
    parts: list[TokenizedShard] = []
    for shard in range(min(shards, _MOST_SHARDS)):
        parts.append(tokenise(source, shard, encoder_pass.choice))
        if sum(len(part.token_ids) for part in parts) >= _SAMPLE_TOKENS:
            break
    lengths = np.concatenate([part.lengths() for part in parts])
    return TokenizedShard(
        [digest for part in parts for digest in part.digests],
        np.concatenate([part.token_ids for part in parts]),
        np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
    )


def _shown(encoder_pass: EncoderPass, cost: EncoderCost, *, was_known: bool) -> Measured:
    spec = encoder_pass.spec
    seconds = {length: _marginal_seconds(spec, cost, length) for length in _lengths(spec)}
    speeds = {length: length / taken for length, taken in seconds.items() if taken}
    flops = {length: spec.flops(length, length**2) for length in speeds}
    gigaflops = {length: flops[length] / seconds[length] / 1e9 for length in speeds if flops[length]}
    return Measured(encoder_pass.name, cost, speeds, gigaflops, was_known)


def _lengths(spec: EncoderSpec) -> list[int]:
    """The lengths to show: its window's, where an encoder reads but one."""
    if spec.window_bases is not None:
        return [math.ceil(sum(spec.window_bases) / spec.letters_per_token)]
    return [length for length in SHOWN_LENGTHS if length <= spec.max_tokens]


def _marginal_seconds(spec: EncoderSpec, cost: EncoderCost, length: int) -> float:
    """Of one sequence more, without what a shard costs by itself."""
    return cost.seconds(Workload.of([length], spec.max_tokens)) - cost.seconds(Workload())
