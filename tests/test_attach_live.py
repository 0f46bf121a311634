"""The live view in a real terminal (tmux): what is to be seen, and that nothing of it stays."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support import build_target, requires
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

    def settled(self) -> list[str]:
        """What is shown once it is drawn: tmux may have been asked when it had read a part of it."""
        before: list[str] = []

        def same(rows: list[str]) -> bool:
            nonlocal before
            last, before = before, rows.copy()
            return last == rows

        return self.wait_until("nothing changes", same)


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
    assert rows[lines - 1].startswith("q quit   ? help")
    head = next(index for index, row in enumerate(rows) if row.startswith("function"))
    assert rows[head + 1].startswith("work_70"), rows
    shown = [row.split()[0] for row in rows[head + 1 : lines - 1] if row.strip()]
    assert {"work_70", "work_20", "work_10"} <= set(shown)


def start(
    terminal: Callable[[int, int], Terminal],
    folder: Path,
    *words: str,
    columns: int = 80,
    lines: int = 24,
    hottest: str = "work_70",
) -> Terminal:
    """pyattach in a terminal, once its table is there; the terminal's settings before are in a file."""
    screen = terminal(columns, lines)
    screen.wait_until("the shell is there", lambda rows: rows and rows[0].startswith("$"))
    screen.line(f"cd {shlex.quote(str(folder))}; stty -a > before; clear")
    command = shlex.join(["env", f"PYTHONPATH={ROOT}", *COMMAND, *words])
    screen.line(f"{command}; echo left-with-$?; stty -a > after; echo all-done")
    screen.wait_until("samples are shown", lambda rows: any(row.startswith(hottest) for row in rows))
    return screen


def table(rows: list[str]) -> list[str]:
    """The functions of the table, in order."""
    head = next(index for index, row in enumerate(rows) if row.startswith("function"))
    return [row.split()[0] for row in rows[head + 1 : -1] if row.strip()]


def ended(screen: Terminal, folder: Path) -> list[str]:
    screen.wait_until("it has ended", lambda rows: "all-done" in rows)
    assert screen.state("alternate_on") == "0" and screen.state("cursor_flag") == "1"
    before, after = ((folder / name).read_text().partition("line =")[2] for name in ("before", "after"))
    assert after == before  # all but the size
    return screen.run("capture-pane", "-p", "-S", "-", "-J").splitlines()


def test_the_keys_of_the_live_view(
    spawn: Spawn, terminal: Callable[[int, int], Terminal], tmp_path: Path
) -> None:
    with spawn("split") as target:
        screen = start(terminal, tmp_path, str(target.pid), "-o", "o.svg", "-d", "10m")
        assert "━" in screen.screen()[0] or "─" in screen.screen()[0]
        screen.type("4")
        screen.wait_until(
            "sorted by total", lambda rows: "total ↓" in rows[3] and table(rows)[0] != "work_70"
        )
        screen.type("3")
        screen.wait_until("sorted by self", lambda rows: "self ↓" in rows[3] and table(rows)[0] == "work_70")
        screen.type("/")
        screen.wait_until("a filter is asked for", lambda rows: rows[2].startswith("filter:"))
        screen.run("send-keys", "-l", "work_1")
        screen.wait_until("it is filtered", lambda rows: table(rows) == ["work_10"])
        screen.type("Enter", "c", "t")
        screen.wait_until(
            "one thread", lambda rows: re.match(rf"thread 1 of 1: split {target.pid}, 100.00%", rows[2])
        )
        screen.type("t", "?")
        screen.wait_until("the help", lambda rows: any("detach, write the files" in row for row in rows))
        screen.type("?", "x", "Down")
        screen.wait_until("one is selected", lambda rows: rows[-1].startswith("work_70  [split]"))
        screen.type("p")
        screen.wait_until("it stands still", lambda rows: rows[2].startswith("paused"))
        frozen = screen.settled()[4:]
        screen.type("w")
        screen.wait_until("a snapshot is written", lambda rows: "wrote " in rows[1])
        assert screen.screen()[4:] == frozen
        screen.type("p", "r")
        screen.run("resize-window", "-x", "60", "-y", "12")
        screen.wait_until(
            "it follows the size", lambda rows: len(rows) == 12 and rows[-1].startswith("work_70")
        )
        screen.type("C-z")
        screen.type("q")
        said = ended(screen, tmp_path)
        assert "left-with-0" in said
    check_svg(tmp_path / "o.svg")
    (snapshot,) = tmp_path.glob("*-snapshot.svg")
    check_svg(snapshot)


def test_lines_while_it_is_sampled(
    spawn: Spawn, terminal: Callable[[int, int], Terminal], tmp_path: Path
) -> None:
    """They come after a moment, also for what was sampled before."""
    with spawn([str(build_target("inlined", "-g"))]) as target:
        words = (str(target.pid), "--lines", "-o", "o.svg")
        screen = start(terminal, tmp_path, *words, hottest="innermost (inlined)")
        screen.type("l", "Down")
        foot = r"innermost \(inlined\)  \[inlined\]  /.*/inlined\.c:[789]$"
        rows = screen.wait_until("lines, and where the selected is", lambda rows: re.match(foot, rows[-1]))
        assert rows[3].startswith("function, line")
        assert re.match(r"innermost \(inlined\)  inlined\.c:[789] ", rows[4])
        screen.type("l")
        screen.wait_until("functions", lambda rows: rows[4].startswith("innermost (inlined)   "))
        screen.type("q")
        assert "left-with-0" in ended(screen, tmp_path)
        target.finish()
    check_svg(tmp_path / "o.svg")


