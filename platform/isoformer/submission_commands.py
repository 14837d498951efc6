"""`isoformer submit` and `isoformer cluster`: the doors to a Ray cluster; heavy imports when one runs."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from isoformer.console import Output
from isoformer.errors import ConfigError

if TYPE_CHECKING:
    from isoformer.submission import Ended, Jobs

CLIENT_ONLY: Final = frozenset({"submit", "cluster", "dashboard"})
"""Verbs for the machine one sits at: they are no jobs."""
ACTIONS: Final = ("logs", "status", "cancel", "ls")

_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON object on standard output.")


@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("verb", metavar="VERB|logs|status|cancel|ls")
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED, metavar="[VERB'S ARGUMENTS | ID]")
@click.option("--address", help="The dashboard's; default: RAY_API_SERVER_ADDRESS, or the local cluster.")
@click.option("--detach", is_flag=True, help="Return when it is sent; `submit logs ID` follows it.")
@click.option(
    "--package", type=click.Choice(["shipped", "baked"]), default="shipped", show_default=True,
    help="The isoformer that is here travels with the job, or the nodes' own runs.",
)  # fmt: skip
@click.option("--id", "name", help="Name of the job; default: Ray makes one.")
@click.option("--env", "environment", multiple=True, metavar="NAME=VALUE", help="Of the job; no secrets.")
@click.option("--allow-http", is_flag=True, help="Send the token unencrypted to another host than this one.")
@click.option("--dry-run", is_flag=True, help="Only say what would be sent.")
@_json
@click.pass_context
def submit(
    context: click.Context, /, verb: str, arguments: tuple[str, ...], as_json: bool, **options: Any
) -> int | None:
    """Run a verb as a job on a Ray cluster, show its output, end with its exit status.

    `isoformer submit embed --config run.yaml --set embed.actors=8`: what `embed` takes, submit hands on. The
    configuration file is sent along; every other path is read on the cluster. After a failure the same
    command goes on (train and sweep: with --resume).
    """
    out = Output(as_json)
    if verb in ACTIONS:
        return _look_after(verb, arguments, out, options)
    root = context.find_root().command
    assert isinstance(root, click.Group)
    return _send(root, [verb, *arguments], out, options)


@click.group()
def cluster() -> None:
    """A Ray cluster of several nodes on this machine, to try what will run in a cloud."""


@cluster.command()
@click.option("--nodes", type=click.IntRange(1, 16), default=2, show_default=True)
@click.option(
    "--cpus", type=click.IntRange(1), default=4, show_default=True, help="Logical CPUs of each node."
)
@click.option("--port", type=click.IntRange(0), default=8265, show_default=True, help="Dashboard's; 0: any.")
@_json
def up(nodes: int, cpus: int, port: int, as_json: bool) -> None:
    """Start it: on loopback, every port asking for a token."""
    from isoformer import local_cluster

    out = Output(as_json)
    out.note(f"starting {nodes} nodes …")
    running = local_cluster.up(nodes=nodes, cpus=cpus, port=port)
    out.say(f"Ray cluster of {nodes} nodes with {cpus} CPUs each, dashboard {running.dashboard}")
    out.say(f"  token     {local_cluster.token_file()}")
    out.say("  try       isoformer submit demo --output /tmp/isoformer-demo")
    out.say("  end it    isoformer cluster down")
    out.result(running.to_json())


@cluster.command()
@_json
def down(as_json: bool) -> None:
    """End it, every process of it."""
    from isoformer import local_cluster

    out, ended = Output(as_json), local_cluster.down()
    out.say(f"the cluster at {ended.dashboard} is down" if ended else "no local cluster is up")
    out.result({"ended": ended.to_json() if ended else None})


@cluster.command()
@_json
def status(as_json: bool) -> None:
    """Say whether it is up, and where."""
    from isoformer import local_cluster

    out, running = Output(as_json), local_cluster.current()
    out.say(f"up: {running.nodes} nodes, {running.dashboard}" if running else "no local cluster is up")
    out.result({"running": running.to_json() if running else None})
    if running is None:
        raise click.exceptions.Exit(1)


def _send(root: click.Group, arguments: list[str], out: Output, options: dict[str, Any]) -> int | None:
    from isoformer.submission import Job, checked_environment, staged

    config = _checked(root, arguments, out)
    job = Job(tuple(arguments), config, options["package"], checked_environment(options["environment"]))
    with tempfile.TemporaryDirectory(prefix="isoformer-job-") as name:
        with staged(job, Path(name)) as (files, size_bytes):
            out.note(f"ships {files} files, {size_bytes / 1e6:.1f} MB; runs: {job.entrypoint}")
        if options["dry_run"]:
            out.result({"entrypoint": job.entrypoint, "files": files, "bytes": size_bytes})
            return None
        jobs = _jobs(options)
        submitted = jobs.submit(job, Path(name), options["name"])
    out.note(f"submitted to {jobs.address} as {submitted}")
    if options["detach"]:
        out.say(f"follow: isoformer submit logs {submitted}    end: isoformer submit cancel {submitted}")
        out.result({"id": submitted, "entrypoint": job.entrypoint})
        return None
    return _followed(jobs, submitted, out)


def _checked(root: click.Group, arguments: list[str], out: Output) -> Path | None:
    """The configuration file to ship, once the verb's arguments, settings and paths are found good. With a
    `${NAME}` that only the cluster knows, the settings are checked there.
    """
    from isoformer.config import UnsetVariableError
    from isoformer.submission import refuse_passwords, refuse_relative

    refuse_passwords(arguments)
    options = _parsed(root, arguments)
    if arguments[0] == "demo":
        refuse_relative("--output", str(options["output"]))
        return None
    config = options.get("config")
    if "overrides" in options:
        try:
            _check_settings(arguments[0], config, options["overrides"])
        except UnsetVariableError as error:
            out.note(f"settings are checked on the cluster: {error}")
    return Path(config) if config else None


def _check_settings(verb: str, config: str | None, overrides: Sequence[str]) -> None:
    from isoformer.settings import load_settings
    from isoformer.submission import refuse_relative

    settings = load_settings(config, overrides)
    refuse_relative("root", settings.root)
    if verb == "prepare":
        for field, path in settings.require_prepare().source_paths():
            refuse_relative(f"prepare.{field}", path)


def _parsed(root: click.Group, arguments: Sequence[str]) -> dict[str, Any]:
    """The verb's options, read as the verb itself reads them. UsageError as it would raise it."""
    command: click.Command = root
    rest, parent, name = list(arguments), None, "isoformer"
    while isinstance(command, click.Group):
        context = click.Context(command, info_name=name, parent=parent)
        found, chosen, rest = command.resolve_command(context, rest)
        if chosen is None or (command is root and found in CLIENT_ONLY):
            raise click.UsageError(f"{arguments[0]} is no verb that runs as a job", context)
        name, command, parent = str(found), chosen, context
    return command.make_context(name, list(rest), parent=parent).params


