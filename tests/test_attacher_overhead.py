"""What sampling costs: the arithmetic, and the measurement of what a tick's delivery takes."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import select
import subprocess
import sys
import time
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_attach_run import CLOCKS, Spawn

from pyattach.attacher import delivery, sampling
from pyattach.attacher.contract import Options, Progress
from pyattach.attacher.delivery import DeliveryCost
from pyattach.attacher.overhead import bucket_cycles, own_cpu_lap_s, percentile_cycles
from pyattach.attacher.sampling import Session
from pyattach.attacher.target import TargetProcess
from pyattach.inject.layout import COSTS, COSTS_FROM

PATIENCE = 20
"""So many tries, or seconds: where others want the processors all the time, nothing can be measured."""
BUCKETS = [bucket_cycles(bucket) for bucket in range(COSTS)]


def summed(tables: Iterable[list[int]]) -> list[int]:
    return [sum(column) for column in zip(*tables, strict=True)]


@pytest.fixture
def unmeasured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delivery, "_measured", {})
    monkeypatch.setattr(delivery, "_tried", set())


def test_buckets_follow_each_other_and_get_wider_by_a_quarter() -> None:
    assert BUCKETS[0] == (0, 1 << COSTS_FROM)
    assert all(low + width == behind for (low, width), (behind, _) in itertools.pairwise(BUCKETS))
    assert all(width * 4 <= low < width * 8 for low, width in BUCKETS[1:])


@given(st.lists(st.integers(0, 5), min_size=COSTS, max_size=COSTS).filter(any), st.floats(0, 1))
def test_a_percentile_leaves_so_many_below(counts: list[int], share: float) -> None:
    cycles = percentile_cycles(counts, share)
    below = sum(n for n, (low, width) in zip(counts, BUCKETS, strict=True) if low + width <= cycles)
    reached = sum(n for n, (low, _) in zip(counts, BUCKETS, strict=True) if low <= cycles)
    assert below <= share * sum(counts) + 1e-6
    assert reached >= share * sum(counts) - 1e-6


def test_every_sample_is_in_a_bucket_and_none_in_a_wrong_one(spawn: Spawn) -> None:
    taken = 0

    def note(progress: Progress) -> None:
        nonlocal taken
        taken = progress.ticks

    with spawn("split") as target, TargetProcess(target.pid) as process:
        session = Session(process, Options(rate_hz=200))
        session.load()
        try:
            session.sample(lambda: taken > 100, note)
            session.detach()
            counts = summed(map(session.shared.costs_of, session.threads.used_numbers))
            slots = session.threads.used(session.shared.slots)
            samples, ticks, cycles = (
                sum(int(getattr(slot, name)) for slot in slots) for name in ("samples", "ticks", "cycles")
            )
            del slots  # views of the mapping
            assert sum(counts) == samples > 100
            assert ticks + int(session.shared.control.process_ticks) >= samples
            assert sum(n * low for n, (low, _) in zip(counts, BUCKETS, strict=True)) <= cycles
        finally:
            session.close()


@pytest.mark.parametrize("clock", CLOCKS)
def test_a_tick_is_measured_once(unmeasured: None, clock: str) -> None:
    for _ in range(PATIENCE):
        delivery._tried.clear()
        measurement = DeliveryCost(clock)
        measurement.finish()
        if measurement.cost is not None:
            break
        assert measurement.held_up, "it was not, though it had a processor for itself"
    else:
        return  # all processors are busy all the time
    assert measurement.cost.own_ns < 10_000_000 and measurement.cost.process_ns < 10_000_000
    assert measurement.child_cpu_s > 0
    again = DeliveryCost(clock)
    again.look()
    again.finish()
    assert again.cost is measurement.cost and again.child_cpu_s == 0


def test_it_is_measured_meanwhile(unmeasured: None) -> None:
    measurement = DeliveryCost("timer")

    end = time.monotonic() + PATIENCE
    while measurement.cost is None and time.monotonic() < end:
        measurement.look()
        time.sleep(0.01)
    measurement.abandon()
    assert measurement.cost is not None or measurement.held_up


def test_the_child_that_measures_keeps_nothing_open(unmeasured: None) -> None:
    """Not an event that ticks, not the target's memory."""
    read, write = os.pipe()
    measurement = DeliveryCost("timer")
    measurement.look()
    try:
        os.close(write)
        assert select.select([read], [], [], 0)[0], "somebody else holds the other end"
        assert os.read(read, 1) == b""
    finally:
        os.close(read)
        measurement.abandon()


