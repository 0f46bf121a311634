"""The live view, captured and compared as text, and its keys in a pseudoterminal."""

from __future__ import annotations

import dataclasses
import io
import os
import pty
import select
import termios
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from support import hostile

from pyattach.render.alternate_screen import AlternateScreen
from pyattach.render.live import LiveView
from pyattach.render.live_header import LiveHeader
from pyattach.render.live_screen import build_screen
from pyattach.render.live_state import HELP, LiveState, Wish
from pyattach.render.live_totals import LiveTotals
from pyattach.render.plain import PlainView
from pyattach.render.terminal_keys import TerminalKeys, keys_in
from pyattach.symbols.frame import Frame, FrameKind

HEADER = LiveHeader(4711, "/usr/bin/app --fast", 99, 98.3, 3, 1188, 2, 0.0013, 12.0, 18.0)
MAIN = Frame("main", "app", FrameKind.USER)
QUERY = Frame("ns::Pool<std::string>::query(int) const", "app", FrameKind.USER)
MALLOC = Frame("malloc", "libc.so.6", FrameKind.LIBRARY)


def totals() -> LiveTotals:
    made = LiveTotals()
    made.add(1, (QUERY,), 600)
    made.add(1, (QUERY, MALLOC), 400)
    made.turn()
    made.add(2, (QUERY,), 100)
    made.add(2, (MAIN, MALLOC), 88)
    made.turn()
    return made


def screen(
    width: int,
    height: int,
    header: LiveHeader = HEADER,
    state: LiveState | None = None,
    of: LiveTotals | None = None,
) -> list[str]:
    console = Console(record=True, width=width, height=height, file=io.StringIO())
    names = {1: "main", 2: "a\x1bb"}
    console.print(
        build_screen(
            header, of or totals(), state or LiveState(), (width, height), lambda tid: names.get(tid, "")
        )
    )
    return [line.rstrip() for line in console.export_text().splitlines()]


def test_table_on_80_columns() -> None:
    assert screen(80, 12) == [
        "app --fast  pid 4711                       ━━━━━━──────────  12.0 s, 18.0 s left",
        "99 Hz asked, 98.3 reached · 1,188 samples · 2 dropped · 0.13% overhead",
        "all threads · since the begin",
        "function                          module              self ↓     total   samples",
        "ns::Pool::query                   app                 58.92%    92.59%       700",
        "malloc                            libc.so.6           41.08%    41.08%       488",
        "main                              app                  0.00%     7.41%         0",
        "",
        "",
        "",
        "",
        "q quit   ? help   s sort   t threads   / filter   p pause   i interval   r reset",
    ]


def test_table_on_60_columns() -> None:
    lines = screen(60, 12)
    assert lines[0] == "app --fast  pid 4711   ━━━━━━──────────  12.0 s, 18.0 s left"
    assert lines[3:5] == [
        "function           module         self ↓     total   samples",
        "ns::Pool::query    app            58.92%    92.59%       700",
    ]
    assert len(lines) == 12 and lines[-1].startswith("q quit   ? help")


@pytest.mark.parametrize("size", [(20, 3), (34, 6), (60, 12), (80, 24), (200, 50)])
@pytest.mark.parametrize("state", [LiveState(), LiveState(help=True), LiveState(typing=True, selected=250)])
def test_it_never_leaves_the_terminal(size: tuple[int, int], state: LiveState) -> None:
    many = LiveTotals()
    for n in range(300):
        many.add(1, (Frame(f"名{'x' * n}", "m" * n, FrameKind.USER),), 10**9)
    long = LiveHeader(1, "c" * 500, 1000, 1e6, 10**6, 10**12, 10**9, 0.5, 1e6, 1e6, note="n" * 300)
    lines = screen(*size, header=long, state=state, of=many)
    assert len(lines) <= size[1]
    if size[0] >= 60:
        assert max(map(len, lines)) <= size[0]


def test_without_samples_it_says_so() -> None:
    assert screen(60, 12, of=LiveTotals())[4] == "no samples yet"


