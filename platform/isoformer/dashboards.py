"""Where to look while something runs: Ray, MLflow, Optuna, Prometheus, Grafana; each asked whether it is up.

In: the settings, and the variables by which Ray's own tools find the rest (RAY_API_SERVER_ADDRESS,
RAY_PROMETHEUS_HOST, RAY_GRAFANA_HOST). Out: a `Service` each, with its address and the command that starts
it. Nothing is started here, no credentials are sent, and no password is shown.
"""

from __future__ import annotations

import http.client
import os
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from isoformer.config import without_password
from isoformer.errors import ConfigError

if TYPE_CHECKING:
    from isoformer.settings import Settings

TIMEOUT_SECONDS: Final = 2.0
ASKS_FOR_CREDENTIALS: Final = (401, 403)
CLUSTER: Final = "isoformer cluster up; for one in a cloud, a tunnel to it: ray dashboard cluster.yaml"
GRAFANA: Final = "a Grafana with dashboards/provisioning, as platform/docs/dashboards.md says"
PROMETHEUS: Final = (
    "prometheus --config.file=dashboards/prometheus.yml --web.listen-address=127.0.0.1:9090 "
    "--storage.tsdb.path=prometheus-data"
)


@dataclass(frozen=True)
class Service:
    """`is_up`: it answered at `health`, if only to ask for credentials. `start`: what to do where not."""

    name: str
    shows: str
    address: str
    health: str
    start: str
    is_up: bool = False

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def services(settings: Settings) -> list[Service]:
    """All five, asked at once. ConfigError for an address in the environment that is none."""
    listed = list(_listed(settings))
    with ThreadPoolExecutor(len(listed)) as pool:
        answers = list(pool.map(lambda one: _answers(one.address + one.health), listed))
    return [
        replace(one, address=without_password(one.address), is_up=is_up)
        for one, is_up in zip(listed, answers, strict=True)
    ]


def _listed(settings: Settings) -> Iterator[Service]:
    from isoformer.local_cluster import current
    from isoformer.tracking import open_line

    tracking = settings.tracking.for_root(settings.root)
    mlflow = f"a server elsewhere, {tracking.shown_uri}" if tracking.is_server else open_line(tracking)
    local = current()
    ray = _from_environment("RAY_API_SERVER_ADDRESS", local.dashboard if local else "http://127.0.0.1:8265")
    prometheus = _from_environment("RAY_PROMETHEUS_HOST", "http://127.0.0.1:9090")
    grafana = _from_environment("RAY_GRAFANA_HOST", "http://127.0.0.1:3000")
    optuna = "http://127.0.0.1:8080"
    yield Service("Ray", "nodes, jobs, logs", ray, "/api/version", CLUSTER)
    yield Service("MLflow", "runs, curves, models", tracking.ui_address, "/health", mlflow)
    yield Service("Optuna", "the trials of a study", optuna, "/api/meta", _optuna(settings))
    yield Service("Prometheus", "figures over time, alerts", prometheus, "/-/healthy", PROMETHEUS)
    yield Service("Grafana", "dashboards/*.json", grafana, "/api/health", GRAFANA)


def _optuna(settings: Settings) -> str:
    """The command that opens the configured study; one under a bucket root is worked on in a local folder."""
    from isoformer.sweep.study import open_study_line
    from isoformer.tracking import local_path

    if settings.sweep.storage is not None:
        return open_study_line(settings.sweep.storage)
    folder = local_path(settings.root) or settings.tracking.for_root(settings.root).local_folder
    return open_study_line(folder / "studies" / settings.sweep.study / "study.db")


def _from_environment(name: str, default: str) -> str:
    address = (os.environ.get(name) or default).rstrip("/")
    if not address.startswith(("http://", "https://")):
        raise ConfigError(f"{name}={without_password(address)}: must begin with http:// or https://")
    return address


def _answers(address: str) -> bool:
    """Asked past any proxy where it is on this machine."""
    is_here = urlsplit(address).hostname in ("127.0.0.1", "localhost", "::1")
    proxies = urllib.request.ProxyHandler({}) if is_here else urllib.request.ProxyHandler()
    try:
        with urllib.request.build_opener(proxies).open(address, timeout=TIMEOUT_SECONDS):
            return True
    except urllib.error.HTTPError as error:
        return error.code in ASKS_FOR_CREDENTIALS
    except (OSError, http.client.HTTPException, ValueError):
        return False
