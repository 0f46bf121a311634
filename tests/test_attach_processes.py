"""What a process does with processes while it is sampled: it executes other programs, and forks."""

from __future__ import annotations

import contextlib
import errno
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support import build_target
from test_attach_run import (
    CLOCKS,
    DEADLINE_S,
    MARK,
    TICK,
    Folded,
    Pyattach,
    Spawn,
    cpu_time_s,
    maps_text,
    pyattach,
    thread_ids,
    timers_text,
    wait_for,
)

from pyattach.attacher import children, family, following, procfs
from pyattach.attacher.children import descendants, share_memory
from pyattach.attacher.contract import Options, Outcome
from pyattach.attacher.helpers import Helper
from pyattach.render.profile import Meta, Profile
from pyattach.render.reading import read_profile
from pyattach.symbols.name_options import LONGEST_S

BECOMES_ANOTHER = """\
import os, select, sys
print("ready", flush=True)
while not select.select([sys.stdin], [], [], 0)[0]:
    sum(range(1000))
os.execv(sys.argv[1], sys.argv[1:])
"""


def test_the_program_that_comes_after_is_followed(spawn: Spawn, tmp_path: Path) -> None:
    folded = tmp_path / "o.folded"
    split = build_target("split")
    with spawn([sys.executable, "-c", BECOMES_ANOTHER, split]) as target:
        with pyattach(target.pid, "-o", folded, "-o", "-", folder=tmp_path) as run:
            run.wait_sampling(target.pid)
            target.tell()
            target.expect("ready")
            run.wait_sampling(target.pid, cpu_s=0.5)
            run.tell(signal.SIGUSR1)
            run.wait_until("a snapshot is written", lambda: list(tmp_path.glob("*-snapshot.svg")))
            run.tell(signal.SIGINT)
            out = run.finish(0)
        assert MARK not in maps_text(target.pid) and not timers_text(target.pid)
        assert target.finish().splitlines()[-1].startswith("done ")
    seen = Folded(folded).inclusive()
    assert seen["work_70"] >= 20, "the second program"
    assert seen.total() and any("Py" in name for name in seen), "the first"
    assert "the target executed another program (1 times seen)" in out
    assert f"it went on as: {split}" in out
    assert "stopped by the user" in out
    (snapshot,) = tmp_path.glob("*-snapshot.svg")
    (note,) = read_profile(snapshot).meta.notes
    assert "before it executed this program is not in this snapshot" in note


def test_the_duration_is_that_of_all_programs(spawn: Spawn, tmp_path: Path) -> None:
    with spawn([sys.executable, "-c", BECOMES_ANOTHER, build_target("split")]) as target:
        with pyattach(target.pid, "-d", "2", "-o", tmp_path / "o.svg", "-o", "-") as run:
            run.wait_sampling(target.pid)
            target.tell()
            out = run.finish(0)
        target.finish()
    assert "duration reached" in out


def test_a_program_that_cant_be_followed_ends_the_run(spawn: Spawn, tmp_path: Path) -> None:
    other = build_target("quiet", "-m32")
    with spawn([sys.executable, "-c", BECOMES_ANOTHER, other]) as target:
        with pyattach(target.pid, "-o", tmp_path / "o.svg", "-o", "-") as run:
            run.wait_sampling(target.pid)
            target.tell()
            out = run.finish(0)
        target.finish()
    assert "it could not be followed" in out and "32-bit" in out
    assert "replaced itself (exec)" in out


def test_a_program_without_a_chosen_thread_is_waited_for_in_vain(spawn: Spawn, tmp_path: Path) -> None:
    split = build_target("split")
    with spawn([sys.executable, "-c", BECOMES_ANOTHER, split]) as target:
        arguments = ("--thread", str(Path(sys.executable).name) + "*", "-o", tmp_path / "o.svg", "-o", "-")
        with pyattach(target.pid, *arguments) as run:
            run.wait_sampling(target.pid, timers=False)
            target.tell()
            target.expect("ready")
            said = run.wait_said("the program it runs now is not sampled: no thread of process")
            assert " samples, " in said
            run.tell(signal.SIGINT)
            out = run.finish(0)
        target.finish()
    assert "the program it ran at the end was not sampled: no thread of process" in out
    assert "stopped by the user" in out