def test_it_takes_no_orders_from_the_target() -> None:
    of = LiveTotals()
    of.add(2, (Frame("[red]x[/red]\x1b[31m\n\u202ey", "\x07", FrameKind.USER),), 1)
    header = LiveHeader(1, "[bold]\x1b]0;t\x07", 99, None, 1, 1, 0, None, 1.0, None, note="a\x1bb")
    lines = screen(80, 24, header=header, of=of, state=LiveState(thread=0, selected=0))
    assert lines[0].startswith("[bold]\ufffd]0;t\ufffd  pid 1 ")
    assert lines[1].startswith("a\ufffdb · 99 Hz asked · 1 samples")
    assert lines[2].startswith("thread 1 of 1: a\ufffdb 2, 100.00% of all")
    assert lines[4].startswith("[red]x[/red]\ufffd[31m \ufffdy")
    assert lines[-1] == "[red]x[/red]\ufffd[31m \ufffdy  [\ufffd]"
    assert not any(c < " " for line in lines for c in line)


def test_rows_are_lines_where_that_is_chosen() -> None:
    of = LiveTotals(lines=True)
    hot, cold = (dataclasses.replace(QUERY, line=f"/src/pool.cc:{n}") for n in (12, 7))
    of.add(1, (MAIN, hot), 70)
    of.add(2, (MAIN, cold), 20)
    of.add(2, (MAIN, MALLOC), 10)
    assert [line.split()[0] for line in screen(80, 12, of=of)[4:7]] == ["ns::Pool::query", "malloc", "main"]
    lines = screen(80, 12, of=of, state=LiveState(by_line=True, selected=1))
    assert lines[2].endswith("since the begin · by line") and lines[3].startswith("function, line")
    shown = [line.split() for line in lines[4:8]]
    assert [row[:2] for row in shown[:2]] == [
        ["ns::Pool::query", "pool.cc:12"],
        ["ns::Pool::query", "pool.cc:7"],
    ]
    assert [row[-3:] for row in shown[:2]] == [["70.00%", "70.00%", "70"], ["20.00%", "20.00%", "20"]]
    assert shown[2][0] == "malloc" and shown[3][0] == "main"
    assert lines[-1] == "ns::Pool<std::string>::query(int) const  [app]  /src/pool.cc:7"
    whole = screen(80, 12, of=of, state=LiveState(selected=0))
    assert whole[-1].endswith("[app]  /src/pool.cc:12"), "the one with most samples"
    rows = of.rows(None, interval=False, by_total=False, containing="CC:7", by_line=True)
    assert [row.frame for row in rows] == [cold]
    narrow = screen(44, 12, of=of, state=LiveState(by_line=True))
    assert narrow[4].startswith("…query  …:12 ")


def test_stacks_of_which_more_is_known_are_told_anew() -> None:
    """What was counted for them goes with them, by thread and in the interval."""
    stacks = [(MAIN, QUERY), (MAIN, MALLOC)]
    known = (dataclasses.replace(MAIN, line="a.c:1"), dataclasses.replace(QUERY, line="b.cc:2"))
    of, wanted = LiveTotals(lines=True), LiveTotals(lines=True)
    for each, first in ((of, stacks[0]), (wanted, known)):
        for turn in range(2):
            each.add(1, first, 30 + turn)
            each.add(2, first, 5)
            each.add(1, stacks[1], 7)
            each.turn()
        each.add(1, first, 3)
    of.tell_anew([(stacks[0], known), ((MAIN,), (QUERY,))])
    of.turn(), wanted.turn()
    for tid in (None, 1, 2):
        for interval in (False, True):
            assert of.ticks(tid, interval=interval) == wanted.ticks(tid, interval=interval)
            for by_total in (False, True):
                for by_line in (False, True):
                    rows, same = (
                        each.rows(tid, interval=interval, by_total=by_total, by_line=by_line)
                        for each in (of, wanted)
                    )
                    assert rows == same


def test_the_mode_is_shown_where_it_is_not_cpu_time() -> None:
    wall = dataclasses.replace(HEADER, mode="wall")
    assert screen(80, 24, header=wall)[1].startswith("wall · 99 Hz asked, 98.3 reached · ")
    assert "wall" not in screen(80, 24)[1]


def pressed(*keys: str, threads: int = 2) -> LiveState:
    state = LiveState()
    for key in keys:
        assert state.press(key, threads) is None
    return state


def functions(*keys: str) -> list[str]:
    """The lines of the table after these keys."""
    return [" ".join(line.split()) for line in screen(100, 20, state=pressed(*keys))[2:] if line][:-1]


def test_orders_by_their_keys() -> None:
    assert functions("4")[1].split() == ["function", "module", "self", "total", "↓", "samples"]
    assert [line.split()[0] for line in functions("4")[2:]] == [
        "ns::Pool<std::string>::query(int)",
        "malloc",
        "main",
    ]
    assert functions("1")[:3] == [
        "all threads · the last 1 s",
        "function module self ↓ total samples",
        "ns::Pool<std::string>::query(int) const app 53.19% 53.19% 100",
    ]
    assert pressed("s").order == 3 and pressed("s", "s").order == 0 and pressed("S").order == 1
    assert (pressed("1", "i").order, pressed("4", "i").order) == (2, 1)


