"""The dashboard of an embedding run: how fast, how much is left, what the devices do, what went wrong."""

from __future__ import annotations

from grafana import Board, Panel, Query, Row

E = '{encoder=~"$encoder"}'
RATE = "[$__rate_interval]"

NOW = Row(
    "Now",
    (
        Panel(
            "Tokens a second",
            "Real tokens encoded on all devices, without padding.",
            (Query(f"sum(rate(ray_isoformer_pack_tokens_total{E}{RATE}))"),),
            unit="short",
            kind="stat",
        ),
        Panel(
            "Shards left",
            "Shards that the run has still to do.",
            (Query(f"sum(ray_isoformer_shards_left{E})"),),
            kind="stat",
        ),
        Panel(
            "Time left",
            "Tokens left by tokens a second of the last ten minutes.",
            (
                Query(
                    f"sum(ray_isoformer_tokens_left{E}) "
                    f"/ (sum(rate(ray_isoformer_pack_tokens_total{E}[10m])) > 0)"
                ),
            ),
            unit="s",
            kind="stat",
        ),
        Panel(
            "Devices busy",
            "Part of the workers' time since their first pack that their devices were at work.",
            (Query(f"avg(ray_isoformer_device_busy_fraction{E})"),),
            unit="percentunit",
            kind="stat",
            warn_at=(0.6, 0.85),
            low_is_bad=True,
            ceiling=1,
        ),
        Panel(
            "Failures",
            "Workers lost or stalled, storage that refused, since the driver began; all were tried again.",
            (Query("sum(ray_isoformer_failures_total) or vector(0)"),),
            kind="stat",
            warn_at=(1, 10),
        ),
        Panel(
            "Quarantined",
            "Sequences set aside since the driver began.",
            (Query(f"sum(ray_isoformer_quarantined_total{E}) or vector(0)"),),
            kind="stat",
        ),
    ),
)
THROUGHPUT = Row(
    "Throughput",
    (
        Panel(
            "Tokens a second",
            "As packs are encoded. A shard that is done again counts again.",
            (Query(f"sum by (encoder) (rate(ray_isoformer_pack_tokens_total{E}{RATE}))", "{{encoder}}"),),
            stacked=True,
        ),
        Panel(
            "Sequences published a second",
            "Distinct sequences, counted when their shard is published.",
            (Query(f"sum by (encoder) (rate(ray_isoformer_sequences_total{E}{RATE}))", "{{encoder}}"),),
            stacked=True,
        ),
        Panel(
            "Written",
            "Bytes of published shards a second.",
            (Query(f"sum by (encoder) (rate(ray_isoformer_bytes_written_total{E}{RATE}))", "{{encoder}}"),),
            unit="Bps",
            stacked=True,
        ),
        Panel(
            "Shards: left and published",
            "What the run has still to do; what has been published since the driver began.",
            (
                Query(f"sum by (encoder) (ray_isoformer_shards_left{E})", "{{encoder}} left"),
                Query(f"sum by (encoder) (ray_isoformer_shards_total{E})", "{{encoder}} published"),
            ),
        ),
    ),
)
DEVICES = Row(
    "Devices",
    (
        Panel(
            "Devices busy",
            "Of each encoder's workers; low: they wait for tokens or for the storage.",
            (Query(f"avg by (encoder) (ray_isoformer_device_busy_fraction{E})", "{{encoder}}"),),
            unit="percentunit",
            warn_at=(0.6, 0.85),
            low_is_bad=True,
            ceiling=1,
        ),
        Panel(
            "Time of a pack",
            "Median and 95th percentile of the time that one pack takes its device.",
            tuple(
                Query(
                    f"histogram_quantile({share}, "
                    f"sum by (encoder, le) (rate(ray_isoformer_pack_seconds_bucket{E}{RATE})))",
                    f"{{{{encoder}}}} {name}",
                )
                for share, name in ((0.5, "median"), (0.95, "95%"))
            ),
            unit="s",
        ),
        Panel(
            "Padding",
            "Part of the last shards' tokens that the encoder's route added to the real ones.",
            (Query(f"max by (encoder) (ray_isoformer_padding_fraction{E})", "{{encoder}}"),),
            unit="percentunit",
        ),
        Panel(
            "Token budget",
            "Tokens of one pack; it is halved where memory runs out.",
            (
                Query(f"min by (encoder) (ray_isoformer_token_budget{E})", "{{encoder}}"),
                Query("sum(ray_isoformer_out_of_memory_total) or vector(0)", "times halved"),
            ),
        ),
    ),
)
QUEUE = Row(
    "Queue",
    (
        Panel(
            "Workers",
            "Starting ones import torch; idle ones have no shard.",
            (Query("sum by (state) (ray_isoformer_workers)", "{{state}}"),),
            stacked=True,
        ),
        Panel(
            "Tokens: left and published",
            "What the run has still to encode; what has been published since the driver began.",
            (
                Query(f"sum by (encoder) (ray_isoformer_tokens_left{E})", "{{encoder}} left"),
                Query(f"sum by (encoder) (ray_isoformer_tokens_total{E})", "{{encoder}} published"),
            ),
        ),
        Panel(
            "Shards before the workers",
            "Tokenised ones should not run out while others wait.",
            (Query("sum by (stage) (ray_isoformer_queue)", "{{stage}}"),),
        ),
        Panel(
            "Time of a shard",
            "Mean time to encode a shard, and to write, verify and put it.",
            (
                Query(
                    f"sum by (encoder, phase) (rate(ray_isoformer_shard_seconds_sum{E}[10m])) "
                    f"/ (sum by (encoder, phase) (rate(ray_isoformer_shard_seconds_count{E}[10m])) > 0)",
                    "{{encoder}} {{phase}}",
                ),
            ),
            unit="s",
        ),
    ),
)
SAVED = Row(
    "Saved and lost",
    (
        Panel(
            "Not encoded twice",
            "Transcripts whose sequence another one has; rows that were copied from earlier shards.",
            (
                Query(f"max by (encoder) (ray_isoformer_duplicates_saved{E})", "{{encoder}} duplicates"),
                Query("sum(ray_isoformer_reused_total) or vector(0)", "rows copied"),
            ),
        ),
        Panel(
            "Failures by kind",
            "Since the driver began; above `embed.most_failures` the run is given up.",
            (Query("sum by (kind) (ray_isoformer_failures_total) or vector(0)", "{{kind}}"),),
            warn_at=(1, 10),
        ),
        Panel(
            "Quarantined by reason",
            "Sequences set aside since the driver began.",
            (
                Query(
                    f"sum by (encoder, reason) (ray_isoformer_quarantined_total{E}) or vector(0)",
                    "{{encoder}} {{reason}}",
                ),
            ),
        ),
    ),
)

BOARD = Board(
    "embedding",
    "embedding",
    "Embedding runs: throughput, devices, queue, failures.",
    (NOW, THROUGHPUT, DEVICES, QUEUE, SAVED),
    filters=(("encoder", "ray_isoformer_shards_left"),),
)
