"""The clocks: what makes a thread's ticks, one interface for all.

``TimerClock``: the stub makes one POSIX timer per thread on the thread's CPU clock.  The cheapest tick there
is, safe at exec (the kernel deletes timers and what they have queued); at most CONFIG_HZ a second, and only
at the kernel's own ticks: of work that is in step with those it sees always the same part.

``EventClock``: pyattach opens one perf event (task-clock) per thread and lets the kernel signal the thread at
each overflow (``F_SETSIG``, ``F_SETOWN_EX``).  Ticks at any rate, nothing made in the target, gone the moment
pyattach dies.  A signal that is already on its way when the target executes another program reaches that,
which has no handler for it: so it is one that is ignored by default.  Needs the permission to use perf.
Where it is given they are the default, for the truth of their shares.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import posixpath
import resource
import signal
import struct
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from ..errors import NoPermission, UnsupportedTarget
from ..inject.chance import random_bits
from ..inject.layout import Slot, SlotState
from ..symbols.maps import Maps
from . import procfs

_SYS_PERF_EVENT_OPEN = 298  # x86_64
_PERF_TYPE_SOFTWARE, _PERF_COUNT_SW_TASK_CLOCK = 1, 1
_PERF_FLAG_FD_CLOEXEC = 8
_IOC_ENABLE, _IOC_DISABLE, _IOC_PERIOD = 0x2400, 0x2401, 0x40082404
_F_SETOWN_EX, _F_OWNER_TID = 15, 0  # asm-generic/fcntl.h
_DISABLED, _REMOVE_ON_EXEC = 1 << 0, 1 << 36  # bits of struct perf_event_attr
_ATTR = struct.Struct("=IIQQQQQIIQQQQIiQIHHIIQ")  # its first 128 bytes, linux/perf_event.h
_OFF_STEP = 0.01, 0.03
_FILES_BELOW = 4096
"""Where the numbers of events' files may begin: out of the way of all other files of pyattach."""

_NO_EVENT = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EINVAL, errno.EACCES, errno.EPERM)
"""Why a thread gets a timer: no more files or memory, a file's number that is at the limit of numbers
(RLIMIT_NOFILE), or a target that may be watched no more."""

HARMLESS = (signal.SIGURG, signal.SIGWINCH)
"""Signals that a program without a handler ignores.  SIGPROF ends one, and is what some handle by ending
themselves (sort, ls): such a handler may be installed at any time, and the next tick would be its."""


SPARE_SIGNAL = 32
"""glibc's SIGCANCEL: no program can block it by glibc's functions.  Ticks of threads that block the clock's
signal come by it; by timers, as a perf event's signal that finds no room in the queue would become SIGIO."""


class Clock(Protocol):
    """What ticks.  ``signal`` is what the stub takes; threads are ``add``ed with the slot they have."""

    name: str
    signal: int
    event_base: int

    def add(self, tid: int, index: int, slot: Slot) -> bool:
        """Give a thread its ticks; False when it is gone."""

    def remove(self, index: int, slot: Slot) -> bool:
        """Take them away; whether the slot is free at once."""

    def start(self, slots: ctypes.Array[Slot]) -> None:
        """The stub is there: from now on ticks may come."""

    def slow_down(self, factor: int) -> None:
        """From now on ticks come at periods so many times the first, as far as that is done from here."""

    def stop(self) -> None:
        """No new tick comes after this, as far as that is done from here."""


class TimerClock:
    """The stub's own timers; ``add`` asks a handler to make one."""

    name = "timer"
    event_base = 0

    def __init__(self, signal_number: int = HARMLESS[0]) -> None:
        self.signal = int(signal_number)

    def add(self, tid: int, index: int, slot: Slot) -> bool:
        slot.tid = tid
        slot.state = SlotState.WANTED
        return True

    def remove(self, index: int, slot: Slot) -> bool:
        slot.state = SlotState.RETIRE
        return False

    def start(self, slots: ctypes.Array[Slot]) -> None:
        pass

    def slow_down(self, factor: int) -> None:
        pass

    def stop(self) -> None:
        pass