def test_a_stop_before_the_next_program_is_reached_is_told() -> None:
    with subprocess.Popen(["sleep", "60"]) as child:
        stat = procfs.read_stat(child.pid)
        assert stat is not None
        meta = Meta("before", child.pid, ended_by="the target replaced itself (exec)")
        first = Outcome(Profile(meta, {}, {}), (), target_ended=True, replaced=True)
        shown = following.Shown(lambda progress: None)
        after = following.go_on(child.pid, stat.start_time, first, Options(), lambda: True, shown)
        child.kill()
    assert after.profile.meta.ended_by == "stopped by the user"
    assert (
        "the program it ran at the end was not sampled: there was no time left for it"
        in after.profile.meta.notes
    )


@pytest.mark.parametrize("clock", CLOCKS)
def test_execs_in_a_row_kill_nobody(spawn: Spawn, tmp_path: Path, clock: str) -> None:
    """Whatever pyattach is at just then: sampling, injecting, leaving."""
    folded = tmp_path / "o.folded"
    with spawn("execs", 60, 20) as target:
        with pyattach(target.pid, "--hz", "997", "--clock", clock, "-o", folded) as run:
            run.wait_until("the stub is in", lambda: MARK in maps_text(target.pid))
            target.tell()
            target.expect("done")
            run.tell(signal.SIGINT)
            run.finish(None)
        assert MARK not in maps_text(target.pid) and not timers_text(target.pid)
        target.finish(0)
    if run.process.returncode:  # on a busy machine each program may have ended before pyattach was ready
        said = ("executed another program each time that pyattach attached", "no samples: the target used no")
        assert any(part in run.err for part in said), run.err
    else:
        assert Folded(folded).inclusive()["work_between"] > 0


def test_forks_in_a_row_hurt_neither_child_nor_parent(spawn: Spawn, tmp_path: Path) -> None:
    """A child has the handler, but no timer and nothing to write to."""
    folded = tmp_path / "o.folded"
    with spawn("execs", "-f", 500) as target:
        with pyattach(target.pid, "--hz", "997", "-o", folded) as run:
            run.wait_until("the stub is in", lambda: MARK in maps_text(target.pid))
            target.tell()
            target.expect("done")
            run.finish(None)
        target.finish(0)
    assert run.process.returncode == 0, run.err


@pytest.mark.parametrize("clock", CLOCKS)
def test_children_write_nothing_to_the_shared_memory(spawn: Spawn, tmp_path: Path, clock: str) -> None:
    """The parent sleeps while its children work: hardly a sample."""
    script = f"""\
import os, sys, time
print("ready", flush=True)
sys.stdin.readline()
for _ in range(4):
    if not os.fork():
        end = time.process_time() + 0.3
        while time.process_time() < end:
            sum(range(1000))
        os.kill(os.getpid(), {int(TICK)})
        os._exit(0)
print([os.waitstatus_to_exitcode(os.wait()[1]) for _ in range(4)], flush=True)
sys.stdin.read()
"""
    folded = tmp_path / "o.folded"
    with spawn([sys.executable, "-c", script]) as target:
        with pyattach(target.pid, "--hz", "250", "--clock", clock, "-o", folded) as run:
            run.wait_until("the stub is in", lambda: MARK in maps_text(target.pid))
            begin = cpu_time_s(target.pid)
            target.tell()
            assert target.expect("[") == "[0, 0, 0, 0]"
            own_s = cpu_time_s(target.pid) - begin
            run.tell(signal.SIGINT)
            run.finish(None)
        target.finish()
    assert Folded(folded).total <= 250 * (own_s + 0.05)


