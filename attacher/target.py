"""The target seen from outside: its identity, its memory and maps."""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Iterable

from ..errors import NoPermission, NoSuchTarget
from ..inject.arch import x86_64 as arch
from ..symbols.maps import Maps
from . import procfs
from .permission import no_permission
from .ptrace import Tracee, any_stops_late, let_go_of_late_stops
from .refusals import check

_LOOK_S = 0.02
_HANDLERS_STACK = 1 << 20
"""So many bytes of a handler's stack are looked at for where it was called."""
_PASSING_S, _PASSING_LOOK_S = 0.5, 0.001

Range = tuple[int, int]


class TargetProcess:
    """A process by pid and start time: should the pid be used again, it is not taken for the same.

    Opening raises the refusals of ``check``; the object is a context manager that closes what it
    opened here.  It changes nothing in the target by itself.
    """

    _latest_maps = (b"", Maps())
    """As they were read, and what that says."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.start_time = check(pid)
        self.command = procfs.command_line(pid)
        self._memory = _open_memory(pid)
        self._sizes: int | None = None
        with contextlib.suppress(OSError):
            self._sizes = os.open(f"/proc/{pid}/statm", os.O_RDONLY | os.O_CLOEXEC)

    def __enter__(self) -> TargetProcess:
        return self

    def __exit__(self, *_exc: object) -> None:
        os.close(self._memory)
        if self._sizes is not None:
            os.close(self._sizes)

    def alive(self) -> bool:
        """Whether this very process still exists and is no zombie."""
        if self._has_memory():
            return True
        deadline = time.monotonic() + _PASSING_S
        while True:
            stat = procfs.read_stat(self.pid)
            if stat is None or stat.start_time != self.start_time or stat.state == "X":
                return False
            if stat.state != "Z":
                return True
            # Its first thread has ended, others have not: it ends, or another is executing a program.
            if len(self.threads()) <= 1 or time.monotonic() > deadline:
                return False
            time.sleep(_PASSING_LOOK_S)

    def _has_memory(self) -> bool:
        """Whether its first thread has: then it is alive.  Asked many times a second, and a tenth of what it
        takes to look for its state; the open file is that process's, whoever gets its number."""
        if self._sizes is None:
            return False
        try:
            return os.pread(self._sizes, 1, 0) not in (b"", b"0")
        except ProcessLookupError:
            return False

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
        """The mappings as they are now; empty once the process is gone.  The same object as long as nothing
        has changed, or can be read: a process may become unreadable (man prctl, PR_SET_DUMPABLE; execve of a
        setuid program)."""
        try:
            text = procfs.read_file(f"/proc/{self.pid}/maps")
        except (FileNotFoundError, ProcessLookupError):
            return Maps()
        except PermissionError:
            if not self._latest_maps[0]:
                raise
            return self._latest_maps[1]
        if text != self._latest_maps[0]:
            self._latest_maps = (text, Maps.parse(text))
        return self._latest_maps[1]

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
        except (OSError, OverflowError) as error:  # the other: of no address there can be
            raise self._fail(address) from error
        if len(data) != size:
            raise self._fail(address)
        return data

    def _from(self, address: int, size: int) -> bytes:
        """What can be read there, ``size`` bytes at most."""
        with contextlib.suppress(OSError, OverflowError):
            return os.pread(self._memory, size, address)
        return b""

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
        try:
            mapping = next((m for m in self.maps() if m.readable), None)
            return mapping is not None and bool(self.read(mapping.start, 1))
        except OSError:
            return False

    def open_fd(self, number: int, name: bytes) -> int:
        """The target's open file ``number``, opened again here, read-write.  Raises FileNotFoundError where
        that is not (any more) the memfd called ``name``: opening what it is instead could have effects."""
        if name not in os.readlink(f"/proc/{self.pid}/fd/{number}").encode():
            raise FileNotFoundError(errno.ENOENT, f"file {number} of pid {self.pid} is another")
        return os.open(f"/proc/{self.pid}/fd/{number}", os.O_RDWR | os.O_CLOEXEC)

    def wait_outside(
        self, tids: Iterable[int], ranges: list[Range], deadline_s: float, *, handlers: bool = False
    ) -> set[int]:
        """Wait until each thread was seen outside all ``ranges``; returns those that were not.

        A thread asleep in the kernel shows where; one that runs is given a moment, and is then
        stopped for as long as it takes to read its instruction pointer.  Both are proofs; a thread
        that has used CPU time meanwhile may still loop inside.

        ``handlers``: signals may be handled there, and a handler that was called there returns there: its
        thread is not outside.
        """
        left = set(tids)
        looked_from = time.monotonic()
        while left and time.monotonic() - looked_from < deadline_s:
            let_go_of_late_stops()
            for tid in sorted(left):
                use_ptrace = time.monotonic() - looked_from > _LOOK_S
                if self._seen_outside(tid, ranges, handlers, use_ptrace):
                    left.discard(tid)
            if left:
                time.sleep(0.0005)
        return left

    def _seen_outside(self, tid: int, ranges: list[Range], handlers: bool, use_ptrace: bool) -> bool:
        try:
            blocked = procfs.read_blocked(self.pid, tid)
            if blocked is not None:
                return _outside(blocked.ip, ranges) and not (
                    handlers and self._in_a_handler(blocked.sp, ranges)
                )
            if not use_ptrace or any_stops_late():
                return False
            with Tracee(tid) as tracee:
                stop = tracee.interrupt(0.05)
                if stop is None:
                    return False
                registers = tracee.registers()
                return _outside(registers["rip"], ranges) and not (
                    handlers and self._in_a_handler(registers["rsp"], ranges)
                )
        except (ProcessLookupError, FileNotFoundError):
            return True
        except NoPermission:  # another tracer has taken it meanwhile
            return False

    def _in_a_handler(self, sp: int, ranges: list[Range]) -> bool:
        """Whether a thread with this stack pointer may be in a handler that was called in ``ranges``: then
        the kernel's frame for it is on its stack.  One left behind in unused words looks the same, and so
        does a stack that can't be read."""
        stack = self._from(sp, _HANDLERS_STACK)
        if not stack:
            return self.memory_is_current()  # else the thread has gone to another program
        return any(arch.handler_called_in(stack, sp, low, high) for low, high in ranges)


def _outside(address: int, ranges: list[Range]) -> bool:
    return not any(low <= address < high for low, high in ranges)


def _open_memory(pid: int) -> int:
    try:
        return os.open(f"/proc/{pid}/mem", os.O_RDWR | os.O_CLOEXEC)
    except PermissionError as error:
        raise no_permission(pid) from error
    except (FileNotFoundError, ProcessLookupError) as error:
        raise NoSuchTarget(f"there is no process {pid}") from error
