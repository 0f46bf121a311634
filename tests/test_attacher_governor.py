"""When the rate is lowered and by how much; and that a sample then stands for more ticks."""

from __future__ import annotations

import time

import pytest
from test_attach_run import Spawn, cpu_time_s, wait_for

from pyattach.attacher.contract import Options
from pyattach.attacher.governor import MOST_TIMES, RateGovernor
from pyattach.attacher.overhead import Overhead
from pyattach.attacher.sampling import Session
from pyattach.attacher.target import TargetProcess


class Sums:
    """Looks of a second of CPU time each, of which the handlers took ``share``."""

    def __init__(self, limit: float | None) -> None:
        self.governor = RateGovernor(limit)
        self.handler_ns = self.cpu_s = 0.0
        self.delivery_ns: float | None = None
        self.look(0.0, 0.0)

    def look(self, share: float, cpu_s: float = 1.0) -> bool:
        self.cpu_s += cpu_s
        self.handler_ns += share * cpu_s * 1e9
        return self.governor.lowers(Overhead(self.handler_ns, self.delivery_ns), self.cpu_s)


def test_below_the_limit_nothing_changes() -> None:
    sums = Sums(0.01)
    assert not any(sums.look(0.0099) for _ in range(9))
    assert sums.governor.factor == 1
    assert sums.governor.notes(99, 100, 1.0) == []


def test_without_a_limit_nothing_changes() -> None:
    sums = Sums(None)
    assert not any(sums.look(0.5) for _ in range(9))


@pytest.mark.parametrize(
    ("share", "factor"), [(0.011, 2), (0.02, 2), (0.021, 4), (0.1, 16), (0.9, MOST_TIMES)]
)
def test_it_is_lowered_by_what_is_needed_and_in_powers_of_two(share: float, factor: int) -> None:
    sums = Sums(0.01)
    assert [sums.look(share), sums.look(share)] == [False, True]
    assert sums.governor.factor == factor


def test_one_bad_window_is_none() -> None:
    sums = Sums(0.01)
    assert not any(sums.look(share) for share in (0.5, 0.001, 0.5, 0.001))


def test_the_better_window_decides() -> None:
    sums = Sums(0.01)
    sums.look(0.5)
    assert sums.look(0.015)
    assert sums.governor.factor == 2


def test_after_a_change_it_looks_anew_and_lowers_again() -> None:
    sums = Sums(0.01)
    assert [sums.look(0.02) for _ in range(2)] == [False, True]
    assert not sums.look(0.9), "ticks from before the change"
    assert [sums.look(0.03) for _ in range(2)] == [False, True]
    assert sums.governor.factor == 8


def test_little_cpu_time_says_nothing_and_is_added_up() -> None:
    sums = Sums(0.01)
    looks = [sums.look(0.02, cpu_s=0.1) for _ in range(6)]
    assert looks == [False] * 5 + [True]
    assert not sums.governor.lowers(Overhead(None, None), 100.0)


def test_delivery_counts_from_when_it_is_known() -> None:
    sums = Sums(0.01)
    sums.look(0.008)
    sums.delivery_ns = 0.5e9  # of all ticks so far: no part of the next window
    assert not any(sums.look(0.008) for _ in range(3))
    for lowers in (False, True):
        sums.delivery_ns += 0.004e9
        assert sums.look(0.008) == lowers
    assert sums.governor.factor == 2


def test_the_note_says_what_was_reached() -> None:
    sums = Sums(0.005)
    sums.look(0.0099)
    sums.look(0.0099)
    (note,) = sums.governor.notes(99, 600, 10.0)
    assert note.startswith(
        "the rate was lowered to 49.5 Hz to keep the overhead below 0.5%: 600 samples were"
    )
    assert "60.0 Hz of CPU time over all" in note


def test_weights_stay_in_ticks_of_the_rate_asked_for(spawn: Spawn) -> None:
    with spawn("split") as target, TargetProcess(target.pid) as process:
        session = Session(process, Options(rate_hz=200, clock="timer"))
        session.load()
        begin = cpu_time_s(target.pid)
        try:
            for factor in (1, 4, 8):
                session.shared.set_rate_factor(factor)
                until = cpu_time_s(target.pid) + 1.0
                while cpu_time_s(target.pid) < until:
                    session.shared.renew_lease()
                    time.sleep(0.02)
                wait_for("it was taken", lambda f=factor: session.shared.slots[0].factor == f)
            used_s = cpu_time_s(target.pid) - begin
            taken = int(session.shared.slots[0].samples)
            session.detach()
            assert session.store.samples == pytest.approx(200 * used_s, rel=0.1)
            assert taken == pytest.approx(200 * used_s * (1 + 1 / 4 + 1 / 8) / 3, rel=0.2)
            assert (verified := session.verify()) is not None and not verified.left
        finally:
            session.close()
        assert target.finish().startswith("done ")


def test_a_limit_that_no_rate_keeps_lowers_it(spawn: Spawn) -> None:
    options = Options(rate_hz=100, max_overhead=1e-6, duration_s=60)
    with spawn("split") as target, TargetProcess(target.pid) as process:
        session = Session(process, options)
        session.load()
        try:
            session.sample(lambda: session.governor.factor > 1, lambda _progress: None)
            session.detach()
            meta = session.profile().meta
        finally:
            session.close()
        target.finish()
    (note,) = [note for note in meta.notes if "the rate was lowered" in note]
    assert note.startswith("the rate was lowered to 1.562 Hz to keep the overhead below 0.0001%")
    assert meta.samples > 0
