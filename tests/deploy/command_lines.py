"""Are `isoformer …` command lines ones that the command line's parser takes? Nothing is run."""

from __future__ import annotations

import re
import shlex

import click

from isoformer.cli import commands

OF_SUBMIT = {"logs", "status", "cancel", "ls"}


def command_lines(shell: str, program: str = "isoformer") -> list[list[str]]:
    """The arguments of every call of `program` in a shell text, continued lines put together."""
    lines = [line.strip() for line in shell.replace("\\\n", " ").splitlines()]
    words = [shlex.split(line, comments=True) for line in lines if re.match(rf"(\w+=\S* )*{program} ", line)]
    return [line[line.index(program) + 1 :] for line in words]


def require_accepted(arguments: list[str]) -> None:
    """Parse as the program would, a submitted verb's part too. click.UsageError where refused."""
    context = click.Context(commands, info_name="isoformer")
    name, command, rest = commands.resolve_command(context, list(arguments))
    assert command is not None
    parsed = command.make_context(name, rest, parent=context)
    if isinstance(command, click.Group):
        command.resolve_command(parsed, [*parsed._protected_args, *parsed.args])
    verb = parsed.params.get("verb")
    if name == "submit" and verb not in OF_SUBMIT:
        require_accepted([verb, *parsed.params["arguments"]])
