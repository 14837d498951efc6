"""The pipeline small, on a Ray that exports its metrics: `python driver.py ROOT`.

Prints Ray's session folder, in which Ray says what Prometheus is to scrape, and its dashboard's address; then
`done` when everything has run, and stays, since metrics go with their process, until standard input ends.
"""

from __future__ import annotations

import os
import sys
from contextlib import redirect_stdout

from isoformer.config import build
from isoformer.console import Output
from isoformer.settings import Settings
from tiny_dataset import write_dataset

# nothing leaves loopback; a second is as often as Ray reports
ENVIRONMENT = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_BACKEND_LOG_LEVEL": "fatal",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_V2_ENABLED": "1",
    "RAY_metrics_report_interval_ms": "1000",
}


def settings(root: str) -> Settings:
    """Two tiny encoders, two epochs, two trials."""
    encoders = [{"name": name, "resolution": "pooled"} for name in ("ntv2-tiny-rna", "esm2-tiny")]
    data = {
        "root": root,
        "embed": {"encoders": encoders, "threads_per_actor": 1, "token_budget": 512},
        "train": {"model": {"modalities": ["rna", "protein"]}, "epochs": 2},
        "sweep": {"study": "small", "trials": 2, "epochs": 2},
        "tracking": {"batch_seconds": 0.5},
    }
    return build(Settings, data)


def start_ray(attempts: int = 3) -> str:
    """A Ray of our own, with its dashboard, which knows what there is to scrape: folder and address."""
    os.environ |= ENVIRONMENT
    import ray

    for attempt in range(attempts):
        try:
            context = ray.init(
                address="local",
                num_cpus=4,
                include_dashboard=True,
                dashboard_host="127.0.0.1",
                object_store_memory=100 << 20,
                log_to_driver=False,
                logging_level="error",
            )
            return f"{context.address_info['session_dir']} http://{context.dashboard_url}"
        except Exception as error:  # Ray's bare one, where a busy machine does not bring a node up in 30 s
            ray.shutdown()
            if "timed out during startup" not in str(error) or attempt == attempts - 1:
                raise
    raise AssertionError("no attempts")


def main(root: str) -> None:
    print(start_ray(), flush=True)
    from isoformer.stages import run_embed, run_train
    from isoformer.sweep_stages import run_sweep

    write_dataset(root, shards=96, poison_protein=True)  # some seconds of work: a rate needs two scrapes
    chosen, out = settings(root), Output(as_json=True)
    with redirect_stdout(sys.stderr):
        run_embed(chosen, out)
        run_train(chosen, out)
        run_sweep(chosen, out)
    print("done", flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main(sys.argv[1])
