"""The live view of a heap on a terminal: sites by live bytes, and how fast they grow; the process's memory
beside."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from .facts import seconds, share
from .names import cells, crop, printable
from .terminal_guard import TerminalGuard
from .terminal_keys import TerminalKeys

PACE_S = 1.0
_DIM = "bright_black"
_AROUND = 5  # lines that are not rows of the table
_COLUMNS = 53
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
        self._console = console or Console()
        self._keys, self.snapshot = keys, snapshot
        self.order, self.selected, self.top = 0, -1, 0
        self.paused = False
        self._state: HeapState | None = None
        self._rows: Sequence[HeapRow] = ()
        self._note = ""
        self._quit = False
        self._size = (0, 0)
        self._undo = contextlib.ExitStack()
        self._live = Live(
            console=self._console,
            screen=self._console.is_terminal,
            auto_refresh=False,
            redirect_stdout=False,
            redirect_stderr=False,
        )

    def __enter__(self) -> HeapView:
        with contextlib.ExitStack() as undo:
            terminal = self._terminal()
            settings = self._keys.settings() if self._keys is not None else None
            if terminal >= 0:
                guarded = (self._keys.fd, *settings) if self._keys is not None and settings else ()
                undo.enter_context(TerminalGuard(terminal, *guarded))
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
        try:
            fd = self._console.file.fileno()
        except OSError:  # it is written to memory
            return -1
        return fd if os.isatty(fd) else -1

    def update(self, state: HeapState, rows: Sequence[HeapRow]) -> None:
        """Show this, unless the view is paused."""
        if self.paused:
            return
        self._state, self._rows = state, rows
        self._draw()

    def poll(self) -> bool:
        """Do what the keys say; whether the recording shall end."""
        pressed = self._keys.pressed() if self._keys is not None else []
        for key in pressed:
            self._press(key)
        if self._state is not None and (pressed or self._console.size != self._size):
            self._draw()
        return self._quit

    def _press(self, key: str) -> None:
        self._note = ""
        steps = {"up": -1, "down": 1, "pageup": -10, "pagedown": 10, "home": -(1 << 30), "end": 1 << 30}
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
        elif key == "escape":
            self.selected = -1
        elif key in steps:
            self.selected = max(0, self.selected + steps[key])

    def _draw(self) -> None:
        assert self._state is not None
        self._size = self._console.size
        width, height = self._size
        rows = sorted(self._rows, key=ORDERS[self.order][1], reverse=True)
        self._live.update(Group(*self._screen(self._state, rows, width, height)), refresh=True)

    def _screen(
        self, state: HeapState, rows: Sequence[HeapRow], width: int, height: int
    ) -> Iterator[RenderableType]:
        lines = [self._first(state, width), _line(_joined(_memory(state), width))]
        lines.append(_line(_joined(self._shown(state), width), _DIM))
        room = max(1, height - _AROUND)
        self.selected = min(self.selected, len(rows) - 1)
        if self.selected >= 0:
            self.top = min(max(self.top, self.selected - room + 1), self.selected)
        self.top = max(0, min(self.top, len(rows) - room))
        lines += self._table(rows[self.top : self.top + room], state, width)
        lines = lines[: height - 1]
        yield from lines
        yield from [Text("")] * (height - 1 - len(lines))
        yield self._foot(rows, width)

    def _first(self, state: HeapState, width: int) -> Text:
        program, _, arguments = printable(state.command).partition(" ")
        name = f"{program.rpartition('/')[2]} {arguments}".strip() or "?"
        left = "" if state.remaining_s is None else f" of {seconds(state.elapsed_s + state.remaining_s)}"
        pid, clock = f"  pid {state.pid}  heap", seconds(state.elapsed_s) + left
        name = crop(name, max(4, width - len(pid) - len(clock) - 2))
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

    def _table(self, rows: Sequence[HeapRow], state: HeapState, width: int) -> Iterator[Text]:
        name = max(8, width - _COLUMNS)
        titles = [title + ("↓" if i == self.order else "") for i, (title, _) in enumerate(ORDERS)]
        head = f"{titles[0]:>10}{'':>8}{titles[1]:>12}{titles[2]:>13}{titles[3]:>10}"
        yield _line(_padded("site, and its callers", name) + head, "bold")
        if not rows:
            yield _line("nothing allocated yet", _DIM)
        for i, row in enumerate(rows, self.top):
            line = Text(style="reverse" if i == self.selected else "", no_wrap=True, overflow="crop")
            line.append(_padded(" < ".join(map(printable, row.names)), name - 1) + " ")
            line.append(f"{size(row.live):>10} {share(row.live, state.live):>7}")
            colour = "" if i == self.selected else "bright_red" if row.growth > 0 else "bright_blue"
            line.append(f"{_signed(row.growth):>12}", colour)
            yield line.append(f"{size(row.allocated):>13}{row.blocks:>10,.0f}")

    def _foot(self, rows: Sequence[HeapRow], width: int) -> Text:
        """The selected site's callers, or the keys."""
        if 0 <= self.selected < len(rows):
            return _line(crop(" < ".join(map(printable, rows[self.selected].names)), width), "bold")
        return _line(_joined(_KEYS, width, "   "), _DIM)


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


def _line(text: str, style: str = "") -> Text:
    return Text(text, style=style, no_wrap=True, overflow="crop")


def _joined(parts: Iterator[str] | Sequence[str], width: int, between: str = " · ") -> str:
    line = ""
    for part in parts:
        added = line + between + part if line else crop(part, width)
        if cells(added) > width:
            break
        line = added
    return line


def _padded(text: str, width: int) -> str:
    text = crop(text, width)
    return text + " " * (width - cells(text))