# Children are sampled too.


def children_of(pid: int) -> list[int]:
    return [
        int(word)
        for tid in thread_ids(pid)
        for word in Path(f"/proc/{pid}/task/{tid}/children").read_text().split()
    ]


def wait_ticking(run: Pyattach, pid: int, cpu_s: float = 0.4) -> None:
    run.wait_until(f"process {pid} has timers", lambda: timers_text(pid))
    begin = cpu_time_s(pid)
    run.wait_until(f"process {pid} has worked", lambda: cpu_time_s(pid) >= begin + cpu_s)


def test_children_are_sampled_too(spawn: Spawn, tmp_path: Path) -> None:
    """Those that are there, theirs, and those that come; each process is the root of its stacks."""
    folded = tmp_path / "o.folded"
    with spawn("family") as target:
        (child,) = children_of(target.pid)
        wait_for("a grandchild", lambda: children_of(child))
        (grandchild,) = children_of(child)
        with pyattach(target.pid, "-s", "-o", folded, "-o", "-") as run:
            run.wait_until("the stub is in", lambda: timers_text(child) and timers_text(grandchild))
            target.tell("late")
            late = int(target.expect("late").split()[1])
            for pid in (late, child, grandchild):
                wait_ticking(run, pid)
            run.tell(signal.SIGTERM)
            out = run.finish(0)
        for pid in (target.pid, child, grandchild, late):
            assert not timers_text(pid)
        for pid in (target.pid, child, grandchild):
            assert MARK not in maps_text(pid)
        assert target.finish().splitlines()[-1] == "done"
    seen = {(stack[0].split()[0], name) for stack in Folded(folded).stacks for name in stack[1:]}
    expected = {
        (str(child), "child_work"), (str(grandchild), "grandchild_work"), (str(late), "late_work")
    }  # fmt: skip
    assert expected <= seen
    names = {"child_work", "grandchild_work", "late_work"}
    assert {(pid, name) for pid, name in seen if name in names} == expected
    assert "3 child processes were sampled too" in out
    assert "stopped by the user" in out


def test_children_that_end_at_once_disturb_nobody(spawn: Spawn, tmp_path: Path) -> None:
    with spawn("family") as target:
        (child,) = children_of(target.pid)
        with pyattach(target.pid, "-s", "-o", tmp_path / "o.svg", "-o", "-") as run:
            run.wait_until("the child is sampled", lambda: timers_text(child))
            for _ in range(10):
                target.tell("short")
                target.expect("ended")
            run.tell(signal.SIGINT)
            run.finish(0)
        assert target.finish().splitlines()[-1] == "done"


def test_a_child_with_its_parents_memory_is_left_alone(spawn: Spawn, tmp_path: Path) -> None:
    with spawn("family") as target:
        (child,) = children_of(target.pid)
        with pyattach(target.pid, "-s", "-o", tmp_path / "o.svg", "-o", "-") as run:
            run.wait_until("the child is sampled", lambda: timers_text(child))
            target.tell("vfork")
            waiting = int(target.expect("waits").split()[1])
            wait_ticking(run, child)
            assert share_memory(waiting, target.pid) and not share_memory(child, target.pid)
            assert not timers_text(waiting)
            # Its parent can't be stopped before, not even to leave it.
            target.tell("x")
            target.expect("waited")
            run.tell(signal.SIGINT)
            run.finish(0)
        assert target.finish().splitlines()[-1] == "done"


def test_kill_9_of_pyattach_frees_the_children(spawn: Spawn, tmp_path: Path) -> None:
    with spawn("family") as target:
        (child,) = children_of(target.pid)
        with pyattach(target.pid, "-s", "-o", tmp_path / "o.svg") as run:
            run.wait_until("the child is sampled", lambda: timers_text(child))
            run.process.kill()
            run.process.wait()
            wait_for("the child is detached from", lambda: MARK not in maps_text(child))
        assert target.finish().splitlines()[-1] == "done"