class EventClock:
    """perf events that pyattach holds, one per thread; none is in the target."""

    name = "perf"

    def __init__(self, pid: int, rate_hz: float, signal_number: int, *, jitter: bool) -> None:
        self.signal = int(signal_number)
        self.event_base = _file_numbers_from()
        self._pid = pid
        self._period_ns = round(1e9 / rate_hz)
        self._jitter = jitter
        self._events: dict[int, int] = {}
        self._factor = 1
        self._started = False
        self._rounds_up = False

    def add(self, tid: int, index: int, slot: Slot) -> bool:
        if slot.by_spare:
            return self._by_timer(tid, slot)
        try:
            event = self._open(tid, index)
        except ProcessLookupError:
            return False
        except OSError as error:
            if error.errno not in _NO_EVENT:
                raise
            return self._by_timer(tid, slot)
        self._events[index] = event
        slot.tid, slot.state = tid, SlotState.EVENT
        if self._started:
            self._enable(index, slot)
        return True

    def remove(self, index: int, slot: Slot) -> bool:
        event = self._events.pop(index, None)
        if event is None:
            slot.state = SlotState.RETIRE
            return False
        end_event(event)
        slot.state = SlotState.FREE
        return True

    def _by_timer(self, tid: int, slot: Slot) -> bool:
        """This thread gets a timer of the stub's."""
        slot.tid, slot.state = tid, SlotState.WANTED
        return True

    def _open(self, tid: int, index: int) -> int:
        """The event, its file's number the one that its signals will name."""
        event = open_event(tid, self._off_step(self._period_ns))
        try:
            numbered = fcntl.fcntl(event, fcntl.F_DUPFD_CLOEXEC, self.event_base + index)
        finally:
            os.close(event)
        if numbered != self.event_base + index:
            os.close(numbered)
            raise OSError(errno.EMFILE, "the number is taken")
        try:
            aim_event(numbered, self.signal, tid)
        except OSError:  # the thread has ended
            os.close(numbered)
            raise
        return numbered

    def start(self, slots: ctypes.Array[Slot]) -> None:
        self._started = True
        for index in self._events:
            self._enable(index, slots[index])

    def _enable(self, index: int, slot: Slot) -> None:
        # The first tick comes a period from now; a period of the account begins half of one before it.  The
        # half that is left over counts as a whole for every other thread: on the whole nothing is missing.
        used_ns = procfs.thread_cpu_ns(self._pid, int(slot.tid)) or 0
        first_ns = used_ns + self._period_ns // 2
        slot.cpu_ns = max(0, first_ns - self._period_ns) if self._rounds_up else first_ns
        self._rounds_up = not self._rounds_up
        if self._factor > 1:
            self._set_period(self._events[index])
        enable_event(self._events[index])

    def slow_down(self, factor: int) -> None:
        self._factor = factor
        for event in self._events.values():
            self._set_period(event)

    def _set_period(self, event: int) -> None:
        fcntl.ioctl(event, _IOC_PERIOD, struct.pack("=Q", self._off_step(self._period_ns * self._factor)))

    def _off_step(self, period_ns: int) -> int:
        """The period, shorter by one to three percent: ticks move on against work that goes by a beat of the
        same length, and against each other's.  The stub counts in true periods and leaves out the rest."""
        shorter = _OFF_STEP[0] + (_OFF_STEP[1] - _OFF_STEP[0]) * random_bits(32) / (1 << 32)
        return round(period_ns * (1 - shorter)) if self._jitter else period_ns

    @property
    def events(self) -> list[int]:
        """The events' files."""
        return list(self._events.values())

    def stop(self) -> None:
        """End all events; the kernel waits for those that are just being handled."""
        while self._events:
            end_event(self._events.popitem()[1])


