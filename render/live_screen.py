"""One screen of the live view: what was measured, what is shown, the table, the keys."""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Iterator

from rich.console import Group, RenderableType
from rich.text import Text

from ..symbols.frame import Frame, FrameKind
from .facts import seconds, share
from .live_header import LiveHeader, figures
from .live_state import HELP, LiveState
from .live_totals import LiveTotals, row_key
from .names import cells, crop, crop_front, printable
from .profile import FunctionRow
from .screen_lines import DIM, joined, one_line, padded, short_command_line

_AROUND = 5  # lines that are not rows of the table
_BAR = 16
_LEAST_NAME = 8
_STYLES = {
    FrameKind.USER: "",
    FrameKind.LIBRARY: "cyan",
    FrameKind.KERNEL: "magenta",
    FrameKind.INTERPRETER: "yellow",
    FrameKind.JIT: "green",
    FrameKind.UNKNOWN: DIM,
    FrameKind.MARK: "bold magenta",
}
_TRENDS = {1: ("↑", "bright_red"), -1: ("↓", "bright_blue"), 0: (" ", "")}
_KEYS = ("q quit", "? help", "s sort", "t threads", "/ filter", "p pause", "i interval", "r reset", "w write")


def build_screen(
    header: LiveHeader,
    totals: LiveTotals,
    state: LiveState,
    size: tuple[int, int],
    thread_name: Callable[[int], str] = lambda tid: "",
) -> RenderableType:
    """All of it for a terminal of ``size`` (columns, lines)."""
    width, height = size
    lines = [_first(header, width), one_line(joined(figures(header), width), DIM)]
    if state.help:
        return Group(*[*lines[: max(0, height - len(HELP))], *_help(width)][:height])
    tids = totals.tids()
    tid = state.thread_of(tids)
    by_line = state.by_line
    rows = totals.rows(
        tid, interval=state.interval, by_total=state.by_total, containing=state.filter, by_line=by_line
    )
    lines.append(_shown(state, totals, tid, thread_name, width))
    window = state.window(rows, max(1, height - _AROUND))
    trends = totals.trends(tid, by_total=state.by_total, by_line=by_line) if state.trends else {}
    lines += _table(rows, window, state, totals.ticks(tid, interval=state.interval), width, trends)
    return Group(*_fitted(lines, _foot(rows, state, width), height))


def _fitted(lines: list[Text], foot: Text, height: int) -> list[Text]:
    """The foot on the last line; on a screen of a few lines there is only the begin."""
    if height <= _AROUND:
        return lines[:height]
    return [*lines, *[Text()] * (height - 1 - len(lines)), foot]


def _first(header: LiveHeader, width: int) -> Text:
    clock = seconds(header.elapsed_s)
    if header.remaining_s is not None:
        clock = f"{_bar(header)}{clock}, {seconds(header.remaining_s)} left"
    pid = f"  pid {header.pid}"
    if len(clock) + len(pid) + 12 > width:
        clock = clock.removeprefix(_bar(header))
    room = width - len(clock) - len(pid) - 2  # cells() takes the bar for wide
    name = crop(short_command_line(header.command), max(4, room))
    gap = max(1, width - cells(name) - len(pid) - len(clock))
    return Text.assemble((name, "bold"), pid, " " * gap, clock, no_wrap=True, overflow="crop")


def _bar(header: LiveHeader) -> str:
    if header.remaining_s is None:
        return ""
    return bar(header.elapsed_s, header.elapsed_s + header.remaining_s, _BAR) + "  "


def bar(part: float, whole: float, width: int) -> str:
    """How much of ``whole`` is done, in ``width`` columns."""
    done = round(width * min(1.0, part / whole)) if whole else width
    return "━" * done + "─" * (width - done)


def _shown(
    state: LiveState, totals: LiveTotals, tid: int | None, thread_name: Callable[[int], str], width: int
) -> Text:
    if state.typing:
        return one_line(crop(f"filter: {state.filter}▏", width), "bold")
    thread = "all threads"
    if tid is not None:
        part = share(totals.ticks(tid, interval=False), totals.ticks(None, interval=False))
        name = crop(printable(thread_name(tid)), 20)
        at = min(state.thread or 0, len(totals.tids()) - 1) + 1
        thread = f"thread {at} of {len(totals.tids())}: {name} {tid}, {part} of all".replace("  ", " ")
    over = f"the last {state.pace_s:g} s" if state.interval else "since the begin"
    parts = [thread, over, *(["by line"] if state.by_line else [])]
    if state.filter:
        parts.append(f"with {crop(printable(state.filter), 20)!r}")
    line = Text(no_wrap=True, overflow="crop")
    if state.paused:
        line.append("paused", "bold yellow").append(" · ")
    return line.append(joined(parts, width - cells(line.plain)), DIM)


def _table(
    rows: list[FunctionRow],
    window: range,
    state: LiveState,
    ticks: int,
    width: int,
    trends: dict[tuple[str, str, str], int],
) -> Iterator[Text]:
    module = 22 if width >= 100 else 16 if width >= 80 else 11 if width >= 50 else 0
    name = max(8, width - module - (2 if module else 0) - 30)
    marks = [" ↓" if state.by_total is by_total else "" for by_total in (False, True)]
    head = f"{'function, line' if state.by_line else 'function':<{name}}  " + (
        f"{'module':<{module}}  " if module else ""
    )
    yield one_line(f"{head}{'self' + marks[0]:>8}  {'total' + marks[1]:>8}  {'samples':>8}", "bold")
    if not rows:
        yield one_line("no function has that in its name" if state.filter else "no samples yet", DIM)
    for index in window:
        row = rows[index]
        count = row.total_ticks if state.by_total else row.self_ticks
        chosen = index == state.selected
        line = Text(style="reverse" if chosen else "", no_wrap=True, overflow="crop")
        style = "" if chosen else _STYLES.get(row.frame.kind, "")
        line.append(_named(row.frame, name, state.by_line) + "  ", style)
        if module:
            line.append(padded(printable(row.frame.module), module) + "  ", "" if chosen else DIM)
        trend = trends.get(row_key(row, state.by_line), 0)
        for by_total, part in ((False, row.self_ticks), (True, row.total_ticks)):
            mark, colour = _TRENDS[trend if by_total is state.by_total else 0]
            line.append(f"{share(part, ticks):>8}{mark} ", "" if chosen else colour)
        yield line.append(f"{count:>8,}")


def _named(frame: Frame, width: int, by_line: bool) -> str:
    """The function and, by line, the end of its path: of both there is always something to be seen."""
    name, place = printable(frame.name), printable(posixpath.basename(frame.line)) if by_line else ""
    if not place:
        return padded(name, width)
    place = crop_front(place, max(0, width - _LEAST_NAME - 2))
    return padded(crop(name, width - cells(place) - 2) + "  " + place, width)


def _foot(rows: list[FunctionRow], state: LiveState, width: int) -> Text:
    """The whole name of the selected function, with its place in the source, or the keys."""
    if 0 <= state.selected < len(rows):
        frame = rows[state.selected].frame
        module = f"  [{printable(frame.module)}]" if frame.module else ""
        where = f"  {printable(frame.line)}" if frame.line else ""
        return one_line(crop(printable(frame.name) + module + where, width), "bold")
    return one_line(joined(_KEYS, width, "   "), DIM)


def _help(width: int) -> Iterator[Text]:
    for keys, what in HELP:
        yield one_line(crop(f"  {keys:<9}{what}", width))
