"""What a user sees in the terminal: a table of facts, a progress bar, or JSON for a program.

Progress goes to standard error; with `--json` standard output holds one JSON object and nothing else.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text


@dataclass(frozen=True)
class Output:
    """Where results and progress go; with `as_json` standard output holds JSON alone."""

    as_json: bool = False
    console: Console = field(default_factory=lambda: _console(stderr=False))
    progress_console: Console = field(default_factory=lambda: _console(stderr=True))

    def heading(self, text: str) -> None:
        """A line that says which step begins."""
        self.progress_console.print(Text(f"\n{text}", style="bold"))

    def note(self, text: str) -> None:
        """A line about how the work goes."""
        self.progress_console.print(Text(text, style="dim"))

    def say(self, text: str) -> None:
        """One line for a person; silent under --json."""
        if not self.as_json:
            self.console.print(Text(text), soft_wrap=True)

    def result(self, data: Mapping[str, Any]) -> None:
        """The verb's result as one JSON object; silent for a person, who has been shown a table."""
        if self.as_json:
            print(json.dumps(data, indent=1, default=str, allow_nan=False))

    def facts(self, title: str, rows: Iterable[tuple[str, object]]) -> None:
        """A two-column table."""
        self.table(title, ("", ""), [(name, _shown(value)) for name, value in rows], header=False)

    def table(
        self, title: str, columns: Sequence[str], rows: Iterable[Sequence[object]], *, header: bool = True
    ) -> None:
        """A table for a person; numbers to the right."""
        if self.as_json:
            return
        table = Table(title=title, title_justify="left", title_style="bold", show_header=header, box=None)
        listed = [list(row) for row in rows]
        for index, column in enumerate(columns):
            numeric = bool(listed) and all(isinstance(row[index], int | float) for row in listed)
            table.add_column(column, justify="right" if numeric else "left", overflow="fold")
        for row in listed:
            table.add_row(*(Text(_shown(cell)) for cell in row))
        self.console.print(table)

    @contextmanager
    def progress(self, what: str) -> Iterator[Advance]:
        """A bar that callers advance with (done, total, note); gone when the block ends."""
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}"),
        )
        with Progress(*columns, console=self.progress_console, transient=True) as bar:
            task = bar.add_task(what, total=None, note="")
            yield Advance(bar, task)


@dataclass(frozen=True)
class Advance:
    """Moves one progress bar."""

    bar: Progress
    task: Any

    def __call__(self, done: int, total: int, note: str = "") -> None:
        self.bar.update(self.task, completed=done, total=total, note=note)


def _console(*, stderr: bool) -> Console:
    """As wide as the terminal; a file or a pipe gets room for a whole table."""
    console = Console(stderr=stderr, highlight=False)
    return console if console.is_terminal else Console(stderr=stderr, highlight=False, width=120)


def counted(counts: Mapping[str, int]) -> str:
    """`{"a": 1, "b": 2}` as "a 1, b 2"; "none" where there is nothing."""
    return ", ".join(f"{name} {count:,}" for name, count in counts.items() if count) or "none"


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        if value and abs(value) < 0.01:
            return f"{value:.2g}"
        return f"{value:,.3f}" if abs(value) < 100 else f"{value:,.0f}"
    return str(value)
