"""What the user has chosen to see in the live view, and what each key does to it."""

from __future__ import annotations

import dataclasses
import enum

from .selection import Selection

ORDERS = (("self", True), ("total", True), ("self", False), ("total", False))
"""What the keys 1 to 4 sort by: which column, and whether of the last interval."""

PACES_S = (0.5, 1.0, 2.0, 5.0)
"""Seconds between two refreshes that ``+`` and ``-`` choose from."""

HELP = (
    ("q", "quit: stop sampling, detach, write the files"),
    ("1 2", "sort by self, total: of the last interval"),
    ("3 4", "sort by self, total: since the begin"),
    ("s S i", "next order, the one before; interval or all"),
    ("t < >", "one thread or all; the one before, next (← →)"),
    ("/ c", "filter by a part of the name; clear it"),
    ("p r", "pause (also space), reset; the files keep all"),
    ("↑ ↓", "select a function; PgUp, PgDn, Home, End"),
    ("x l", "mark changes in the last interval; by line"),
    ("+ - w", "refresh faster, slower; write a snapshot now"),
    ("? h", "show or hide this"),
)
"""Keys and what they do; with one line above they fit on the smallest terminal, 60 columns and 12 lines."""


class Wish(enum.Enum):
    """What a key asks for that the state alone can't do."""

    QUIT = enum.auto()
    RESET = enum.auto()
    SNAPSHOT = enum.auto()
    LINES = enum.auto()


@dataclasses.dataclass(slots=True)
class LiveState(Selection):
    """``order`` is an index into ORDERS, ``thread`` one into the threads in order of their ticks, None for
    all; ``trends``: changes are marked; ``by_line``: rows are lines, not functions."""

    order: int = 2
    thread: int | None = None
    shown: tuple[int, int] | None = None  # of the thread on the screen: its index there, its tid
    filter: str = ""
    typing: bool = False
    paused: bool = False
    help: bool = False
    trends: bool = True
    by_line: bool = False
    pace: int = 1

    def thread_of(self, tids: list[int]) -> int | None:
        """The thread to be shown.  Their order changes with their ticks: until a key asks for another one it
        is the one that is on the screen."""
        if self.thread is None or not tids:
            self.shown = None
            return None
        if self.shown is not None and self.shown[0] == self.thread and self.shown[1] in tids:
            self.thread = tids.index(self.shown[1])
        self.thread = min(self.thread, len(tids) - 1)
        self.shown = self.thread, tids[self.thread]
        return self.shown[1]

    @property
    def by_total(self) -> bool:
        return ORDERS[self.order][0] == "total"

    @property
    def interval(self) -> bool:
        return ORDERS[self.order][1]

    @property
    def pace_s(self) -> float:
        return PACES_S[self.pace]

    def press(self, key: str, threads: int) -> Wish | None:
        """Do what ``key`` (a character, or a name from ``terminal_keys``) means; there are ``threads``."""
        if self.typing:
            self._type(key)
            return None
        if self.help:
            self.help = False
            return Wish.QUIT if key == "q" else None
        if key in _WISHES:
            return _WISHES[key]
        self._choose(key, threads)
        return None

    def _choose(self, key: str, threads: int) -> None:
        if key in "1234":
            self._sort(int(key) - 1)
        elif key in ("s", "S"):
            self._sort((self.order + (1 if key == "s" else -1)) % len(ORDERS))
        elif key == "i":
            self._sort((self.order + 2) % 4)
        elif key == "t":
            self.thread = 0 if self.thread is None and threads else None
        elif key in ("<", ">", "left", "right"):
            step = 1 if key in (">", "right") else -1
            self.thread = (
                ((self.thread or 0) + step) % threads if self.thread is not None and threads else None
            )
        elif key == "/":
            self.typing = True
        elif key == "c":
            self.filter = ""
        elif key in ("p", " "):
            self.paused = not self.paused
        elif key in ("?", "h"):
            self.help = True
        elif key == "x":
            self.trends = not self.trends
        elif key in ("+", "-", "="):
            step = 1 if key == "-" else -1
            self.pace = min(max(self.pace + step, 0), len(PACES_S) - 1)
        else:
            self.move(key)

    def _sort(self, order: int) -> None:
        self.order, self.top = order, 0

    def _type(self, key: str) -> None:
        if key in ("enter", "escape"):
            self.typing = False
            if key == "escape":
                self.filter = ""
        elif key == "backspace":
            self.filter = self.filter[:-1]
        elif len(key) == 1 and key.isprintable():
            self.filter += key
            self.selected, self.top = -1, 0


_WISHES = {"q": Wish.QUIT, "r": Wish.RESET, "w": Wish.SNAPSHOT, "l": Wish.LINES}
