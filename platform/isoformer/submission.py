"""Send a verb to a Ray cluster as a job, follow it, cancel it; `isoformer submit` is the command line of it.

    checked (arguments, configuration, paths) → staged (package, configuration) → Ray's Jobs API → followed

The package travels with the job unless the nodes' own is asked for, so that the cluster runs what was checked
here. Nothing else does: no data, no repository, no credential. The token is the one that Ray finds
(RAY_AUTH_TOKEN_PATH, ~/.ray/auth_token) and is asked for unless RAY_AUTH_MODE says otherwise.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import shlex
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal
from urllib.parse import urlsplit

from isoformer.config import without_password
from isoformer.errors import ClusterError, ConfigError

Package = Literal["shipped", "baked"]
CONFIG_NAME: Final = "config.yaml"
"""Of the configuration file in a job's folder."""
MOST_BYTES: Final = 100 << 20
"""Ray's limit for what a job ships."""
LOOPBACK: Final = ("127.0.0.1", "localhost", "::1")
_SECRET: Final = re.compile(r"secret|password|token|credential|access_?key|api_?key", re.IGNORECASE)
_ENDED: Final = ("SUCCEEDED", "FAILED", "STOPPED")
_POLL_SECONDS: Final = 1.0
_PATIENCE_SECONDS: Final = 300.0
"""How long a cluster that does not answer is asked again, while a job is followed."""


@dataclass(frozen=True)
class Job:
    """What is sent: the command line of a verb, a configuration file, plain environment variables."""

    arguments: tuple[str, ...]
    config: Path | None = None
    package: Package = "shipped"
    environment: tuple[tuple[str, str], ...] = ()

    @property
    def entrypoint(self) -> str:
        """Runs on the head, in the staged folder; `--config` names the file that travels."""
        return shlex.join(["python", "-m", "isoformer", *_with_shipped_config(self.arguments)])


@dataclass(frozen=True)
class Ended:
    """How a job ended. `exit_code` is its process's own; 1 where it had none (a node was lost, say)."""

    id: str
    status: str
    message: str
    exit_code: int


