"""The live view in a real terminal (tmux): what is to be seen, and that nothing of it stays."""

from __future__ import annotations

import contextlib
import re
import shlex
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support import requires
from test_attach_run import COMMAND, ROOT, Folded, Spawn, check_svg, wait_for

MARKER = "what-was-there-before"


class Terminal:
    """A shell in a tmux server of our own."""

    def __init__(self, socket: Path, columns: int, lines: int) -> None:
        self._tmux = [requires("tmux"), "-S", str(socket), "-f", "/dev/null"]
        shell = "env -i TERM=screen-256color PATH=/usr/bin:/bin HOME=/ PS1='$ ' sh"
        self.run("new-session", "-d", "-x", str(columns), "-y", str(lines), shell)

    def run(self, *words: str) -> str:
        done = subprocess.run([*self._tmux, *words], capture_output=True, text=True, check=True, timeout=30)
        return done.stdout

    def type(self, *keys: str) -> None:
        self.run("send-keys", *keys)

    def line(self, text: str) -> None:
        self.run("send-keys", "-l", text)
        self.type("Enter")

    def screen(self) -> list[str]:
        return self.run("capture-pane", "-p").splitlines()

    def state(self, name: str) -> str:
        return self.run("display-message", "-p", f"#{{{name}}}").strip()

    def wait_until(self, what: str, shown: Callable[[list[str]], object]) -> list[str]:
        seen: list[str] = []

        def holds() -> object:
            seen[:] = self.screen()
            return shown(seen)

        try:
            wait_for(what, holds)
        except AssertionError as error:
            raise AssertionError(f"{error}\n" + "\n".join(seen)) from None
        return seen


@pytest.fixture
def terminal() -> Iterator[Callable[[int, int], Terminal]]:
    # Not in tmp_path: the path of a socket has 108 bytes at most.
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as undo:

        def make(columns: int, lines: int) -> Terminal:
            made = Terminal(Path(folder, "tmux"), columns, lines)
            undo.callback(made.run, "kill-server")
            return made

        yield make


@pytest.mark.parametrize(("columns", "lines"), [(100, 30), (60, 12)])
def test_the_live_view(
    spawn: Spawn, terminal: Callable[[int, int], Terminal], tmp_path: Path, columns: int, lines: int
) -> None:
    svg, folded, before, after = (tmp_path / name for name in ("o.svg", "o.folded", "before", "after"))
    with spawn("split") as target:
        screen = terminal(columns, lines)
        screen.wait_until("the shell is there", lambda rows: rows and rows[0].startswith("$"))
        screen.line(f"cd {shlex.quote(str(ROOT))}; stty -a > {before}; clear; echo {MARKER}")
        screen.wait_until("it has marked the screen", lambda rows: rows[0] == MARKER)
        command = shlex.join([*COMMAND, str(target.pid), "-o", str(svg), "-o", str(folded)])
        screen.line(f"{command}; echo left-with-$?; stty -a > {after}; echo all-done")

        def enough(rows: list[str]) -> bool:
            found = re.search(r"([\d,]+) samples", "\n".join(rows[:2]))
            return found is not None and int(found[1].replace(",", "")) >= 100

        rows = screen.wait_until("a hundred samples are shown", enough)
        assert screen.state("alternate_on") == "1"
        check_view(rows, target.pid, columns, lines)

        screen.type("C-c")
        screen.wait_until("it has ended", lambda rows: "all-done" in rows)
        assert screen.state("alternate_on") == "0" and screen.state("cursor_flag") == "1"
        history = screen.run("capture-pane", "-p", "-S", "-", "-J")
        assert "left-with-0" in history.splitlines()
        assert MARKER in history and "wrote" in history and "work_70" in history
        assert after.read_text() == before.read_text()
        assert target.finish().startswith("done ")
    check_svg(svg)
    assert Folded(folded).top() == "work_70"


def check_view(rows: list[str], pid: int, columns: int, lines: int) -> None:
    assert len(rows) <= lines and all(len(row) <= columns for row in rows)
    assert f"pid {pid}" in rows[0] and rows[0].startswith("split")
    assert "99 Hz asked" in rows[1] and "samples" in rows[1]
    head = next(index for index, row in enumerate(rows) if row.startswith("function"))
    assert rows[head + 1].startswith("work_70"), rows
    shown = [row.split()[0] for row in rows[head + 1 :] if row.strip()]
    assert {"work_70", "work_20", "work_10"} <= set(shown)
