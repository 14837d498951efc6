"""`isoformer dashboard`: what is up is told from what is not, and nothing secret is shown."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from isoformer.cli import main
from isoformer.config import build
from isoformer.dashboards import services
from isoformer.errors import ConfigError
from isoformer.settings import Settings

SECRET = "hunter2"


@contextmanager
def answering(path: str, status: int) -> Iterator[str]:
    """A server on loopback that gives this status at one path, and 404 at any other."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status if self.path == path else 404)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def settings(tmp_path: Path, **sections: Any) -> Settings:
    return build(Settings, {"root": str(tmp_path), **sections})


def test_up_is_what_answers_at_its_own_path_or_asks_for_a_token(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")  # what is here is not asked through a proxy
    with (
        answering("/api/version", 401) as ray,
        answering("/-/healthy", 200) as prometheus,
        answering("/another/programme", 200) as grafana,
        answering("/health", 200) as mlflow,
    ):
        monkeypatch.setenv("RAY_API_SERVER_ADDRESS", ray)
        monkeypatch.setenv("RAY_PROMETHEUS_HOST", f"{prometheus}/")
        monkeypatch.setenv("RAY_GRAFANA_HOST", grafana)
        found = {s.name: s for s in services(settings(tmp_path, tracking={"uri": mlflow}))}
    up = {name for name in ("Ray", "MLflow", "Prometheus", "Grafana") if found[name].is_up}
    assert up == {"Ray", "MLflow", "Prometheus"}
    assert (found["Prometheus"].address, found["MLflow"].address) == (prometheus, mlflow)


def test_the_start_of_each_is_a_command_for_these_settings(tmp_path: Path) -> None:
    found = {s.name: s for s in services(settings(tmp_path, sweep={"study": "wide"}))}
    assert list(found) == ["Ray", "MLflow", "Optuna", "Prometheus", "Grafana"]
    assert f"sqlite:///{tmp_path}/mlflow.db" in found["MLflow"].start
    assert found["Optuna"].start == f"optuna-dashboard sqlite:///{tmp_path}/studies/wide/study.db"
    assert found["Prometheus"].start.startswith("prometheus --config.file=dashboards/prometheus.yml")


def test_no_password_is_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RAY_GRAFANA_HOST", f"http://admin:{SECRET}@127.0.0.1:9")
    config = tmp_path / "run.yaml"
    database = f"postgresql://me:{SECRET}@127.0.0.1:9/studies"
    config.write_text(
        json.dumps({"root": str(tmp_path), "sweep": {"storage": database}, "tracking": {"uri": database}})
    )
    for form in ([], ["--json"]):
        with pytest.raises(SystemExit) as ended:
            main(["dashboard", "--config", str(config), *form])
            raise SystemExit(0)
        shown = "".join(capsys.readouterr())
        assert not ended.value.code
        assert SECRET not in shown
        assert shown.count("me:***@127.0.0.1:9/studies") == 2
        assert "admin:***@127.0.0.1:9" in shown


def test_an_address_that_is_none_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_PROMETHEUS_HOST", "127.0.0.1:9090")
    with pytest.raises(ConfigError, match=r"RAY_PROMETHEUS_HOST=127.0.0.1:9090: must begin with http://"):
        services(settings(tmp_path))
