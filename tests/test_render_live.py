"""The live view, captured and compared as text."""

from __future__ import annotations

import dataclasses
import io

import pytest
from rich.console import Console

from pyattach.render.live import LiveHeader, LiveView, PlainView, build_table
from pyattach.render.profile import FunctionRow
from pyattach.symbols.frame import Frame, FrameKind

HEADER = LiveHeader(4711, "/usr/bin/app --fast", 99, 98.3, 3, 1188, 2, 0.0013, 12.0, 18.0)
ROWS = [
    FunctionRow(Frame("ns::Pool<std::string>::query(int) const", "app", FrameKind.USER), 700, 1100),
    FunctionRow(Frame("malloc", "libc.so.6", FrameKind.LIBRARY), 488, 488),
]


def screen(
    width: int, height: int, header: LiveHeader = HEADER, rows: list[FunctionRow] = ROWS, total: int = 1188
) -> list[str]:
    console = Console(record=True, width=width, height=height, file=io.StringIO())
    console.print(build_table(header, rows, total, (width, height)))
    return [line.rstrip() for line in console.export_text().splitlines()]


def test_table_on_80_columns() -> None:
    assert screen(80, 24) == [
        "app --fast  pid 4711                                         12.0 s, 18.0 s left",
        "99 Hz asked, 98.3 reached · 1,188 samples · 2 dropped · 0.13% overhead",
        "",
        "function                         module                self     total    samples",
        "ns::Pool::query                  app                 58.92%    92.59%        700",
        "malloc                           libc.so.6           41.08%    41.08%        488",
    ]


def test_table_on_60_columns() -> None:
    assert screen(60, 12) == [
        "app --fast  pid 4711                     12.0 s, 18.0 s left",
        "99 Hz asked, 98.3 reached · 1,188 samples · 2 dropped",
        "",
        "function          module           self     total    samples",
        "ns::Pool::query   app            58.92%    92.59%        700",
        "malloc            libc.so.6      41.08%    41.08%        488",
    ]


@pytest.mark.parametrize("size", [(60, 12), (80, 24), (200, 50)])
def test_table_never_leaves_the_terminal(size: tuple[int, int]) -> None:
    rows = [FunctionRow(Frame(f"名{'x' * n}", "m" * n, FrameKind.USER), 10**9, 10**9) for n in range(300)]
    long = LiveHeader(1, "c" * 500, 1000, 1e6, 10**6, 10**12, 10**9, 0.5, 1e6, 1e6, note="n" * 300)
    lines = screen(*size, header=long, rows=rows, total=10**9)
    assert len(lines) == size[1]
    assert max(map(len, lines)) <= size[0]


def test_table_without_samples_says_so() -> None:
    assert screen(60, 12, rows=[], total=0)[-1] == "no samples yet"


def test_table_takes_no_orders_from_the_target() -> None:
    rows = [FunctionRow(Frame("[red]x[/red]\x1b[31m\n\u202ey", "\x07", FrameKind.USER), 1, 1)]
    header = LiveHeader(1, "[bold]\x1b]0;t\x07", 99, None, 1, 1, 0, None, 1.0, None, note="a\x1bb")
    lines = screen(80, 24, header=header, rows=rows, total=1)
    assert lines[0].startswith("[bold]\ufffd]0;t\ufffd  pid 1 ")
    assert lines[1].startswith("a\ufffdb · 99 Hz asked · 1 samples")
    assert lines[4].startswith("[red]x[/red]\ufffd[31m \ufffdy")
    assert not any(c < " " for line in lines for c in line)


def test_live_view_leaves_the_alternate_screen() -> None:
    terminal = io.StringIO()
    console = Console(file=terminal, force_terminal=True, width=60, height=12, _environ={})
    with LiveView(console) as view:
        view.update(HEADER, ROWS, 1188)
    text = terminal.getvalue()
    assert text.index("\x1b[?1049h") < text.index("malloc") < text.rindex("\x1b[?1049l")
    assert text.count("\x1b[?25l") == text.count("\x1b[?25h")


def test_plain_view_prints_a_line_each_period() -> None:
    times_s = [100.0, 101.0, 105.0, 106.0, 109.9, 110.5]
    clock = iter(times_s)
    out = io.StringIO()
    with PlainView(out, period_s=5, clock=lambda: next(clock)) as view:
        for _ in times_s[1:]:
            view.update(HEADER, ROWS, 1188)
    assert out.getvalue().splitlines() == 2 * [
        "12.0 s, 99 Hz asked, 98.3 reached, 1,188 samples, 2 dropped, 0.13% overhead, 3 threads"
        "; by self: ns::Pool<std::string>::query(int) const 58.92%, malloc 41.08%"
    ]


def test_plain_view_survives_a_reader_that_is_gone() -> None:
    out = io.StringIO()
    out.close()
    with PlainView(out, period_s=0) as view:
        view.update(HEADER, ROWS, 1188)


def test_the_mode_is_shown_where_it_is_not_cpu_time() -> None:
    wall = dataclasses.replace(HEADER, mode="wall")
    assert screen(80, 24, header=wall)[1].startswith("wall · 99 Hz asked, 98.3 reached · ")
    assert "wall" not in screen(80, 24)[1]
