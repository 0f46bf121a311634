"""Several profiles as one: of the programs a process ran one after the other, or of several processes."""

from __future__ import annotations

import array
import collections
import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from ..symbols.frame import Frame
from .profile import Meta, Profile, Stack, Thread, Timeline

_MOST_NOTES = 20

OF_THE_FIRST = frozenset(
    {
        *("command", "pid", "started_at_unix_s"),  # what was attached to
        *("mode", "rate_asked_hz", "version", "unit", "kind"),  # as was asked for: the same for all
        "clock",  # "auto" may choose another one for another process: it is not worth a word
        "rows",  # of a profile of the heap, and those are never combined
    }
)
"""What a combined profile says of itself as the first of its parts does."""


def combined(profiles: Sequence[Profile]) -> Profile:
    """Weights and counts are added up; shares and rates are means, weighted by what they are shares of
    and over the profiles where they were measured.  All else is of the first, ``ended_by`` of the last.
    Raises ValueError where there is none."""
    if not profiles:
        raise ValueError("nothing to combine")
    threads: dict[int, Thread] = {}
    weights: collections.Counter[tuple[int, Stack]] = collections.Counter()
    for profile in profiles:
        threads.update(profile.threads)
        weights.update(profile.weights)
    meta = _combined_meta([profile.meta for profile in profiles])
    return Profile(meta, threads, dict(weights), _combined_timeline(profiles))


def below(profile: Profile, root: Frame) -> Profile:
    """The same with ``root`` as the outermost frame of every stack."""
    weights = {(tid, (root, *stack)): ticks for (tid, stack), ticks in profile.weights.items()}
    timeline = profile.timeline
    if timeline is not None:
        timeline = dataclasses.replace(timeline, stacks=[(root, *stack) for stack in timeline.stacks])
    return dataclasses.replace(profile, weights=weights, timeline=timeline)


def _combined_timeline(profiles: Sequence[Profile]) -> Timeline | None:
    """Of the first one's clock, where all have a timeline and their begins are known."""
    first = profiles[0].meta.started_at_unix_s
    times_s, tids, stack_at, ticks = array.array("d"), array.array("q"), array.array("q"), array.array("q")
    stacks: list[Stack] = []
    for profile in profiles:
        timeline, start = profile.timeline, profile.meta.started_at_unix_s
        if timeline is None or start is None or first is None:
            return None
        times_s.extend(time_s + start - first for time_s in timeline.times_s)
        tids.extend(timeline.tids)
        stack_at.extend(at + len(stacks) for at in timeline.stack_at)
        ticks.extend(timeline.ticks)
        stacks += timeline.stacks
    return Timeline(times_s, tids, stack_at, ticks, stacks)


def _combined_meta(metas: list[Meta]) -> Meta:
    cpu = [meta.cpu_time_s for meta in metas if meta.cpu_time_s is not None]
    held = [meta.held_us for meta in metas if meta.held_us is not None]
    reasons: collections.Counter[str] = collections.Counter()
    for meta in metas:
        reasons.update(dict(meta.truncated_by))
    return dataclasses.replace(
        metas[0],
        rate_reached_hz=_mean((meta.rate_reached_hz, meta.cpu_time_s) for meta in metas),
        duration_s=_duration_s(metas),
        cpu_time_s=sum(cpu) if cpu else None,
        samples=_sum(metas, lambda meta: meta.samples),
        dropped=_sum(metas, lambda meta: meta.dropped),
        truncated=_sum(metas, lambda meta: meta.truncated),
        unresolved=_sum(metas, lambda meta: meta.unresolved),
        handler_share=_mean((meta.handler_share, meta.cpu_time_s) for meta in metas),
        handler_ns_per_sample=_mean((meta.handler_ns_per_sample, meta.samples) for meta in metas),
        held_us=max(held, default=None),
        ended_by=metas[-1].ended_by,
        notes=_notes(metas),
        delivery_share=_mean((meta.delivery_share, meta.cpu_time_s) for meta in metas),
        truncated_by=tuple(reasons.most_common()),
        ticks=_sum_known(meta.ticks for meta in metas),
        waiting=_sum_known(meta.waiting for meta in metas),
        handler_percentiles_ns=_percentiles_ns(metas),
        delivery_ns_per_tick=_mean((meta.delivery_ns_per_tick, meta.samples) for meta in metas),
        overhead_of_wall=_of_wall(metas),
        own_startup_cpu_s=_sum_known(meta.own_startup_cpu_s for meta in metas),
        own_sampling_cpu_s=_sum_known(meta.own_sampling_cpu_s for meta in metas),
    )


def _sum(metas: list[Meta], count: Callable[[Meta], int]) -> int:
    return sum(map(count, metas))


_Number = TypeVar("_Number", int, float)


def _sum_known(values: Iterable[_Number | None]) -> _Number | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def _percentiles_ns(metas: list[Meta]) -> tuple[float, float] | None:
    """p50: a mean, as there is no better one without the samples; p99: of the worst."""
    known = [meta for meta in metas if meta.handler_percentiles_ns is not None]
    pairs = [meta.handler_percentiles_ns for meta in known if meta.handler_percentiles_ns is not None]
    p50_ns = _mean((pair[0], meta.samples) for pair, meta in zip(pairs, known, strict=True))
    return None if p50_ns is None else (p50_ns, max(pair[1] for pair in pairs))


def _of_wall(metas: list[Meta]) -> float | None:
    """What all took together, of the time from the first begin to the last end."""
    taken_s = [m.overhead_of_wall * m.duration_s for m in metas if m.overhead_of_wall is not None]
    duration_s = _duration_s(metas)
    return sum(taken_s) / duration_s if taken_s and duration_s else None


def _notes(metas: list[Meta]) -> tuple[str, ...]:
    notes = tuple(dict.fromkeys(note for meta in metas for note in meta.notes))
    more = (f"{len(notes) - _MOST_NOTES} more notes are left out",) if len(notes) > _MOST_NOTES else ()
    return notes[:_MOST_NOTES] + more


def _mean(values: Iterable[tuple[float | None, float | None]]) -> float | None:
    """The mean of (value, weight) pairs where both are known; None where none are."""
    known = [(value, weight) for value, weight in values if value is not None and weight]
    whole = sum(weight for _, weight in known)
    return sum(value * weight for value, weight in known) / whole if whole else None


def _duration_s(metas: list[Meta]) -> float:
    """From the first begin to the last end, where the begins are known."""
    spans = [(m.started_at_unix_s, m.duration_s) for m in metas]
    begins = [start for start, _ in spans if start is not None]
    if len(begins) < len(spans):
        return sum(meta.duration_s for meta in metas)
    return max(start + length for start, length in spans if start is not None) - min(begins)