def _look_after(action: str, arguments: Sequence[str], out: Output, options: dict[str, Any]) -> int | None:
    """`ls`, or what is asked of one job."""
    if action != "ls" and len(arguments) != 1:
        raise click.UsageError(f"submit {action} needs one job's ID; `isoformer submit ls` lists them")
    jobs = _jobs(options)
    if action == "ls":
        listed = jobs.list()
        rows = [(job["submission_id"], job["status"], job["entrypoint"]) for job in listed]
        out.table("Jobs", ("id", "status", "command"), rows)
        out.result({"jobs": listed})
        return None
    (name,) = arguments
    if action == "logs":
        return _followed(jobs, name, out)
    if action == "cancel":
        was_running = jobs.cancel(name)
        out.say(f"{name}: {'asked to end' if was_running else 'had ended before'}")
        out.result({"id": name, "was_running": was_running})
        return None
    out.say(f"{name}: {jobs.status(name)}")
    out.result({"id": name, "status": jobs.status(name)})
    return None


def _followed(jobs: Jobs, name: str, out: Output) -> int:
    """Its output as it comes; its exit status. An interrupt ends the following, not the job."""
    try:
        ended: Ended = jobs.follow(name, _stream(out))
    except KeyboardInterrupt:
        click.echo(
            f"\nthe job goes on; follow: isoformer submit logs {name}; end: isoformer submit cancel {name}",
            err=True,
        )
        return 130
    out.note(f"{name}: {ended.status.lower()}{f' ({ended.message})' if ended.exit_code else ''}")
    out.result({"id": name, "status": ended.status, "exit_code": ended.exit_code})
    return ended.exit_code


def _stream(out: Output) -> Any:
    """A job's output is standard output, unless that is for JSON."""
    stream = sys.stderr if out.as_json else sys.stdout

    def show(text: str) -> None:
        stream.write(text)
        stream.flush()

    return show


def _jobs(options: dict[str, Any]) -> Jobs:
    from isoformer import local_cluster
    from isoformer.submission import Jobs

    address = options["address"] or os.environ.get("RAY_API_SERVER_ADDRESS")
    if address is None and (running := local_cluster.current()) is not None:
        address = running.dashboard
    if address is None:
        raise ConfigError(
            "no cluster to submit to: give --address (its dashboard's, as http://127.0.0.1:8265) or set "
            "RAY_API_SERVER_ADDRESS; `isoformer cluster up` starts one on this machine"
        )
    return Jobs(address, allow_http=options["allow_http"])
