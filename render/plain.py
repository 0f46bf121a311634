"""What is shown while sampling where no terminal is: plain lines."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from types import TracebackType
from typing import TextIO

from .facts import seconds, share
from .live_header import LiveHeader, figures
from .live_totals import LiveTotals
from .names import crop, printable


class PlainView:
    """One line every ``period_s`` seconds; a reader that has gone away is no error."""

    def __init__(
        self, stream: TextIO, period_s: float = 5.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._stream, self._period_s, self._clock = stream, period_s, clock
        self._next_s = float("-inf")
        self._note = ""

    def __enter__(self) -> PlainView:
        self._next_s = self._clock() + self._period_s
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def update(self, header: LiveHeader, totals: LiveTotals) -> None:
        """Print this state, where the time for the next line has come, or there is a new note in it."""
        if header.note and header.note != self._note:
            self._next_s = self._clock()
        self._note = header.note
        self._print(lambda: _plain_line(header, totals))

    def poll(self) -> bool:
        """There is nobody to ask for anything."""
        return False

    def working(self, what: str, done: int, whole: int) -> None:
        """Print how far it is, where the time for the next line has come."""
        self._print(lambda: f"{what}: {done:,} of {whole:,}")

    def _print(self, line: Callable[[], str]) -> None:
        now = self._clock()
        if now < self._next_s:
            return
        self._next_s = now + self._period_s
        with contextlib.suppress(OSError, ValueError):  # ValueError: the stream is closed
            self._stream.write(line() + "\n")
            self._stream.flush()


def _plain_line(header: LiveHeader, totals: LiveTotals) -> str:
    rows, ticks = totals.rows(None, interval=False, by_total=False), totals.ticks(None, interval=False)
    hottest = ", ".join(
        f"{crop(printable(row.frame.name), 40)} {share(row.self_ticks, ticks)}" for row in rows[:3]
    )
    parts = [seconds(header.elapsed_s), *figures(header)]
    return ", ".join(parts) + (f"; by self: {hottest}" if hottest else "")
