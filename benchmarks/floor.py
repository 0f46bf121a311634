"""An empty handler under pyattach's own clocks: what any profiler in a signal handler has to pay."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import time
from collections.abc import Iterator

from common import compiled
from profilers import CLOCKS, SETTLE_S, Row

from pyattach.attacher import procfs
from pyattach.attacher.clock import EventClock
from pyattach.inject.layout import Slot


@dataclasses.dataclass
class EmptyHandler:
    """In a program that has native/floor.c preloaded.  Events are opened as pyattach does; timers are
    the program's, at even distances, so that nothing but the kernel's work is in them."""

    clock: str
    rate_hz: int

    @contextlib.contextmanager
    def __call__(self, pid: int) -> Iterator[None]:
        with self._events(pid) if self.clock == "perf" else self._timers(pid):
            time.sleep(SETTLE_S)
            yield
        time.sleep(SETTLE_S)

    @contextlib.contextmanager
    def _timers(self, pid: int) -> Iterator[None]:
        os.kill(pid, signal.SIGUSR2)
        yield
        os.kill(pid, signal.SIGUSR2)

    @contextlib.contextmanager
    def _events(self, pid: int) -> Iterator[None]:
        clock = EventClock(pid, self.rate_hz, signal.SIGURG, jitter=True)
        tids = procfs.thread_ids(pid)
        slots = (Slot * len(tids))()
        try:
            for index, tid in enumerate(tids):
                clock.add(tid, index, slots[index])
            clock.start(slots)
            yield
        finally:
            clock.stop()


def floors(rate_hz: int) -> Iterator[Row]:
    """A row for each clock."""
    environment = {"LD_PRELOAD": str(compiled("floor", library=True)), "FLOOR_HZ": str(rate_hz)}
    for clock in CLOCKS:
        yield Row(f"empty handler, {clock}", rate_hz, EmptyHandler(clock, rate_hz), environment)
