"""ptrace, raw: SEIZE, INTERRUPT, registers, decoded stops.  Nothing above this knows a wait status.

python-ptrace gives the raw call and the register struct; its debugger layer is not used, it stops and
quits targets in ways of its own.  Requests it does not know are from ``linux/ptrace.h``.
"""

from __future__ import annotations

import contextlib
import ctypes
import enum
import errno
import functools
import os
import signal
import struct
import sys
import time
import types
from collections.abc import Callable
from typing import Any, NamedTuple

from ..errors import NoPermission, PyattachError
from ..inject.arch import x86_64 as arch
from . import procfs
from .permission import no_permission

PTRACE_PEEKTEXT = 1
PTRACE_CONT = 7
PTRACE_GETREGS = 12
PTRACE_SETREGS = 13
PTRACE_DETACH = 17
PTRACE_SEIZE = 0x4206
PTRACE_INTERRUPT = 0x4207
PTRACE_PEEKSIGINFO = 0x4209
PTRACE_PEEKSIGINFO_SHARED = 1
PTRACE_GETSIGMASK = 0x420A
PTRACE_GET_RSEQ_CONFIGURATION = 0x420F

PTRACE_EVENT_STOP = 128
_CHANGES_FOR_S = 0.1

END_DEADLINE_S = 1.0
LATE_S = 5.0
"""How long a thread that was killed is given to end."""
_WALL = 0x40000000


class StopKind(enum.Enum):
    """What a wait status says of a seized thread."""

    INTERRUPTED = "interrupted"  # our PTRACE_INTERRUPT
    GROUP_STOP = "stopped by a signal"  # SIGSTOP and its like hold the whole process
    SIGNAL = "about to receive a signal"
    EVENT = "ptrace event"
    EXITED = "exited"


class Stop(NamedTuple):
    """A decoded stop; ``signal`` is the one to be delivered (SIGNAL) or that stopped it (GROUP_STOP)."""

    kind: StopKind
    signal: int = 0


def decode(status: int) -> Stop:
    """Decode a wait status of a seized tracee (man ptrace, "Stopped states")."""
    if os.WIFEXITED(status) or os.WIFSIGNALED(status):
        return Stop(StopKind.EXITED)
    event, number = status >> 16, os.WSTOPSIG(status)
    if event == PTRACE_EVENT_STOP:
        if number in (signal.SIGSTOP, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU):
            return Stop(StopKind.GROUP_STOP, number)
        return Stop(StopKind.INTERRUPTED)
    if event:
        return Stop(StopKind.EVENT)
    return Stop(StopKind.SIGNAL, number)


@functools.cache
def _binding() -> tuple[Callable[..., int], type[Any]]:
    """python-ptrace's raw call, and the error that it raises.

    It would look for the C library's file, by running ldconfig or a compiler, to open what is open."""
    import ptrace

    libc = types.ModuleType("ptrace.ctypes_libc", "Stands in for python-ptrace's own.")
    libc.__dict__.update(LIBC_FILENAME=None, libc=ctypes.CDLL(None, use_errno=True))
    sys.modules.setdefault(libc.__name__, libc)
    from ptrace.binding.func import ptrace as raw

    return raw, ptrace.PtraceError


def _call(request: int, tid: int, address: Any = 0, data: Any = 0) -> int:
    raw, ptrace_error = _binding()
    try:
        return int(raw(request, tid, address, data))
    except ptrace_error as error:
        number = error.errno or errno.EIO
        if number == errno.ESRCH:
            raise ProcessLookupError(number, f"thread {tid} is gone or not stopped") from error
        if number == errno.EPERM:
            stat = procfs.read_stat(tid)
            if stat is None or stat.state in "ZX":
                raise ProcessLookupError(errno.ESRCH, f"thread {tid} has ended") from error
            raise no_permission(int(procfs.read_status(tid).get("Tgid", tid))) from error
        raise PyattachError(f"ptrace request {request:#x} on thread {tid}: {os.strerror(number)}") from error


@functools.cache
def _register_layout() -> tuple[Any, list[str], struct.Struct]:
    """python-ptrace's ``user_regs_struct``, its names, and how to (un)pack it at once: a thread waits."""
    _binding()
    from ptrace.binding.linux_struct import user_regs_struct

    names = [name for name, _ in user_regs_struct._fields_]
    return user_regs_struct, names, struct.Struct(f"={len(names)}Q")


