"""The heap's live view: what stands where, on any terminal, and what keys do."""

from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from pyattach.render.heap_view import HeapRow, HeapState, HeapView, size

STATE = HeapState(
    pid=4321,
    command="/usr/bin/service --fast",
    elapsed_s=12.0,
    remaining_s=48.0,
    rss=50 << 20,
    rss_growth=1 << 20,
    live=4000.0,
    growth=100.0,
    allocated=9000.0,
    blocks=17,
    own_memory=300_000,
    window_s=10.0,
)
ROWS = [
    HeapRow(("keeps", "caller_of_keeps", "main"), 3000.0, 0.0, 0.0, 3),
    HeapRow(("grows", "main"), 1000.0, 100.0, 200.0, 10),
    HeapRow(("churns", "main"), 0.0, -50.0, 8800.0, 4),
]


class Keys:
    """Keys as a test presses them."""

    fd = -1

    def __init__(self) -> None:
        self.waiting: list[str] = []

    def settings(self) -> None:
        return None

    def pressed(self) -> list[str]:
        waiting, self.waiting = self.waiting, []
        return waiting

    def __enter__(self) -> Keys:
        return self

    def __exit__(self, *_exc: object) -> None:
        pass


class Driven:
    """A view that is written to memory."""

    def __init__(self, width: int = 100, height: int = 16) -> None:
        self.out, self.keys, self.snapshots = io.StringIO(), Keys(), 0
        console = Console(file=self.out, force_terminal=True, width=width, height=height, _environ={})
        self.view = HeapView(console, self.keys, self.snapshot)  # type: ignore[arg-type]
        self.width, self.height = width, height

    def snapshot(self) -> str:
        self.snapshots += 1
        return "written"

    def lines(self, state: HeapState = STATE, rows: list[HeapRow] | None = None) -> list[str]:
        plain = Console(record=True, width=self.width, height=self.height, file=io.StringIO())
        self.view.update(state, ROWS if rows is None else rows)
        plain.print(self.view._screen._live.renderable)
        return plain.export_text().splitlines()

    def press(self, *keys: str) -> bool:
        self.keys.waiting += keys
        return self.view.poll()


def sites(lines: list[str]) -> list[str]:
    return [
        line.split()[0]
        for line in lines
        if line.split()[:1] and line.split()[0] in ("keeps", "grows", "churns")
    ]


def test_what_stands_where() -> None:
    lines = Driven().lines()
    assert "service --fast" in lines[0] and "pid 4321  heap" in lines[0] and "of 1 min" in lines[0]
    assert lines[1].startswith(
        "live 3.91 KiB in 17 blocks, +100 B/s · RSS 50.0 MiB, +1.00 MiB/s · allocated 8.79 KiB/s"
    )
    assert lines[3].split() == "site, and its callers live↓ growth/s allocated/s blocks".split()
    assert lines[4].split() == "keeps < caller_of_keeps < main 2.93 KiB 75.00% 0 B 0 B 3".split()
    assert lines[5].split() == "grows < main 0.98 KiB 25.00% +100 B 200 B 10".split()


@pytest.mark.parametrize(
    ("key", "width", "row"),
    [
        ("1", 80, "grows < main 0.98 KiB 25.00% +100 B 200 B 10"),
        ("1", 60, "grows < main 0.98 KiB 25.00% +100 B 10"),
        ("3", 60, "grows < main 0.98 KiB 25.00% +100 B 200 B"),
        ("4", 44, "grows < main 0.98 KiB 25.00% 10"),
        ("1", 40, "grows < main 0.98 KiB 25.00%"),
    ],
)
def test_on_a_narrow_terminal_whole_columns_are_left_out(key: str, width: int, row: str) -> None:
    driven = Driven(width)
    driven.press(key)
    lines = driven.lines()
    assert [line.split() for line in lines if line.startswith("grows")] == [row.split()]
    assert "↓" in lines[3]


@pytest.mark.parametrize(
    ("key", "order"),
    [
        ("1", ["keeps", "grows", "churns"]),
        ("2", ["grows", "keeps", "churns"]),
        ("3", ["churns", "grows", "keeps"]),
        ("4", ["grows", "churns", "keeps"]),
    ],
)
def test_orders_by_their_keys(key: str, order: list[str]) -> None:
    driven = Driven()
    driven.press(key)
    assert sites(driven.lines()) == order


def test_keys() -> None:
    driven = Driven()
    driven.lines()
    driven.press("s", "s")
    assert sites(driven.lines()) == ["churns", "grows", "keeps"]
    driven.press("S")
    assert sites(driven.lines()) == ["grows", "keeps", "churns"]
    driven.press("down", "down")
    assert "churns < main" not in driven.lines()[-1] and driven.lines()[-1].startswith(
        "keeps < caller_of_keeps"
    )
    driven.press("escape", "p")
    assert sites(driven.lines(rows=[])) == ["grows", "keeps", "churns"]
    driven.press(" ")
    assert "nothing allocated yet" in "\n".join(driven.lines(rows=[]))
    driven.press("w")
    assert driven.snapshots == 1 and any(line.startswith("written") for line in driven.lines())
    assert not driven.press("1")
    assert driven.press("q")


@given(width=st.integers(20, 160), height=st.integers(4, 40), count=st.integers(0, 60))
def test_it_never_leaves_the_terminal(width: int, height: int, count: int) -> None:
    rows = [HeapRow((f"site {i} \x1b[31m" + "x" * i, "main"), i * 1e6, i, i, i) for i in range(count)]
    lines = Driven(width, height).lines(rows=rows)
    assert len(lines) <= height
    assert all(cell_len(line) <= width and "\x1b" not in line for line in lines)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "0.98 KiB"),
        (1 << 20, "1.00 MiB"),
        (123.4 * (1 << 20), "123 MiB"),
        (5.5 * (1 << 40), "5.50 TiB"),
    ],
)
def test_sizes(value: float, text: str) -> None:
    assert size(value) == text
