"""The live view of a heap on a terminal: sites by live bytes, and how fast they grow; the process's memory
beside."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType

from rich.console import Console, Group, RenderableType
from rich.text import Text

from .alternate_screen import AlternateScreen
from .facts import seconds, share
from .names import cells, crop, printable
from .screen_lines import DIM, joined, one_line, padded, short_command_line
from .selection import Selection
from .terminal_keys import TerminalKeys

PACE_S = 1.0
_AROUND = 5  # lines that are not rows of the table
_WIDTHS = (18, 12, 13, 10)  # of the columns: live, with its share; growth; allocated; blocks
_GROWTH, _ALLOCATED, _BLOCKS = 1, 2, 3
_DISPENSABLE = (_ALLOCATED, _BLOCKS, _GROWTH)  # in this order, where the terminal is narrow
_LEAST_NAME = 16
_KEYS = (
    "q quit",
    "1 live",
    "2 growth",
    "3 allocated",
    "4 blocks",
    "s sort",
    "p pause",
    "w write",
    "↑ ↓ select",
)


@dataclasses.dataclass(frozen=True, slots=True)
class HeapRow:
    """A site: its functions, innermost first; bytes that are live, and how many more in a second; bytes
    allocated in a second; blocks that are live."""

    names: tuple[str, ...]
    live: float
    growth: float
    allocated: float
    blocks: float


ORDERS: tuple[tuple[str, Callable[[HeapRow], float]], ...] = (
    ("live", lambda row: row.live),
    ("growth/s", lambda row: row.growth),
    ("allocated/s", lambda row: row.allocated),
    ("blocks", lambda row: row.blocks),
)
"""What the keys 1 to 4 sort by."""


@dataclasses.dataclass(frozen=True, slots=True)
class HeapState:
    """What is shown beside the sites, in bytes and bytes per second; ``rss`` None: not known.  ``command`` is
    untrusted."""

    pid: int
    command: str
    elapsed_s: float
    remaining_s: float | None
    rss: int | None
    rss_growth: float
    live: float
    growth: float
    allocated: float
    blocks: float
    own_memory: int
    window_s: float
    note: str = ""


class HeapView:
    """The table on a terminal's alternate screen.  ``snapshot`` writes what there is so far and returns a
    line to be shown."""

    def __init__(
        self,
        console: Console | None = None,
        keys: TerminalKeys | None = None,
        snapshot: Callable[[], str] | None = None,
    ) -> None:
        self._screen = AlternateScreen(console, keys)
        self.snapshot = snapshot
        self.order, self.selection = 0, Selection()
        self.paused = False
        self._state: HeapState | None = None
        self._rows: Sequence[HeapRow] = ()
        self._note = ""
        self._quit = False

    def __enter__(self) -> HeapView:
        self._screen.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._screen.__exit__(kind, error, trace)

    def update(self, state: HeapState, rows: Sequence[HeapRow]) -> None:
        """Show this, unless the view is paused."""
        if self.paused:
            return
        self._state, self._rows = state, rows
        self._draw()

    def poll(self) -> bool:
        """Do what the keys say; whether the recording shall end."""
        pressed = self._screen.pressed()
        for key in pressed:
            self._press(key)
        if self._state is not None and (pressed or self._screen.is_outdated):
            self._draw()
        return self._quit

    def _press(self, key: str) -> None:
        self._note = ""
        if key == "q":
            self._quit = True
        elif key in "1234":
            self.order = int(key) - 1
        elif key in ("s", "S"):
            self.order = (self.order + (1 if key == "s" else -1)) % len(ORDERS)
        elif key in ("p", " "):
            self.paused = not self.paused
        elif key == "w" and self.snapshot is not None:
            self._note = self.snapshot()
        else:
            self.selection.move(key)

    def _draw(self) -> None:
        assert self._state is not None
        width, height = size = self._screen.size
        rows = sorted(self._rows, key=ORDERS[self.order][1], reverse=True)
        self._screen.draw(Group(*self._lines(self._state, rows, width, height)), size)

    def _lines(
        self, state: HeapState, rows: Sequence[HeapRow], width: int, height: int
    ) -> Iterator[RenderableType]:
        lines = [self._first(state, width), one_line(joined(_memory(state), width))]
        lines.append(one_line(joined(self._shown(state), width), DIM))
        window = self.selection.window(rows, max(1, height - _AROUND))
        lines += self._table(rows, window, state, width)
        lines = lines[: height - 1]
        yield from lines
        yield from [Text("")] * (height - 1 - len(lines))
        yield self._foot(rows, width)

    def _first(self, state: HeapState, width: int) -> Text:
        left = "" if state.remaining_s is None else f" of {seconds(state.elapsed_s + state.remaining_s)}"
        pid, clock = f"  pid {state.pid}  heap", seconds(state.elapsed_s) + left
        name = crop(short_command_line(state.command), max(4, width - len(pid) - len(clock) - 2))
        gap = max(1, width - cells(name) - len(pid) - len(clock))
        return Text.assemble((name, "bold"), pid, " " * gap, clock, no_wrap=True, overflow="crop")

    def _shown(self, state: HeapState) -> Iterator[str]:
        if self.paused:
            yield "paused"
        note = self._note or state.note
        if note:
            yield printable(note)
        yield f"by {ORDERS[self.order][0]}"
        yield f"per second: over the last {state.window_s:.0f} s"
        yield f"{size(state.own_memory)} of it for pyattach's tables"

    def _table(self, rows: Sequence[HeapRow], window: range, state: HeapState, width: int) -> Iterator[Text]:
        columns = _columns(width, self.order)
        name = max(_LEAST_NAME // 2, width - sum(_WIDTHS[column] for column in columns))
        titles = [title + ("↓" if i == self.order else "") for i, (title, _) in enumerate(ORDERS)]
        heads = (f"{titles[0]:>10}{'':>8}", f"{titles[1]:>12}", f"{titles[2]:>13}", f"{titles[3]:>10}")
        head = "".join(heads[column] for column in columns)
        yield one_line(padded("site, and its callers", name) + head, "bold")
        if not rows:
            yield one_line("nothing allocated yet", DIM)
        for index in window:
            row, chosen = rows[index], index == self.selection.selected
            line = Text(style="reverse" if chosen else "", no_wrap=True, overflow="crop")
            line.append(padded(" < ".join(map(printable, row.names)), name - 1) + " ")
            figures = _figures(row, state)
            for column in columns:
                line.append(figures[column], "" if chosen or column != _GROWTH else _colour(row.growth))
            yield line

    def _foot(self, rows: Sequence[HeapRow], width: int) -> Text:
        """The selected site's callers, or the keys."""
        selected = self.selection.selected
        if 0 <= selected < len(rows):
            return one_line(crop(" < ".join(map(printable, rows[selected].names)), width), "bold")
        return one_line(joined(_KEYS, width, "   "), DIM)