def test_where_no_more_processes_may_be_it_is_not_measured(
    unmeasured: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The session goes on without: its profile is worth more."""

    def refused() -> int:
        raise BlockingIOError(errno.EAGAIN, "the container's limit")

    monkeypatch.setattr(os, "fork", refused)
    open_before = os.listdir("/proc/self/fd")
    measurement = DeliveryCost("timer")
    measurement.look()
    measurement.finish()
    assert measurement.cost is None and measurement.child_cpu_s == 0
    assert os.listdir("/proc/self/fd") == open_before


def test_own_cpu_time_is_counted_once_and_a_fork_begins_anew() -> None:
    earliest_s = time.process_time()
    own_cpu_lap_s()
    begin_s = time.process_time()
    while time.process_time() < begin_s + 0.01:
        pass
    end_s = time.process_time()
    lap_s = own_cpu_lap_s()
    after_s = time.process_time()
    assert end_s - begin_s <= lap_s <= after_s - earliest_s
    assert 0 <= own_cpu_lap_s() <= time.process_time() - end_s
    child = os.fork()
    if not child:
        os._exit(not 0 <= own_cpu_lap_s() <= time.process_time())
    assert os.waitpid(child, 0)[1] == 0


def test_own_cpu_time_is_that_until_the_target_is_left(spawn: Spawn, monkeypatch: pytest.MonkeyPatch) -> None:
    """What names take after that is neither this session's sampling nor the next one's start."""
    events: list[str] = []

    def lap_s() -> float:
        events.append("lap")
        return float(len(events))

    monkeypatch.setattr(sampling, "own_cpu_lap_s", lap_s)
    complete_names = Session._complete_names

    def named(session: Session) -> None:
        events.append("names")
        complete_names(session)

    monkeypatch.setattr(Session, "_complete_names", named)
    with spawn("split") as target, TargetProcess(target.pid) as process:
        session = Session(process, Options())
        session.load()
        try:
            session.sample(lambda: True, lambda _progress: None)
            events.append("sampled")
            session.detach()
            measured_s = session.delivery.child_cpu_s
            meta = session.profile().meta
        finally:
            session.close()
    assert events == ["lap", "sampled", "lap", "names", "lap"]
    assert (meta.own_startup_cpu_s, meta.own_sampling_cpu_s) == (1.0, 3.0 + measured_s)


TICKS_OF_ITS_OWN = """
import ctypes, signal
from pyattach.inject.outside import library
pairs = (ctypes.c_uint64 * 128)()
count = library().pa_delivery(signal.SIGPROF, 8_000_000, 4_000_000, 300_000_000, 64, ctypes.addressof(pairs))
took = sorted(pairs[: 2 * count : 2])
print(took[count * 3 // 4] if count else 0)
"""


@pytest.mark.parametrize("others", [1, 3])
def test_what_others_do_with_the_processor_is_no_delivery(others: int) -> None:
    """With one, they take turns from one of the kernel's ticks to the next."""
    processors = os.sched_getaffinity(0)
    with contextlib.ExitStack() as undo:
        undo.callback(os.sched_setaffinity, 0, processors)
        os.sched_setaffinity(0, {min(processors)})
        for _ in range(others):
            hog = undo.enter_context(subprocess.Popen([sys.executable, "-c", "while True: pass"]))
            undo.callback(hog.kill)
        for _ in range(3):
            third_quartile_ns = subprocess.check_output([sys.executable, "-c", TICKS_OF_ITS_OWN])
            assert int(third_quartile_ns) < 1_000_000
