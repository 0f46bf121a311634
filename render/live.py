"""What is shown while sampling: a table of the hottest functions, or plain lines where no terminal is."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Protocol, TextIO

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from ..symbols.frame import FrameKind
from .facts import hertz, seconds, share, small_share
from .names import cells, crop, printable
from .profile import FunctionRow

_HEADER_LINES = 4  # two of figures, one of the table's head, one blank between them
_FIGURES = (8, 8, 9)  # widths of self, total and samples
_STYLES = {
    FrameKind.USER: "",
    FrameKind.LIBRARY: "cyan",
    FrameKind.JIT: "green",
    FrameKind.UNKNOWN: "bright_black",
    FrameKind.MARK: "bold magenta",
}


@dataclasses.dataclass(frozen=True, slots=True)
class LiveHeader:
    """The state of a running session.  ``None`` means: not known yet, or without end.

    ``overhead_share`` is a share (0.01 is 1%) of the target's CPU time; ``command`` is untrusted.
    """

    pid: int
    command: str
    rate_asked_hz: float
    rate_reached_hz: float | None
    threads: int
    samples: int
    dropped: int
    overhead_share: float | None
    elapsed_s: float
    remaining_s: float | None
    note: str = ""
    mode: str = "cpu"


class View(Protocol):
    """Shows a session while it runs; entered before the first update and left after the last."""

    def __enter__(self) -> View:
        """Begin to show."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave the terminal as it was."""

    def update(self, header: LiveHeader, rows: Sequence[FunctionRow], total_ticks: int) -> None:
        """Show this state; ``rows`` are in the order to be shown, shares are of ``total_ticks``."""


def build_table(
    header: LiveHeader, rows: Sequence[FunctionRow], total_ticks: int, size: tuple[int, int]
) -> RenderableType:
    """The whole live view for a terminal of ``size`` (columns, lines), from 60 by 12 on."""
    width, height = size
    module_width = 22 if width >= 100 else 16 if width >= 80 else 11
    name_width = max(8, width - module_width - sum(_FIGURES) - 8)
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column("function", width=name_width, no_wrap=True)
    table.add_column("module", width=module_width, no_wrap=True)
    for title, columns in zip(("self", "total", "samples"), _FIGURES, strict=True):
        table.add_column(title, width=columns, justify="right", no_wrap=True)
    for row in rows[: max(1, height - _HEADER_LINES)]:
        style = _STYLES[row.frame.kind]
        table.add_row(
            Text(crop(printable(row.frame.name), name_width), style=style),
            Text(crop(printable(row.frame.module), module_width), style="bright_black"),
            Text(share(row.self_ticks, total_ticks)),
            Text(share(row.total_ticks, total_ticks)),
            Text(f"{row.self_ticks:,}"),
        )
    if not rows:
        table.add_row(Text("no samples yet", style="bright_black"), "", "", "", "")
    return Group(*_header(header, width), Text(), table)


def _header(header: LiveHeader, width: int) -> tuple[Text, Text]:
    clock = seconds(header.elapsed_s)
    if header.remaining_s is not None:
        clock += f", {seconds(header.remaining_s)} left"
    pid = f"  pid {header.pid}"
    room = width - cells(clock) - cells(pid) - 2
    name = crop(_program(header), max(4, room))
    gap = max(1, width - cells(name) - cells(pid) - cells(clock))
    first = Text.assemble((name, "bold"), pid, " " * gap, clock, no_wrap=True, overflow="crop")
    return first, Text(_joined(_figures(header), width), style="bright_black", no_wrap=True, overflow="crop")


def _program(header: LiveHeader) -> str:
    """The command without the folder of its program."""
    program, _, arguments = printable(header.command).partition(" ")
    return f"{program.rpartition('/')[2]} {arguments}".strip() or "?"


def _figures(header: LiveHeader) -> list[str]:
    """The most important first: a narrow terminal shows only as many as fit."""
    rate = f"{hertz(header.rate_asked_hz)} asked"
    if header.rate_reached_hz is not None:
        rate += f", {header.rate_reached_hz:.1f} reached"
    if header.mode != "cpu":
        rate = f"{printable(header.mode)} · {rate}"
    parts = [rate, f"{header.samples:,} samples", f"{header.dropped:,} dropped"]
    if header.overhead_share is not None:
        parts.append(f"{small_share(header.overhead_share)} overhead")
    parts.append(f"{header.threads:,} thread{'s' * (header.threads != 1)}")
    # A note is news: it goes before what is always there, so that it is not the first to be left out.
    return [printable(header.note), *parts] if header.note else parts


def _joined(parts: Sequence[str], width: int) -> str:
    line = crop(parts[0], width)
    for part in parts[1:]:
        if cells(line) + 3 + cells(part) > width:
            break
        line += " · " + part
    return line


class LiveView:
    """The table on a terminal's alternate screen, so that the terminal is left as it was."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console()
        self._live = Live(
            console=self._console,
            screen=self._console.is_terminal,
            auto_refresh=False,
            redirect_stdout=False,
            redirect_stderr=False,
        )

    def __enter__(self) -> LiveView:
        self._live.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.__exit__(kind, error, trace)

    def update(self, header: LiveHeader, rows: Sequence[FunctionRow], total_ticks: int) -> None:
        """Show this state at once, fitted to the terminal as it is now."""
        columns, lines = self._console.size
        self._live.update(build_table(header, rows, total_ticks, (columns, lines)), refresh=True)


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

    def update(self, header: LiveHeader, rows: Sequence[FunctionRow], total_ticks: int) -> None:
        """Print this state, where the time for the next line has come."""
        now = self._clock()
        if now < self._next_s:
            return
        self._next_s = now + self._period_s
        with contextlib.suppress(OSError, ValueError):  # ValueError: the stream is closed
            self._stream.write(_plain_line(header, rows, total_ticks) + "\n")
            self._stream.flush()


def _plain_line(header: LiveHeader, rows: Sequence[FunctionRow], total_ticks: int) -> str:
    hottest = ", ".join(
        f"{crop(printable(row.frame.name), 40)} {share(row.self_ticks, total_ticks)}" for row in rows[:3]
    )
    parts = [seconds(header.elapsed_s), *_figures(header)]
    return ", ".join(parts) + (f"; by self: {hottest}" if hottest else "")
