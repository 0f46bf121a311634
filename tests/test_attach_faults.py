"""kill -9 at every step of a session, and targets that end, change or stop at each of them."""

from __future__ import annotations

import ctypes
import os
import re
import signal
import time
from pathlib import Path

import faulted
import pytest
from faulted import Faulted
from support import Target, thread_states
from test_attach_run import CLOCKS, MARK, Spawn, maps_text, status_of, thread_ids, timers_text, wait_for

from pyattach.attacher import shared, stale
from pyattach.attacher.procfs import thread_cpu_ns
from pyattach.attacher.target import TargetProcess
from pyattach.errors import ExitCode, UsageError
from pyattach.inject import fault
from pyattach.inject.borrow import bootstraps_in
from pyattach.inject.image import boot_code
from pyattach.inject.layout import Control, Slot

SHORT = ("-d", "200ms", "--clock", "timer", "-o", "-")
LIMIT_S = 20.0
"""pyattach waits at most 2 s for each sign of a thread, a few times."""


def check_nothing_held(pid: int) -> None:
    assert not [state for state in thread_states(pid) if state.is_held]


def caves(pid: int) -> int:
    """How often the bootstrap's code lies in the target's memory."""
    with TargetProcess(pid) as target:
        return len(bootstraps_in(target))


def check_clean(pid: int) -> None:
    assert MARK not in maps_text(pid)
    assert not timers_text(pid)
    assert not caves(pid)
    assert status_of(pid)["TracerPid"] == "0"


def check_next(pid: int) -> None:
    """Another run does its work, and after it nothing is left, of the one before either."""
    run = faulted.run(pid, "", *SHORT)
    assert run.status in (ExitCode.OK, ExitCode.NO_SAMPLES), run.said
    assert "detached: mappings, open files, signal handling and timers are as before" in run.said
    check_clean(pid)


class Counters:
    """What ticks leave in the shared memory of a stub that nobody owns."""

    def __init__(self, pid: int, at: int) -> None:
        with TargetProcess(pid) as target:
            self.control = Control.from_buffer_copy(target.read(at, ctypes.sizeof(Control)))
            count, offset = self.control.slot_count, self.control.slots_offset
            data = target.read(at + offset, ctypes.sizeof(Slot) * count)
        self.slots = (Slot * count).from_buffer_copy(data)

    @property
    def ticks(self) -> tuple[int, ...]:
        own = sum(slot.ticks for slot in self.slots)
        return own, self.control.process_ticks, self.control.expired, self.control.foreign


def check_silence(pid: int, killed_at_ns: int) -> None:
    """No tick was sampled a second after the kill, and once the timers are gone none comes any more."""
    with TargetProcess(pid) as target:
        found = stale.stubs_in(target.maps())
    if not found:
        assert not timers_text(pid)
        return
    (stub,) = found
    wait_for("the timers are gone", lambda: not timers_text(pid))
    wait_met(pid)
    before = Counters(pid, stub.shared_address)
    assert before.control.lease_until_ns <= killed_at_ns + shared.LEASE_NS <= killed_at_ns + 1_000_000_000
    assert max(slot.last_clock_ns for slot in before.slots) <= before.control.lease_until_ns
    begin = cpu_ticks(pid)
    wait_for("it works on", lambda: cpu_ticks(pid) >= begin + 5)
    assert Counters(pid, stub.shared_address).ticks == before.ticks


def wait_met(pid: int) -> None:
    """Until no tick is on its way any more: what was sent to a thread that waits for a processor is met, and
    a handler that had lost it has returned, when the thread has run since."""
    busy = [tid for tid in thread_ids(pid) if status_of(pid, tid)["Name"].startswith("busy-")]
    then = {tid: thread_cpu_ns(pid, tid) or 0 for tid in busy}
    wait_for(
        "each has run", lambda: all((thread_cpu_ns(pid, tid) or 0) > then[tid] + 10_000_000 for tid in busy)
    )


