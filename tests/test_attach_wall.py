"""Wall mode: where threads wait, and that looking wakes none of them."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from support import Target, build_target
from test_attach_run import Spawn, attach, loaded, wait_for

from pyattach.attacher.contract import Options
from pyattach.attacher.procfs import read_blocked
from pyattach.attacher.target import TargetProcess
from pyattach.errors import InjectionFailed
from pyattach.inject import fault
from pyattach.inject.borrow import LIMIT_NS, ThreadGaveUp, ThreadUnderWay

COMPLETE = 0.95

PLACES = {
    "waits": ("main", "[waiting: read]"),
    "sleep": ("wait_in_sleep", "[waiting: clock_nanosleep]"),
    "futex": ("wait_in_futex", "[waiting: futex]"),
    "cond": ("wait_in_cond", "[waiting: futex]"),
    "epoll": ("wait_in_epoll", "[waiting: epoll_wait]"),
    "poll": ("wait_in_poll", "[waiting: poll]"),
    "read": ("wait_in_read", "[waiting: read]"),
}

PYTHON = """
import threading, time
def work_until_told():
    while True:
        time.sleep(0.2)
threading.Thread(target=work_until_told, daemon=True).start()
print("ready", flush=True)
input()
"""


class ByThread:
    """A folded file split by thread: for each name its stacks, root first, and their samples."""

    def __init__(self, path: Path) -> None:
        self.stacks: dict[str, Counter[tuple[str, ...]]] = {}
        for line in path.read_text().splitlines():
            words, _, count = line.rpartition(" ")
            thread, *stack = words.split(";")
            name = thread.rpartition("-")[0]
            self.stacks.setdefault(name, Counter())[tuple(stack)] += int(count)

    def total(self, name: str) -> int:
        return self.stacks[name].total()

    def share(self, name: str, *frames: str) -> float:
        """Of the thread's samples, those whose stack is whole and holds all ``frames``."""
        held = sum(
            count
            for stack, count in self.stacks[name].items()
            if "[truncated]" not in stack and set(frames) <= set(stack)
        )
        return held / self.total(name)


def wall(target_pid: int, folder: Path, *, duration: str = "2s") -> tuple[ByThread, str]:
    """Threads, and the summary."""
    path = folder / "o.folded"
    run = attach(target_pid, "--mode", "wall", "-d", duration, "-t", "--no-live", "-o", path, "-o", "-")
    return ByThread(path), run.out


def finished(target: Target) -> dict[str, int]:
    """What the target counted."""
    return {name: int(value) for name, value in re.findall(r"^(\w+) (\d+)$", target.finish(), re.MULTILINE)}


@pytest.mark.parametrize(
    "flags",
    [("-fomit-frame-pointer",), ("-fno-omit-frame-pointer",), ("-static",)],
    ids=["no-fp", "fp", "static"],
)
def test_each_thread_is_seen_where_it_waits_and_none_is_woken(
    spawn: Spawn, tmp_path: Path, flags: tuple[str, ...]
) -> None:
    with spawn(build_target("waits", *flags)) as target:
        found, summary = wall(target.pid, tmp_path)
        counted = finished(target)
    assert (counted["eintr"], counted["short"]) == (0, 0)
    assert counted["sleeps"] > 20
    assert set(found.stacks) == set(PLACES)
    for name, (function, call) in PLACES.items():
        assert found.share(name, function, call) >= COMPLETE, found.stacks[name]
    totals = {name: found.total(name) for name in PLACES}
    # The one that wakes up may be found waiting for a processor, which is neither running nor waiting.
    assert totals.pop("sleep") >= 0.5 * max(totals.values())
    assert min(totals.values()) >= 0.9 * max(totals.values()), "all were looked at equally often"
    assert "wall: share of the time of all threads, running and waiting" in summary


def test_none_is_woken_while_a_borrowed_thread_waits(spawn: Spawn, monkeypatch: pytest.MonkeyPatch) -> None:
    """It blocks all signals and uses CPU time for as long as pyattach keeps it waiting: the signal of a clock
    of the whole process would go to a thread that sleeps."""
    reach = fault.reach

    def late(step: str, pid: int) -> None:
        reach(step, pid)
        if step == "mailed":
            time.sleep(LIMIT_NS / 2e9)

    monkeypatch.setattr(fault, "reach", late)
    with spawn(build_target("waits")) as target, TargetProcess(target.pid) as process:
        with loaded(process, Options(rate_hz=99)) as session:
            assert session.shared.control.stray_timer_plus_1
            session.shared.posted(session.threads.slots_used)
            session._stay.arm()
            assert session.shared.control.stray_timer_plus_1
        assert finished(target)["eintr"] == 0