@pytest.mark.parametrize("kept", [True, False])
def test_descendants(spawn: Spawn, monkeypatch: pytest.MonkeyPatch, kept: bool) -> None:
    """By the kernel's own list, and by everybody's parents where it keeps none."""
    with spawn("family") as target:
        (child,) = children_of(target.pid)
        wait_for("a grandchild", lambda: children_of(child))
        (grandchild,) = children_of(child)
        if not kept:
            monkeypatch.setattr(children.Path, "exists", lambda _path: False)
        both = [(child, target.pid), (grandchild, child)]
        assert descendants([target.pid]) == sorted(both)
        assert descendants([target.pid, child]) == [(grandchild, child)]
        assert descendants([target.pid], but=child) == []
        target.finish()


@pytest.mark.parametrize("clock", CLOCKS)
def test_children_to_which_many_signals_are_fatal(spawn: Spawn, tmp_path: Path, clock: str) -> None:
    """sort handles them only some time after it is attached to."""
    numbers, folded = tmp_path / "numbers", tmp_path / "o.folded"
    numbers.write_text("".join(f"{n}\n" for n in range(300_000)))
    script = f"""\
echo ready; read line
for run in 1 2 3; do sort --random-sort --parallel=1 {numbers} >/dev/null; echo "sort ended with $?"; done
echo done; read line || true
"""
    with spawn(["sh", "-c", script]) as target:
        with pyattach(target.pid, "-s", "--clock", clock, "-o", folded) as run:
            run.wait_sampling(target.pid, cpu_s=0, timers=False)
            target.tell("go")
            assert [target.expect("sort") for _ in range(3)] == 3 * ["sort ended with 0"]
            target.expect("done")
            run.tell(signal.SIGINT)
            run.finish(0)
        target.finish()
    assert any("sort" in stack for stack in folded.read_text().splitlines())


FATAL = """\
import os, signal, sys
print("ready", flush=True)
sys.stdin.readline()
signal.signal(signal.SIGPROF, lambda *_words: os._exit(9))
for _ in range(300):
    sum(range(100_000))
print("done", flush=True)
"""


@pytest.mark.parametrize("clock", CLOCKS)
def test_a_fatal_handler_that_comes_after_us_is_not_met(spawn: Spawn, tmp_path: Path, clock: str) -> None:
    with (
        spawn([sys.executable, "-c", FATAL]) as target,
        pyattach(target.pid, "--clock", clock, "-o", tmp_path / "o.svg") as run,
    ):
        run.wait_sampling(target.pid, cpu_s=0, timers=False)
        target.tell()
        target.expect("done")
        target.finish()
        run.finish(0)


def test_where_no_more_processes_may_be_children_are_left_out(
    spawn: Spawn, monkeypatch: pytest.MonkeyPatch
) -> None:
    """pyattach needs one for each of them; the process itself is sampled all the same."""

    def refused() -> int:
        raise BlockingIOError(errno.EAGAIN, "the container's limit")

    script = "sleep 60 & while ! grep -q sleep /proc/$!/comm; do :; done; echo ready; read line; kill $!"
    with spawn(["sh", "-c", script]) as target:
        monkeypatch.setattr(os, "fork", refused)
        with family.Family(target.pid, Options()) as children_of:
            open_before = os.listdir("/proc/self/fd")
            children_of.look()
            assert os.listdir("/proc/self/fd") == open_before
            meta = children_of.joined(Outcome(Profile(Meta(), {}, {}), (), False)).profile.meta
        monkeypatch.undo()
        target.finish()
    (note,) = [note for note in meta.notes if "were not sampled" in note]
    assert note.startswith("1 child processes") and note.endswith(" sleep: the container's limit")