def _columns(width: int, order: int) -> list[int]:
    """Those that there is room for beside a name; what is sorted by is among them."""
    columns = list(range(len(_WIDTHS)))
    for column in _DISPENSABLE:
        if width - sum(_WIDTHS[c] for c in columns) >= _LEAST_NAME:
            break
        if column != order:
            columns.remove(column)
    return columns


def _figures(row: HeapRow, state: HeapState) -> tuple[str, ...]:
    return (
        f"{size(row.live):>10} {share(row.live, state.live):>7}",
        f"{_signed(row.growth):>12}",
        f"{size(row.allocated):>13}",
        f"{row.blocks:>10,.0f}",
    )


def _colour(growth: float) -> str:
    return "" if _signed(growth) == "0 B" else "bright_red" if growth > 0 else "bright_blue"


def _memory(state: HeapState) -> Iterator[str]:
    yield f"live {size(state.live)} in {state.blocks:,.0f} blocks, {_signed(state.growth)}/s"
    if state.rss is not None:
        yield f"RSS {size(state.rss)}, {_signed(state.rss_growth)}/s"
    yield f"allocated {size(state.allocated)}/s"


def size(value: float) -> str:
    """``512 B``, ``1.50 KiB``, ``12.3 MiB``, ``456 GiB``: three digits."""
    unit = "B"
    for following in ("KiB", "MiB", "GiB", "TiB"):
        if abs(value) < 1000:
            break
        value, unit = value / 1024, following
    if unit == "B":
        return f"{value:.0f} B"
    digits = 2 if abs(value) < 10 else 1 if abs(value) < 100 else 0
    return f"{value:.{digits}f} {unit}"


def _signed(value: float) -> str:
    return "0 B" if abs(value) < 0.5 else f"{'+' if value > 0 else '-'}{size(abs(value))}"