@pytest.mark.parametrize(("kind", "forgotten"), [(ThreadGaveUp, True), (ThreadUnderWay, False)])
def test_a_borrowed_thread_that_may_begin_a_timer_yet(
    spawn: Spawn, monkeypatch: pytest.MonkeyPatch, kind: type[InjectionFailed], forgotten: bool
) -> None:
    """Its number must be there for whoever deletes it."""
    with (
        spawn(build_target("waits")) as target,
        TargetProcess(target.pid) as process,
        loaded(process, Options(rate_hz=99)) as session,
    ):
        before = session.shared.control.stray_timer_plus_1

        def fails() -> None:
            raise kind("the thread has not come back")

        with monkeypatch.context() as patched:
            patched.setattr(session._stay, "arm", fails)
            session._arm_by_borrowing()
        assert before and session.shared.control.stray_timer_plus_1 == (0 if forgotten else before)
        session.shared.control.stray_timer_plus_1 = before


def test_running_and_waiting_add_up_to_the_time(spawn: Spawn, tmp_path: Path) -> None:
    """A thread in its system call has no tick, one that runs is not looked at: none is counted twice."""
    with spawn("threads", 1, 3) as target:
        found, summary = wall(target.pid, tmp_path, duration="3s")
        interruptions = re.search(r"^eintr (\d+)$", target.finish(), re.MULTILINE)
    assert interruptions is not None and interruptions[1] == "0"
    looked = found.total("futex-0")
    assert found.share("futex-0", "[waiting: futex]") >= COMPLETE
    busy = found.stacks["busy-0"]
    assert sum(count for stack, count in busy.items() if stack[-1].startswith("[waiting")) <= 0.05 * looked
    assert found.total("busy-0") <= 1.1 * looked
    assert re.search(r"^samples +[\d,]+, [\d,]+ \(\d+\.\d\d%\) waiting$", summary, re.MULTILINE)


def test_redis_idle(spawn: Spawn, requires: Callable[[str], str], tmp_path: Path) -> None:
    server = requires("redis-server")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = ("--port", port, "--save", "", "--appendonly", "no", "--dir", tmp_path)
    with spawn([server, *map(str, words)], ready=None) as target:
        wait_for("redis answers", lambda: answers(port))
        found, _ = wall(target.pid, tmp_path)
        target.kill()
    main = next(name for name in found.stacks if name.startswith("redis-server"))
    assert found.share(main, "[waiting: epoll_wait]") >= COMPLETE, found.stacks[main]
    for name in found.stacks:
        assert found.share(name) >= COMPLETE, found.stacks[name]


def answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


def test_python_asleep(spawn: Spawn, tmp_path: Path) -> None:
    with spawn([sys.executable, "-c", PYTHON]) as target:
        found, _ = wall(target.pid, tmp_path)
        target.tell()
        target.finish()
    stacks = sum(found.stacks.values(), Counter())
    total = stacks.total()
    whole = sum(count for stack, count in stacks.items() if "[truncated]" not in stack)
    assert whole >= COMPLETE * total
    asleep = sum(
        count for stack, count in stacks.items() if "nanosleep" in stack[-1] or "select" in stack[-1]
    )
    assert asleep == pytest.approx(total / 2, rel=0.1), "one of its two threads sleeps"


def test_cpu_mode_holds_no_waits(spawn: Spawn, tmp_path: Path) -> None:
    path = tmp_path / "o.folded"
    with spawn("threads", 1, 3) as target:
        attach(target.pid, "-d", "1s", "-o", path)
        target.finish()
    assert "[waiting" not in path.read_text()


def test_a_call_that_the_loading_interrupted_keeps_its_name(
    spawn: Spawn, requires: Callable[[str], str], tmp_path: Path
) -> None:
    # Only one thread: it is the one that is borrowed.
    with spawn([requires("sleep"), "60"], ready=None) as target:
        wait_for("asleep", lambda: read_blocked(target.pid, target.pid))
        found, _ = wall(target.pid, tmp_path, duration="1s")
        target.kill()
    assert found.share("sleep", "[waiting: clock_nanosleep]") >= COMPLETE, found.stacks


GO = """
package main

import ("fmt"; "os"; "time")

func nap() { for { time.Sleep(20 * time.Millisecond) } }

func main() {
	go nap()
	fmt.Println("ready")
	os.Stdin.Read(make([]byte, 1))
}
"""


def test_go_s_threads_are_whole_without_tables(
    spawn: Spawn, requires: Callable[[str], str], tmp_path: Path
) -> None:
    (tmp_path / "waits.go").write_text(GO)
    command = [requires("go"), "build", "-o", "gowaits", "waits.go"]
    environment = {**os.environ, "GOCACHE": str(tmp_path / "cache"), "GO111MODULE": "off"}
    subprocess.run(command, cwd=tmp_path, env=environment, check=True, timeout=100)
    with spawn(tmp_path / "gowaits") as target:
        found, _ = wall(target.pid, tmp_path)
        target.finish()
    stacks = sum(found.stacks.values(), Counter())
    whole = sum(count for stack, count in stacks.items() if "[truncated]" not in stack)
    assert whole >= COMPLETE * stacks.total(), stacks
    assert any({"main.main", "os.(*File).Read", "[waiting: read]"} <= set(stack) for stack in stacks)