NAMED_WHEN_CHILDREN_HAVE_ENDED = """\
import os, time
from pyattach.attacher import family, main, sampling
own, helpers, profile = os.getpid(), [], sampling.Session.profile
class Noted(family.Helper):
    def __init__(self, *words):
        super().__init__(*words)
        helpers.append(self)
def late(session):
    end = time.monotonic() + 20
    while os.getpid() == own and not (helpers and all([helper.ended() for helper in helpers])):
        assert time.monotonic() < end, "a child is still sampled"
        time.sleep(0.005)
    return profile(session)
family.Helper, sampling.Session.profile = Noted, late
raise SystemExit(main.main())
"""
WITH_A_CHILD_THAT_STAYS = """\
import pathlib, subprocess, sys, time
none = subprocess.DEVNULL
child = subprocess.Popen(["sleep", "60"], stdin=none, stdout=none, stderr=none)
pathlib.Path(sys.argv[1]).write_text(str(child.pid))
print("ready", flush=True)
sampled_s = 0
while sampled_s < 0.3:
    begin_s = time.process_time()
    sum(range(10000))
    if "/memfd:pyattach-" in pathlib.Path(f"/proc/{child.pid}/maps").read_text():
        sampled_s += time.process_time() - begin_s
"""


@pytest.mark.parametrize("way", ["attach", "run"])
def test_children_are_sampled_no_longer_than_their_parent(spawn: Spawn, tmp_path: Path, way: str) -> None:
    """However long its names take."""
    pyattach_late, child = [sys.executable, "-c", NAMED_WHEN_CHILDREN_HAVE_ENDED], tmp_path / "child"
    with contextlib.ExitStack() as undo:
        undo.callback(lambda: os.kill(int(child.read_text()), signal.SIGKILL))
        program = [sys.executable, "-c", WITH_A_CHILD_THAT_STAYS, str(child)]
        words = ["-s", "-o", tmp_path / "o.folded", "-o", tmp_path / "o.txt"]
        if way == "run":
            run = undo.enter_context(pyattach("run", *words, "--", *program, command=pyattach_late))
        else:
            target = undo.enter_context(spawn(program))
            run = undo.enter_context(pyattach(target.pid, *words, command=pyattach_late))
        run.finish(0)
    out = (tmp_path / "o.txt").read_text()
    assert "the target ended" in out and "1 child processes were sampled too" in out


def test_children_get_their_names_while_their_parent_would() -> None:
    """As long as debug files and lines may take: a helper that is ended before has sampled for nothing."""
    waited: list[float] = []
    with family.Family(os.getpid(), Options()) as children_of:
        helper = Helper.__new__(Helper)
        vars(helper)["wait"] = lambda deadline: waited.append(deadline - time.monotonic())
        children_of._children.append(family._Child(0, 0, "child", helper))
        children_of.stop()
        assert LONGEST_S < waited[0] <= family.END_DEADLINE_S


@pytest.mark.parametrize("written", [b"", pickle.dumps("all of it")[:-3], pickle.dumps("all of it")])
def test_a_helper_that_is_killed_while_it_writes(written: bytes) -> None:
    helper = Helper.__new__(Helper)
    helper._result_fd = os.memfd_create("outcome")
    os.write(helper._result_fd, written)
    helper.outcome = None
    helper._take_result(signal.SIGKILL)
    assert helper.error == "pyattach's process for it ended with status 0x9"


def test_a_helper_that_may_not_look(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """What the system has refused is said in a line of the report, and with no traceback."""

    def refused(*_words: object) -> Outcome:
        raise OSError(errno.ENFILE, os.strerror(errno.ENFILE))

    monkeypatch.setattr(following, "attach", refused)
    stop_fd, stop_end = os.pipe()
    helper = Helper(os.getpid(), Options(), stop_fd, stop_end)
    helper.wait(time.monotonic() + DEADLINE_S)
    os.close(stop_fd)
    os.close(stop_end)
    assert helper.error == f"[Errno {errno.ENFILE}] {os.strerror(errno.ENFILE)}"
    assert capfd.readouterr().err == ""
