"""Which thread to borrow, and stopping it: one thread, briefly, at a place where it can be borrowed."""

from __future__ import annotations

import contextlib
import gc
import os
import time
from collections.abc import Iterator
from typing import NamedTuple

from ..errors import InjectionFailed, UnsupportedTarget
from ..inject import fault
from ..inject.arch import x86_64 as arch
from . import procfs
from .ptrace import StopKind, Tracee, any_stops_late, let_go_of_late_stops
from .target import TargetProcess

STOP_DEADLINE_S = 0.25
"""How long one thread is given to stop; in uninterruptible sleep (state D) it can't."""

SEARCH_DEADLINE_S = 3.0
HARMLESS_S = 2.0
"""So long a thread is waited for whose system call, if it is in one, goes on by itself."""

ENDS_A_CALL = 3  # the rank of a thread whose system call would report EINTR
_RSEQ_CS_OFFSET = 8  # struct rseq, linux/rseq.h: cpu_id_start, cpu_id, rseq_cs


class Held:
    """A stopped thread, as injection sees it (``inject.tracee.HeldThread``)."""

    def __init__(self, target: TargetProcess, tracee: Tracee, stopped_at_ns: int) -> None:
        self._target, self._tracee = target, tracee
        self.stopped_at_ns = stopped_at_ns
        self.registers = tracee.registers()
        self.signal_mask = tracee.signal_mask()

    @property
    def tid(self) -> int:
        return self._tracee.tid

    def signal_pending(self) -> bool:
        return self._tracee.signal_pending()

    def interrupted_by_a_signal(self) -> bool:
        """Whether a signal waits that will end the system call the thread stopped in: only the kernel
        knows whether the call is begun again after the signal's handler."""
        in_call = arch.signed(self.registers["orig_rax"]) >= 0 and arch.signed(self.registers["rax"]) < 0
        return in_call and self.signal_pending()

    def in_restartable_sequence(self) -> bool:
        """Whether the thread stands inside a critical section that the kernel restarts (man rseq).
        Moved out of it and back, it would no longer be restarted."""
        area = self._tracee.rseq_area()
        if not area:
            return False
        try:
            descriptor = int.from_bytes(self._target.read(area + _RSEQ_CS_OFFSET, 8), "little")
            if not descriptor:
                return False
            words = self._target.read(descriptor + 8, 16)
        except ProcessLookupError:
            raise
        except OSError:
            return True
        start, length = int.from_bytes(words[:8], "little"), int.from_bytes(words[8:], "little")
        return start <= self.registers["rip"] < start + length

    def release(self, registers: arch.Registers | None = None) -> None:
        if registers is not None:
            self._tracee.set_registers(registers)
            fault.reach("pointed", self._target.pid)
        self._tracee.detach()


class Candidate(NamedTuple):
    """A thread as seen from outside before it is stopped; lower ``rank`` is better."""

    tid: int
    rank: int
    blocked: procfs.Blocked | None


def processors_are_busy() -> bool:
    """Whether a thread that is woken now would have to wait for a processor."""
    return procfs.runnable() > len(os.sched_getaffinity(0))


def candidates(target: TargetProcess) -> list[Candidate]:
    """All threads, best first: asleep in a call that goes on by itself, then running, then the rest.

    A sleeping thread loses no time by being borrowed, and its stack can be read beforehand.  But where all
    processors are busy it would have to wait for one, several times: there a running thread comes first.
    """
    out = []
    awake = -1 if processors_are_busy() else 1
    for tid in target.threads():
        with contextlib.suppress(ProcessLookupError):
            blocked = procfs.read_blocked(target.pid, tid)
            if blocked is None:
                rank = awake
            elif blocked.syscall in arch.GOES_ON:
                rank = 2 if blocked.syscall in arch.BEGIN_ANEW | arch.WAITS_FOR_SIGNALS else 0
            else:
                rank = ENDS_A_CALL
            out.append(Candidate(tid, rank, blocked))
    return sorted(out, key=lambda c: (c.rank, c.tid != target.pid, c.tid))


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """Keep Python from collecting garbage just while a thread waits for us."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@contextlib.contextmanager
def stopped(target: TargetProcess, tid: int) -> Iterator[Held | None]:
    """The thread, stopped; None when it can't be used.  Let go of when the block is left."""
    if any_stops_late():
        yield None
        return
    with _no_collection(), Tracee(tid) as tracee:
        fault.reach("seized", target.pid)
        asked_ns = time.monotonic_ns()
        stop = tracee.interrupt(STOP_DEADLINE_S)
        if stop is None:
            yield None
            return
        if stop.kind is StopKind.GROUP_STOP:
            raise UnsupportedTarget(
                f"process {target.pid} is stopped (signal {stop.signal})",
                f"let it go on first: kill -CONT {target.pid}",
            )
        fault.reach("stopped", target.pid)
        held = Held(target, tracee, asked_ns)
        fault.reach("read", target.pid)
        usable = not held.in_restartable_sequence() and not held.interrupted_by_a_signal()
        yield held if usable else None


@contextlib.contextmanager
def hold_any(target: TargetProcess) -> Iterator[Held]:
    """Stop the best thread there is.  For work that takes no lock of the target.

    A thread whose system call would report EINTR is taken only where there is no other, or none that could be
    stopped for ``HARMLESS_S``: the others may be in a critical section, or about to handle a signal.

    Raises InjectionFailed when no thread could be stopped, ProcessLookupError when the target is gone.
    """
    start = time.monotonic()
    deadline, harmless_until = start + SEARCH_DEADLINE_S, start + HARMLESS_S
    while time.monotonic() < deadline:
        let_go_of_late_stops()
        threads = candidates(target)
        if not threads:
            raise ProcessLookupError(f"process {target.pid} is gone")
        if threads[0].rank < ENDS_A_CALL and time.monotonic() < harmless_until:
            threads = [thread for thread in threads if thread.rank < ENDS_A_CALL]
        for candidate in threads:
            with contextlib.ExitStack() as stack:
                try:
                    held = stack.enter_context(stopped(target, candidate.tid))
                except ProcessLookupError:
                    continue
                if held is not None:
                    yield held
                    return
        time.sleep(0.005)
    raise InjectionFailed(
        f"none of the {len(candidates(target))} threads of process {target.pid} could be stopped within "
        f"{SEARCH_DEADLINE_S:.0f} s",
        "is it in uninterruptible sleep (state D), waiting for a disk or a network file system?",
    )
