"""Wait statuses decoded, and real children stopped and let go of: they must not notice."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from pathlib import Path

import pytest
from native.drivers import build_driver
from support import Target, spawn, thread_states

from pyattach.attacher import procfs
from pyattach.attacher.ptrace import (
    PTRACE_EVENT_STOP,
    Stop,
    StopKind,
    Tracee,
    decode,
    let_go_of_late_stops,
)
from pyattach.errors import NoPermission

PTRACE_EVENT_EXEC = 4
DEADLINE_S = 10.0


def stopped(number: int, event: int = 0) -> int:
    return event << 16 | number << 8 | 0x7F


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        pytest.param(0, Stop(StopKind.EXITED), id="exit 0"),
        pytest.param(7 << 8, Stop(StopKind.EXITED), id="exit 7"),
        pytest.param(signal.SIGKILL, Stop(StopKind.EXITED), id="killed"),
        pytest.param(signal.SIGSEGV | 0x80, Stop(StopKind.EXITED), id="crashed, core dumped"),
        pytest.param(stopped(signal.SIGTRAP, PTRACE_EVENT_STOP), Stop(StopKind.INTERRUPTED), id="interrupt"),
        pytest.param(stopped(signal.SIGTRAP, PTRACE_EVENT_EXEC), Stop(StopKind.EVENT), id="exec"),
        pytest.param(
            stopped(signal.SIGTRAP), Stop(StopKind.SIGNAL, signal.SIGTRAP), id="a breakpoint of its own"
        ),
        pytest.param(stopped(signal.SIGPROF), Stop(StopKind.SIGNAL, signal.SIGPROF), id="a signal"),
        pytest.param(stopped(signal.SIGSTOP), Stop(StopKind.SIGNAL, signal.SIGSTOP), id="SIGSTOP arrives"),
        pytest.param(stopped(64), Stop(StopKind.SIGNAL, 64), id="the last real-time signal"),
        *(
            pytest.param(
                stopped(number, PTRACE_EVENT_STOP), Stop(StopKind.GROUP_STOP, number), id=number.name
            )
            for number in (signal.SIGSTOP, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU)
        ),
    ],
)
def test_decode(status: int, expected: Stop) -> None:
    assert decode(int(status)) == expected


@pytest.fixture(scope="module")
def driver() -> Path:
    return build_driver("trace_driver")


def assert_free(pid: int) -> None:
    assert [state for state in thread_states(pid) if state.is_held] == []


def wait_for_state(pid: int, letters: str) -> str:
    """Look at the process's one thread until its state is one of ``letters``."""
    end = time.monotonic() + DEADLINE_S
    while time.monotonic() < end:
        stat = procfs.read_stat(pid)
        if stat is not None and stat.state in letters:
            return stat.state
        os.sched_yield()
    raise AssertionError(f"process {pid} was not seen in state {letters} but in {thread_states(pid)}")


def finish(target: Target) -> None:
    assert_free(target.pid)
    target.tell()
    assert target.finish().endswith("done\n")


@pytest.mark.parametrize("kind", ["busy", "blocked"])
def test_stopped_and_let_go_of(may_trace: None, driver: Path, kind: str) -> None:
    with spawn([driver, kind]) as target:
        for _ in range(20):
            with Tracee(target.pid) as tracee:
                assert tracee.interrupt(DEADLINE_S) == Stop(StopKind.INTERRUPTED)
                assert [state.tracer for state in thread_states(target.pid)] == [os.getpid()]
                registers = tracee.registers()
                assert procfs.read_stat(target.pid).state == "t"  # type: ignore[union-attr]
                tracee.set_registers(registers)
                assert tracee.registers() == registers
                assert tracee.signal_mask() == 0
            assert_free(target.pid)
            tracee.detach()  # once more does nothing
        finish(target)


@pytest.mark.parametrize("kind", ["busy", "blocked"])
def test_seized_and_let_go_of_without_a_stop(may_trace: None, driver: Path, kind: str) -> None:
    with spawn([driver, kind]) as target:
        with Tracee(target.pid):
            pass
        finish(target)


@pytest.mark.parametrize("kind", ["busy", "blocked"])
def test_let_go_of_after_an_error(may_trace: None, driver: Path, kind: str) -> None:
    with spawn([driver, kind]) as target:
        with pytest.raises(ZeroDivisionError), Tracee(target.pid) as tracee:
            tracee.interrupt(DEADLINE_S)
            raise ZeroDivisionError
        finish(target)


