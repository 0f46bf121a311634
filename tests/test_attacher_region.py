"""How the shared memory is divided: parts that never touch, whatever the sizes."""

from __future__ import annotations

import ctypes
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyattach.attacher.clock import TimerClock
from pyattach.attacher.contract import Options
from pyattach.attacher.planning import plan_region
from pyattach.inject.layout import (
    COSTS,
    TICK_TAG,
    WALK_BYTES,
    CacheLine,
    Control,
    Modules,
    Slot,
    State,
    Unwind,
)
from pyattach.inject.region import CACHE_LINES, INDEX_BYTES, PAGE, RegionPlan

PLANS = st.builds(
    RegionPlan,
    period_ns=st.integers(1, 1 << 40),
    slot_count=st.integers(1, 1 << 16),
    max_depth=st.integers(1, 4096),
    ring_words=st.integers(0, 24).map(lambda bit: 1 << bit),
    signal=st.integers(1, 64),
    unwind=st.sampled_from(list(Unwind)),
    flags=st.integers(0, 1),
)


def parts(plan: RegionPlan) -> list[tuple[int, int]]:
    """(start, end) of each part, in the order drawn in shared.h."""
    sizes = [
        (0, ctypes.sizeof(Control)),
        (plan.modules_offset, 2 * ctypes.sizeof(Modules)),
        (plan.index_offset, INDEX_BYTES),
        (plan.cache_offset, CACHE_LINES * ctypes.sizeof(CacheLine)),
        (plan.slots_offset, plan.slot_count * ctypes.sizeof(Slot)),
        (plan.costs_offset, plan.slot_count * COSTS * 4),
        (plan.scratch_offset, plan.slot_count * plan.max_depth * 8),
        (plan.kept_offset, plan.slot_count * WALK_BYTES),
        (plan.ring_offset, plan.ring_words * 8),
    ]
    return [(start, start + size) for start, size in sizes]


@given(PLANS)
def test_parts_do_not_overlap(plan: RegionPlan) -> None:
    where = parts(plan)
    assert all(before[1] <= behind[0] for before, behind in itertools.pairwise(where))
    assert where[-1][1] <= plan.size
    assert all(start % PAGE == 0 for start, _ in where)
    assert plan.size % PAGE == 0
    assert plan.size - sum(end - start for start, end in where) < len(where) * PAGE


@given(PLANS, st.integers(0, (1 << 64) - 1), st.integers(0, (1 << 64) - 1))
def test_the_control_block_says_the_same(plan: RegionPlan, nonce: int, lease: int) -> None:
    control = plan.control(nonce, lease)
    for name in (
        "period_ns slot_count max_depth ring_words signal unwind flags jitter_ns event_base tick_tag "
        "modules_offset index_offset cache_offset slots_offset costs_offset scratch_offset kept_offset "
        "ring_offset tick_ns spare_slots"
    ).split():
        assert getattr(control, name) == getattr(plan, name), name
    assert (control.nonce, control.lease_until_ns, control.region_size) == (nonce, lease, plan.size)
    assert (control.cache_lines, control.state) == (CACHE_LINES, State.RUN)
    assert control.head == control.tail == control.post_seq == control.seen_seq == control.inside == 0


@pytest.mark.parametrize("words", [3, 6, 1000, (1 << 16) + 1])
def test_the_ring_is_a_power_of_two(words: int) -> None:
    with pytest.raises(ValueError, match="power of two"):
        RegionPlan(period_ns=1, slot_count=1, max_depth=1, ring_words=words, signal=27)


def test_two_sessions_ticks_are_told_apart_and_both_known_as_ours() -> None:
    tags = {
        RegionPlan(period_ns=1, slot_count=1, max_depth=1, ring_words=1, signal=27).tick_tag
        for _ in range(64)
    }
    assert len(tags) > 32
    assert {tag >> 16 for tag in tags} == {TICK_TAG >> 16}


@given(rate=st.floats(10, 100_000), threads=st.integers(0, 20_000), depth=st.integers(1, 4096))
def test_a_sessions_plan_has_room(rate: float, threads: int, depth: int) -> None:
    plan = plan_region(Options(rate_hz=rate, max_depth=depth), threads, TimerClock())
    assert plan.slot_count >= max(256, threads * 2)
    # A quarter of a second of one processor's deepest stacks, and any single record by far.
    assert plan.ring_words >= max(4 * (depth + 4), rate / 4 * 64)
    assert plan.period_ns == round(1e9 / rate) > 0