def open_event(tid: int, period_ns: int) -> int:
    """A task-clock event on one thread, not yet enabled; its file.

    Raises ProcessLookupError when the thread is gone, OSError when it can't be had.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    software = (_PERF_TYPE_SOFTWARE, _ATTR.size, _PERF_COUNT_SW_TASK_CLOCK, period_ns)
    number = 0
    for flags in (_DISABLED | _REMOVE_ON_EXEC, _DISABLED):  # the former from Linux 5.13 on
        attr = ctypes.create_string_buffer(_ATTR.pack(*software, 0, 0, flags, 1, *(0,) * 14), _ATTR.size)
        event = int(libc.syscall(_SYS_PERF_EVENT_OPEN, attr, tid, -1, -1, _PERF_FLAG_FD_CLOEXEC))
        if event >= 0:
            return event
        number = ctypes.get_errno()
        if number != errno.EINVAL:
            break
    raise OSError(number, os.strerror(number))


def aim_event(event: int, signal_number: int, tid: int) -> None:
    """At each overflow of this event, signal the thread."""
    fcntl.fcntl(event, fcntl.F_SETSIG, signal_number)
    fcntl.fcntl(event, _F_SETOWN_EX, struct.pack("=ii", _F_OWNER_TID, tid))
    fcntl.fcntl(event, fcntl.F_SETFL, os.O_ASYNC)


def enable_event(event: int) -> None:
    """From now on it counts."""
    fcntl.ioctl(event, _IOC_ENABLE, 0)


def end_event(event: int) -> None:
    """Close it; it ticks no more, though a fork of this process (a helper) may have the file open still."""
    with contextlib.suppress(OSError):  # its thread has gone, and the event with it
        fcntl.ioctl(event, _IOC_DISABLE)
    os.close(event)


def kernel_hz() -> float:
    """How often in a second a CPU timer can tick at most: the kernel's CONFIG_HZ, which is the
    resolution of its coarse clock."""
    return 1 / time.clock_getres(6)  # CLOCK_MONOTONIC_COARSE


def jitter_ns(rate_hz: float) -> int:
    """How far timers' ticks may be moved about within their periods: as far as the kernel, which lets a
    timer tick with its own tick only, can't move one out of its period."""
    return max(0, round(1e9 / rate_hz - 1e9 / kernel_hz()))


def why_no_events(pid: int) -> str:
    """Empty if perf events may be used on process ``pid``; else the reason.  Tries it."""
    try:
        os.close(open_event(pid, 1_000_000_000))
    except ProcessLookupError:
        raise
    except PermissionError:
        paranoid = _first_line("/proc/sys/kernel/perf_event_paranoid")
        return (
            f"perf is not permitted (perf_event_paranoid is {paranoid or 'unknown'}, CAP_PERFMON is needed)"
        )
    except OSError as error:
        return f"perf_event_open: {error.strerror}"
    return ""


def choose(name: str, pid: int, rate_hz: float, *, jitter: bool = True) -> tuple[Clock, str]:
    """The clock called ``name``, or the best that can be had ("auto"), and what is to be said of it.

    Raises NoPermission or UnsupportedTarget when perf was asked for and can't be had.
    """
    why, number = "perf was not asked for", None
    if name != "timer":
        why = why_no_events(pid)
        if why and name == "perf":
            raise NoPermission(f"--clock perf: {why}", "take --clock timer, or run as root")
        number = None if why else _unused(pid, HARMLESS)
        if not why and number is None:
            why = "the target uses SIGURG and SIGWINCH itself"
            if name == "perf":
                raise UnsupportedTarget(f"--clock perf: {why}", "take --clock timer")
    if number is not None:
        return EventClock(pid, rate_hz, number, jitter=jitter), ""
    clock, said = _timer_clock(pid)
    return clock, "; ".join(filter(None, (_what_timers_lack(rate_hz, why), said)))


