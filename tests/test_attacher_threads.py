"""Threads and their slots, against a /proc that says what the test wants."""

from __future__ import annotations

import ctypes
import dataclasses
from types import SimpleNamespace
from typing import cast

import pytest

from pyattach.attacher import account, procfs
from pyattach.attacher.choosing import ThreadChoice, names_of
from pyattach.attacher.clock import TimerClock
from pyattach.attacher.procfs import Stat
from pyattach.attacher.target import TargetProcess
from pyattach.attacher.threads import ThreadTable
from pyattach.errors import UsageError
from pyattach.inject.layout import Slot, SlotState
from pyattach.inject.region import RegionPlan
from pyattach.render.profile import Thread

PID = 100
SECOND_NS = 1_000_000_000


@dataclasses.dataclass
class FakeThread:
    name: str = "worker"
    state: str = "S"
    start_time: int = 1
    cpu_ns: int = 0


class FakeProc:
    """Threads by tid; ``schedstat`` False: a kernel that does not keep it."""

    def __init__(self) -> None:
        self.threads: dict[int, FakeThread] = {}
        self.schedstat = True
        self.vanishing: set[int] = set()
        self.listings = 0
        self.newest = 0
        self.stats_read: list[int] = []
        self.clocks_read: list[int] = []
        self.process_ns = 0

    def thread_ids(self, pid: int) -> list[int]:
        assert pid == PID
        self.listings += 1
        return sorted(self.threads.keys() | self.vanishing)

    def read_stat(self, pid: int, tid: int | None = None) -> Stat | None:
        assert pid == PID and tid is not None
        self.stats_read.append(tid)
        thread = self.threads.get(tid)
        if thread is None:
            return None
        return Stat(thread.name, thread.state, 1, 0, thread.start_time, thread.cpu_ns // 10_000_000 / 100)

    def thread_cpu_ns(self, pid: int, tid: int) -> int | None:
        assert pid == PID
        self.clocks_read.append(tid)
        thread = self.threads.get(tid)
        return thread.cpu_ns if thread is not None and self.schedstat else None

    def ran(self, tid: int, cpu_ns: int) -> None:
        self.threads[tid].cpu_ns += cpu_ns
        self.process_ns += cpu_ns

    def sign_of_threads(self, pid: int) -> tuple[int, int] | None:
        assert pid == PID
        return len(self.threads), self.newest


@pytest.fixture
def proc(monkeypatch: pytest.MonkeyPatch) -> FakeProc:
    fake = FakeProc()
    for name in ("thread_ids", "read_stat", "thread_cpu_ns", "sign_of_threads"):
        monkeypatch.setattr(procfs, name, getattr(fake, name))
    return fake


class Table:
    """A ThreadTable with its slots, and a stub that does what it is told."""

    def __init__(self, slot_count: int = 4, *patterns: str) -> None:
        plan = RegionPlan(period_ns=1, slot_count=slot_count, max_depth=1, ring_words=1, signal=27)
        self.table = ThreadTable(PID, plan, TimerClock(), ThreadChoice(patterns))
        self.slots = (Slot * slot_count)()
        first = self.table.first_slots()
        assert len(first) % ctypes.sizeof(Slot) == 0
        ctypes.memmove(self.slots, first, len(first))

    def refresh(self, *, thorough: bool = False) -> bool:
        return self.table.refresh(self.slots, thorough=thorough)

    def tick(self) -> None:
        """What a handler does to posted slots."""
        for slot in self.slots:
            if slot.state == SlotState.WANTED:
                slot.state = SlotState.ARMED
            elif slot.state == SlotState.RETIRE:
                slot.state = SlotState.FREE

    def shown(self) -> list[tuple[int, SlotState]]:
        return [(slot.tid, SlotState(slot.state)) for slot in self.slots]

    def of(self, tid: int) -> Slot:
        (slot,) = (
            s for s in self.slots if s.tid == tid and s.state not in (SlotState.FREE, SlotState.RETIRE)
        )
        return slot


WANTED, ARMED, RETIRE, FREE = SlotState.WANTED, SlotState.ARMED, SlotState.RETIRE, SlotState.FREE
EMPTY = (0, FREE)


def test_at_first_all_threads_are_posted_and_those_that_run_before_the_others(proc: FakeProc) -> None:
    proc.threads = {
        100: FakeThread(),
        101: FakeThread(state="R"),
        102: FakeThread(),
        103: FakeThread(state="R"),
    }
    table = Table(6)
    assert table.shown() == [(101, WANTED), (103, WANTED), (100, WANTED), (102, WANTED), EMPTY, EMPTY]
    assert table.table.count == 4
    assert not table.refresh()


def test_a_thread_that_vanishes_while_it_is_looked_at_is_not_posted(proc: FakeProc) -> None:
    proc.threads, proc.vanishing = {100: FakeThread()}, {101}
    table = Table()
    assert table.shown() == [(100, WANTED), EMPTY, EMPTY, EMPTY]
    assert not table.refresh()


def test_threads_come_and_go_and_their_slots_are_used_again(proc: FakeProc) -> None:
    proc.threads = {100: FakeThread()}
    table = Table(2)
    table.tick()
    proc.threads[101] = FakeThread("second")
    assert table.refresh()
    assert table.shown() == [(100, ARMED), (101, WANTED)]
    table.tick()
    del proc.threads[101]
    assert table.refresh()
    assert table.shown() == [(100, ARMED), (101, RETIRE)]
    assert table.table.count == 1
    proc.threads[102] = FakeThread()
    table.refresh()
    assert table.shown() == [(100, ARMED), (101, RETIRE)], "not before its timer is gone"
    table.tick()
    assert table.refresh()
    assert table.shown() == [(100, ARMED), (102, WANTED)]
    assert {tid: thread.name for tid, thread in table.table.names.items()} == {
        100: "worker", 101: "second", 102: "worker",
    }  # fmt: skip


@pytest.mark.parametrize("state", [SlotState.ARMED, SlotState.FAILED, SlotState.EXPIRED])
def test_a_tick_that_was_at_it_when_the_thread_was_retired_is_told_again(
    proc: FakeProc, state: SlotState
) -> None:
    proc.threads = {100: FakeThread(), 101: FakeThread()}
    table = Table(2)
    del proc.threads[101]
    table.refresh()
    table.slots[1].state = state  # the handler's store came after pyattach's
    table.refresh()
    assert table.slots[1].state == RETIRE
    proc.threads[102] = FakeThread()
    table.refresh()
    assert table.slots[1].tid == 101
    table.tick()
    table.refresh()
    assert table.shown()[1] == (102, WANTED)


def test_a_tid_that_is_used_again_is_another_thread(proc: FakeProc) -> None:
    proc.threads = {100: FakeThread(), 101: FakeThread("old", start_time=5, cpu_ns=3_000_000_000)}
    table = Table(4)
    table.tick()
    proc.threads[101].cpu_ns = 5_000_000_000
    assert table.table.cpu_s() == pytest.approx(2)
    proc.threads[101] = FakeThread("new", start_time=6, cpu_ns=1_000_000_000)
    assert not table.refresh(thorough=False)
    assert table.refresh(thorough=True)
    assert table.shown() == [(100, ARMED), (101, RETIRE), (101, WANTED), EMPTY]
    assert table.table.names[101].name == "new"
    proc.threads[101].cpu_ns = 1_500_000_000
    assert table.table.cpu_s() == pytest.approx(2.5)
    assert not table.refresh(thorough=True)


def test_many_threads_are_listed_again_only_if_one_can_have_come(proc: FakeProc) -> None:
    proc.threads = {tid: FakeThread() for tid in range(100, 200)}
    table = Table(256)
    table.refresh()
    listings = proc.listings
    assert not table.refresh()
    assert proc.listings == listings
    del proc.threads[150]  # and another in its place: as many as before
    proc.threads[200], proc.newest = FakeThread(), 200
    assert table.refresh()
    assert table.table.tids == {*range(100, 150), *range(151, 201)}
    listings = proc.listings
    proc.threads[201] = FakeThread()
    assert table.refresh()
    assert 201 in table.table.tids
    table.refresh(thorough=True)
    assert proc.listings == listings + 2, "a thorough look believes no sign"


def test_threads_that_sleep_are_read_where_others_do_not_explain_what_the_process_used(
    proc: FakeProc, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(account, "process_cpu_ns", lambda _pid: proc.process_ns)
    proc.threads = {tid: FakeThread() for tid in range(100, 140)}
    proc.ran(100, SECOND_NS)
    table = Table(64)
    target = cast("TargetProcess", SimpleNamespace(pid=PID, cpu_s_at_end=lambda: None))
    cpu = account.CpuAccount(target, table.table, only_known=False)

    def measured() -> tuple[float, list[int]]:
        proc.clocks_read.clear()
        cpu.measure(ended=False, whole=False)
        return cpu.sampled_s, list(proc.clocks_read)

    every = list(range(100, 140))
    rest = [100, *range(102, 140)]
    assert measured() == (0, every)
    proc.ran(101, SECOND_NS)
    assert measured() == (1, every)
    proc.ran(101, SECOND_NS)
    assert measured() == (2, [101])
    proc.ran(102, SECOND_NS // 1000)
    proc.ran(101, SECOND_NS)
    assert measured() == (pytest.approx(3.001), [101, *rest]), "a thread that has slept so far"
    proc.ran(101, SECOND_NS)
    assert measured() == (pytest.approx(4.001), [101, 102])
    proc.process_ns += SECOND_NS
    assert measured() == (pytest.approx(5.001), [101, *every]), "one that is gone"
    assert measured() == (pytest.approx(5.001), [])
    for _ in range(4):  # too little each time, but it adds up
        proc.ran(103, SECOND_NS // 6000)
        total_s, read = measured()
    assert (total_s, read) == (pytest.approx(5.001 + 4 / 6000), every)
    cpu.measure(ended=False)
    assert proc.clocks_read[-40:] == every, "at the end all are"


def test_without_the_process_clock_all_threads_are_read(
    proc: FakeProc, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(account, "process_cpu_ns", lambda _pid: None)
    proc.threads = {100: FakeThread(), 101: FakeThread()}
    target = cast("TargetProcess", SimpleNamespace(pid=PID, cpu_s_at_end=lambda: None))
    cpu = account.CpuAccount(target, Table(4).table, only_known=False)
    for _ in range(3):
        proc.clocks_read.clear()
        cpu.measure(ended=False, whole=False)
        assert set(proc.clocks_read) == {100, 101}
        proc.ran(101, SECOND_NS)
    assert cpu.known_s == 2


def test_only_threads_that_have_run_are_looked_at_again(proc: FakeProc) -> None:
    proc.threads = {100: FakeThread(cpu_ns=5), 101: FakeThread(cpu_ns=7)}
    table = Table(4)
    table.table.cpu_s()
    table.refresh(thorough=True)
    proc.stats_read.clear()
    table.table.cpu_s()
    assert not table.refresh(thorough=True)
    assert proc.stats_read == []
    proc.threads[101] = FakeThread(start_time=9, cpu_ns=1)
    table.table.cpu_s()
    assert table.refresh(thorough=True)
    assert 100 not in proc.stats_read


def test_threads_beyond_the_room_are_counted_and_taken_once_there_is_room(proc: FakeProc) -> None:
    proc.threads = {tid: FakeThread() for tid in range(100, 105)}
    table = Table(3)
    assert [tid for tid, _ in table.shown()] == [100, 101, 102]
    assert table.table.without_slot == 2
    table.tick()
    del proc.threads[100]
    table.refresh()
    table.tick()
    assert table.refresh()
    assert table.of(103).state == WANTED
    assert table.table.count == 3


def test_a_thread_without_room_is_counted_once(proc: FakeProc) -> None:
    proc.threads = {100: FakeThread(), 101: FakeThread()}
    table = Table(1)
    for _ in range(5):
        assert not table.refresh()
    assert table.table.without_slot == 1


def test_what_the_lease_let_expire_is_posted_again(proc: FakeProc) -> None:
    proc.threads = {100: FakeThread(), 101: FakeThread(), 102: FakeThread()}
    table = Table(4)
    table.tick()
    assert not table.table.rearm_expired(table.slots)
    table.of(101).state = SlotState.EXPIRED
    assert table.table.rearm_expired(table.slots)
    assert table.shown() == [(100, ARMED), (101, WANTED), (102, ARMED), EMPTY]
    assert not table.table.rearm_expired(table.slots)


def test_a_retired_threads_expiry_is_not_posted_again(proc: FakeProc) -> None:
    proc.threads = {100: FakeThread(), 101: FakeThread()}
    table = Table(4)
    del proc.threads[101]
    table.refresh()
    table.slots[1].state = SlotState.EXPIRED
    assert not table.table.rearm_expired(table.slots)


@pytest.mark.parametrize("slot_state", [WANTED, ARMED, SlotState.FAILED])
@pytest.mark.parametrize("state", ["R", "S", "D"])
def test_only_one_that_runs_and_was_never_armed_needs_help(
    proc: FakeProc, state: str, slot_state: SlotState
) -> None:
    proc.threads = {100: FakeThread(state=state)}
    table = Table()
    table.slots[0].state = slot_state
    assert table.table.unarmed_and_running(table.slots) == (state == "R" and slot_state == WANTED)
    proc.threads.clear()
    assert not table.table.unarmed_and_running(table.slots)


def test_failed_ones_are_counted_while_they_live(proc: FakeProc) -> None:
    proc.threads = {100: FakeThread(), 101: FakeThread(), 102: FakeThread()}
    table = Table()
    for tid in (100, 102):
        table.of(tid).state = SlotState.FAILED
    assert table.table.failed(table.slots) == 2
    del proc.threads[102]
    table.refresh()
    assert table.table.failed(table.slots) == 1


@pytest.mark.parametrize("schedstat", [True, False])
def test_cpu_time_counts_from_when_a_thread_was_first_seen(proc: FakeProc, schedstat: bool) -> None:
    proc.schedstat = schedstat
    proc.threads = {100: FakeThread(cpu_ns=7_000_000_000), 101: FakeThread(cpu_ns=1_000_000_000)}
    table = Table()
    assert table.table.cpu_s() == 0
    proc.threads[100].cpu_ns += 2_000_000_000
    proc.threads[101].cpu_ns += 500_000_000
    assert table.table.cpu_s() == pytest.approx(2.5)
    del proc.threads[101]
    assert table.table.cpu_s() == pytest.approx(2.5), "its clock is gone, what it used is not"
    table.refresh()
    proc.threads[102] = FakeThread(cpu_ns=40_000_000)
    table.refresh()
    assert table.table.cpu_s() == pytest.approx(2.5)


def test_used_slots_are_those_ever_given_away(proc: FakeProc) -> None:
    proc.threads = {100: FakeThread(), 101: FakeThread()}
    table = Table(8)
    assert [s.tid for s in table.table.used(table.slots)] == [100, 101]
    proc.threads = {100: FakeThread(), 102: FakeThread()}
    table.refresh()
    assert [s.tid for s in table.table.used(table.slots)] == [100, 101, 102]
    table.tick()
    table.refresh()
    proc.threads[103] = FakeThread()
    table.refresh()
    assert [s.tid for s in table.table.used(table.slots)] == [100, 103, 102]
    assert len(Table(4).table.used((Slot * 4)())) == 3


def test_only_chosen_threads_are_posted(proc: FakeProc) -> None:
    proc.threads = {100: FakeThread("main"), 101: FakeThread("io-1"), 102: FakeThread("gc")}
    table = Table(3, "io-*", "102")
    assert table.shown() == [(101, WANTED), (102, WANTED), EMPTY]
    assert table.table.left_out == {100: Thread(100, "main")}
    proc.threads[103] = FakeThread("main")
    proc.threads[104] = FakeThread("io-2")
    assert table.refresh()
    assert table.of(104).state == WANTED
    assert not table.refresh()
    assert sorted(table.table.left_out) == [100, 103]


def test_a_thread_that_takes_another_name_is_looked_at_again(proc: FakeProc) -> None:
    """A new thread has its parent's name until it has given itself one."""
    proc.threads = {100: FakeThread("main"), 101: FakeThread("worker", cpu_ns=1_000_000_000)}
    table = Table(2, "worker")
    table.tick()
    proc.threads[100].name, proc.threads[101].name = "worker", "idle"
    proc.threads[101].cpu_ns += 2_000_000_000
    assert not table.refresh()
    assert table.refresh(thorough=True)
    assert table.shown() == [(101, RETIRE), (100, WANTED)]
    assert sorted(table.table.left_out) == [101]
    assert table.table.cpu_s() == pytest.approx(2), "what it used under its old name counts"


def test_no_thread_of_that_name_is_an_error_that_lists_the_names(proc: FakeProc) -> None:
    proc.threads = {100: FakeThread("main"), 101: FakeThread("io"), 102: FakeThread("io")}
    for patterns in ((), ("i?",), ("101",), ("nothing", "ma*")):
        ThreadChoice(patterns).check(PID)
    with pytest.raises(UsageError, match=r"(?s)called 10 or I\*.*io \(2\), main"):
        ThreadChoice(("10", "I*")).check(PID)


def test_left_out_threads_are_named_and_counted() -> None:
    choice = ThreadChoice(("a",))
    assert choice.note([]) == []
    assert choice.note([Thread(1, "b"), Thread(2, "c"), Thread(3, "b")]) == [
        "3 threads were left out by --thread: b (2), c"
    ]
    assert names_of(Thread(n, f"t{n:02}") for n in range(42)).endswith("t39, and 2 more")