def checked_environment(pairs: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """`NAME=VALUE` pairs. ConfigError for another form and for a name that speaks of a secret: what a job is
    sent with can be read by whoever may see the cluster's dashboard.
    """
    found = []
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not re.fullmatch(r"[A-Za-z_]\w*", name):
            raise ConfigError(f"--env {name}: must be NAME=VALUE")
        if _SECRET.search(name) or without_password(value) != value:
            raise ConfigError(
                f"--env {name}: looks like a secret, and a job's environment is shown on the dashboard; "
                "set it in the environment of the cluster's nodes"
            )
        found.append((name, value))
    return tuple(found)


def refuse_passwords(arguments: Sequence[str]) -> None:
    """ConfigError for a password in an argument: the command of a job is shown on the dashboard."""
    for argument in arguments:
        if without_password(argument) != argument:
            raise ConfigError(
                f"{without_password(argument)}: a password in a job's command is shown on the dashboard; put "
                "the address in the configuration file, or the password in the environment of the nodes"
            )


def refuse_relative(name: str, path: str) -> None:
    """ConfigError for a path in a job's own folder, which goes when the job ends."""
    if "://" not in path and not Path(path).is_absolute():
        raise ConfigError(
            f"{name}: {path!r} is relative: a job has a temporary folder of its own; allowed: s3://…, or an "
            f"absolute path that all nodes share"
        )


@contextmanager
def staged(job: Job, folder: Path) -> Iterator[tuple[int, int]]:
    """Fill `folder` with what travels; yields its files and bytes. ConfigError where that is too much."""
    if job.package == "shipped":
        source = Path(__file__).parent
        shutil.copytree(source, folder / source.name, ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
    if job.config is not None:
        shutil.copyfile(job.config, folder / CONFIG_NAME)
    sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file()]
    if sum(sizes) > MOST_BYTES:
        raise ConfigError(f"the job would ship {sum(sizes) >> 20} MB; allowed: {MOST_BYTES >> 20}")
    yield len(sizes), sum(sizes)


class Jobs:
    """A cluster's jobs. ClusterError where it cannot be reached or refuses the token."""

    def __init__(self, address: str, *, allow_http: bool = False) -> None:
        _require_safe(address, allow_http)
        os.environ.setdefault("RAY_AUTH_MODE", "token")
        os.environ.pop("RAY_ADDRESS", None)  # Ray would prefer it to what is asked for
        from ray.job_submission import JobSubmissionClient

        for module in (
            "dashboard.modules.dashboard_sdk",
            "dashboard.modules.job.sdk",
            "_private.runtime_env",
        ):
            logging.getLogger(f"ray.{module}").setLevel(logging.ERROR)
        self.address = address
        with _explained(address):
            self._client: Any = JobSubmissionClient(address)

    def submit(self, job: Job, folder: Path, name: str | None = None) -> str:
        """Send a staged job; its id."""
        environment = {"RAY_TRAIN_V2_ENABLED": "1", **dict(job.environment)}
        request = {
            "entrypoint": job.entrypoint,
            "runtime_env": {"env_vars": environment, "working_dir": str(folder)},
            "submission_id": name,
            "metadata": {"isoformer": job.arguments[0]},
        }
        with _explained(self.address):
            return self._submitted(request)

    def _submitted(self, request: Mapping[str, Any]) -> str:
        """Asked again for a while where a head that has just come up has nothing yet that takes jobs."""
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while True:
            try:
                return str(self._client.submit_job(**request))
            except RuntimeError as error:
                if "No available agent" not in str(error) or time.monotonic() > deadline:
                    raise
            time.sleep(_POLL_SECONDS)

    def status(self, name: str) -> str:
        """PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED."""
        return str(self._info(name).status)

    def cancel(self, name: str) -> bool:
        """Ask a job to end, then end it. False where it had ended."""
        with _explained(self.address):
            return bool(self._client.stop_job(name))

    def list(self) -> list[Mapping[str, Any]]:
        """Jobs of ours and of others, the newest first."""
        with _explained(self.address):
            infos = [info for info in self._client.list_jobs() if info.submission_id]
        infos.sort(key=lambda info: -(info.start_time or 0))
        names = ("submission_id", "status", "entrypoint", "start_time", "end_time")
        return [{name: _plain(getattr(info, name)) for name in names} for info in infos]

    def follow(self, name: str, show: Callable[[str], None]) -> Ended:
        """Show a job's output until it has ended; a connection that breaks is made again."""
        shown, broken_since = 0, None
        while True:
            try:
                shown = asyncio.run(self._tail(name, show, shown))
                info = self._info(name)
                if str(info.status) in _ENDED:
                    return _ended(name, info)
                broken_since = None
            except (OSError, RuntimeError, ClusterError) as error:
                broken_since = broken_since or time.monotonic()
                if time.monotonic() - broken_since > _PATIENCE_SECONDS:
                    raise ClusterError(
                        f"{self.address} has not answered for {_PATIENCE_SECONDS:.0f} s: {error}"
                    ) from error
            time.sleep(_POLL_SECONDS)

    def logs(self, name: str) -> str:
        """All that a job has printed."""
        with _explained(self.address):
            return str(self._client.get_job_logs(name))

    async def _tail(self, name: str, show: Callable[[str], None], shown: int) -> int:
        """Ray tells it from the beginning each time; `shown` characters were shown before."""
        seen = 0
        async for text in self._client.tail_job_logs(name):
            seen += len(text)
            fresh = text[len(text) - (seen - shown) :] if seen - shown < len(text) else text
            if seen > shown:
                show(fresh)
                shown = seen
        return shown

    def _info(self, name: str) -> Any:
        with _explained(self.address):
            return self._client.get_job_info(name)


def _ended(name: str, info: Any) -> Ended:
    status = str(info.status)
    code = 0 if status == "SUCCEEDED" else int(info.driver_exit_code or 1)
    said = str(info.message or "").split(", last available logs")[0]  # which were shown
    return Ended(name, status, said, code)


def _with_shipped_config(arguments: Sequence[str]) -> list[str]:
    result: list[str] = []
    for argument in arguments:
        if result and result[-1] == "--config":
            result.append(CONFIG_NAME)
        else:
            result.append(f"--config={CONFIG_NAME}" if argument.startswith("--config=") else argument)
    return result


def _require_safe(address: str, allow_http: bool) -> None:
    parts = urlsplit(address)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(
            f"--address {without_password(address)}: must be the dashboard's, as http://127.0.0.1:8265"
        )
    if parts.scheme == "http" and parts.hostname not in LOOPBACK and not allow_http:
        raise ConfigError(
            f"--address {without_password(address)}: the token would travel unencrypted; use https, a tunnel "
            "to loopback (`ray dashboard cluster.yaml`, `kubectl port-forward`), or --allow-http in a "
            "network of your own"
        )


@contextmanager
def _explained(address: str) -> Iterator[None]:
    """Ray's errors as one line of ours."""
    from ray.exceptions import AuthenticationError

    try:
        yield
    except AuthenticationError as error:
        said = str(error).splitlines()[0].split(". ")[0]
        raise ClusterError(
            f"{address} refuses the submission: {said}; give the cluster's token with RAY_AUTH_TOKEN_PATH "
            "(and RAY_AUTH_MODE=token), or in ~/.ray/auth_token"
        ) from error
    except (ConnectionError, OSError) as error:
        raise ClusterError(f"no Ray cluster answers at {address}: is it up, and the tunnel open?") from error
    except RuntimeError as error:
        raise ClusterError(f"{address}: {_said(error)}") from error


def _said(error: RuntimeError) -> str:
    """The last line of what a server answers with, which is often a traceback."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip(" .")]
    return lines[-1] if lines else type(error).__name__


def _plain(value: Any) -> Any:
    return value if value is None or isinstance(value, int) else str(value)