def test_one_thread_at_a_time() -> None:
    assert functions("t")[0] == "thread 1 of 2: main 1, 84.18% of all · since the begin"
    assert functions("t", ">")[0] == "thread 2 of 2: a\ufffdb 2, 15.82% of all · since the begin"
    assert functions("t", ">", "right") == functions("t")
    assert functions("t", "<") == functions("t", "left") == functions("t", ">")
    assert functions("t", "t") == functions(">") == functions()
    assert functions("t", ">")[2:] == [
        "ns::Pool<std::string>::query(int) const app 53.19% 53.19% 100",
        "malloc libc.so.6 46.81% 46.81% 88",
        "main app 0.00% 46.81% 0",
    ]


def test_the_thread_that_is_shown_stays() -> None:
    """Threads are in order of their ticks, which others may have more of by now."""
    of, state = totals(), pressed("t")
    assert "thread 1 of 2: main 1" in screen(100, 20, state=state, of=of)[2]
    of.add(2, (QUERY,), 5000)
    of.turn()
    assert "thread 2 of 2: main 1" in screen(100, 20, state=state, of=of)[2]
    assert state.press(">", 2) is None
    assert "thread 1 of 2: a" in screen(100, 20, state=state, of=of)[2]


def test_filter_by_a_part_of_the_name() -> None:
    assert functions("/", "P", "o", "x", "backspace")[0] == "filter: Po▏"
    filtered = functions("/", *"LIBC", "enter")
    assert filtered == [
        "all threads · since the begin · with 'LIBC'",
        "function module self ↓ total samples",
        "malloc libc.so.6 41.08% 41.08% 488",
    ]
    assert functions("/", *"libc", "enter", "c") == functions("/", *"libc", "escape") == functions()
    assert functions("/", *"zz", "enter")[-1] == "no function has that in its name"
    assert pressed("/", "q", "p").filter == "qp"  # keys are letters there


def test_selection_scrolls_and_tells_the_whole_name() -> None:
    many = LiveTotals()
    for n in range(100):
        many.add(1, (Frame(f"f{n:02}", "app", FrameKind.USER),), 200 - n)
    state = LiveState()
    for key in ("end", "up", "down"):
        state.press(key, 1)
    lines = screen(60, 12, state=state, of=many)
    assert [line.split()[0] for line in lines[4:11]] == [f"f{n}" for n in range(93, 100)]
    assert lines[-1] == "f99  [app]"
    state.press("home", 1)
    assert screen(60, 12, state=state, of=many)[4].startswith("f00")
    state.press("pagedown", 1)
    assert screen(60, 12, state=state, of=many)[-1] == "f10  [app]"
    assert screen(60, 12, state=state, of=LiveTotals())[-1].startswith("q quit")  # after a reset
    assert screen(60, 12, state=state, of=many)[-1] == "f10  [app]"
    state.press("escape", 1)
    assert screen(60, 12, state=state, of=many)[-1].startswith("q quit")


def test_what_grows_and_what_shrinks_is_marked_where_it_is_no_chance() -> None:
    of = LiveTotals()
    for function, ticks in ((QUERY, 500), (MALLOC, 300), (MAIN, 200)):
        of.add(1, (function,), ticks)
    of.turn()
    for function, ticks in ((QUERY, 70), (MALLOC, 12), (MAIN, 18)):
        of.add(1, (MAIN, function), ticks)
    of.turn()

    def figures(*keys: str) -> list[list[str]]:
        return [line.split()[-3:] for line in screen(80, 12, state=pressed(*keys), of=of)[4:7]]

    assert figures() == [
        ["51.82%↑", "51.82%", "570"],
        ["28.36%↓", "28.36%", "312"],
        ["19.82%", "27.27%", "218"],
    ]
    assert figures("4")[0] == ["51.82%", "51.82%↑", "570"] and figures("4")[2] == ["19.82%", "27.27%↑", "300"]
    assert [row[0] for row in figures("1")] == ["70.00%↑", "18.00%", "12.00%↓"]
    assert not any("↑" in part for row in figures("x") for part in row) and figures("x", "x") == figures()
    of.turn()  # an interval without samples says nothing
    assert not any("↑" in part for row in figures() for part in row)


