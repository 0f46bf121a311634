"""What is shown on a terminal while sampling: a table of the hottest functions."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from types import TracebackType

from rich.console import Console

from .alternate_screen import AlternateScreen
from .live_header import LiveHeader
from .live_screen import bar, build_screen
from .live_state import LiveState, Wish
from .live_totals import LiveTotals
from .terminal_keys import TerminalKeys

_WORK_S, _WORK_BAR = 0.1, 10


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
        self._screen = AlternateScreen(console, keys)
        self.snapshot, self.name_of = snapshot, name_of
        self._clock = clock
        self.state = LiveState()
        self._header: LiveHeader | None = None
        self._totals = self._shown = LiveTotals()
        self._drawn_at = self._worked_at = float("-inf")
        self._note = ""
        self._quit = False

    def __enter__(self) -> LiveView:
        self._screen.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._screen.__exit__(kind, error, trace)

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
        pressed = self._screen.pressed()
        for key in pressed:
            self._press(key)
        if self._header is not None and (pressed or self._screen.is_outdated):
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
        elif wish is Wish.LINES:
            self.state.by_line = self._shown.lines and not self.state.by_line
            self._note = "" if self._shown.lines else "for lines of the source start with --lines"

    def _draw(self) -> None:
        assert self._header is not None
        self._drawn_at, size = self._clock(), self._screen.size
        header = dataclasses.replace(self._header, note=self._note or self._header.note)
        self._screen.draw(build_screen(header, self._shown, self.state, size, self.name_of), size)
