"""What an embedding run counts for Prometheus, through Ray's metrics; Ray puts `ray_` before each name.

The driver counts, once a shard; workers show how they are. In a process without Ray nothing is counted.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any, Final, Literal

COUNTERS: Final = {
    "isoformer_tokens_total": "Real tokens encoded",
    "isoformer_sequences_total": "Distinct sequences encoded",
    "isoformer_reused_total": "Sequences whose rows were copied from earlier shards",
    "isoformer_shards_total": "Shards published, over all datasets",
    "isoformer_bytes_written_total": "Bytes of published shards",
    "isoformer_quarantined_total": "Sequences set aside, by reason",
    "isoformer_out_of_memory_total": "Times that a token budget was halved",
    "isoformer_failures_total": "Workers lost, stalled, or refused by storage, by kind",
}
GAUGES: Final = {
    "isoformer_padding_fraction": "Part of the last shard's tokens that was padding",
    "isoformer_device_busy_fraction": "Part of a worker's time since its first pack that its device was busy",
    "isoformer_token_budget": "Tokens of one pack",
}
_LABELS: Final = {"isoformer_quarantined_total": "reason", "isoformer_failures_total": "kind"}


def count(name: str, value: float, *, encoder: str, label: str | None = None) -> None:
    """Add to a counter of `COUNTERS`."""
    if value and _is_connected():
        _metric(name, "counter").inc(value, tags=_tags(name, encoder, label))


def show(name: str, value: float, *, encoder: str) -> None:
    """Set a gauge of `GAUGES`."""
    if _is_connected():
        _metric(name, "gauge").set(value, tags=_tags(name, encoder, None))


def _tags(name: str, encoder: str, label: str | None) -> Mapping[str, str]:
    return {"encoder": encoder} | ({_LABELS[name]: str(label)} if name in _LABELS else {})


def _is_connected() -> bool:
    import sys

    return "ray" in sys.modules and bool(sys.modules["ray"].is_initialized())


@cache
def _metric(name: str, kind: Literal["counter", "gauge"]) -> Any:
    from ray.util import metrics

    keys = ("encoder", *([_LABELS[name]] if name in _LABELS else []))
    if kind == "counter":
        return metrics.Counter(name, description=COUNTERS[name], tag_keys=keys)
    return metrics.Gauge(name, description=GAUGES[name], tag_keys=keys)