def cpu_ticks(pid: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def killed(pid: int, step: str, *arguments: object) -> int:
    """A run that is killed at ``step``; CLOCK_MONOTONIC just after, ns."""
    run = faulted.run(pid, step, *(arguments or SHORT))
    assert run.status == -signal.SIGKILL, f"{step}: {run.status}\n{run.said}"
    return time.monotonic_ns()


GROUPS = [fault.STEPS[at : at + 9] for at in range(0, len(fault.STEPS), 9)]


@pytest.mark.parametrize("steps", GROUPS, ids=lambda steps: steps[0])
def test_kill_9_at_every_step(spawn: Spawn, steps: tuple[str, ...]) -> None:
    """The next one to be killed has to come to its own step, with what this one has left."""
    with spawn("threads", 1, 3) as target:
        for step in steps:
            killed(target.pid, step)
            check_nothing_held(target.pid)
        check_next(target.pid)
        assert target.finish() == "eintr 0\ndone\n"


DLOPENED = [
    "load.sized",
    "loaded",
    "told",
    "stop.sized",
    "drained",
    "unload.filled",
    "unload.sized",
    "verifying",
]


def test_kill_9_where_the_stub_was_brought_in_by_dlopen(spawn: Spawn) -> None:
    arguments = ("-d", "100ms", "--loader", "dlopen")
    with spawn("threads", 0, 3) as target:
        for step in DLOPENED:
            killed(target.pid, step, *arguments)
        run = faulted.run(target.pid, "", *arguments)
        assert run.status == ExitCode.NO_SAMPLES, run.said
        check_clean(target.pid)
        assert target.finish() == "eintr 0\ndone\n"


@pytest.mark.parametrize("clock", CLOCKS)
@pytest.mark.parametrize("step", ["load.sized", "sampling", "told", "stop.mailed", "unload.stopped"])
def test_within_a_second_of_kill_9_all_is_silent(spawn: Spawn, step: str, clock: str) -> None:
    with spawn("threads", 2, 3) as target:
        run = faulted.run(target.pid, step, "-d", "1s", "--clock", clock)
        assert run.status == -signal.SIGKILL, run.said
        check_silence(target.pid, time.monotonic_ns())
        check_next(target.pid)
        assert target.finish() == "eintr 0\ndone\n"


def test_threads_that_sleep_lose_their_timers_too(spawn: Spawn) -> None:
    """The first tick that finds the lease over deletes those of all threads: none would come of theirs."""
    with spawn("ends") as target:
        killed(target.pid, "sampling", "-d", "300ms", "--clock", "timer")
        wait_for("there are no timers", lambda: not timers_text(target.pid))
        assert target.finish() == "done 0 0\n"


def test_many_killed_one_after_the_other_leave_one_at_most(spawn: Spawn) -> None:
    with spawn("threads", 1, 1) as target:
        for _ in range(3):
            killed(target.pid, "loaded")
            with TargetProcess(target.pid) as process:
                assert len(stale.stubs_in(process.maps())) == 1
        check_next(target.pid)
        target.finish()


def test_an_owner_that_cant_be_seen_is_given_its_lease(spawn: Spawn, monkeypatch: pytest.MonkeyPatch) -> None:
    """In another pid namespace only the lease tells whether it lives."""
    with spawn("threads", 1, 1) as target:
        killed(target.pid, "loaded")
        monkeypatch.setattr(stale, "_owner", lambda _control: None)
        with TargetProcess(target.pid) as process:
            assert stale.clear(process) == ["the stub of a pyattach that was killed was taken out"]
        check_clean(target.pid)
        target.finish()


def test_a_pyattach_that_lives_is_left_alone(spawn: Spawn) -> None:
    with spawn("threads", 1, 1) as target:
        child, said = faulted.begin(target.pid, "sampling:stop", *SHORT)
        wait_for("it is stopped", lambda: status_of(child)["State"].startswith("T"))
        with TargetProcess(target.pid) as process:
            assert stale.clear(process) == [f"another pyattach (pid {child}) is attached, too"]
        assert MARK in maps_text(target.pid)
        os.kill(child, signal.SIGCONT)
        status, text = faulted.finish(child, said)
        assert status == ExitCode.OK, text
        check_clean(target.pid)
        target.finish()


def test_a_bootstrap_in_use_is_left_alone(spawn: Spawn) -> None:
    """Its thread stands still, about to go there."""
    with spawn("threads", 1, 1) as target:
        for step in ("load.written", "load.pointed"):
            child, said = faulted.begin(target.pid, f"{step}:stop", *SHORT)
            wait_for("it is stopped", lambda child=child: status_of(child)["State"].startswith("T"))
            # TargetProcess would refuse a target that is traced: what it knows otherwise is enough.
            process = TargetProcess.__new__(TargetProcess)
            process.pid, process.start_time = target.pid, 0
            process._memory = os.open(f"/proc/{target.pid}/mem", os.O_RDWR)
            (at,) = bootstraps_in(process)
            assert not stale._restore(process, at)
            assert process.read(at + 256, len(boot_code())) == boot_code()
            os.close(process._memory)
            os.kill(child, signal.SIGCONT)
            status, text = faulted.finish(child, said)
            assert status == ExitCode.OK, text
        check_clean(target.pid)
        target.finish()


@pytest.mark.parametrize(
    "step",
    [
        "load.released",
        "load.mailed",
        "load.filled",
        "stop.released",
        "stop.mailed",
        "unload.released",
        "unload.filled",
    ],
)
def test_a_pyattach_that_comes_too_late(spawn: Spawn, step: str) -> None:
    """Held up for longer than the thread waits: that has gone home, and the same is done once more."""
    with spawn("threads", 1, 1) as target:
        child, said = faulted.begin(target.pid, f"{step}:stop", *SHORT)
        wait_for("it is stopped", lambda: status_of(child)["State"].startswith("T"))
        time.sleep(0.15)  # the thread waits for 0.1 s; should it have been slower, nothing is wrong
        os.kill(child, signal.SIGCONT)
        status, text = faulted.finish(child, said)
        assert status in (ExitCode.OK, ExitCode.DETACH_INCOMPLETE), text
        check_next(target.pid)
        assert target.finish() == "eintr 0\ndone\n"


# The loader's own steps fail in the target.


@pytest.mark.parametrize("loader", ["dlopen", "map"])
@pytest.mark.parametrize("step", [step for step in fault.BOOT_STEPS if step != "boot.unload"])
def test_a_step_that_fails_in_the_target(spawn: Spawn, step: str, loader: str) -> None:
    with spawn("threads", 0, 3) as target:
        run = faulted.run(target.pid, step, "-d", "100ms", "--loader", loader)
        if step == ("boot.image" if loader == "dlopen" else "boot.dlopen"):
            assert run.status == ExitCode.NO_SAMPLES, run.said  # not on this way
        else:
            assert run.status == ExitCode.ERROR, run.said
            assert re.match(r"pyattach: pid \d+: .* failed there: ", run.said), run.said
        check_clean(target.pid)
        assert target.finish() == "eintr 0\ndone\n"


def test_an_unload_that_fails_is_said(spawn: Spawn) -> None:
    with spawn("threads", 1, 1) as target:
        run = faulted.run(target.pid, "boot.unload", *SHORT)
        assert run.status == ExitCode.DETACH_INCOMPLETE, run.said
        assert "unloading the stub failed there" in run.said
        assert f"left behind in process {target.pid}: mapping" in run.said
        assert not timers_text(target.pid)
        assert target.finish() == "eintr 0\ndone\n"


def test_a_step_that_is_none() -> None:
    with pytest.raises(UsageError, match="no step"):
        fault.choose("load.nonsense")
    with pytest.raises(UsageError, match="name of a signal"):
        fault.choose("loaded:SIGNONE")


# The target ends, becomes another program, has a child or is stopped at a step.


def check_ended(run: Faulted, step: str) -> None:
    """Samples so far and their exit code, or one clear line of what happened."""
    assert run.seconds < LIMIT_S
    assert "Traceback" not in run.said, run.said
    if found := re.search(r"^samples\s+([1-9][\d,]*)$", run.said, re.MULTILINE):
        assert run.status == ExitCode.OK, (step, found[0], run.said)
        assert "the target ended" in run.said or "duration reached" in run.said, run.said
    else:
        assert run.status == ExitCode.TARGET_DIED, (step, run.status, run.said)
        assert step not in fault.LATE or "samples" in run.said
        if step not in fault.LATE:
            assert re.match(r"pyattach: process \d+ ended", run.said) or "the target ended" in run.said


def hurt(target: Target, step: str, name: str) -> None:
    """One run in which the target gets signal ``name`` at ``step``, and what must come of it."""
    run = faulted.run(target.pid, f"{step}:{name}", *SHORT)
    assert run.seconds < LIMIT_S and "Traceback" not in run.said, (step, name, run.said)
    if name in ("SIGKILL", "SIGSEGV", "SIGUSR1"):
        check_ended(run, step)
        target.finish(exit_code=3 if name == "SIGUSR1" else -signal.Signals[name])
        return
    if name == "SIGSTOP":
        check_stopped(target, run, step)
        target.process.send_signal(signal.SIGCONT)
    else:
        assert run.status in (ExitCode.OK, ExitCode.NO_SAMPLES), (step, name, run.status, run.said)
    check_next(target.pid)
    forks = int(name == "SIGHUP")
    if forks:
        wait_for("the child was waited for", lambda: not children_of(target.pid))
    assert target.finish().endswith(f"done {forks} 0\n")


def check_stopped(target: Target, run: Faulted, step: str) -> None:
    """It stays stopped; what could not be done then is said."""
    assert status_of(target.pid)["State"].startswith("T"), step
    assert status_of(target.pid)["TracerPid"] == "0"
    if run.status == ExitCode.UNSUPPORTED:
        assert f"kill -CONT {target.pid}" in run.said
    elif run.status == ExitCode.DETACH_INCOMPLETE:
        assert f"left behind in process {target.pid}: " in run.said
    else:
        assert run.status in (ExitCode.OK, ExitCode.NO_SAMPLES, ExitCode.ERROR), (step, run.status, run.said)


def children_of(pid: int) -> str:
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().strip()


ENDS = ("SIGKILL", "SIGSEGV", "SIGUSR1", "SIGUSR2", "SIGHUP", "SIGSTOP")
TURNS = [(step, ENDS[number % len(ENDS)]) for number, step in enumerate(fault.STEPS)]
"""Each step with one of them; ``make stress`` takes all with all, here it is every other step."""


@pytest.mark.parametrize("name", ENDS)
def test_what_happens_to_the_target_at_any_step(spawn: Spawn, name: str) -> None:
    every = 3 if name == "SIGSTOP" else 2  # it waits long
    for step in [step for step, end in TURNS if end == name][::every]:
        with spawn("ends") as target:
            hurt(target, step, name)