def test_help_names_every_key() -> None:
    lines = screen(60, 20, state=pressed("?"))
    assert lines[3].split() == ["1", "2", "sort", "by", "self,", "total:", "of", "the", "last", "interval"]
    assert len(lines) == 2 + len(HELP)
    small = screen(60, 12, state=pressed("?"))
    assert small == [lines[0], *lines[2:]]  # all of them, nothing cut
    keys = {key for words, _ in HELP for key in words.split()}
    assert keys == set("q1234sSit<>/cpr↑↓xl+-w?h")
    state = pressed("h")
    assert state.press("q", 1) is Wish.QUIT and not state.help


@given(
    st.lists(st.sampled_from([*"q1234sSit<>/cp rh?+-wlX", "up", "down", "end", "enter", "escape"])),
    st.integers(0, 3),
)
def test_any_keys_leave_a_screen(keys: list[str], threads: int) -> None:
    state = LiveState()
    for key in keys:
        state.press(key, threads)
    assert len(screen(60, 12, state=state)) <= 16


class Keys(TerminalKeys):
    """Keys pressed by the test."""

    def __init__(self) -> None:
        super().__init__(-1)
        self.waiting: list[str] = []

    def pressed(self) -> list[str]:
        keys, self.waiting = self.waiting, []
        return keys


class Driven:
    """A live view with a terminal in memory, keys and a clock of its own."""

    def __init__(self) -> None:
        self.out, self.keys, self.now_s = io.StringIO(), Keys(), 0.0
        console = Console(file=self.out, force_terminal=True, width=60, height=12, _environ={})
        self.view = LiveView(console, self.keys, lambda: "wrote x.svg", clock=lambda: self.now_s)
        self.totals = totals()

    def press(self, *keys: str) -> bool:
        self.keys.waiting += keys
        return self.view.poll()

    def drawn(self) -> str:
        text = self.out.getvalue()
        self.out.truncate(0)
        self.out.seek(0)
        return text


@pytest.fixture
def driven() -> Iterator[Driven]:
    made = Driven()
    with made.view:
        made.view.update(HEADER, made.totals)
        assert "58.92%" in made.drawn()
        yield made


def test_pause_freezes_the_table_and_not_the_sampling(driven: Driven) -> None:
    driven.press("p")
    assert "paused" in driven.drawn()
    driven.totals.add(1, (MAIN,), 1188)
    driven.now_s = 10
    driven.view.update(HEADER, driven.totals)
    assert driven.drawn() == ""
    driven.press("s", "s", "s", "s")
    assert "58.92%" in driven.drawn()
    driven.press(" ")
    assert "50.00%" in driven.drawn()  # main's, and now with what came meanwhile


def test_lines_are_shown_where_they_are_read(driven: Driven) -> None:
    driven.press("l")
    assert "start with --lines" in driven.drawn() and not driven.view.state.by_line
    driven.now_s = 1
    driven.view.update(HEADER, LiveTotals(lines=True))
    driven.press("p", "l")
    assert "by line" in driven.drawn()
    driven.press("l")
    assert "by line" not in driven.drawn()


def test_reset_forgets_what_was_shown(driven: Driven) -> None:
    driven.press("r")
    assert "no samples yet" in driven.drawn()
    driven.totals.add(1, (MAIN,), 1)
    driven.now_s = 1
    driven.view.update(HEADER, driven.totals)
    assert "100.00%" in driven.drawn()


def test_quit_is_told_and_a_snapshot_is_noted(driven: Driven) -> None:
    assert not driven.press("w")
    assert "wrote x.svg" in driven.drawn()
    assert driven.press("q")


