"""The target seen from outside: its identity, its memory and maps."""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Iterable
from pathlib import Path

from ..errors import NoSuchTarget
from ..symbols.maps import Maps, parse_maps
from . import procfs
from .permission import no_permission
from .ptrace import Tracee, let_go_of_late_stops, stops_late
from .refusals import check

_LOOK_S = 0.02

Range = tuple[int, int]


class TargetProcess:
    """A process by pid and start time: should the pid be used again, it is not taken for the same.

    Opening raises the refusals of ``check``; the object is a context manager that closes what it
    opened here.  It changes nothing in the target by itself.
    """

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.start_time = check(pid)
        self.command = procfs.command_line(pid)
        self._memory = _open_memory(pid)

    def __enter__(self) -> TargetProcess:
        return self

    def __exit__(self, *_exc: object) -> None:
        os.close(self._memory)

    def alive(self) -> bool:
        """Whether this very process still exists and is no zombie."""
        stat = procfs.read_stat(self.pid)
        return stat is not None and stat.start_time == self.start_time and stat.state not in "ZX"

    def pause(self, seconds: float) -> None:
        """Let time pass; less of it where the end of the target can be seen to come."""
        time.sleep(seconds)

    def cpu_s_at_end(self) -> float | None:
        """CPU time of all threads, those that have ended too, once the process has ended; seconds.  None
        where nobody can tell: only a parent finds more than the process's absence."""
        return None

    def threads(self) -> list[int]:
        return procfs.thread_ids(self.pid)

    def maps(self) -> Maps:
        """The mappings as they are now; empty once the process is gone."""
        try:
            return Maps(parse_maps(Path(f"/proc/{self.pid}/maps").read_bytes()))
        except (FileNotFoundError, ProcessLookupError):
            return Maps([])

    def exe_path(self) -> str:
        """Path of the executable as the kernel shows it; "" when it can't be read."""
        with contextlib.suppress(OSError):
            return os.readlink(f"/proc/{self.pid}/exe").removesuffix(" (deleted)")
        return ""

    def _fail(self, address: int) -> OSError:
        if not self.alive():
            return ProcessLookupError(errno.ESRCH, f"pid {self.pid} is gone")
        return OSError(errno.EIO, f"pid {self.pid}: memory at {address:#x} can't be reached")

    def read(self, address: int, size: int) -> bytes:
        """Exactly ``size`` bytes of the target's memory.  Raises ProcessLookupError or OSError."""
        try:
            data = os.pread(self._memory, size, address)
        except OSError as error:
            raise self._fail(address) from error
        if len(data) != size:
            raise self._fail(address)
        return data

    @property
    def memory_fd(self) -> int:
        """The open /proc/PID/mem; closed with this object."""
        return self._memory

    def write(self, address: int, data: bytes) -> None:
        """Write to the target's memory, through page protection.  Raises as ``read``."""
        try:
            written = os.pwrite(self._memory, data, address)
        except OSError as error:
            raise self._fail(address) from error
        if written != len(data):
            raise self._fail(address)

    def memory_is_current(self) -> bool:
        """Whether what is read is the memory of the program that runs now: execve replaces it."""
        mapping = next((m for m in self.maps() if m.readable), None)
        try:
            return mapping is not None and bool(self.read(mapping.start, 1))
        except OSError:
            return False

    def open_fd(self, number: int) -> int:
        """The target's open file ``number``, opened again here, read-write."""
        return os.open(f"/proc/{self.pid}/fd/{number}", os.O_RDWR | os.O_CLOEXEC)

    def wait_outside(self, tids: Iterable[int], ranges: list[Range], deadline_s: float) -> set[int]:
        """Wait until each thread was seen outside all ``ranges``; returns those that were not.

        A thread asleep in the kernel shows where; one that runs is given a moment, and is then
        stopped for as long as it takes to read its instruction pointer.  Both are proofs; a thread
        that has used CPU time meanwhile may still loop inside.
        """
        left = set(tids)
        looked_from = time.monotonic()
        while left and time.monotonic() - looked_from < deadline_s:
            let_go_of_late_stops()
            for tid in sorted(left):
                use_ptrace = time.monotonic() - looked_from > _LOOK_S
                if self._seen_outside(tid, ranges, use_ptrace):
                    left.discard(tid)
            if left:
                time.sleep(0.0005)
        return left

    def _seen_outside(self, tid: int, ranges: list[Range], use_ptrace: bool) -> bool:
        try:
            blocked = procfs.read_blocked(self.pid, tid)
            if blocked is not None:
                return _outside(blocked.ip, ranges)
            if not use_ptrace or stops_late(tid):
                return False
            with Tracee(tid) as tracee:
                stop = tracee.interrupt(0.05)
                return stop is not None and _outside(tracee.registers()["rip"], ranges)
        except (ProcessLookupError, FileNotFoundError):
            return True


def _outside(address: int, ranges: list[Range]) -> bool:
    return not any(low <= address < high for low, high in ranges)


def _open_memory(pid: int) -> int:
    try:
        return os.open(f"/proc/{pid}/mem", os.O_RDWR | os.O_CLOEXEC)
    except PermissionError as error:
        raise no_permission(pid) from error
    except (FileNotFoundError, ProcessLookupError) as error:
        raise NoSuchTarget(f"there is no process {pid}") from error
