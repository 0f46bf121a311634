"""What does pyattach itself use?  Its own CPU time at 99 Hz, with the live table and without.

A process of its own, as users run it: in a terminal of 120 by 40 (live table), or with ``-q``.  "steady" is
over 20 s that begin 4 s after its start, in percent of one processor; "start" is all CPU time before, with
Python's own start, and "end" what detaching, naming and writing the files take, both in seconds.  "switches"
is how often a second it was switched to; "bytes/s" what the terminal gets.  Its helper processes are counted.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import os
import pty
import signal
import struct
import subprocess
import sys
import tempfile
import termios
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import programs
from common import DEADLINE_S, ROOT, machine, parser_of, running, table

RATE_HZ = 99
BEGUN_S = 4.0
GOALS_PERCENT = {"live": 3.0, "quiet": 1.0}
SIZE = struct.pack("HHHH", 40, 120, 0, 0)  # lines, columns: struct winsize, man ioctl_tty


@contextlib.contextmanager
def compiled(*words: object) -> Iterator[int]:
    with running(*map(str, words)) as process:
        yield process.pid


@contextlib.contextmanager
def redis() -> Iterator[int]:
    with tempfile.TemporaryDirectory() as folder, programs.redis(Path(folder)) as pid:
        yield pid


TARGETS: dict[str, Callable[[], contextlib.AbstractContextManager[int]]] = {
    "1 busy thread": lambda: compiled("split"),
    "redis under load": redis,
    "160 threads, 1 busy": lambda: compiled("threads", 1, 158),  # main is one of them
    "160 threads, 4 busy": lambda: compiled("threads", 4, 155),
}


@dataclasses.dataclass(frozen=True)
class Used:
    """CPU time of a process and its descendants, seconds, and how often it was switched to."""

    cpu_s: float
    switches: int


def used(pid: int) -> Used:
    """Of all tasks of ``pid`` and of its children (/proc/.../schedstat: CPU time ns, waited ns, slices)."""
    cpu_ns = switches = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        fields = (task / "schedstat").read_text().split()
        cpu_ns, switches = cpu_ns + int(fields[0]), switches + int(fields[2])
    below = [used(child) for child in programs.children_of(pid)]
    return Used(cpu_ns / 1e9 + sum(u.cpu_s for u in below), switches + sum(u.switches for u in below))


class Terminal:
    """A pseudo-terminal that somebody reads: ``file`` is what a program has for standard files."""

    def __init__(self) -> None:
        self._ours, self.file = pty.openpty()
        fcntl.ioctl(self.file, termios.TIOCSWINSZ, SIZE)
        self.bytes = 0
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        with contextlib.suppress(OSError):  # EIO: nobody has it open any more
            while data := os.read(self._ours, 1 << 16):
                self.bytes += len(data)

    def close(self) -> None:
        os.close(self.file)
        self._reader.join(DEADLINE_S)
        os.close(self._ours)


@dataclasses.dataclass(frozen=True)
class Run:
    """CPU seconds at the start and the end; steady: percent of one processor, wake-ups and bytes a second."""

    start_s: float
    steady_percent: float
    end_s: float
    switches_per_s: float
    bytes_per_s: float


def run(pid: int, view: str, steady_s: float) -> Run:
    with tempfile.TemporaryDirectory() as folder:
        terminal = Terminal()
        argv = [sys.executable, "-m", "pyattach", str(pid), "--hz", str(RATE_HZ), "-o", f"{folder}/out.svg"]
        environment = {**os.environ, "TERM": "xterm-256color", "PYTHONPATH": str(ROOT)}
        files = {"stdin": terminal.file, "stdout": terminal.file, "stderr": terminal.file}
        quiet = ["-q"] if view == "quiet" else []
        process = subprocess.Popen([*argv, *quiet], cwd=ROOT, env=environment, **files)  # type: ignore[call-overload]
        try:
            time.sleep(BEGUN_S)
            begin, at, written = used(process.pid), time.monotonic(), terminal.bytes
            time.sleep(steady_s)
            then, took_s = used(process.pid), time.monotonic() - at
            written = terminal.bytes - written
            process.send_signal(signal.SIGINT)
            _, status, whole = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
        finally:
            if process.returncode is None:
                process.kill()
                process.wait()
            terminal.close()
    if process.returncode:
        raise RuntimeError(f"pyattach ended with {process.returncode}")
    total_s = whole.ru_utime + whole.ru_stime
    return Run(
        start_s=begin.cpu_s,
        steady_percent=100 * (then.cpu_s - begin.cpu_s) / took_s,
        end_s=total_s - then.cpu_s,
        switches_per_s=(then.switches - begin.switches) / took_s,
        bytes_per_s=written / took_s,
    )


def row_of(target: str, view: str, done: Run) -> list[str]:
    goal = GOALS_PERCENT[view]
    verdict = "met" if done.steady_percent < goal else "NOT MET"
    figures = [f"{done.start_s:.2f}", f"{done.steady_percent:.2f}", f"{done.end_s:.2f}"]
    rest = [f"{done.switches_per_s:.0f}", f"{done.bytes_per_s:,.0f}", f"< {goal:g}%: {verdict}"]
    return [target, view, *figures, *rest]


def measure(targets: Sequence[str], views: Sequence[str], steady_s: float) -> Iterator[list[str]]:
    for name in targets:
        for view in views:
            try:
                with TARGETS[name]() as pid:
                    yield row_of(name, view, run(pid, view, steady_s))
            except programs.NotHere as why:
                yield [name, view, str(why), *["-"] * 5]


def main() -> None:
    parser = parser_of(__doc__.splitlines()[0])
    parser.add_argument("--targets", nargs="+", choices=list(TARGETS), default=list(TARGETS), metavar="NAME")
    parser.add_argument("--views", nargs="+", choices=list(GOALS_PERCENT), default=list(GOALS_PERCENT))
    parser.add_argument("--steady-s", type=float, default=20.0)
    chosen = parser.parse_args()
    print(machine())
    steady_s = 5.0 if chosen.quick else chosen.steady_s
    print(
        f"\npyattach's own CPU time at {RATE_HZ} Hz; steady: percent of one processor over {steady_s:g} s\n"
    )
    head = ["target", "view", "start s", "steady %", "end s", "switches/s", "bytes/s", "goal"]
    table(head, list(measure(chosen.targets, chosen.views, steady_s)))


if __name__ == "__main__":
    main()