def test_work_after_the_end_has_a_bar(driven: Driven) -> None:
    for now_s, done, drawn in ((0.0, 0, True), (0.05, 10, False), (0.1, 1500, True), (0.11, 3000, True)):
        driven.now_s = now_s
        driven.view.working("naming functions", done, 3000)
        shown = driven.drawn()
        bar = "━" * (done // 300) + "─" * (10 - done // 300)
        assert (f"naming functions {bar} {done:,} of 3,000" in shown) is drawn


def test_refreshes_keep_their_pace(driven: Driven) -> None:
    driven.press("-")
    driven.drawn()
    for now_s, drawn in ((1.0, False), (1.9, False), (2.0, True), (3.0, False), (4.0, True)):
        driven.now_s = now_s
        driven.view.update(HEADER, driven.totals)
        assert bool(driven.drawn()) is drawn
    driven.press("+", "+")
    assert driven.view.state.pace_s == 0.5


def test_live_view_leaves_the_alternate_screen() -> None:
    driven = Driven()
    with pytest.raises(ZeroDivisionError), driven.view:
        driven.view.update(HEADER, driven.totals)
        raise ZeroDivisionError
    text = driven.out.getvalue()
    assert text.index("\x1b[?1049h") < text.index("malloc") < text.rindex("\x1b[?1049l")
    assert text.count("\x1b[?25l") == text.count("\x1b[?25h")


def test_a_terminal_without_these_characters_is_left_as_it_was() -> None:
    raw = io.BytesIO()
    out = io.TextIOWrapper(raw, "ascii", write_through=True)
    console = Console(file=out, force_terminal=True, width=80, height=12, legacy_windows=False)
    with AlternateScreen(console, None) as alternate:
        alternate.draw("━ … ü", (80, 12))
        alternate.draw("and again", (80, 12))
    text = raw.getvalue().decode()
    assert text.count("\x1b[?1049h") == text.count("\x1b[?1049l") == 1 and "and again" in text


def test_keys_of_terminals() -> None:
    assert keys_in("q\x1b[A\x1b[B\x1bOC\x1b[5~\x1b[1;5D\r\x7f/é\x1b[200~\x07") == [
        *("q", "up", "down", "right", "pageup", "enter", "backspace", "/", "é"),
    ]
    assert keys_in("\x1b") == ["escape"]


@hostile()
@given(st.text())
def test_any_bytes_of_a_terminal_are_keys_or_nothing(text: str) -> None:
    assert all(key.isprintable() for key in keys_in(text))


def test_a_terminal_gets_back_its_settings() -> None:
    parent, child = os.openpty()
    try:
        before = termios.tcgetattr(child)
        keys = TerminalKeys(child)
        with keys:
            assert termios.tcgetattr(child) != before and keys.pressed() == []
            os.write(parent, b"q")
            assert select.select([child], [], [], 30)[0]
            assert keys.pressed() == ["q"]
        assert termios.tcgetattr(child) == before
        with TerminalKeys(parent_end := os.open("/dev/null", os.O_RDWR)) as none:
            assert none.pressed() == []
        os.close(parent_end)
    finally:
        os.close(parent)
        os.close(child)


def test_the_terminal_of_the_foreground_is_read_from() -> None:
    pid, parent = pty.fork()
    if pid == 0:  # a session of its own, with this terminal
        before = termios.tcgetattr(0)
        with TerminalKeys() as keys:
            raw = termios.tcgetattr(0)
            os.write(1, b"ready\n")
            got: list[str] = []
            while "q" not in got:
                got += keys.pressed()
        same = termios.tcgetattr(0) == before
        os.write(1, f"{got} {raw[3] & (termios.ICANON | termios.ECHO)} {same}\n".encode())
        os._exit(0)
    try:
        said = b""
        while b"ready" not in said:
            said += os.read(parent, 1000)
        os.write(parent, b"\x1b[A\x1aq")  # Ctrl-Z, too: it must not stop it
        while b"True" not in said and b"False" not in said:
            said += os.read(parent, 1000)
        assert b"['up', 'q'] 0 True" in said
    finally:
        os.close(parent)
        os.waitpid(pid, 0)


def test_plain_view_prints_a_line_each_period() -> None:
    times_s = [100.0, 101.0, 105.0, 106.0, 109.9, 110.5]
    clock = iter(times_s)
    out = io.StringIO()
    with PlainView(out, period_s=5, clock=lambda: next(clock)) as view:
        for _ in times_s[1:]:
            view.update(HEADER, totals())
            assert not view.poll()
    assert out.getvalue().splitlines() == 2 * [
        "12.0 s, 99 Hz asked, 98.3 reached, 1,188 samples, 2 dropped, 0.13% overhead, 3 threads"
        "; by self: ns::Pool<std::string>::query(int) const 58.92%, malloc 41.08%, main 0.00%"
    ]


def test_plain_view_prints_a_new_note_at_once() -> None:
    out = io.StringIO()
    with PlainView(out, period_s=5, clock=lambda: 1.0) as view:
        for note in ("", "news", "news", "other news", ""):
            view.update(dataclasses.replace(HEADER, note=note), totals())
    assert [line.split(", ")[1] for line in out.getvalue().splitlines()] == ["news", "other news"]


def test_plain_view_survives_a_reader_that_is_gone() -> None:
    out = io.StringIO()
    out.close()
    with PlainView(out, period_s=0) as view:
        view.update(HEADER, totals())
