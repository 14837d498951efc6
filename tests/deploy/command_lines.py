"""Are `isoformer …` command lines ones that the command line's parser takes? Nothing is run."""

from __future__ import annotations

import itertools
import re
import shlex

import click

from isoformer.cli import commands

ENDS = {">", "&", "|", "&&"}
OF_SUBMIT = {"logs", "status", "cancel", "ls"}


def command_lines(shell: str, program: str = "isoformer") -> list[list[str]]:
    """The arguments of every call of `program` in a shell text, up to a redirection, `&` or a pipe."""
    lines = [line.strip() for line in shell.replace("\\\n", " ").splitlines()]
    words = [shlex.split(line, comments=True) for line in lines if re.match(rf"(\w+=\S* )*{program} ", line)]
    calls = [line[line.index(program) + 1 :] for line in words]
    return [list(itertools.takewhile(lambda word: word not in ENDS, call)) for call in calls]


def require_accepted(arguments: list[str], root: click.Group = commands) -> None:
    """Parse as the program would, a submitted verb's part too. click.UsageError where refused."""
    command: click.Command = root
    rest, parent = list(arguments), click.Context(root)
    while isinstance(command, click.Group):
        name, found, rest = command.resolve_command(parent, rest)
        assert found is not None
        command, parent = found, click.Context(found, info_name=name, parent=parent)
    parsed = command.make_context(parent.info_name, rest, parent=parent.parent).params
    if root is commands and arguments[0] == "submit" and parsed["verb"] not in OF_SUBMIT:
        require_accepted([parsed["verb"], *parsed["arguments"]])
