"""The dashboard of training runs: losses, scores, speed, waiting for data, checkpoints, tracking."""

from __future__ import annotations

from grafana import Board, Panel, Query, Row

R = '{run=~"$run"}'

NOW = Row(
    "Now",
    (
        Panel(
            "Workers",
            "Of the runs that go on.",
            (Query(f"sum(ray_isoformer_train_workers{R})"),),
            kind="stat",
        ),
        Panel(
            "Epochs done",
            "Part of the epochs that the run makes at most; it may stop earlier.",
            (
                Query(
                    f"max by (run) (ray_isoformer_train_epochs_total{R}) "
                    f"/ max by (run) (ray_isoformer_train_epochs_planned{R})",
                    "{{run}}",
                ),
            ),
            unit="percentunit",
            kind="stat",
            ceiling=1,
        ),
        Panel(
            "Validation R²",
            "Of the last epoch, mean over tissues.",
            (Query('max by (run) (ray_isoformer_train_score{run=~"$run", metric="r2"})', "{{run}}"),),
            kind="stat",
        ),
        Panel(
            "Transcripts a second",
            "Of all runs, validation and checkpoints included.",
            (Query(f"sum(rate(ray_isoformer_train_transcripts_total{R}[10m]))"),),
            kind="stat",
        ),
        Panel(
            "Waiting for data",
            "Part of the last epoch that the training waited for batches.",
            (Query(f"max(ray_isoformer_train_wait_fraction{R})"),),
            unit="percentunit",
            kind="stat",
            warn_at=(0.1, 0.3),
            ceiling=1,
        ),
        Panel(
            "Tracking events waiting",
            "In the journal, until MLflow takes them; training does not wait for it.",
            (Query("sum(ray_isoformer_tracking_waiting)"),),
            kind="stat",
            warn_at=(200, 2000),
        ),
    ),
)
CURVES = Row(
    "Curves",
    (
        Panel(
            "Loss",
            "Of each epoch, on standardised targets.",
            (Query(f"max by (run, split) (ray_isoformer_train_loss{R})", "{{run}} {{split}}"),),
        ),
        Panel(
            "Validation scores",
            "Of each epoch, mean over tissues.",
            (Query(f"max by (run, metric) (ray_isoformer_train_score{R})", "{{run}} {{metric}}"),),
        ),
        Panel(
            "Learning rate",
            "At the end of each epoch.",
            (Query(f"max by (run) (ray_isoformer_train_learning_rate{R})", "{{run}}"),),
            unit="sci",
        ),
    ),
)
SPEED = Row(
    "Speed",
    (
        Panel(
            "Transcripts a second",
            "The train split, an epoch after another, validation and checkpoints included.",
            (Query(f"sum by (run) (rate(ray_isoformer_train_transcripts_total{R}[10m]))", "{{run}}"),),
        ),
        Panel(
            "Waiting for data",
            "Part of each epoch; above a third, the storage or the join is too slow for the model.",
            (Query(f"max by (run) (ray_isoformer_train_wait_fraction{R})", "{{run}}"),),
            unit="percentunit",
            warn_at=(0.1, 0.3),
            ceiling=1,
        ),
        Panel(
            "Time of a checkpoint",
            "Median and 95th percentile since the driver began: written, and put on the storage.",
            tuple(
                Query(
                    f"histogram_quantile({share}, "
                    f"sum by (run, le) (ray_isoformer_train_checkpoint_seconds_bucket{R}))",
                    f"{{{{run}}}} {name}",
                )
                for share, name in ((0.5, "median"), (0.95, "95%"))
            ),
            unit="s",
        ),
        Panel(
            "Epochs",
            "Since the driver began.",
            (Query(f"max by (run) (ray_isoformer_train_epochs_total{R})", "{{run}}"),),
        ),
    ),
)
AROUND = Row(
    "Around it",
    (
        Panel(
            "Tracking journal",
            "Events that MLflow has not taken yet; those that it refused for good.",
            (
                Query("sum(ray_isoformer_tracking_waiting)", "waiting"),
                Query("sum(ray_isoformer_tracking_refused_total) or vector(0)", "refused"),
            ),
            warn_at=(200, 2000),
        ),
        Panel(
            "Workers",
            "0 at the end of a run.",
            (Query(f"max by (run) (ray_isoformer_train_workers{R})", "{{run}}"),),
        ),
        Panel(
            "Ray Train's controllers",
            "By state; RESTARTING: workers died, and the run goes on from its newest checkpoint.",
            (
                Query(
                    "sum(ray_train_controller_state) by (ray_train_controller_state)",
                    "{{ray_train_controller_state}}",
                ),
            ),
        ),
    ),
)

BOARD = Board(
    "training",
    "training",
    "Training runs: curves, speed, checkpoints, tracking.",
    (NOW, CURVES, SPEED, AROUND),
    filters=(("run", "ray_isoformer_train_epochs_planned"),),
)