class _RseqConfiguration(ctypes.Structure):
    """``struct ptrace_rseq_configuration`` (linux/ptrace.h)."""

    _fields_ = (
        ("pointer", ctypes.c_uint64),
        ("size", ctypes.c_uint32),
        ("signature", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
        ("pad", ctypes.c_uint32),
    )


class Tracee:
    """One seized thread.  Leaving the ``with`` block lets go of it, however it is left: where its registers
    were not set, it goes on as if it had not been stopped.

    ptrace belongs to the thread that seized: use an object only where it was made.
    """

    def __init__(self, tid: int) -> None:
        self.tid = tid
        self.stopped = False
        self._seized = self._moved = False

    def __enter__(self) -> Tracee:
        _register_layout()  # what has to be imported is, before anything is stopped
        self._seize()
        self._seized = True
        return self

    def _seize(self) -> None:
        """A thread that has ended is refused like one that is not ours.  Where it was the first, and another
        executes a program, that one bears its number by the time one looks: asked again, for as long as such
        a change may take on a busy machine."""
        deadline = time.monotonic() + _CHANGES_FOR_S
        while time.monotonic() < deadline:
            with contextlib.suppress(NoPermission):
                _call(PTRACE_SEIZE, self.tid)
                return
            time.sleep(0.0005)
        _call(PTRACE_SEIZE, self.tid)

    def __exit__(self, *_exc: object) -> None:
        self.detach()

    def interrupt(self, deadline_s: float) -> Stop | None:
        """Stop the thread; the stop, or None when it did not stop within ``deadline_s`` seconds.

        Signals that arrive in between are delivered.  Raises ProcessLookupError when it is gone.
        """
        _call(PTRACE_INTERRUPT, self.tid)
        deadline = time.monotonic() + deadline_s
        while True:
            stop = self._wait(deadline)
            if stop is None or stop.kind in (StopKind.INTERRUPTED, StopKind.GROUP_STOP):
                return stop
            _call(PTRACE_CONT, self.tid, 0, stop.signal)
            self.stopped = False

    def _wait(self, deadline: float) -> Stop | None:
        spins = 0
        while True:
            try:
                pid, status = os.waitpid(self.tid, os.WNOHANG | _WALL)
            except ChildProcessError as error:
                raise ProcessLookupError(errno.ESRCH, f"thread {self.tid} is gone") from error
            if pid:
                stop = decode(status)
                if stop.kind is StopKind.EXITED:
                    _ended[self.tid] = status
                    self._seized = False
                    raise ProcessLookupError(errno.ESRCH, f"thread {self.tid} has exited")
                self.stopped = True
                return stop
            if time.monotonic() > deadline:
                return None
            spins += 1
            if spins < 2000:
                os.sched_yield()
            else:
                time.sleep(0.001)

    def registers(self) -> arch.Registers:
        """All general registers, by name; the thread must be stopped."""
        struct_type, names, form = _register_layout()
        regs = struct_type()
        _call(PTRACE_GETREGS, self.tid, 0, ctypes.addressof(regs))
        return dict(zip(names, form.unpack(regs), strict=True))

    def set_registers(self, registers: arch.Registers) -> None:
        """Set all general registers; the thread must be stopped."""
        struct_type, names, form = _register_layout()
        regs = struct_type.from_buffer_copy(form.pack(*[registers[name] for name in names]))
        self._moved = True
        _call(PTRACE_SETREGS, self.tid, 0, ctypes.addressof(regs))

    def signal_mask(self) -> int:
        """The signals the thread blocks, as a bit mask (bit 0: signal 1)."""
        mask = ctypes.c_uint64()
        _call(PTRACE_GETSIGMASK, self.tid, 8, ctypes.addressof(mask))
        return mask.value

    def signals_queued(self) -> bool:
        """Whether any signal waits for the thread or its process, blocked or not."""
        for flags in (0, PTRACE_PEEKSIGINFO_SHARED):
            question = ctypes.create_string_buffer(struct.pack("=QIi", 0, flags, 1))
            answer = ctypes.create_string_buffer(128)  # siginfo_t
            places = ctypes.addressof(question), ctypes.addressof(answer)
            if _call(PTRACE_PEEKSIGINFO, self.tid, *places) > 0:
                return True
        return False

    def signal_pending(self) -> bool:
        """Whether a signal waits for the thread or its process that the thread does not block."""
        if not self.signals_queued():
            return False
        status = procfs.read_status(self.tid)
        pending = int(status.get("SigPnd", "0"), 16) | int(status.get("ShdPnd", "0"), 16)
        return bool(pending & ~self.signal_mask())

    def rseq_area(self) -> int:
        """Address of the thread's ``struct rseq``; 0 when it has none or the kernel can't say."""

        config = _RseqConfiguration()
        try:
            _call(PTRACE_GET_RSEQ_CONFIGURATION, self.tid, ctypes.sizeof(config), ctypes.addressof(config))
        except PyattachError:  # kernels before 5.13 have no such request
            return 0
        return int(config.pointer)

    def detach(self) -> None:
        """Let go; the thread goes on at its registers.  Doing it twice is fine.

        A thread in uninterruptible sleep can't be let go of now: see ``let_go_of_late_stops``.
        """
        if not self._seized:
            return
        stop = None
        if not self.stopped:
            # Only a stopped tracee can be detached; an interrupt may still be under way.
            try:
                stop = self._wait(time.monotonic() + 0.05) or self.interrupt(0.2)
            except ProcessLookupError:
                self._seized = False
                return
            if stop is None:
                _late.append(self)
                return
        self._let_go(stop)

    def let_go_late(self) -> bool:
        """One look at a thread that did not stop in time; whether it is let go of now."""
        try:
            stop = self._wait(time.monotonic() - 1)
        except ProcessLookupError:
            self._seized = False
            return True
        if stop is None and not self._stands_still():
            return False
        self._let_go(stop)
        return True

    def _stands_still(self) -> bool:
        """Whether it has stopped for us, whoever was told: where it is a child of this process, too, its stop
        can be met by ``Popen.wait`` and the like."""
        stat = procfs.read_stat(self.tid)
        return stat is not None and stat.state == "t"

    def _let_go(self, stop: Stop | None) -> None:
        """Detach a stopped thread; a signal it was stopped for must still be delivered."""
        pending = stop.signal if stop is not None and stop.kind is StopKind.SIGNAL else 0
        self.stopped = False
        try:
            try:
                if not pending and not self._moved:
                    self._begin_call_anew()
            finally:
                _call(PTRACE_DETACH, self.tid, 0, pending)
            self._seized = False
        except ProcessLookupError:
            self._wait_for_end()

    def _begin_call_anew(self) -> None:
        """A system call that the stop has ended with EINTR, and that means the same when it is begun anew
        (epoll_wait), is, unless a signal may be the reason.  Others the kernel begins anew itself."""
        registers = self.registers()
        if arch.signed(registers["rax"]) != -arch.EINTR:
            return
        resumed = arch.resume_registers(registers, self._code_before(registers["rip"]), self.signal_pending)
        if resumed != registers:
            self.set_registers(resumed)

    def _code_before(self, ip: int) -> bytes:
        """The two bytes before an address; none where that can't be read."""
        try:
            word = _call(PTRACE_PEEKTEXT, self.tid, ip - 2)
        except PyattachError:
            return b""
        return (word & 0xFFFF).to_bytes(2, "little")

    def _wait_for_end(self) -> None:
        """It was killed while it stood still.  Its end has to be taken notice of here: until then an execve
        by another thread, maybe the one that killed it, waits, and whoever seizes a thread waits for that."""
        deadline = time.monotonic() + END_DEADLINE_S
        try:
            while self._wait(deadline) is not None:
                pass
        except ProcessLookupError:
            self._seized = False
            return
        _late.append(self)


_ended: dict[int, int] = {}


def status_taken(pid: int) -> int | None:
    """The wait status of a child of this process whose end was met here, where its parent can't any more."""
    return _ended.get(pid)


_late: list[Tracee] = []


def any_stops_late() -> bool:
    """Whether some thread was asked to stop and has not yet: it is seized still.

    No other may be seized then.  Should execve by another thread end this one, that waits until its end is
    taken notice of here, and seizing waits for the execve.
    """
    return bool(_late)


def forget_late_stops() -> None:
    """For a fork of this process: what was seized by the other is none of its business."""
    _late.clear()


def let_go_of_late_stops() -> int:
    """Let go of threads that were asked to stop, could not, and have stopped since; how many have not yet.

    To be called every now and then while pyattach lives: such a thread would stand still until then.
    When pyattach ends, the kernel lets go of all of them.
    """
    _late[:] = [tracee for tracee in _late if not tracee.let_go_late()]
    return len(_late)


def wait_for_late_stops() -> None:
    """At the end of a session: none is to stop later, when nobody looks any more.  For LATE_S at most."""
    deadline = time.monotonic() + LATE_S
    while let_go_of_late_stops() and time.monotonic() < deadline:
        time.sleep(0.001)
