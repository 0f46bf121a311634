"""What is shown while sampling: a table of the hottest functions, or plain lines where no terminal is."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
from collections.abc import Callable
from types import TracebackType
from typing import Protocol, TextIO

from rich.console import Console
from rich.live import Live

from .facts import seconds, share
from .live_screen import LiveHeader, bar, build_screen, figures
from .live_state import LiveState, Wish
from .live_totals import LiveTotals
from .names import crop, printable
from .terminal_guard import TerminalGuard
from .terminal_keys import TerminalKeys

_WORK_S, _WORK_BAR = 0.1, 10

__all__ = ["LiveHeader", "LiveView", "PlainView", "View"]


class View(Protocol):
    """Shows a session while it runs; entered before the first update and left after the last."""

    def __enter__(self) -> View:
        """Begin to show."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave the terminal as it was."""

    def update(self, header: LiveHeader, totals: LiveTotals) -> None:
        """Show this state."""

    def poll(self) -> bool:
        """Do what was asked for since the last call, at once; whether it was to quit.  Never waits."""

    def working(self, what: str, done: int, whole: int) -> None:
        """Sampling is over; show how far the work is that is still to be done."""


class LiveView:
    """The table on a terminal's alternate screen, so that the terminal is left as it was.

    ``keys``: where keys come from, none if None.  ``snapshot`` writes what there is so far and returns a line
    to be shown; ``name_of`` a thread's name, or "".
    """

    def __init__(
        self,
        console: Console | None = None,
        keys: TerminalKeys | None = None,
        snapshot: Callable[[], str] | None = None,
        name_of: Callable[[int], str] = lambda tid: "",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._console = console or Console()
        self._keys = keys
        self.snapshot, self.name_of = snapshot, name_of
        self._clock = clock
        self.state = LiveState()
        self._header: LiveHeader | None = None
        self._totals = self._shown = LiveTotals()
        self._drawn_at = self._worked_at = float("-inf")
        self._size = (0, 0)
        self._note = ""
        self._quit = False
        self._undo = contextlib.ExitStack()
        self._live = Live(
            console=self._console,
            screen=self._console.is_terminal,
            auto_refresh=False,
            redirect_stdout=False,
            redirect_stderr=False,
        )

    def __enter__(self) -> LiveView:
        with contextlib.ExitStack() as undo:
            if (terminal := self._terminal()) >= 0:
                undo.enter_context(self._guard(terminal))
            if self._keys is not None:
                undo.enter_context(self._keys)
            undo.enter_context(self._live)
            self._undo = undo.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._undo.__exit__(kind, error, trace)

    def _terminal(self) -> int:
        """Where the alternate screen is; -1: there is none."""
        try:
            fd = self._console.file.fileno()
        except OSError:  # it is written to memory
            return -1
        return fd if os.isatty(fd) else -1

    def _guard(self, terminal: int) -> TerminalGuard:
        settings = self._keys.settings() if self._keys is not None else None
        if self._keys is None or settings is None:
            return TerminalGuard(terminal)
        return TerminalGuard(terminal, self._keys.fd, *settings)

    def update(self, header: LiveHeader, totals: LiveTotals) -> None:
        """Show this state, fitted to the terminal as it is now, where the time for that has come."""
        self._header, self._totals = header, totals
        if self.state.paused or self._clock() < self._drawn_at + self.state.pace_s:
            return
        totals.turn()
        self._shown = totals
        self._draw()

    def poll(self) -> bool:
        """Do what the keys say; follow a change of the terminal's size."""
        pressed = self._keys.pressed() if self._keys is not None else []
        for key in pressed:
            self._press(key)
        if self._header is not None and (pressed or self._console.size != self._size):
            self._draw()
        return self._quit

    def working(self, what: str, done: int, whole: int) -> None:
        """Show it above the table, ten times a second at most; nothing but this is followed any more."""
        if self._header is None or (self._clock() < self._worked_at + _WORK_S and done < whole):
            return
        self._worked_at = self._clock()
        self._note = f"{what} {bar(done, whole, _WORK_BAR)} {done:,} of {whole:,}"
        self._draw()

    def _press(self, key: str) -> None:
        self._note = ""
        paused = self.state.paused
        wish = self.state.press(key, len(self._shown.tids()))
        if self.state.paused != paused:
            self._shown = self._totals.frozen() if self.state.paused else self._totals
        if wish is Wish.QUIT:
            self._quit = True
        elif wish is Wish.RESET:
            self._totals.reset()
            self._shown = self._totals
            self.state.paused = False
        elif wish is Wish.SNAPSHOT and self.snapshot is not None:
            self._note = self.snapshot()

    def _draw(self) -> None:
        assert self._header is not None
        self._drawn_at, self._size = self._clock(), self._console.size
        header = dataclasses.replace(self._header, note=self._note or self._header.note)
        screen = build_screen(header, self._shown, self.state, self._size, self.name_of)
        self._live.update(screen, refresh=True)


class PlainView:
    """One line every ``period_s`` seconds; a reader that has gone away is no error."""

    def __init__(
        self, stream: TextIO, period_s: float = 5.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._stream, self._period_s, self._clock = stream, period_s, clock
        self._next_s = float("-inf")

    def __enter__(self) -> PlainView:
        self._next_s = self._clock() + self._period_s
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def update(self, header: LiveHeader, totals: LiveTotals) -> None:
        """Print this state, where the time for the next line has come."""
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
