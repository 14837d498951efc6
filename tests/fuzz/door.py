"""A door: where a user's bytes come into the platform, and what is promised there whatever they are.

`Door.try_one` hands over one input and says how it ended. The promise: either an `IsoformerError` (one line
that can be printed and that names the place), or a result that `Door.enter` has checked against what was
given, with asserts of its own. Everything else is a `Find`: another exception, a wrong answer, a hang, code
that was run, a message that no terminal should show. Who calls it: the campaign and the tests beside it.
"""

from __future__ import annotations

import shutil
import signal
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from isoformer.errors import ConfigError, IsoformerError

SECONDS = 5.0
"""Of the processor, for one input; the slowest that is fine takes a tenth of it."""
LONGEST_LINE = 4000
CANARY = "code-was-run"
"""A file that hostile inputs would make if a line of theirs were run."""
Outcome = Literal["accepted", "refused", "skipped"]


class Skip(Exception):  # noqa: N818 (no error: the bytes are none that this door can be given)
    """The harness could not make an input for this door of the bytes."""


class Find(AssertionError):  # noqa: N818
    """The promise was broken. `kind` is the same for inputs that break it at the same place."""

    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(f"{kind}: {detail}")
        self.kind, self.detail = kind, detail


class TooSlow(BaseException):
    """Raised by the alarm."""


@dataclass(frozen=True)
class Door:
    """`enter(data, folder)` puts the bytes in an empty folder, goes through the door and checks the result.

    `places`: texts of which an error must hold one, so that it names what is wrong; empty: any text will do.
    `words`: a dictionary for the mutator. `seeds`: `valid` valid inputs first, then what is awkward.
    `is_heavy`: an input takes a second, since a page is made of it.
    """

    name: str
    enter: Callable[[bytes, Path], None]
    seeds: tuple[bytes, ...]
    words: tuple[bytes, ...] = ()
    places: tuple[str, ...] = ()
    valid: int = 1
    seconds: float = SECONDS
    is_heavy: bool = False

    def warm_up(self, scratch: Path) -> None:
        """Go through once without a limit: the first time imports what the door needs."""
        folder = Path(tempfile.mkdtemp(dir=scratch))
        self.enter(self.seeds[0], folder)
        shutil.rmtree(folder)

    def try_one(self, data: bytes, scratch: Path) -> Outcome:
        """How an input ended; Find where the promise was broken."""
        folder = Path(tempfile.mkdtemp(dir=scratch))
        try:
            with _at_most(self.seconds):
                return self._outcome(data, folder)
        except TooSlow:
            raise Find("too slow", f"more than {self.seconds} s for {len(data)} bytes") from None
        finally:
            if (folder / CANARY).exists():
                shutil.rmtree(folder, ignore_errors=True)
                raise Find("code was run", "the input made a file of its own")
            shutil.rmtree(folder, ignore_errors=True)

    def _outcome(self, data: bytes, folder: Path) -> Outcome:
        try:
            self.enter(data, folder)
        except Skip:
            return "skipped"
        except IsoformerError as error:
            _require_good_message(error, self.places)
            return "refused"
        except (Find, TooSlow, KeyboardInterrupt):
            raise
        except AssertionError as error:
            raise Find(f"wrong answer at {_place(error)}", str(error)[:400]) from error
        except BaseException as error:  # a panic of a native library is no Exception
            raise Find(f"{type(error).__name__} at {_place(error)}", str(error)[:400]) from error
        return "accepted"


def _require_good_message(error: IsoformerError, places: tuple[str, ...]) -> None:
    text, at = str(error), _place(error)
    lines = text.split("\n") if isinstance(error, ConfigError) else [text]
    if not text.strip():
        raise Find(f"empty message at {at}", type(error).__name__)
    if bad := [line for line in lines if not line.isprintable()]:
        raise Find(f"message of several lines or with control characters at {at}", repr(bad[0])[:400])
    if max(map(len, lines)) > LONGEST_LINE:
        raise Find(f"endless message at {at}", f"{len(text)} letters: {text[:200]!r}")
    if places and not any(place in text for place in places):
        raise Find(f"message without a place at {at}", f"none of {places} in {text[:300]!r}")


def _place(error: BaseException) -> str:
    """The innermost line of ours: where inputs of one kind break the promise."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if "/isoformer/" in frame.filename or "/tests/fuzz/" in frame.filename]
    if not own:
        return "nowhere"
    return f"{Path(own[-1].filename).name}:{own[-1].name}"


@contextmanager
def _at_most(seconds: float) -> Iterator[None]:
    def too_slow(*_: object) -> None:
        raise TooSlow

    before = signal.signal(signal.SIGPROF, too_slow)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
