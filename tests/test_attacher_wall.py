"""Looking at threads that wait, without anything in the target: what is counted, and that they sleep on."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import Target
from test_attach_run import Spawn, wait_for

from pyattach.attacher import wall
from pyattach.attacher.clock import TimerClock
from pyattach.attacher.contract import Options
from pyattach.attacher.modules import ModuleTable
from pyattach.attacher.planning import plan_region
from pyattach.attacher.procfs import parse_blocked, read_blocked, read_status, thread_ids
from pyattach.attacher.samples import SampleStore
from pyattach.attacher.target import TargetProcess
from pyattach.attacher.threads import ThreadTable
from pyattach.attacher.wall import WallClock, check_wall
from pyattach.errors import ExitCode, NoPermission, UnsupportedTarget
from pyattach.inject.layout import Unwind
from pyattach.symbols.resolver import Resolver, proc_opener
from pyattach.symbols.syscalls import NO_SYSCALL, waiting_address, waiting_frame

SWITCHES = ("voluntary_ctxt_switches", "nonvoluntary_ctxt_switches")


@contextlib.contextmanager
def clock_on(pid: int, rate_hz: float) -> Iterator[tuple[WallClock, SampleStore]]:
    plan = plan_region(Options(), 8, TimerClock())
    with TargetProcess(pid) as target, Resolver(target.maps(), proc_opener(pid)) as resolver:
        threads = ThreadTable(pid, plan, TimerClock())
        threads.first_slots()
        modules = ModuleTable(target, resolver, plan)
        modules.first(target.maps())
        store = SampleStore(resolver)
        clock = WallClock(
            target,
            threads,
            modules,
            store,
            rate_hz=rate_hz,
            region=0,
            max_depth=512,
            unwind=Unwind.AUTO,
            before={},
        )
        with contextlib.closing(clock):
            yield clock, store


def asleep(target: Target) -> list[int]:
    """All threads that wait for good, once they do: each but the one named sleep."""
    tids = [tid for tid in thread_ids(target.pid) if read_status(target.pid, tid)["Name"] != "sleep"]
    wait_for("all wait", lambda: all(read_blocked(target.pid, tid) for tid in tids))
    return tids


def switches(pid: int, tids: list[int]) -> list[list[str]]:
    return [[read_status(pid, tid)[name] for name in SWITCHES] for tid in tids]


def counted(store: SampleStore) -> dict[int, int]:
    weights: dict[int, int] = {}
    for (tid, _stack), weight in store.weights().items():
        weights[tid] = weights.get(tid, 0) + weight
    return weights


def test_no_look_lets_a_thread_run(spawn: Spawn) -> None:
    with spawn("waits") as target:
        tids = asleep(target)
        before = switches(target.pid, tids)
        with clock_on(target.pid, 500) as (clock, store):
            while clock.looks <= 20:
                clock.pause(0.1)
        assert switches(target.pid, tids) == before
        assert counted(store).keys() >= set(tids)
        target.finish()


def test_a_stack_that_has_not_moved_is_not_read_again(spawn: Spawn) -> None:
    with spawn("waits") as target:
        tids = asleep(target)
        begun = time.monotonic()
        with clock_on(target.pid, 500) as (clock, _store):
            while clock.thread_looks <= 20 * len(tids):
                clock.pause(0.1)
        naps = (time.monotonic() - begun) / 0.05 + 2
        assert clock.walks <= len(tids) + naps * 4  # of the thread that sleeps again and again
        target.finish()


def test_missed_looks_give_weight_and_are_told(spawn: Spawn) -> None:
    with spawn("waits") as target:
        tids = asleep(target)
        with clock_on(target.pid, 100) as (clock, store):
            clock.pause(0.05)
            time.sleep(0.5)  # pyattach is busy with something else
            clock.pause(0.05)
            notes = list(clock.notes())
        assert clock.looks_asked >= 50 > clock.looks
        weights = counted(store)
        assert all(weights[tid] == clock.looks_asked for tid in tids)
        assert clock.waiting == store.samples
        assert f"{clock.looks:,} times of {clock.looks_asked:,} asked" in notes[0]
        target.finish()


def test_a_wait_is_told_of_as_from_when_it_was_first_seen(
    spawn: Spawn, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[tuple[int, int]] = []
    look = WallClock._look

    def noted(clock: WallClock) -> None:
        begin_ns = time.monotonic_ns()
        look(clock)
        looks.append((begin_ns, time.monotonic_ns()))

    monkeypatch.setattr(WallClock, "_look", noted)
    with spawn("waits") as target:
        tids = asleep(target)
        with clock_on(target.pid, 100) as (clock, store):
            while len(looks) < 2:
                clock.pause(0.1)
            timeline = store.timeline(0)
        assert timeline is not None
        begin_ns, end_ns = looks[0]
        seen: dict[int, float] = {}
        for time_s, tid, _stack, _ticks in timeline.samples():
            seen.setdefault(tid, time_s)
        assert all(begin_ns / 1e9 <= seen[tid] <= end_ns / 1e9 for tid in tids)
        target.finish()


def test_threads_that_end_are_let_go_of(spawn: Spawn) -> None:
    with spawn("waits") as target, clock_on(target.pid, 200) as (clock, store):
        clock.pause(0.05)
        files = len(os.listdir("/proc/self/fd"))
        target.finish()
        clock.pause(0.05)
        assert len(os.listdir("/proc/self/fd")) <= files - 2 * 7
        assert store.samples == clock.waiting > 0


@pytest.mark.parametrize(
    ("error", "raised", "exit_code"),
    [
        (PermissionError, NoPermission, ExitCode.PERMISSION),
        (FileNotFoundError, UnsupportedTarget, ExitCode.UNSUPPORTED),
    ],
)
def test_what_may_not_be_read_is_refused_with_a_way_out(
    monkeypatch: pytest.MonkeyPatch, error: type[OSError], raised: type[NoPermission], exit_code: ExitCode
) -> None:
    class Refusing(type(Path())):  # type: ignore[misc]
        def read_bytes(self) -> bytes:
            raise error

    monkeypatch.setattr(wall, "Path", Refusing)
    with pytest.raises(raised, match="syscall") as refusal:
        check_wall(os.getpid())
    assert refusal.value.exit_code == exit_code
    assert "--mode cpu" in refusal.value.way_out


def test_a_thread_in_no_system_call_stands_at_the_instruction_itself() -> None:
    place = parse_blocked(b"-1 0x7ffc00001000 0x401000\n")
    assert place is not None
    leaf, ip, *rest = wall._shown(place, (0x401000, 0x402000))
    assert (leaf, ip - 1, rest) == (waiting_address(NO_SYSCALL), 0x401000, [0x402000])
    assert waiting_frame(leaf).name == "[waiting: no system call]"


@pytest.mark.parametrize(("number", "name"), [(202, "futex"), (232, "epoll_wait"), (999, "syscall 999")])
def test_waits_have_the_name_of_their_call(number: int, name: str) -> None:
    assert waiting_frame(waiting_address(number)).name == f"[waiting: {name}]"
