"""The wall clock's second half: where blocked threads wait, looked at from outside.

The stub's timers tick while a thread runs.  While it sleeps in the kernel nothing may wake it, so its stack
is read over /proc/PID/mem, at the rate of the ticks.  A thread found running is not counted here: its ticks
are.  Both halves are in periods of the rate.
"""

from __future__ import annotations

import contextlib
import os
import resource
import time
from collections.abc import Iterator
from pathlib import Path

from ..errors import NoPermission, UnsupportedTarget
from ..inject.layout import End, Unwind
from ..inject.outside import OutsideUnwinder
from ..symbols.syscalls import NO_SYSCALL, RESTART, waiting_address
from .modules import ModuleTable
from .procfs import Blocked, parse_blocked, read_blocked, thread_ids
from .samples import SampleStore
from .target import TargetProcess
from .threads import ThreadTable

_REST = 3
"""After a look pyattach rests this many times as long: it takes a quarter of one processor at most."""

_TRIES = 3
_MOVED = int(End.UNREADABLE)
_NOT_KEPT = b"0 0 0\n"
"""What schedstat says where the kernel does not account (CONFIG_SCHED_INFO, sched_info_on)."""


def check_wall(pid: int) -> None:
    """Find out before attaching whether threads can be looked at.  Raises NoPermission,
    UnsupportedTarget; a target that has just gone is left to others to find."""
    try:
        Path(f"/proc/{pid}/task/{pid}/syscall").read_bytes()
    except PermissionError as error:
        raise NoPermission(
            f"not permitted to read where the threads of process {pid} wait (/proc/{pid}/task/*/syscall)",
            "run pyattach as root, or give it CAP_SYS_PTRACE; or sample CPU time only: --mode cpu",
        ) from error
    except FileNotFoundError as error:
        if os.path.isdir(f"/proc/{pid}/task/{pid}"):  # noqa: PTH112 - false where it is gone
            raise UnsupportedTarget(
                f"this kernel does not tell where threads wait: there is no /proc/{pid}/task/*/syscall",
                "sample CPU time only: --mode cpu",
            ) from error
    except ProcessLookupError:
        pass


def asleep_now(pid: int) -> dict[int, Blocked]:
    """Where the threads wait now, by tid; those that run are left out."""
    places = {}
    for tid in thread_ids(pid):
        with contextlib.suppress(OSError):
            place = read_blocked(pid, tid)
            if place is not None:
                places[tid] = place
    return places


