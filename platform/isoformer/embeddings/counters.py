"""What an embedding run tells Prometheus: the driver once a shard and a second, workers once a pack.

The driver counts what is published, so that a shard that two workers did counts once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from isoformer.embeddings.messages import ShardSummary, WorkerStatus
from isoformer.embeddings.plan import Plan
from isoformer.embeddings.pool_state import Slot
from isoformer.telemetry import count, observe, show


class RunCounters:
    """Of one run over a plan; what is left of each encoder's work is kept here."""

    def __init__(self, planned: Plan) -> None:
        self._names = [encoder_pass.spec.name for encoder_pass in planned.passes]
        self._loads = {item.name: item.load.tokens for item in planned.work}
        self._shards_left: Counter[str] = Counter()
        self._tokens_left: Counter[str] = Counter()
        for item in planned.work:
            self._shards_left[self._names[item.encoder]] += 1
            self._tokens_left[self._names[item.encoder]] += item.load.tokens
        self._halvings: dict[tuple[str, int], int] = {}
        of_pass = {encoder_pass.name: encoder_pass.spec.name for encoder_pass in planned.passes}
        for encoder in planned.encoders:
            show("isoformer_duplicates_saved", encoder.duplicates_saved, encoder=of_pass[encoder.name])
        self._show_left()

    def published(self, summary: ShardSummary) -> None:
        """A shard is done."""
        encoder = self._names[summary.encoder]
        self._shards_left[encoder] -= 1
        self._tokens_left[encoder] -= self._loads[summary.encoder, summary.shard]
        before = self._halvings.get((summary.worker, summary.encoder), 0)
        self._halvings[summary.worker, summary.encoder] = summary.budget_halvings
        count("isoformer_tokens_total", summary.workload.tokens, encoder=encoder)
        count("isoformer_sequences_total", summary.workload.sequences, encoder=encoder)
        count("isoformer_reused_total", summary.reused, encoder=encoder)
        count("isoformer_shards_total", len(summary.entries), encoder=encoder)
        count("isoformer_bytes_written_total", summary.workload.output_bytes, encoder=encoder)
        count("isoformer_out_of_memory_total", summary.budget_halvings - before, encoder=encoder)
        observe("isoformer_shard_seconds", summary.encode_seconds, encoder=encoder, phase="encode")
        observe("isoformer_shard_seconds", summary.publish_seconds, encoder=encoder, phase="publish")
        for reason, value in next(iter(summary.entries.values()))["quarantined"].items():
            count("isoformer_quarantined_total", value, encoder=encoder, reason=reason)
        self._show_left()

    def failed(self, encoder: int | None, kind: str) -> None:
        """A worker is lost, or a shard was tried in vain."""
        name = "none" if encoder is None else self._names[encoder]
        count("isoformer_failures_total", encoder=name, kind=kind)

    def polled(self, slots: Iterable[Slot], queue: dict[str, int]) -> None:
        """How many workers are at work, and how many shards are at which stage before them."""
        states = Counter(
            "starting" if not slot.is_ready else "busy" if slot.running else "idle" for slot in slots
        )
        for state in ("starting", "busy", "idle"):
            show("isoformer_workers", states[state], state=state)
        for stage, shards in queue.items():
            show("isoformer_queue", shards, stage=stage)

    def ended(self) -> None:
        """The run is over, whether it came to its end or not: nothing is left to wait for."""
        self._shards_left = Counter(dict.fromkeys(self._shards_left, 0))
        self._tokens_left = Counter(dict.fromkeys(self._tokens_left, 0))
        self._show_left()
        self.polled((), {})

    def _show_left(self) -> None:
        for name, shards in self._shards_left.items():
            show("isoformer_shards_left", shards, encoder=name)
            show("isoformer_tokens_left", self._tokens_left[name], encoder=name)


def pack_done(encoder: str, tokens: int, seconds: float) -> None:
    """At the worker: a shard may take minutes, a pack shows that it goes on."""
    count("isoformer_pack_tokens_total", tokens, encoder=encoder)
    observe("isoformer_pack_seconds", seconds, encoder=encoder)


def shard_done(encoder: str, summary: ShardSummary, status: WorkerStatus) -> None:
    """At the worker: how it is."""
    tokens, padding = summary.workload.tokens, summary.padding_tokens
    show("isoformer_padding_fraction", padding / max(1, tokens + padding), encoder=encoder)
    show("isoformer_token_budget", summary.token_budget, encoder=encoder)
    if status.alive_seconds:
        show("isoformer_device_busy_fraction", status.busy_seconds / status.alive_seconds, encoder=encoder)
