"""Where threads wait, looked at from outside: is it whole, does it wake anyone, what does it cost?

Programs that mostly wait are sampled with ``--mode wall``.  "complete" are the stacks of waiting threads that
reach the thread's first function; "EINTR" and "short" are what the program counted of its own calls, where
it does.  "us" is what a look costs pyattach for each thread, "% CPU" what all looks took of one processor.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import programs
from common import arguments, machine, running, table
from programs import NotHere, answers, free_port, need, process, wait_for

from pyattach.attacher.contract import Options
from pyattach.attacher.sampling import Session
from pyattach.attacher.target import TargetProcess
from pyattach.errors import PyattachError
from pyattach.render.profile import Stack
from pyattach.symbols.frame import TRUNCATED

RATE_HZ = 99.0
SLEEPER = """
import threading, time
def nap():
    while True:
        time.sleep(0.01)
for _ in range(4):
    threading.Thread(target=nap, daemon=True).start()
time.sleep(3600)
"""


@dataclasses.dataclass
class Run:
    """A program's process id, and how it says what it counted once it is told to end."""

    pid: int
    finish: Callable[[], str] = str


@contextlib.contextmanager
def target(name: str, *words: object) -> Iterator[Run]:
    with running(name, *words) as child:
        yield Run(child.pid, lambda: child.communicate("", timeout=30)[0])


@contextlib.contextmanager
def command(*argv: object, **options: object) -> Iterator[Run]:
    with process(*argv, **options) as pid:
        yield Run(pid)


@contextlib.contextmanager
def redis() -> Iterator[Run]:
    with tempfile.TemporaryDirectory() as folder:
        port = free_port()
        with process(need("redis-server"), "--port", port, "--save", "", "--dir", folder) as pid:
            wait_for("redis-server's start", lambda: answers(port))
            yield Run(pid)


@contextlib.contextmanager
def under_load(start: Callable[[Path], contextlib.AbstractContextManager[int]]) -> Iterator[Run]:
    with tempfile.TemporaryDirectory() as folder, start(Path(folder)) as pid:
        yield Run(pid)


PROGRAMS: dict[str, Callable[[], contextlib.AbstractContextManager[Run]]] = {
    "waits (7 calls)": lambda: target("waits"),
    "threads 0 300": lambda: target("threads", 0, 300),
    "threads 0 1000": lambda: target("threads", 0, 1000),
    "redis-server, idle": redis,
    "redis-server, under load": lambda: under_load(programs.redis),
    "postgres, a backend at work": lambda: under_load(programs.postgres),
    "CPython, 4 naps of 10 ms": lambda: command(sys.executable, "-c", SLEEPER),
    "Debian's python3, naps": lambda: command(need("/usr/bin/python3"), "-c", SLEEPER),
    "node, idle": lambda: command(need("node"), "-e", "setInterval(() => {}, 100)"),
    "sleep": lambda: command(need("sleep"), "600"),
    "bash, waits for a child": lambda: command(need("bash"), "-c", "sleep 600; true"),
    "cat, reads a pipe": lambda: command(need("cat"), stdin=subprocess.PIPE),
}


def measure(run: Run, duration_s: float) -> list[str]:
    options = Options(rate_hz=RATE_HZ, duration_s=duration_s, mode="wall")
    with TargetProcess(run.pid) as process_of, contextlib.closing(Session(process_of, options)) as session:
        session.load()
        try:
            session.sample(lambda: False, lambda _progress: None)
        finally:
            session.detach()
        weights = session.store.weights()
        clock = session.wall
        threads = session.threads.count
        elapsed_s = session.ended - session.started
    assert clock is not None
    waits: collections.Counter[Stack] = collections.Counter()
    for (_tid, stack), weight in weights.items():
        if stack[-1].name.startswith("[waiting"):
            waits[stack] += weight
    whole = sum(weight for stack, weight in waits.items() if stack[0] != TRUNCATED)
    said = run.finish()
    return [
        str(threads),
        f"{sum(weights.values()):,}",
        f"{clock.waiting:,}",
        f"{clock.looks}/{clock.looks_asked}",
        f"{100 * whole / max(1, sum(waits.values())):.2f}",
        counted("eintr", said),
        counted("short", said),
        f"{clock.look_us or 0:.1f}",
        f"{100 * clock.cost_ns / 1e9 / elapsed_s:.1f}",
        place(waits),
    ]


def counted(what: str, said: str) -> str:
    found = re.search(rf"^{what} (\d+)$", said, re.MULTILINE)
    return found[1] if found else "-"


def place(waits: collections.Counter[Stack]) -> str:
    """The commonest wait: its three innermost frames."""
    if not waits:
        return "-"
    stack, weight = waits.most_common(1)[0]
    names = " < ".join(frame.name[:28] for frame in reversed(stack[-3:]))
    return f"{100 * weight / waits.total():.0f}% {names}"


def main() -> None:
    quick = arguments(__doc__ or "").quick
    print(machine())
    rows = []
    for name, start in PROGRAMS.items():
        try:
            with start() as run:
                rows.append([name, *measure(run, 1.0 if quick else 5.0)])
        except (NotHere, PyattachError, subprocess.TimeoutExpired) as error:
            print(f"{name}: {error}")
    head = [
        "program",
        "threads",
        "samples",
        "waiting",
        "looks",
        "complete %",
        "EINTR",
        "short",
        "us",
        "% CPU",
    ]
    table([*head, "commonest wait"], rows)


if __name__ == "__main__":
    main()
