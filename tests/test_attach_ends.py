"""Every way a run can end: by the user, by the clock, by the target, by kill -9."""

from __future__ import annotations

import errno
import re
import signal
import sys
from pathlib import Path

import pytest
from support import Target, build_target
from test_attach_run import (
    CLOCKS,
    COMMAND_IGNORING_CHILDREN,
    MARK,
    TICK,
    Folded,
    Spawn,
    attach,
    check_svg,
    cpu_time_s,
    maps_text,
    pyattach,
    reported_samples,
    status_of,
    thread_ids,
    timers_text,
    wait_for,
)

from pyattach.attacher.clock import TimerClock
from pyattach.attacher.contract import Options
from pyattach.attacher.sampling import Session
from pyattach.attacher.target import TargetProcess


class Files:
    """What a run is asked to write, and whether all of it is whole."""

    def __init__(self, folder: Path) -> None:
        self.svg, self.folded = folder / "o.svg", folder / "o.folded"
        self.arguments = ("-o", self.svg, "-o", self.folded, "-o", "-")
        self.folder = folder

    def check(self, out: str) -> Folded:
        check_svg(self.svg)
        profile = Folded(self.folded)
        assert profile.total == reported_samples(out) > 0
        assert not any("pa_handler" in stack for stack in profile.stacks), "a tick into pyattach's own code"
        self.check_no_rubbish()
        return profile

    def check_no_rubbish(self) -> None:
        left = {path.name for path in self.folder.iterdir()} - {self.svg.name, self.folded.name}
        assert not left

    def check_none(self) -> None:
        assert not self.svg.exists() and not self.folded.exists()
        self.check_no_rubbish()


@pytest.fixture
def files(tmp_path: Path) -> Files:
    folder = tmp_path / "out"
    folder.mkdir()
    return Files(folder)


def check_detached(target: Target) -> None:
    assert MARK not in maps_text(target.pid)
    assert not timers_text(target.pid)
    assert status_of(target.pid)["TracerPid"] == "0"


def has_timer(pid: int, tid: int) -> bool:
    return f"notify: signal/tid.{tid}\n" in timers_text(pid)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda n: n.name)
def test_a_signal_ends_the_run(spawn: Spawn, files: Files, number: signal.Signals) -> None:
    with spawn("split") as target, pyattach(target.pid, *files.arguments) as run:
        run.wait_sampling(target.pid, cpu_s=1)  # of a few samples anything may be the most
        run.tell(number)
        out = run.finish(0)
        check_detached(target)
        assert target.finish().startswith("done ")
    assert files.check(out).top() == "work_70"
    assert "stopped by the user" in out


@pytest.mark.parametrize("kind", ["cpu", "heap"])
def test_a_report_of_what_there_is_so_far(spawn: Spawn, tmp_path: Path, kind: str) -> None:
    """SIGUSR1: a picture, and the run goes on."""

    def written() -> list[Path]:
        return sorted(tmp_path.glob("*-snapshot*"))

    words = ["heap"] if kind == "heap" else ["--no-live"]
    with spawn("storm", "malloc") as target:
        with pyattach(*words, target.pid, "-o", tmp_path / "o.folded", folder=tmp_path) as run:
            if kind == "heap":
                run.wait_until("the hooks are in", lambda: MARK in maps_text(target.pid))
                begin = cpu_time_s(target.pid)
                run.wait_until("it allocates", lambda: cpu_time_s(target.pid) > begin + 0.5)
            else:
                run.wait_sampling(target.pid, cpu_s=0.5)
            run.tell(signal.SIGUSR1)
            run.wait_until("a report is written", lambda: len(written()) == (2 if kind == "heap" else 1))
            assert MARK in maps_text(target.pid)
            begin = cpu_time_s(target.pid)
            run.wait_until("it works on", lambda: cpu_time_s(target.pid) > begin + 0.3)
            run.tell(signal.SIGINT)
            run.finish(0)
        check_detached(target)
        assert target.finish().split()[0] == "done"
    for path in written():
        if path.suffix == ".svg":
            check_svg(path)
        # In a picture a line may end anywhere.
        assert "snapshot; sampling went on" in path.read_text()
    assert Folded(tmp_path / "o.folded").total > 0