class _Watched:
    """One thread: its open files, and its stack as long as it sleeps.

    ``asleep`` is what schedstat said when the stack was read: the same again means that it has not run since.
    ``pending`` are periods not yet counted in the store, the first of them seen at ``since_ns``.
    """

    __slots__ = (
        "asleep", "end", "frames", "last", "pending", "place_fd", "queued_before_ns", "sched_fd", "since_ns",
        "tid",
    )  # fmt: skip

    def __init__(self, pid: int, tid: int) -> None:
        self.tid = tid
        self.place_fd = os.open(f"/proc/{pid}/task/{tid}/syscall", os.O_RDONLY | os.O_CLOEXEC)
        try:
            self.sched_fd = os.open(f"/proc/{pid}/task/{tid}/schedstat", os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:  # a kernel without it, or the thread has just ended
            self.sched_fd = -1
        except OSError:
            os.close(self.place_fd)
            raise
        self.asleep = b""
        self.last = b""
        self.frames: tuple[int, ...] = ()
        self.end = 0
        self.pending = self.since_ns = 0
        try:
            self.queued_before_ns = _queued_ns(self.schedstat())
        except OSError:
            self.close()
            raise

    def close(self) -> None:
        os.close(self.place_fd)
        if self.sched_fd >= 0:
            os.close(self.sched_fd)

    def schedstat(self) -> bytes:
        self.last = os.pread(self.sched_fd, 128, 0) if self.sched_fd >= 0 else _NOT_KEPT
        return self.last

    def place(self) -> Blocked | None:
        blocked = parse_blocked(os.pread(self.place_fd, 256, 0))
        return blocked if blocked is not None and blocked.ip else None  # 0: its stack is gone, it ends

    @property
    def queued_ns(self) -> int:
        """Time it was ready and had no processor since it is watched, ns."""
        return _queued_ns(self.last) - self.queued_before_ns


class WallClock:
    """Looks at all threads of ``target`` at ``rate_hz`` of real time and adds those that wait to ``store``.

    ``pause`` takes the place of sleeping between two drains.  A look that comes late has the weight of all
    periods since the last one.  ``before`` is where threads waited before the stub was brought in: the one
    that was borrowed for it goes on with its call under another number.  ``close`` it; the target is never
    touched.
    """

    def __init__(
        self, target: TargetProcess, threads: ThreadTable, modules: ModuleTable, store: SampleStore, *,
        rate_hz: float, region: int, max_depth: int, unwind: Unwind,
        before: dict[int, Blocked],
    ) -> None:  # fmt: skip
        self._target, self._threads, self._modules, self._store = target, threads, modules, store
        self._period_ns = round(1e9 / rate_hz)
        self._unwinder = OutsideUnwinder(
            target.memory_fd, region=region, max_depth=max_depth, mode=unwind, start_of=store.function_start
        )
        self._before = before
        self._table = b""
        self._watched: dict[int, _Watched] = {}
        self._last_ns = self._rested_ns = self._started_ns = time.monotonic_ns()
        self._queued_ns = 0
        self.looks = self.looks_asked = 0
        self.thread_looks = self.walks = 0
        self.cost_ns = 0
        self.waiting = 0
        self.unwatched: set[int] = set()
        _allow_open_files()

    def close(self) -> None:
        """Close the files of all threads."""
        for watched in self._watched.values():
            watched.close()
        self._watched.clear()

    # Looking.

    def pause(self, duration_s: float) -> None:
        """Look at the rate for ``duration_s``, then count what was seen."""
        until_ns = time.monotonic_ns() + round(duration_s * 1e9)
        self._follow()
        while (due_ns := max(self._last_ns + self._period_ns, self._rested_ns)) < until_ns:
            _sleep_until(due_ns)
            self._look()
        _sleep_until(until_ns)
        self._count()

    def _look(self) -> None:
        start_ns = time.monotonic_ns()
        periods = max(1, (start_ns - self._last_ns) // self._period_ns)
        self._last_ns += periods * self._period_ns
        self.looks += 1
        self.looks_asked += periods
        self.thread_looks += len(self._watched)
        for tid, watched in list(self._watched.items()):
            try:
                asleep = watched.asleep
                if (asleep and watched.schedstat() == asleep) or self._sleeps(watched):
                    watched.since_ns = start_ns if not watched.pending else watched.since_ns
                    watched.pending += periods
            except ProcessLookupError:
                self._forget(tid)
        done_ns = time.monotonic_ns()
        self.cost_ns += done_ns - start_ns
        self._rested_ns = done_ns + _REST * (done_ns - start_ns)

    def _sleeps(self, watched: _Watched) -> bool:
        """Read the thread's stack anew; whether it waits.  Raises ProcessLookupError once it is gone."""
        self._count_one(watched)
        before = watched.schedstat()
        for _ in range(_TRIES):
            place = watched.place()
            if place is None:
                watched.asleep = b""
                return False
            watched.end, frames = self._unwinder.walk(place.sp, place.ip)
            watched.frames = _shown(self._as_called(watched.tid, place), frames)
            self.walks += 1
            after = watched.schedstat()
            kept = after != _NOT_KEPT
            if after == before and (kept or watched.place() == place):
                watched.asleep = after if kept else b""
                return True
            before = after
        watched.asleep, watched.end = b"", _MOVED
        watched.frames = watched.frames[:2]
        return True

    def _as_called(self, tid: int, place: Blocked) -> Blocked:
        if place.syscall != RESTART:
            return place
        before = self._before.get(tid, place)
        return before if (before.sp, before.ip) == (place.sp, place.ip) else place

    # Who is looked at.

    def _follow(self) -> None:
        """Threads and modules as they are now."""
        if self._modules.published is not self._table:
            self._table = self._modules.published
            self._unwinder.set_modules(self._table)
        tids = self._threads.tids
        for tid in self._watched.keys() - tids:
            self._forget(tid)
        for tid in tids - self._watched.keys():
            try:
                self._watched[tid] = _Watched(self._target.pid, tid)
                self.unwatched.discard(tid)
            except (FileNotFoundError, ProcessLookupError):
                continue
            except OSError:  # too many open files
                self.unwatched.add(tid)

    def _forget(self, tid: int) -> None:
        watched = self._watched.pop(tid)
        self._queued_ns += watched.queued_ns
        self._count_one(watched)
        watched.close()

    # Counting.

    def _count(self) -> None:
        for watched in self._watched.values():
            self._count_one(watched)

    def _count_one(self, watched: _Watched) -> None:
        if not watched.pending:
            return
        sample = (watched.tid, watched.end, watched.pending, watched.frames)
        self._store.add([sample], [watched.since_ns])
        self.waiting += watched.pending
        watched.pending = 0

    # What it was worth.

    @property
    def rate_reached_hz(self) -> float | None:
        """Looks per second so far."""
        elapsed_ns = self._last_ns - self._started_ns
        return self.looks / (elapsed_ns / 1e9) if elapsed_ns else None

    @property
    def look_us(self) -> float | None:
        """What a look cost pyattach for each thread, us."""
        return self.cost_ns / 1e3 / self.thread_looks if self.thread_looks else None

    def notes(self) -> Iterator[str]:
        """How well it went, in sentences."""
        if self.look_us is not None:
            yield (
                f"waiting threads were looked at {self.looks:,} times of {self.looks_asked:,} asked; "
                f"a look cost pyattach {self.look_us:.1f} us for each thread"
            )
        queued_ns = self._queued_ns + sum(w.queued_ns for w in self._watched.values())
        if queued_ns > 1e8:
            yield (
                f"threads were ready but had no processor for {queued_ns / 1e9:.1f} s in all: "
                "that is neither running nor waiting"
            )
        if self.unwatched:
            yield f"{len(self.unwatched)} threads could not be looked at: too many open files (ulimit -n)"


def _queued_ns(schedstat: bytes) -> int:
    """The second field: time spent waiting on a run queue (Documentation/scheduler/sched-stats.rst)."""
    return int(schedstat.split()[1])


def _shown(place: Blocked, frames: tuple[int, ...]) -> tuple[int, ...]:
    """The stack for the store: the wait on top, then where it is called from, as a return address.  After
    a system call it is one; a thread in none stands at the instruction itself."""
    ip = frames[0] + 1 if place.syscall == NO_SYSCALL else frames[0]
    return (waiting_address(place.syscall), ip, *frames[1:])


def _sleep_until(when_ns: int) -> None:
    time.sleep(max(0, when_ns - time.monotonic_ns()) / 1e9)


def _allow_open_files() -> None:
    """Two files for each thread stay open: as many as the administrator allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
