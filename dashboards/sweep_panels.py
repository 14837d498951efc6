"""The dashboard of a sweep: trials by state, the best score, how full the slots are, what overhead costs."""

from __future__ import annotations

from grafana import Board, Panel, Query, Row

S = '{study=~"$study"}'

NOW = Row(
    "Now",
    (
        Panel(
            "Trials ended",
            "Since the driver began; a study that is resumed had some before.",
            (Query(f"sum(ray_isoformer_sweep_trials_total{S})"),),
            kind="stat",
        ),
        Panel(
            "Trials planned",
            "That the study is to hold.",
            (Query(f"sum(ray_isoformer_sweep_trials_planned{S})"),),
            kind="stat",
        ),
        Panel(
            "Running",
            "Trials that run now.",
            (Query(f"sum(ray_isoformer_sweep_trials_running{S})"),),
            kind="stat",
        ),
        Panel(
            "Best score",
            "Of the complete trials, on the validation genes.",
            (Query(f"max by (study, metric) (ray_isoformer_sweep_best_score{S})", "{{study}} {{metric}}"),),
            kind="stat",
        ),
        Panel(
            "Device hours",
            "Of the trials that ended since the driver began.",
            (Query(f"sum(ray_isoformer_sweep_device_seconds_total{S})"),),
            unit="s",
            kind="stat",
        ),
        Panel(
            "Failed",
            "Part of the ended trials; their errors are on the sweep's page.",
            (
                Query(
                    '(sum(ray_isoformer_sweep_trials_total{study=~"$study", state="failed"}) or vector(0)) '
                    f"/ sum(ray_isoformer_sweep_trials_total{S})"
                ),
            ),
            unit="percentunit",
            kind="stat",
            warn_at=(0.05, 0.3),
            ceiling=1,
        ),
    ),
)
TRIALS = Row(
    "Trials",
    (
        Panel(
            "Trials by state",
            "Complete, pruned (stopped early) and failed, since the driver began.",
            (Query(f"sum by (study, state) (ray_isoformer_sweep_trials_total{S})", "{{study}} {{state}}"),),
            stacked=True,
        ),
        Panel(
            "Best score",
            "Of the complete trials so far.",
            (Query(f"max by (study, metric) (ray_isoformer_sweep_best_score{S})", "{{study}} {{metric}}"),),
        ),
        Panel(
            "Slots",
            "Trials that run, of those that may at once: a gap is time that no trial uses.",
            (
                Query(f"sum by (study) (ray_isoformer_sweep_trials_running{S})", "{{study}} running"),
                Query(f"sum by (study) (ray_isoformer_sweep_slots{S})", "{{study}} slots"),
            ),
        ),
    ),
)
COST = Row(
    "What it costs",
    (
        Panel(
            "Epochs a second",
            "Reported by all trials.",
            (
                Query(
                    f"sum by (study) (rate(ray_isoformer_sweep_epochs_total{S}[$__rate_interval]))",
                    "{{study}}",
                ),
            ),
        ),
        Panel(
            "Time of a trial",
            "Mean by state; pruned trials should be short.",
            (
                Query(
                    f"sum by (study, state) (ray_isoformer_sweep_trial_seconds_sum{S}) "
                    f"/ sum by (study, state) (ray_isoformer_sweep_trial_seconds_count{S})",
                    "{{study}} {{state}}",
                ),
            ),
            unit="s",
        ),
        Panel(
            "Overhead",
            "Part of complete trials' time that was not training: checkpoints, waiting for the driver.",
            (
                Query(
                    f"1 - sum by (study) (ray_isoformer_sweep_training_seconds_total{S}) / sum by (study) "
                    '(ray_isoformer_sweep_trial_seconds_sum{study=~"$study", state="complete"})',
                    "{{study}}",
                ),
            ),
            unit="percentunit",
            warn_at=(0.1, 0.3),
            ceiling=1,
        ),
        Panel(
            "Deaths of workers",
            "Trials whose workers died; they go on from their checkpoints `sweep.max_failures` times.",
            (
                Query(
                    f"sum by (study) (ray_isoformer_sweep_worker_deaths_total{S}) or vector(0)",
                    "{{study}}",
                ),
            ),
            warn_at=(1, 10),
        ),
    ),
)

BOARD = Board(
    "sweep",
    "sweep",
    "Sweeps: trials, best score, slots, overhead.",
    (NOW, TRIALS, COST),
    filters=(("study", "ray_isoformer_sweep_trials_planned"),),
)
