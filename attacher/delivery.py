"""What the kernel's delivery of a tick costs on this machine, measured by a child process on itself.

The handlers count their own cycles; the interrupt, the kernel's timer work, the signal frame and the return
from it they can't see.  The child ticks itself by the session's clock, with a handler that does nothing, for
a tenth or two of a second of CPU time, while the session samples; with SCHED_IDLE, so on a processor that
nobody else wants.  Where there is none, it is done once the target is let go of.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import select
import signal
import struct
from typing import NoReturn

from ..errors import PyattachError
from ..inject.delivery import event_tick_ns, timer_tick_ns
from .clock import aim_event, enable_event, kernel_hz, open_event

DEADLINE_S = 0.6
"""How long it is waited for at the end of a session."""

_TRIES = 5
_TIMER_TICKS, _EVENT_TICKS, _EVENT_PERIOD_NS = 16, 40, 1_000_000
_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_RESULT = struct.Struct("=dd")


class TickCost:
    """ns that one tick costs: of the thread's own (``own_ns``) and of a process-wide timer."""

    def __init__(self, own_ns: float, process_ns: float) -> None:
        self.own_ns, self.process_ns = own_ns, process_ns


_measured: dict[str, TickCost] = {}
_tried: set[str] = set()
"""Clocks for which it was waited; nobody waits twice for what can't be had."""


class DeliveryCost:
    """The measurement for the clock called ``clock`` ("timer" or "perf"); done once in a process."""

    def __init__(self, clock: str) -> None:
        self._clock = clock
        self._child: _Child | None = None
        self._tries = _TRIES
        self.child_cpu_s = 0.0
        """CPU time of the children that measured, seconds."""
        self.held_up = 0
        """How often they had to leave the processor to others: why there may be no result."""

    @property
    def cost(self) -> TickCost | None:
        """None: not measured, or not yet."""
        return _measured.get(self._clock)

    def look(self) -> None:
        """Begin, and take the result once it is there; never waits.  Where others had the processor, it is
        begun anew."""
        if self.cost is None and self._child is None and self._tries:
            self._tries -= 1
            self._begin(idle=True)
        if self._child is not None:
            self._take(self._child, 0.0)
            if self._child.ended and self.cost is None:
                self.abandon()

    def finish(self) -> None:
        """The result, as far as it is to be had in DEADLINE_S: where no processor was idle, side by side with
        all else."""
        self.abandon()
        if self.cost is None and self._clock not in _tried:
            _tried.add(self._clock)
            self._begin(idle=False)
            if self._child is not None:
                self._take(self._child, DEADLINE_S)
            self.abandon()

    def _begin(self, *, idle: bool) -> None:
        with contextlib.suppress(OSError):  # it is not measured then: no reason to end a session
            self._child = _Child(self._clock, idle=idle)

    def abandon(self) -> None:
        """End the child."""
        if self._child is not None:
            self._take(self._child, 0.0)
            usage = self._child.end()
            self.child_cpu_s += usage.ru_utime + usage.ru_stime
            self.held_up += usage.ru_nivcsw
            self._child = None

    def _take(self, child: _Child, wait_s: float) -> None:
        found = child.result(wait_s)
        if found is not None:
            _measured[self._clock] = found


class _Child:
    def __init__(self, clock: str, *, idle: bool) -> None:
        """Raises OSError, where there may be no more processes or files."""
        self._read, write = os.pipe()
        self.ended = False
        try:
            self._pid = os.fork()
        except OSError:
            os.close(self._read)
            os.close(write)
            raise
        if not self._pid:
            _measure_and_exit(clock, write, idle=idle)
        os.close(write)
        # Its first byte: it has closed what it had of ours, events that tick among it.
        os.read(self._read, 1)

    def result(self, wait_s: float) -> TickCost | None:
        if self.ended or not select.select([self._read], [], [], wait_s)[0]:
            return None
        data = os.read(self._read, _RESULT.size)
        self.ended = True
        return TickCost(*_RESULT.unpack(data)) if len(data) == _RESULT.size else None

    def end(self) -> resource.struct_rusage:
        """End it; what it used."""
        os.close(self._read)
        os.kill(self._pid, signal.SIGKILL)
        return os.wait4(self._pid, 0)[2]


def _measure_and_exit(clock: str, write: int, *, idle: bool) -> NoReturn:
    """What the child does; nothing that this copy of pyattach would do at its end is done."""
    try:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)  # whom it was forked from decides
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        os.dup2(write, 3)
        _close_files_from(4)
        os.write(3, b"\0")
        if idle:
            os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
        cost = _measure(clock)
        if cost is not None:
            os.write(3, _RESULT.pack(cost.own_ns, cost.process_ns))
    finally:
        os._exit(0)


def _close_files_from(first: int) -> None:
    """Those that are open: without close_range (glibc 2.34) all numbers there may be would be tried, in some
    containers a thousand million, while pyattach waits."""
    for number in map(int, os.listdir("/proc/self/fd")):  # noqa: PTH208
        with contextlib.suppress(OSError):  # the one of the folder itself
            if number >= first:
                os.close(number)


def _measure(clock: str) -> TickCost | None:
    """Both kinds of ticks, on this thread."""
    with contextlib.suppress(OSError, PyattachError):
        own_ns = _of_event() if clock == "perf" else None
        timer_ns = timer_tick_ns(signal.SIGPROF, round(1e9 / kernel_hz()), _TIMER_TICKS)
        if clock != "perf":
            own_ns = timer_ns
        if own_ns is not None and timer_ns is not None:
            return TickCost(own_ns, timer_ns)
    return None


def _of_event() -> float | None:
    signal.signal(signal.SIGURG, signal.SIG_IGN)
    event = open_event(os.getpid(), _EVENT_PERIOD_NS)
    try:
        aim_event(event, signal.SIGURG, os.getpid())
        enable_event(event)
        return event_tick_ns(signal.SIGURG, _EVENT_TICKS)
    finally:
        os.close(event)
