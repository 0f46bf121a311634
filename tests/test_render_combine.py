"""Several profiles as one: what is added up, and what is a mean of what."""

from __future__ import annotations

from dataclasses import Field, fields, replace

import pytest

from pyattach.render.combine import OF_THE_FIRST, below, combined
from pyattach.render.profile import Meta, Profile, Thread
from pyattach.symbols.frame import Frame, FrameKind

MAIN, WORK = (Frame(name, "target", FrameKind.USER) for name in ("main", "work"))


def profile(ticks: int, **meta: object) -> Profile:
    weights = {(1, (MAIN, WORK)): ticks, (2, (MAIN,)): 1}
    return Profile(Meta(**meta), {1: Thread(1, "a")}, weights)  # type: ignore[arg-type]


def test_weights_and_counts_are_added_up() -> None:
    one = profile(3, samples=4, dropped=1, truncated=2, truncated_by=(("why", 2),), cpu_time_s=1.0)
    two = profile(7, samples=8, unresolved=3, truncated=5, truncated_by=(("too", 1), ("why", 4)))
    both = combined([one, two])
    assert both.weights == {(1, (MAIN, WORK)): 10, (2, (MAIN,)): 2}
    assert (both.meta.samples, both.meta.dropped, both.meta.unresolved) == (12, 1, 3)
    assert (both.meta.truncated, both.meta.truncated_by) == (7, (("why", 6), ("too", 1)))
    assert both.meta.cpu_time_s == 1.0


def test_shares_and_rates_are_means_over_what_was_measured() -> None:
    one = profile(1, cpu_time_s=1.0, handler_share=0.01, rate_reached_hz=90.0, samples=100)
    two = profile(1, cpu_time_s=3.0, handler_share=0.03, samples=300, handler_ns_per_sample=5000.0)
    three = profile(1, samples=9)
    meta = combined([one, two, three]).meta
    assert meta.handler_share == pytest.approx(0.025)
    assert meta.rate_reached_hz == pytest.approx(90)
    assert meta.handler_ns_per_sample == pytest.approx(5000)
    assert combined([three, three]).meta.handler_share is None


def test_what_sampling_costs_is_added_up() -> None:
    one = profile(
        1, started_at_unix_s=10, duration_s=5, overhead_of_wall=0.02, samples=100,
        handler_percentiles_ns=(1000.0, 9000.0), own_startup_cpu_s=0.1, own_sampling_cpu_s=0.5,
    )  # fmt: skip
    two = profile(
        1, started_at_unix_s=10, duration_s=10, overhead_of_wall=0.01, samples=300,
        handler_percentiles_ns=(2000.0, 5000.0), own_startup_cpu_s=0.2, own_sampling_cpu_s=0.5,
    )  # fmt: skip
    meta = combined([one, two, profile(1, started_at_unix_s=10)]).meta
    assert meta.overhead_of_wall == pytest.approx((0.02 * 5 + 0.01 * 10) / 10)
    assert meta.handler_percentiles_ns == (1750.0, 9000.0)
    assert meta.own_startup_cpu_s == pytest.approx(0.3)
    assert meta.own_sampling_cpu_s == 1.0


A_VALUE_OF = {
    "str": "other",
    "int": 7,
    "int | None": 7,
    "float": 7.0,
    "float | None": 7.0,
    "tuple[float, float] | None": (7.0, 7.0),
    "tuple[str, ...]": ("other",),
    "tuple[tuple[str, int], ...]": (("other", 7),),
    "tuple[tuple[str, str], ...]": (("other", "7"),),
}


@pytest.mark.parametrize("field", fields(Meta), ids=lambda field: field.name)
def test_what_is_measured_is_of_all_parts(field: Field[object]) -> None:
    """Each field is made of those of all parts, or it is one of those of which it is said that it is not."""
    one = profile(1, cpu_time_s=1.0, samples=1, duration_s=1.0)
    two = replace(one, meta=replace(one.meta, **{field.name: A_VALUE_OF[str(field.type)]}))
    same, other = (getattr(combined([one, second]).meta, field.name) for second in (one, two))
    assert (same == other) == (field.name in OF_THE_FIRST)


def test_waiting_samples_are_added_up() -> None:
    one, two = (profile(1, mode="wall", samples=n + 10, waiting=n) for n in (90, 890))
    meta = combined([one, two]).meta
    assert (meta.samples, meta.waiting) == (1000, 980)
    assert combined([profile(1)]).meta.waiting is None


def test_ticks_are_added_up_where_they_are_known() -> None:
    one, two = (replace(profile(1), meta=replace(profile(1).meta, ticks=n)) for n in (50, 300))
    assert combined([one, two]).meta.ticks == 350
    assert combined([profile(1)]).meta.ticks is None


def test_the_duration_is_from_the_first_begin_to_the_last_end() -> None:
    spans = [profile(1, started_at_unix_s=start, duration_s=length) for start, length in ((10, 5), (12, 9))]
    assert combined(spans).meta.duration_s == 11
    assert combined([*spans, profile(1, duration_s=2)]).meta.duration_s == 16


def test_notes_once_each_and_not_too_many() -> None:
    one, two = profile(1, notes=("a", "b"), ended_by="x"), profile(1, notes=("b", "c"), ended_by="y")
    meta = combined([one, two]).meta
    assert (meta.notes, meta.ended_by) == (("a", "b", "c"), "y")
    many = combined([profile(1, notes=(f"{n}",)) for n in range(30)]).meta.notes
    assert (len(many), many[-1]) == (21, "10 more notes are left out")


def test_below_a_root() -> None:
    root = Frame("17 prog", "", FrameKind.MARK)
    assert below(profile(2), root).weights == {(1, (root, MAIN, WORK)): 2, (2, (root, MAIN)): 1}


def test_nothing_to_combine() -> None:
    with pytest.raises(ValueError, match="nothing"):
        combined([])
