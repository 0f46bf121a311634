"""What ticks, on real targets: both clocks, what is said where one can't be had, and what neither may do."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import resource
import shutil
import signal
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from support import build_target, skip_unless_ci
from test_attach_ends import check_detached
from test_attach_run import (
    CLOCKS,
    MARK,
    TICK,
    Folded,
    Spawn,
    cpu_time_s,
    five_errors,
    maps_text,
    needs_perf,
    pyattach,
    wait_for,
    weights_in,
)

from pyattach.attacher import clock, sampling
from pyattach.attacher.contract import Options, Outcome, Progress
from pyattach.attacher.planning import strays_can_be_met
from pyattach.attacher.procfs import read_status, thread_ids
from pyattach.attacher.session import attach as attach_here
from pyattach.errors import NoPermission
from pyattach.inject.layout import Slot, SlotState

FILES = "/proc/self/fd"


def caught(pid: int) -> int:
    return int(read_status(pid)["SigCgt"], 16)


def sample(
    pid: int, rate_hz: float, name: str, cpu_s: float, begun: Callable[[], object] = lambda: None
) -> Outcome:
    """Sampled until it has used so much CPU time; ``begun`` is called when that begins."""
    seen_s = -1.0

    def enough() -> bool:
        return seen_s >= cpu_s

    def note(progress: Progress) -> None:
        nonlocal seen_s
        if seen_s < 0:
            begun()
        seen_s = progress.cpu_s

    return attach_here(pid, Options(rate_hz=rate_hz, clock=name), enough, note)


@pytest.mark.parametrize("name", CLOCKS)
@pytest.mark.parametrize("rate_hz", [99, 997])
def test_samples_account_for_all_cpu_time(spawn: Spawn, name: str, rate_hz: float) -> None:
    """Whatever the clock could reach: each tick stands for the periods since the one before."""
    with spawn("split") as target:
        outcome = sample(target.pid, rate_hz, name, cpu_s=2)
        check_detached(target)
    meta = outcome.profile.meta
    assert meta.clock == name and meta.ticks is not None and meta.cpu_time_s is not None
    assert meta.ticks <= meta.samples
    assert meta.samples + meta.dropped == pytest.approx(rate_hz * meta.cpu_time_s, rel=0.08)


@needs_perf
@pytest.mark.parametrize("rate_hz", [99, min(1000.0, 4 * clock.kernel_hz())])
def test_perf_is_the_default(spawn: Spawn, rate_hz: float) -> None:
    with spawn("split") as target:
        profile = sample(target.pid, rate_hz, "auto", cpu_s=1).profile
        check_detached(target)
    assert profile.meta.clock == "perf" and profile.timeline is not None
    # Most stand for one period, of timers' none at the higher rate; any may come late.
    assert statistics.median(profile.timeline.ticks) == 1


def test_timers_are_the_default_without_perf(spawn: Spawn, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(_tid: int, _period_ns: int) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(clock, "open_event", refused)
    with spawn("split") as target:
        meta = sample(target.pid, 99, "auto", cpu_s=0.2).profile.meta
    assert meta.clock == "timer"
    assert any("perf is not permitted" in note and "may be wrong" in note for note in meta.notes)


def opened_instead(_tid: int, _period_ns: int) -> int:
    return os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)


def test_a_file_number_at_the_limit_gives_a_timer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clock, "open_event", opened_instead)
    events, slots, before = clock.EventClock(1, 99, TICK, jitter=True), (Slot * 1)(), len(os.listdir(FILES))
    events.event_base = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    assert events.add(1, 0, slots[0])
    assert slots[0].state == SlotState.WANTED and slots[0].tid == 1
    assert len(os.listdir(FILES)) == before


@pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM, errno.EMFILE])
def test_a_thread_that_may_not_be_watched_gets_a_timer(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def refused(_tid: int, _period_ns: int) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(clock, "open_event", refused)
    events, slots = clock.EventClock(1, 99, TICK, jitter=True), (Slot * 1)()
    assert events.add(1, 0, slots[0])
    assert slots[0].state == SlotState.WANTED


def test_a_thread_that_ends_before_its_event_is_aimed_leaves_no_file(monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(_event: int, _signal: int, _tid: int) -> None:
        raise ProcessLookupError(errno.ESRCH, "No such process")

    monkeypatch.setattr(clock, "open_event", opened_instead)
    monkeypatch.setattr(clock, "aim_event", gone)
    events, slots, before = clock.EventClock(1, 99, TICK, jitter=True), (Slot * 1)(), len(os.listdir(FILES))
    assert not events.add(1, 0, slots[0])
    assert len(os.listdir(FILES)) == before and not events.events


@needs_perf
def test_events_of_two_threads_are_not_in_step(spawn: Spawn) -> None:
    """Nor is one with work that takes as long as its period."""
    with spawn("split") as target:
        periods = {clock.EventClock(target.pid, 99, 23, jitter=True)._off_step(10_000_000) for _ in range(64)}
        assert clock.EventClock(target.pid, 99, 23, jitter=False)._off_step(10_000_000) == 10_000_000
    assert len(periods) > 32
    assert all(0.01 <= 1 - period / 10_000_000 <= 0.03 for period in periods)


@needs_perf
def test_events_that_a_fork_has_open_end_with_the_clock(spawn: Spawn) -> None:
    """Helpers of -s are forks: they have all files that were open when they began."""
    slots = (Slot * 2)()
    with spawn("split") as target, contextlib.ExitStack() as undo:
        events = clock.EventClock(target.pid, 99, TICK, jitter=True)
        undo.callback(events.stop)
        assert all(events.add(target.pid, index, slots[index]) for index in range(2))
        events.start(slots)
        inherited = [os.dup(event) for event in events.events]
        for number in inherited:
            undo.callback(os.close, number)
        wait_for("they count", lambda: all(map(counted_ns, inherited)))
        events.remove(0, slots[0])
        events.stop()
        before, begin_s = [counted_ns(number) for number in inherited], cpu_time_s(target.pid)
        wait_for("it has worked", lambda: cpu_time_s(target.pid) > begin_s + 0.1)
        assert [counted_ns(number) for number in inherited] == before


def counted_ns(event: int) -> int:
    """What an event has counted (man perf_event_open, "Reading results")."""
    return int.from_bytes(os.read(event, 8), "little")


def test_without_permission_the_reached_rate_and_its_reason_are_shown(
    spawn: Spawn, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(_tid: int, _period_ns: int) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(clock, "open_event", refused)
    with spawn("split") as target:
        meta = sample(target.pid, 4 * clock.kernel_hz(), "auto", cpu_s=1).profile.meta
        with pytest.raises(NoPermission, match="perf is not permitted"):
            attach_here(target.pid, Options(clock="perf"), lambda: True, lambda _progress: None)
    assert meta.clock == "timer"
    assert any("perf is not permitted" in note and "can't be reached" in note for note in meta.notes)
    assert meta.ticks is not None and meta.samples > 2 * meta.ticks


def test_in_a_user_namespace_perf_is_not_there(tmp_path: Path) -> None:
    """As in a container without privileges: all of root's rights, but none of them over the machine."""
    unshare = shutil.which("unshare")
    probe = [unshare or "unshare", "--user", "--map-root-user", "true"]
    if subprocess.run(probe, capture_output=True, check=False).returncode:
        skip_unless_ci("user namespaces can't be made here")
    paranoid = int(Path("/proc/sys/kernel/perf_event_paranoid").read_text())
    if paranoid < 2:
        pytest.skip(f"perf_event_paranoid is {paranoid}: everybody may use perf")
    script = f"""
    mkfifo {tmp_path}/said && exec 3<>{tmp_path}/said
    "{build_target("split")}" 60 >&3 & target=$!
    read ready <&3
    {sys.executable} -m pyattach $target --hz 997 -d 2 --no-live -o {tmp_path}/o.txt -v
    code=$?; kill $target; exit $code
    """
    command = [*probe[:-1], "sh", "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "perf is not permitted" in done.stderr
    assert re.search(r"each tick stands for [0-9.]+ periods, by timer", done.stderr)


@needs_perf
def test_a_breakpoint_still_kills(spawn: Spawn) -> None:
    with spawn("crash") as target, pyattach(target.pid, "--clock", "perf", "-o", "-") as run:
        run.wait_sampling(target.pid, timers=False)
        target.tell("trap")
        target.process.wait(10)
        out = run.finish(0)
        assert target.finish(exit_code=-signal.SIGTRAP) == ""
    assert "the target ended" in out


def test_a_targets_own_sigprof_is_left_to_it(spawn: Spawn) -> None:
    with spawn("sigprof") as target:
        outcome = sample(target.pid, 99, "timer", cpu_s=0.5)
        check_detached(target)
        out = target.finish()
    counts = dict(line.split() for line in out.splitlines())
    assert counts["handled"] == counts["raised"] and counts["foreign"] == "0"
    assert outcome.profile.total


@pytest.mark.parametrize("name", CLOCKS)
def test_a_target_may_be_stopped_and_go_on(spawn: Spawn, name: str) -> None:
    with spawn("split") as target, pyattach(target.pid, "--clock", name, "-o", "-") as run:
        run.wait_sampling(target.pid, timers=name == "timer")
        os.kill(target.pid, signal.SIGSTOP)
        os.kill(target.pid, signal.SIGCONT)
        run.tell(signal.SIGINT)
        run.finish(0)
        check_detached(target)
        assert MARK not in maps_text(target.pid)


needs_strays = pytest.mark.skipif(
    not strays_can_be_met(), reason="before Linux 6.4 a process's timer signals its main thread"
)


@needs_strays
@pytest.mark.parametrize("name", CLOCKS)
@pytest.mark.parametrize(("at_once", "busy_ms"), [(1, 0), (4, 0), (2, 1500)])
def test_threads_that_live_shorter_than_the_refresh_are_sampled(
    spawn: Spawn, tmp_path: Path, name: str, at_once: int, busy_ms: int
) -> None:
    """Nobody arms them: the clock of the whole process meets them, also where it had met none before."""
    folded, firefox = tmp_path / "o.folded", tmp_path / "o.firefox.json"
    outputs = ("-t", "-o", folded, "-o", firefox, "-o", "-")
    with spawn("shortlived", 400, 5000, at_once, busy_ms) as target:
        with pyattach(target.pid, "--hz", "199", "--clock", name, *outputs) as run:
            run.wait_until("the stub is in", lambda: MARK in maps_text(target.pid))
            target.tell()
            cpu_s = int(target.expect("done").split()[1]) / 1000
            run.tell(signal.SIGINT)
            out = run.finish(0)
        check_detached(target)
        target.finish()
    seen, work, weights = Folded(folded), 199 * 400 * 0.005, weights_in(firefox)
    off = five_errors(work / 199 / cpu_s, weights) * seen.total
    # Less than all of it: threads also begin and end.
    assert 0.85 * work - off < seen.inclusive()["brief_work"] < 1.1 * work + off
    # The main thread has ticks of its own: where the process's clock meets it, by chance, there is no sample
    # of the others.  The first and the last span of that clock may be cut.
    main = sum(ticks for stack, ticks in seen.stacks.items() if stack[0].endswith(f"-{target.pid}"))
    busy = seen.inclusive()["busy_before"]
    off = five_errors((1 + main - busy) / (1 + seen.total - busy), weights) * seen.total + 2 * max(weights)
    assert abs(seen.total - 199 * cpu_s) <= off + 0.01 * seen.total
    assert "ended too soon" not in out


@needs_strays
@pytest.mark.parametrize("name", CLOCKS)
def test_equal_work_has_equal_shares_in_any_order(spawn: Spawn, name: str) -> None:
    """The second thread comes 300 ms after the first; each has a CPU time of its own at the end.  Until the
    second has ticks of its own, the process's clock meets either by chance: they work for so long that this
    is a small part."""
    with spawn("workers", 300, 4000, 4000) as target:
        begun = False

        def begin(_progress: object) -> None:
            nonlocal begun
            if not begun:
                begun = True
                target.tell()

        def done() -> bool:
            return begun and cpu_time_s(target.pid) >= 7.99 and thread_ids(target.pid) == [target.pid]

        profile = attach_here(target.pid, Options(rate_hz=199, clock=name), done, begin).profile
        check_detached(target)
        target.finish()
    shares = {thread.name: sum(stacks.values()) / profile.total for thread, stacks in profile.by_thread()}
    for worker in ("worker-0", "worker-1"):
        assert shares[worker] == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("name", CLOCKS)
def test_ticks_that_come_together_wake_nobody(spawn: Spawn, name: str) -> None:
    """A thread's own and the process's: the kernel would hand on what a handler blocks."""
    with spawn("masked", "open") as target:
        outcome = sample(target.pid, 199, name, cpu_s=2)
        check_detached(target)
        assert target.finish() == "eintr 0\n"
    assert not any("had woken" in note for note in outcome.profile.meta.notes)


@pytest.mark.parametrize("name", CLOCKS)
@pytest.mark.parametrize("how", ["now", "ignored"])
def test_threads_that_block_signals_are_sampled(spawn: Spawn, name: str, how: str) -> None:
    """As xz's and nginx's workers: by a signal that can't be blocked, and nobody is woken for it."""
    with spawn("masked", how) as target:
        before = read_status(target.pid)["SigIgn"]
        assert how != "ignored" or int(before, 16) >> 31 & 1
        meta = sample(target.pid, 99, name, cpu_s=4).profile.meta
        check_detached(target)
        assert read_status(target.pid)["SigIgn"] == before
        assert target.finish() == "eintr 0\n"
    assert meta.cpu_time_s is not None
    assert 0.9 < meta.samples / (99 * meta.cpu_time_s) < 1.1
    assert not any("whose ticks" in note for note in meta.notes)


@pytest.mark.parametrize("name", CLOCKS)
def test_threads_that_begin_to_block_signals(spawn: Spawn, name: str) -> None:
    """After a second.  It is seen when no tick has come for a while; what was missed until then is said."""
    ticks = -1

    def note(progress: Progress) -> None:
        nonlocal ticks
        if ticks < 0:
            target.tell()
        ticks = progress.ticks

    with spawn("masked", "later") as target:
        meta = attach_here(
            target.pid, Options(rate_hz=99, clock=name, duration_s=60), lambda: ticks > 250, note
        ).profile.meta
        check_detached(target)
        assert target.finish() == "eintr 0\n"
    assert meta.cpu_time_s is not None
    (silent,) = [note for note in meta.notes if "whose ticks" in note]
    missed_s = float(silent.split()[0])
    assert meta.samples / 99 + missed_s == pytest.approx(meta.cpu_time_s, rel=0.05)


@pytest.mark.parametrize("name", CLOCKS)
def test_the_signal_that_cant_be_blocked_is_the_c_librarys(spawn: Spawn, name: str) -> None:
    """It takes it, without asking, with the first thread that is cancelled."""
    with spawn("masked", "cancels") as target:
        meta = sample(target.pid, 99, name, cpu_s=3, begun=target.tell).profile.meta
        check_detached(target)
        assert caught(target.pid) >> 31 & 1
        assert target.finish() in ("eintr 0\n", "eintr 1\n")  # its handler blocks what ours lets in
    assert meta.samples > 30
    assert meta.cpu_time_s is not None and meta.samples < 0.7 * 99 * meta.cpu_time_s
    assert any("of 1 threads (masked) whose ticks" in note for note in meta.notes)
    assert any("pthread_cancel" in note for note in meta.notes)


@pytest.mark.parametrize("name", CLOCKS)
def test_a_thread_that_sleeps_is_woken_once_at_most(
    spawn: Spawn, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without such a signal the process's clock has to signal it, where the one that runs blocks it."""
    monkeypatch.setattr(sampling, "spare_signal", lambda _pid, _maps: 0)
    with spawn("masked") as target:
        meta = sample(target.pid, 99, name, cpu_s=1).profile.meta
        check_detached(target)
        out = target.finish()
    interrupted = int(out.split()[1])
    assert interrupted <= 1
    assert interrupted == sum("had woken a thread" in note for note in meta.notes)
    assert any("of 1 threads (masked) whose ticks did not come" in note for note in meta.notes)


@pytest.mark.parametrize("name", CLOCKS)
def test_xz_with_several_threads(tmp_path: Path, requires: Callable[[str], str], name: str) -> None:
    data = tmp_path / "data"
    data.write_bytes(os.urandom(1 << 26))
    words = [requires("xz"), "-T2", "-c", data]
    with subprocess.Popen(words, stdout=subprocess.DEVNULL) as process:
        wait_for("its threads are there", lambda: len(thread_ids(process.pid)) >= 3)
        meta = sample(process.pid, 99, name, cpu_s=2).profile.meta
        process.kill()
    assert meta.cpu_time_s is not None
    assert meta.samples == pytest.approx(99 * meta.cpu_time_s, rel=0.1)


@pytest.mark.parametrize("name", CLOCKS)
def test_no_thread_is_counted_twice(spawn: Spawn, name: str) -> None:
    """By its own ticks and the process's."""
    with spawn("threads", 3, 0) as target:
        meta = sample(target.pid, 99, name, cpu_s=3).profile.meta
        target.kill()
    assert meta.cpu_time_s is not None
    assert meta.samples == pytest.approx(99 * meta.cpu_time_s, rel=0.1)


@pytest.mark.parametrize("name", CLOCKS)
def test_a_busy_machine_makes_no_handler_dear(spawn: Spawn, name: str) -> None:
    """Where a handler loses the processor, what others did with it is no cost of sampling."""
    processor = {min(os.sched_getaffinity(0))}
    with contextlib.ExitStack() as stack:
        target, *others = [stack.enter_context(spawn("threads", busy, 0)) for busy in (1, 3, 3)]
        for each in (target, *others):
            for tid in thread_ids(each.pid):
                os.sched_setaffinity(tid, processor)
        meta = sample(target.pid, 997, name, cpu_s=1).profile.meta
        for each in (target, *others):
            each.kill()
    assert meta.handler_share is not None and meta.handler_ns_per_sample is not None
    assert meta.handler_share < 0.1
    assert meta.delivery_share is None or meta.delivery_share < 0.15