@pytest.mark.parametrize("kind", ["busy", "blocked"])
@pytest.mark.parametrize("when", ["before the stop", "while stopped", "before letting go"])
def test_a_signal_is_still_delivered(may_trace: None, driver: Path, kind: str, when: str) -> None:
    """Sent once at each of the moments at which a tracer could swallow it; caught just as often."""
    with spawn([driver, kind]) as target:
        for count in range(1, 11):
            with Tracee(target.pid) as tracee:
                if when != "while stopped":
                    os.kill(target.pid, signal.SIGUSR1)
                if when != "before letting go":
                    assert tracee.interrupt(DEADLINE_S) == Stop(StopKind.INTERRUPTED)
                if when == "while stopped":
                    os.kill(target.pid, signal.SIGUSR1)
            assert target.expect("caught") == f"caught {count}"
        finish(target)


def test_a_stopped_process_is_recognised_and_stays_stopped(may_trace: None, driver: Path) -> None:
    with spawn([driver, "blocked"]) as target:
        os.kill(target.pid, signal.SIGSTOP)
        assert os.waitid(os.P_PID, target.pid, os.WSTOPPED | os.WNOWAIT) is not None
        with Tracee(target.pid) as tracee:
            assert tracee.interrupt(DEADLINE_S) == Stop(StopKind.GROUP_STOP, signal.SIGSTOP)
        # Let go of, it runs for as long as it takes to stop itself again.
        wait_for_state(target.pid, "T")
        assert [state.tracer for state in thread_states(target.pid)] == [0]
        os.kill(target.pid, signal.SIGCONT)
        os.waitid(os.P_PID, target.pid, os.WCONTINUED)
        finish(target)


def test_a_process_that_died_is_gone(may_trace: None, driver: Path) -> None:
    with spawn([driver, "blocked"]) as target:
        with Tracee(target.pid) as tracee:
            os.kill(target.pid, signal.SIGKILL)
            with pytest.raises(ProcessLookupError):
                tracee.interrupt(DEADLINE_S)
            tracee.detach()
        target.finish(None)
    with pytest.raises((ProcessLookupError, NoPermission)), Tracee(target.pid):
        pass


def test_killed_while_stopped(may_trace: None, driver: Path) -> None:
    with spawn([driver, "blocked"]) as target:
        with Tracee(target.pid) as tracee:
            tracee.interrupt(DEADLINE_S)
            os.kill(target.pid, signal.SIGKILL)
        assert target.process.wait(DEADLINE_S) is not None


def test_one_that_is_traced_already(may_trace: None, driver: Path) -> None:
    """Of two tracers the second is refused, and the first keeps its hold."""
    with spawn([driver, "blocked"]) as target, Tracee(target.pid) as tracee:
        tracee.interrupt(DEADLINE_S)
        with pytest.raises(NoPermission) as raised, Tracee(target.pid):
            pass
        assert f"traced by pid {os.getpid()}" in str(raised.value)
        assert tracee.registers()["rip"]
        tracee.detach()
        finish(target)


def test_one_that_cant_be_stopped_just_now_is_not_stopped_later(may_trace: None, driver: Path) -> None:
    """In uninterruptible sleep (here: waiting for its vfork) it stops only when that is over."""
    with spawn([driver, "vfork"]) as target:
        assert [state.letter for state in thread_states(target.pid)] == ["D"]
        with Tracee(target.pid) as tracee:
            assert tracee.interrupt(0.0) is None
        target.tell()
        wait_for_state(target.pid, "Zt")
        let_go_of_late_stops()
        assert wait_for_state(target.pid, "Z") == "Z"


def test_a_thread_that_becomes_another_is_not_forbidden() -> None:
    """The first one has ended, and a moment later another that executes a program has its number."""
    with spawn("execs", "-t", 3000) as target:
        target.tell()
        looks = 0
        while not select.select([target.process.stdout], [], [], 0)[0]:
            with contextlib.suppress(ProcessLookupError), Tracee(target.pid):
                pass
            looks += 1
        target.expect("done")
        target.finish()
    assert looks > 1


@pytest.mark.parametrize("interrupts", [True, False])
@pytest.mark.parametrize("program", ["waits", "timed"])
def test_no_system_call_ends_for_a_stop_that_comes_to_nothing(
    may_trace: None, program: str, interrupts: bool
) -> None:
    """The kernel begins most calls anew by itself, but epoll_wait returns EINTR after any stop, and so does
    recv on a socket that has a time limit."""
    with spawn(program) as target:
        for tid in procfs.thread_ids(target.pid):
            for _ in range(10):
                end = time.monotonic() + DEADLINE_S
                while procfs.read_blocked(target.pid, tid) is None:
                    assert time.monotonic() < end
                    os.sched_yield()
                with Tracee(tid) as tracee:
                    assert not interrupts or tracee.interrupt(DEADLINE_S) == Stop(StopKind.INTERRUPTED)
        assert_free(target.pid)
        assert "eintr 0\n" in target.finish()