def test_no_sample_is_later_than_the_end(spawn: Spawn) -> None:
    """Ticks come until the target is told to stop, however long that takes."""
    with spawn("split") as target, TargetProcess(target.pid) as process:
        session = Session(process, Options(rate_hz=99))
        session.load()
        session.sample(lambda: cpu_time_s(target.pid) > 0.3, lambda _progress: None)
        sampled_s, before_s = session.ended - session.started, cpu_time_s(target.pid)
        wait_for("ticks after the end", lambda: cpu_time_s(target.pid) > before_s + 0.2)
        session.detach()
        profile = session.profile()
        session.close()
        check_detached(target)
        target.finish()
    assert profile.timeline is not None
    times_s = [time_s for time_s, *_rest in profile.timeline.samples()]
    assert sampled_s + 0.1 < max(times_s) <= profile.meta.duration_s + 1e-6 < sampled_s + 60


def test_what_fails_once_the_stub_is_in_takes_it_out(spawn: Spawn, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(_clock: TimerClock, _slots: object) -> None:
        assert MARK in maps_text(target.pid)
        raise OSError(errno.ENOMEM, "no room for its events")

    monkeypatch.setattr(TimerClock, "start", fails)
    with spawn("split") as target, TargetProcess(target.pid) as process:
        session = Session(process, Options(clock="timer"))
        with pytest.raises(OSError, match="no room for its events"):
            session.load()
        session.close()
        check_detached(target)
        target.finish()


def test_the_duration_ends_the_run(spawn: Spawn, files: Files) -> None:
    with spawn("split") as target:
        out = attach(target.pid, "-d", "700ms", *files.arguments).out
        check_detached(target)
        target.finish()
    files.check(out)
    assert "duration reached" in out


def test_whoever_started_it_ignores_children(spawn: Spawn, files: Files) -> None:
    """Children of pyattach's own measure what a tick costs."""
    arguments = ("-d", "700ms", *files.arguments)
    with spawn("split") as target:
        with pyattach(target.pid, *arguments, command=COMMAND_IGNORING_CHILDREN) as run:
            out = run.finish(0)
        check_detached(target)
        target.finish()
    files.check(out)


def test_a_second_signal_skips_the_report_but_not_the_detach(spawn: Spawn, files: Files) -> None:
    with spawn("split") as target, pyattach(target.pid, *files.arguments) as run:
        run.wait_sampling(target.pid)
        # Two of one kind would be merged if they came together: one of each, both pending at once.
        run.tell(signal.SIGSTOP)
        wait_for("pyattach is stopped", lambda: status_of(run.pid)["State"].startswith("T"))
        run.tell(signal.SIGTERM)
        run.tell(signal.SIGINT)
        run.tell(signal.SIGCONT)
        out = run.finish(0)
        check_detached(target)
        assert target.finish().startswith("done ")
    assert out == ""
    files.check_none()


def test_a_signal_while_attaching_still_detaches(spawn: Spawn, files: Files) -> None:
    with spawn("split") as target, pyattach(target.pid, *files.arguments) as run:
        run.wait_until("something of ours is there", lambda: MARK in maps_text(target.pid))
        run.tell(signal.SIGTERM)
        run.finish(None)
        assert run.process.returncode in (0, 5)  # ended before the first tick, or not
        check_detached(target)
        assert target.finish().startswith("done ")


# The target ends first.


def end_while_sampled(target: Target, files: Files, last_words: str) -> str:
    with pyattach(target.pid, *files.arguments) as run:
        run.wait_sampling(target.pid)
        target.tell(last_words)
        target.process.wait(10)
        return run.finish(0)


@pytest.mark.parametrize("code", [0, 7])
def test_the_target_exits(spawn: Spawn, files: Files, code: int) -> None:
    with spawn("exiter") as target:
        out = end_while_sampled(target, files, str(code))
        assert target.finish(exit_code=code) == "bye\n"
    assert files.check(out).top() == "work_before_exit"
    assert "the target ended" in out


def test_the_target_crashes(spawn: Spawn, files: Files) -> None:
    with spawn("crash") as target:
        out = end_while_sampled(target, files, "crash")
        target.finish(exit_code=-signal.SIGSEGV)
    assert files.check(out).top() == "work_before_crash"
    assert "the target ended" in out


def test_the_target_is_killed(spawn: Spawn, files: Files) -> None:
    with spawn("split") as target, pyattach(target.pid, *files.arguments) as run:
        run.wait_sampling(target.pid, cpu_s=1)  # of a few samples anything may be the most
        target.kill()
        out = run.finish(0)
    assert files.check(out).top() == "work_70"


@pytest.mark.parametrize(("program", "code"), [("exiter", 0), ("crash", -signal.SIGSEGV)])
def test_no_sample_is_lost_when_the_target_ends(spawn: Spawn, program: str, code: int) -> None:
    """Nothing is read before the target is gone: all of it must come from the shared memory's file."""
    with spawn(program) as target, TargetProcess(target.pid) as process:
        session = Session(process, Options(rate_hz=200))
        session.load()
        try:

            def ticked() -> int:
                session.shared.renew_lease()
                return sum(int(slot.samples) for slot in session.shared.slots)

            wait_for("50 ticks", lambda: ticked() >= 50)
            target.tell("0")
            target.finish(exit_code=code)
            assert session.store.samples == 0
            session.detach()
            committed, missed = ticked(), sum(int(slot.missed) for slot in session.shared.slots)
            assert committed >= 50
            # One more where the end came between a record and its count.
            assert committed + missed <= session.store.samples <= committed + missed + 1
            assert session.reader.tail == session.shared.control.head
            assert session.reader.lost_words == 0
        finally:
            session.close()


def test_the_target_becomes_another_program(spawn: Spawn, files: Files) -> None:
    script = """\
import os, select, sys
print("ready", flush=True)
while not select.select([sys.stdin], [], [], 0)[0]:
    sum(range(1000))
os.execvp("sh", ["sh", "-c", "read line; echo $line; read line; echo $line"])
"""
    arguments = ("--no-follow-exec", *files.arguments)
    with spawn([sys.executable, "-c", script]) as target, pyattach(target.pid, *arguments) as run:
        run.wait_sampling(target.pid)
        target.tell("first")
        target.expect("first")
        out = run.finish(0)
        target.tell("second")
        assert target.finish() == "first\nsecond\n"
    files.check(out)
    assert "exec" in out


@pytest.mark.parametrize("clock", CLOCKS)
def test_a_child_of_the_target_is_left_alone(spawn: Spawn, files: Files, clock: str) -> None:
    """It inherits the handler, and the memory without its contents; no timer, and no sample."""
    number = int(TICK)  # the target's disposition is the default, but ours is inherited
    script = f"""\
import os, sys, time
print("ready", flush=True)
while True:
    line = sys.stdin.readline()
    if not line:
        break
    child = os.fork()
    if not child:
        end = time.process_time() + 0.3
        while time.process_time() < end:
            sum(range(1000))
        os.kill(os.getpid(), {number})
        os._exit(5)
    print("child", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
print("done", flush=True)
"""
    with spawn([sys.executable, "-c", script]) as target:
        with pyattach(target.pid, "--clock", clock, *files.arguments) as run:
            run.wait_sampling(target.pid, cpu_s=0, timers=clock == "timer")
            target.tell()
            assert target.expect("child") == "child 5"
            run.tell(signal.SIGINT)
            run.finish(None)
        check_detached(target)
        assert target.finish().endswith("done\n")


# kill -9.


# demo proves by its checksums that nothing was disturbed; both end when they are
# told to, however slow the machine is, so there is time for another run.
VICTIMS = pytest.mark.parametrize(
    "program", [["demo", "-"], ["threads", 2, 3]], ids=lambda program: program[0]
)


def check_victim(spawn: Spawn, target: Target, files: Files, name: object) -> None:
    assert status_of(target.pid).get("TracerPid", "0") == "0"
    if name == "demo":
        output = target.finish()  # exit code 0
        with spawn("demo", 0.1) as undisturbed:
            assert output == undisturbed.finish()
        return
    # What remained of the killed run does not keep another from its work.
    out = attach(target.pid, "-d", "700ms", *files.arguments).out
    assert target.finish().endswith("done\n")
    assert files.check(out).top() == "busy_work"


@VICTIMS
def test_kill_9_does_not_hurt_the_target(spawn: Spawn, files: Files, program: list[object]) -> None:
    with spawn(*program) as target:
        with pyattach(target.pid, *files.arguments) as run:
            run.wait_sampling(target.pid)
            run.process.kill()
            run.finish(-signal.SIGKILL)
        files.check_none()
        if program[0] == "threads":
            # Threads that sleep keep theirs until they tick; the busy ones' are gone with the lease.
            busy = [t for t in thread_ids(target.pid) if status_of(target.pid, t)["Name"].startswith("busy-")]
            assert len(busy) == 2
            wait_for("the ticks end", lambda: not any(has_timer(target.pid, tid) for tid in busy))
            begin = cpu_time_s(target.pid)
            wait_for("the target works on", lambda: cpu_time_s(target.pid) > begin + 0.2)
        check_victim(spawn, target, files, program[0])


def stubs_in(pid: int) -> set[str]:
    """The names of the stubs' files that are mapped."""
    return set(re.findall(rf"{MARK}\S*", maps_text(pid)))


def count_lines(pid: int, without: set[str]) -> int:
    """The mappings, but for those of the files ``without``."""
    return sum(not any(name in line for name in without) for line in maps_text(pid).splitlines())


@VICTIMS
def test_kill_9_at_any_moment_of_attaching(spawn: Spawn, files: Files, program: list[object]) -> None:
    """The boot area, the memfd, the stub: as each of them appears pyattach is killed."""
    with spawn(*program) as target:
        killed = 0
        for seen in range(1, 7):
            left = stubs_in(target.pid)  # by the one before; taken out meanwhile
            lines_before = count_lines(target.pid, left)
            with pyattach(target.pid, "-d", "100ms", "-o", files.svg) as run:
                while run.process.poll() is None:
                    if count_lines(target.pid, left) - lines_before >= seen:
                        run.process.kill()
                        break
                run.finish(None)
            killed += run.process.returncode == -signal.SIGKILL
        assert killed >= 3
        files.svg.unlink(missing_ok=True)
        check_victim(spawn, target, files, program[0])


def test_a_new_run_after_kill_9_counts_its_own_ticks_only(spawn: Spawn, files: Files) -> None:
    """The killed run's timers still tick for a moment."""
    with spawn("split") as target:
        with pyattach(target.pid, "--loader", "map", *files.arguments) as run:
            run.wait_sampling(target.pid)
            run.process.kill()
            run.finish(-signal.SIGKILL)
        begin = cpu_time_s(target.pid)
        out = attach(target.pid, "--loader", "map", "-d", "1", *files.arguments).out
        used_s = cpu_time_s(target.pid) - begin
        assert target.finish().startswith("done ")
    assert files.check(out).total <= 99 * used_s * 1.1 + 2


CHOSEN_NONCE = """\
import sys
from pyattach.attacher.cli import main
from pyattach.inject import borrow
nonce, random_bits = int(sys.argv.pop(1)), borrow.random_bits
borrow.random_bits = lambda bits: nonce if bits == 63 else random_bits(bits)
sys.exit(main())
"""


@pytest.mark.parametrize("apart", [46, 23 * 1024])
def test_the_loader_never_takes_one_stub_for_another(spawn: Spawn, files: Files, apart: int) -> None:
    """dlopen knows libraries by their names: the stub of a killed run is still loaded under its own."""
    with spawn("split") as target:
        command = [sys.executable, "-c", CHOSEN_NONCE]
        with pyattach(1001, target.pid, "--loader", "dlopen", *files.arguments, command=command) as run:
            run.wait_sampling(target.pid)
            run.process.kill()
            run.finish(-signal.SIGKILL)
        arguments = (1001 + apart, target.pid, "--loader", "dlopen", "-d", "500ms", *files.arguments)
        with pyattach(*arguments, command=command) as run:
            out = run.finish(0)
        begin = cpu_time_s(target.pid)
        wait_for("it works on", lambda: target.returncode is not None or cpu_time_s(target.pid) > begin + 0.1)
        assert target.finish().startswith("done ")
    files.check(out)


# What comes while it is sampled.


@pytest.mark.parametrize("clock", CLOCKS)
@pytest.mark.parametrize(("interval_ms", "worked_s"), [(0, 0.4), (300, 1.2)])
def test_new_threads_are_sampled(
    spawn: Spawn, files: Files, interval_ms: int, worked_s: float, clock: str
) -> None:
    """With 0 the thread that is there sleeps: no tick comes that could arm the new one."""
    options = ["--threads", "--clock", clock, *files.arguments]
    with spawn("spawn", interval_ms) as target, pyattach(target.pid, *options) as run:
        run.wait_sampling(target.pid, cpu_s=0.3 if interval_ms else 0, timers=clock == "timer")
        target.tell()
        tid = int(target.expect("started").split()[1])
        if clock == "timer":
            run.wait_until("the new thread has a timer", lambda: has_timer(target.pid, tid))
        begin = cpu_time_s(target.pid)
        run.wait_until("it has worked", lambda: cpu_time_s(target.pid) > begin + worked_s)
        run.tell(signal.SIGINT)
        out = run.finish(0)
        check_detached(target)
        assert target.finish().splitlines()[-1].startswith("done ")
    profile = files.check(out)
    asked = [stack for stack in profile.stacks if stack[0].startswith("asked-")]
    assert asked and {stack[0].rpartition("-")[2] for stack in asked} == {str(tid)}
    at_work = sum(profile.stacks[stack] for stack in asked if stack[-1] == "asked_thread_work")
    assert at_work >= 0.9 * sum(profile.stacks[stack] for stack in asked)  # a thread also begins and ends
    if interval_ms:
        assert profile.leaves()["late_thread_work"] > 0


def test_a_library_that_comes_late_has_names(spawn: Spawn, files: Files) -> None:
    library = build_target("lib_late", "-shared", "-fPIC")
    with spawn("dlopener", library) as target, pyattach(target.pid, *files.arguments) as run:
        run.wait_sampling(target.pid)
        assert library.name not in maps_text(target.pid)
        target.tell()
        target.expect("opened")
        begin = cpu_time_s(target.pid)
        run.wait_until("the library has worked", lambda: cpu_time_s(target.pid) > begin + 0.5)
        run.tell(signal.SIGINT)
        out = run.finish(0)
        assert target.finish().splitlines()[-1].startswith("done ")
    leaves = files.check(out).leaves()
    assert leaves["late_inner"] > 0 and leaves["early_work"] > 0
    assert leaves["late_inner"] + leaves["early_work"] >= 0.9 * leaves.total(), leaves


def test_a_library_that_has_gone_again_keeps_its_names(spawn: Spawn, files: Files) -> None:
    library = build_target("lib_late", "-shared", "-fPIC")
    with spawn("dlopener", library) as target, pyattach(target.pid, *files.arguments) as run:
        run.wait_sampling(target.pid)
        target.tell()
        target.expect("opened")
        begin = cpu_time_s(target.pid)
        run.wait_until("names were looked up", lambda: cpu_time_s(target.pid) > begin + 2.5)
        target.tell()
        target.expect("closed")
        begin = cpu_time_s(target.pid)
        run.wait_until("it works without", lambda: cpu_time_s(target.pid) > begin + 0.2)
        run.tell(signal.SIGINT)
        out = run.finish(0)
        target.finish()
    assert files.check(out).top() == "late_inner"


def test_deep_stacks(spawn: Spawn, files: Files) -> None:
    with spawn("recurse", 200) as target:
        out = attach(target.pid, "-d", "500ms", *files.arguments).out
        target.finish()
    usual = max(files.check(out).stacks.items(), key=lambda item: item[1])[0]
    # The one that called deep_leaf is missed where that, calling nobody, sets up no frame pointer.
    assert usual[-200:] == ("recurse",) * 199 + ("deep_leaf",)


def test_stacks_deeper_than_asked_for(spawn: Spawn, files: Files) -> None:
    with spawn("recurse", 200) as target:
        out = attach(target.pid, "-d", "500ms", "--max-depth", "20", *files.arguments).out
        target.finish()
    profile = files.check(out)
    assert all(len(stack) <= 21 for stack in profile.stacks)
    # Not those that hit main between two descents, or recurse on its way down.
    assert profile.inclusive()["[truncated]"] >= 0.8 * profile.total
