"""Profilers to measure beside each other: each is sampling a process while it is entered."""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from common import DEADLINE_S

from pyattach.attacher.clock import EventClock
from pyattach.attacher.contract import Options, Outcome, Progress
from pyattach.attacher.session import attach as run_session
from pyattach.inject.layout import Slot
from pyattach.render.profile import Meta

_IOC_ENABLE, _IOC_DISABLE = 0x2400, 0x2401
SETTLE_S = 0.15
BEGUN_S = 3.3
"""A session of pyattach looks harder for new threads in its first seconds: measured is what comes after."""

CLOCKS = {"timer": 1, "perf": 2}
"""Their numbers in native/gaps.c."""

Profiler = Callable[[int], contextlib.AbstractContextManager[None]]


@contextlib.contextmanager
def nothing(_pid: int) -> Iterator[None]:
    time.sleep(SETTLE_S)
    yield


@dataclasses.dataclass
class Pyattach:
    """A session in this process; ``metas`` is what each said of itself, ``shares`` handler and delivery as a
    share of CPU time."""

    clock: str
    rate_hz: int
    metas: list[Meta] = dataclasses.field(default_factory=list)
    shares: list[float] = dataclasses.field(default_factory=list)

    @contextlib.contextmanager
    def __call__(self, pid: int) -> Iterator[None]:
        stop, there = threading.Event(), threading.Event()
        outcomes: list[Outcome] = []

        def note(progress: Progress) -> None:
            if progress.elapsed_s > BEGUN_S:
                there.set()

        def sample() -> None:
            options = Options(rate_hz=self.rate_hz, clock=self.clock)
            outcomes.append(run_session(pid, options, stop.is_set, note))

        thread = threading.Thread(target=sample)
        thread.start()
        try:
            if not there.wait(DEADLINE_S):
                raise RuntimeError("pyattach does not sample")
            yield
        finally:
            stop.set()
            thread.join()
        meta = outcomes[0].profile.meta
        self.metas.append(meta)
        if meta.handler_share is not None and meta.delivery_share is not None:
            self.shares.append(meta.handler_share + meta.delivery_share)


@dataclasses.dataclass
class Switched:
    """A session by perf events, which can be switched off and on.  ``shares`` is what it says of itself."""

    rate_hz: int
    shares: list[float] = dataclasses.field(default_factory=list)

    @contextlib.contextmanager
    def __call__(self, pid: int) -> Iterator[None]:
        stop = threading.Event()
        opened = EventClock.start
        clocks: list[EventClock] = []

        def start(clock: EventClock, slots: ctypes.Array[Slot]) -> None:
            clocks.append(clock)
            opened(clock, slots)

        EventClock.start = start  # type: ignore[assignment, method-assign]
        outcomes: list[Outcome] = []
        options = Options(rate_hz=self.rate_hz, clock="perf")
        thread = threading.Thread(
            target=lambda: outcomes.append(run_session(pid, options, stop.is_set, lambda _progress: None))
        )
        thread.start()
        time.sleep(BEGUN_S)
        EventClock.start = opened  # type: ignore[method-assign]
        (self._clock,) = clocks
        try:
            yield
        finally:
            stop.set()
            thread.join()
        meta = outcomes[0].profile.meta
        if meta.overhead_of_wall is not None and meta.ticks:
            # Of the time in which they were on: by ticks, at this rate.
            tick_s = meta.overhead_of_wall * meta.duration_s / meta.ticks
            self.shares.append(tick_s * self.rate_hz)

    def switch(self, *, on: bool) -> None:
        for event in self._clock.events:
            fcntl.ioctl(event, _IOC_ENABLE if on else _IOC_DISABLE, 0)


@dataclasses.dataclass
class Command:
    """A profiler that is a command of its own, ended with SIGINT."""

    argv: Sequence[str]

    @contextlib.contextmanager
    def __call__(self, pid: int) -> Iterator[None]:
        with tempfile.TemporaryDirectory() as folder:
            words = [word.format(pid=pid, out=f"{folder}/out") for word in self.argv]
            quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
            with subprocess.Popen(words, **quiet) as process:  # type: ignore[call-overload]
                time.sleep(0.5)
                if process.poll() is not None:
                    raise RuntimeError(f"{words[0]} ended with {process.returncode}")
                yield
                process.send_signal(signal.SIGINT)
                process.wait(DEADLINE_S)


@contextlib.contextmanager
def by_sigusr2(pid: int) -> Iterator[None]:
    """gperftools, preloaded, begins and ends with a signal (CPUPROFILESIGNAL)."""
    os.kill(pid, signal.SIGUSR2)
    time.sleep(SETTLE_S)
    yield
    os.kill(pid, signal.SIGUSR2)
    time.sleep(SETTLE_S)


def py_spy() -> str | None:
    return shutil.which("py-spy") or next(map(str, Path(sys.prefix, "bin").glob("py-spy")), None)


def profiler_library() -> str | None:
    return next(map(str, Path("/usr/lib").glob("*/libprofiler.so.0")), None)


@dataclasses.dataclass
class Row:
    """A profiler on a program."""

    name: str
    rate_hz: int
    profiler: Profiler | None
    environment: dict[str, str] = dataclasses.field(default_factory=dict)
    missing: str = ""


def peers(program: str, rate: int, folder: Path) -> Iterator[Row]:
    perf = ["perf", "record", "-q", "-F", str(rate), "-p", "{pid}", "-o", "{out}"]
    here = "" if shutil.which("perf") else "not installed"
    yield Row("perf, frame pointers", rate, Command([*perf, "-g"]), missing=here)
    yield Row("perf, dwarf", rate, Command([*perf, "--call-graph", "dwarf"]), missing=here)
    library = profiler_library()
    environment = {
        "LD_PRELOAD": library or "",
        "CPUPROFILE": f"{folder}/gperf-{program}-{rate}",
        "CPUPROFILESIGNAL": str(int(signal.SIGUSR2)),
        "CPUPROFILE_FREQUENCY": str(rate),
    }
    yield Row("gperftools", rate, by_sigusr2, environment, "" if library else "not installed")
    if program == "cpython":
        spy = py_spy()
        argv = [spy or "", "record", "-r", str(rate), "-d", "3600", "-p", "{pid}", "-o", "{out}"]
        yield Row("py-spy", rate, Command(argv), missing="" if spy else "not installed")