def choose_for_child(name: str, rate_hz: float, *, jitter: bool = True) -> Clock:
    """The clock for a program that is yet to be started: timers, if not asked otherwise.

    Raises NoPermission when perf was asked for and can't be had.
    """
    if name != "perf":
        return TimerClock()
    if why := why_no_events(os.getpid()):
        raise NoPermission(f"--clock perf: {why}", "take --clock timer, or run as root")
    return EventClock(os.getpid(), rate_hz, HARMLESS[0], jitter=jitter)


def spare_signal(pid: int, maps: Maps) -> int:
    """``SPARE_SIGNAL``, where the target uses glibc and has not cancelled a thread yet; else 0.

    glibc before 2.34 takes it at once; musl uses the number for timers, and sets its action to the default,
    which is to end the process.  Ignored it may be: glibc's posix_spawn leaves it so, for all that is started
    from there."""
    used = _signals(pid, "SigCgt") >> (SPARE_SIGNAL - 1) & 1
    return SPARE_SIGNAL if uses_glibc(maps) and not used else 0


def uses_glibc(maps: Maps) -> bool:
    """Whether glibc, as a library, is in a process with these mappings."""
    return any(posixpath.basename(mapping.path) == "libc.so.6" for mapping in maps)


def blocks(pid: int, tid: int, signal_number: int) -> bool:
    """Whether a thread blocks this signal by its own will: all are blocked while a thread is made."""
    blocked = int(procfs.read_status(pid, tid).get("SigBlk", "0"), 16)
    return bool(blocked >> (signal_number - 1) & 1) and not blocked >> (SPARE_SIGNAL - 1) & 1


def _what_timers_lack(rate_hz: float, why: str) -> str:
    """``why`` it is timers, and what that means at this rate."""
    limit_hz = kernel_hz()
    if rate_hz > limit_hz:
        return (
            f"timers tick at most {limit_hz:.0f} times a second on this kernel, and {why}: "
            f"{rate_hz:g} Hz can't be reached, each sample stands for the periods before it"
        )
    return (
        f"{why}, so ticks come with the kernel's own ({limit_hz:.0f} a second): shares of work that goes by "
        "the same beat may be wrong"
    )


def _timer_clock(pid: int) -> tuple[Clock, str]:
    """By a signal that the target leaves alone; SIGPROF, where it uses the harmless ones itself."""
    free = _unused(pid, HARMLESS) or _unused(pid, (signal.SIGPROF,))
    if free is not None:
        return TimerClock(free), ""
    said = "the target handles SIGPROF itself, and all signals that could be taken instead: what is not ours"
    return TimerClock(signal.SIGPROF), f"{said} is handed on to it"


def _unused(pid: int, numbers: Sequence[int]) -> int | None:
    """The first of these signals that the target neither handles nor ignores, rather one that no thread
    blocks just now (all are blocked while a thread starts)."""
    used, blocked = _signals(pid, "SigCgt", "SigIgn"), _signals(pid, "SigBlk")
    free = [int(number) for number in numbers if not used >> (number - 1) & 1]
    return min(free, key=lambda number: blocked >> (number - 1) & 1, default=None)


def _signals(pid: int, *fields: str) -> int:
    """The signals in these masks of any of its threads (/proc/PID/task/TID/status), as a bit mask."""
    mask = 0
    for tid in procfs.thread_ids(pid):
        try:
            status = procfs.read_status(pid, tid)
        except (FileNotFoundError, ProcessLookupError):
            continue
        for field in fields:
            mask |= int(status.get(field, "0"), 16)
    return mask


def _first_line(path: str) -> str:
    try:
        return Path(path).read_text().split("\n", 1)[0]
    except OSError:
        return ""


def _file_numbers_from() -> int:
    """One open file per thread: as many as we may, from here on."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return min(_FILES_BELOW, hard // 2)