@pytest.mark.parametrize("number", ["TERM", "HUP"])
def test_a_signal_leaves_the_terminal_as_it_was(
    spawn: Spawn, terminal: Callable[[int, int], Terminal], tmp_path: Path, number: str
) -> None:
    with spawn("split") as target:
        screen = start(terminal, tmp_path, str(target.pid), "-o", "o.svg")
        shell = screen.state("pane_pid")
        (pyattach,) = subprocess.run(
            ["pgrep", "-P", shell], capture_output=True, text=True, check=True
        ).stdout.split()
        subprocess.run(["kill", f"-{number}", pyattach], check=True)
        assert "left-with-0" in ended(screen, tmp_path)


def kill_in(screen: Terminal) -> None:
    """SIGKILL to pyattach, the shell's only child."""
    found = subprocess.run(["pgrep", "-P", screen.state("pane_pid")], capture_output=True, check=True)
    os.kill(int(found.stdout), signal.SIGKILL)


def test_killed_it_leaves_the_terminal_as_it_was(
    spawn: Spawn, terminal: Callable[[int, int], Terminal], tmp_path: Path
) -> None:
    with spawn("split") as target:
        screen = start(terminal, tmp_path, str(target.pid), "-o", "o.svg")
        screen.wait_until("sampling goes on", lambda rows: re.search(r"[2-9]\.\d s", rows[0]))
        kill_in(screen)
        wait_for("the alternate screen is left", lambda: screen.state("alternate_on") == "0")
        assert screen.state("cursor_flag") == "1"
        # What it says may come before the guard has left the alternate screen, and go with that.
        wait_for("the shell has gone on", lambda: (tmp_path / "after").exists())
        screen.line("stty -a > after; echo $((40 + 2))-now")  # the first one was in a race with the guard
        screen.wait_until("the shell does what is typed", lambda rows: "42-now" in rows)
        before, after = ((tmp_path / name).read_text().partition("line =")[2] for name in ("before", "after"))
        assert after == before
        assert target.process.poll() is None


def test_killed_under_a_shell_with_settings_of_its_own(
    spawn: Spawn, terminal: Callable[[int, int], Terminal], tmp_path: Path
) -> None:
    """What the shell's line editor has set meanwhile stays."""
    with spawn("split") as target:
        screen = terminal(80, 24)
        screen.wait_until("the shell is there", lambda rows: rows and rows[0].startswith("$"))
        screen.line("exec env PS1='bash> ' bash --norc -i")
        screen.wait_until("that shell is there", lambda rows: any(row.startswith("bash>") for row in rows))
        command = shlex.join(["env", f"PYTHONPATH={ROOT}", *COMMAND, str(target.pid), "-o", "o.svg"])
        screen.line(f"cd {shlex.quote(str(tmp_path))}; stty -a > before; {command}")
        screen.wait_until("samples are shown", lambda rows: any(row.startswith("work_70") for row in rows))
        kill_in(screen)
        wait_for("the alternate screen is left", lambda: screen.state("alternate_on") == "0")
        screen.line("clear; stty -a > after; echo $((40 + 2))-now")
        rows = screen.wait_until("the shell does what is typed", lambda rows: "42-now" in rows)
        assert not any("40 + 2" in row for row in rows[: rows.index("42-now")])  # echoed once, before it
        before, after = ((tmp_path / name).read_text().partition("line =")[2] for name in ("before", "after"))
        assert after == before


def test_in_the_background_it_prints_lines(
    spawn: Spawn, terminal: Callable[[int, int], Terminal], tmp_path: Path
) -> None:
    with spawn("split") as target:
        screen = terminal(100, 24)
        screen.wait_until("the shell is there", lambda rows: rows and rows[0].startswith("$"))
        command = shlex.join(
            ["env", f"PYTHONPATH={ROOT}", *COMMAND, str(target.pid), "-d", "1", "-o", "o.svg"]
        )
        screen.line(f"cd {shlex.quote(str(tmp_path))}; set -m; {command} & wait; echo all-done")
        screen.wait_until("it has ended", lambda rows: "all-done" in rows)
        assert "wrote o.svg" in "\n".join(screen.run("capture-pane", "-p", "-S", "-", "-J").splitlines())


def test_the_live_view_of_a_heap(
    spawn: Spawn, terminal: Callable[[int, int], Terminal], tmp_path: Path
) -> None:
    text = tmp_path / "o.txt"
    with spawn("heap_cycles") as target:
        screen = terminal(100, 20)
        screen.wait_until("the shell is there", lambda rows: rows and rows[0].startswith("$"))
        command = shlex.join([*COMMAND, "heap", str(target.pid), "-o", str(text)])
        screen.line(f"cd {shlex.quote(str(ROOT))}; clear; {command}; echo left-with-$?")
        rows = screen.wait_until("sites are shown", lambda rows: any("storm" in row for row in rows[4:]))
        assert f"pid {target.pid}  heap" in rows[0] and "RSS" in rows[1] and rows[3].startswith("site, and")
        assert screen.state("alternate_on") == "1"
        screen.type("3")
        screen.wait_until("it is sorted by what is allocated", lambda rows: "allocated/s↓" in rows[3])
        screen.type("q")
        screen.wait_until("it has ended", lambda rows: any(row.startswith("left-with-") for row in rows))
        assert screen.state("alternate_on") == "0" and screen.state("cursor_flag") == "1"
        target.finish()
    assert "storm < " in text.read_text()
