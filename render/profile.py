"""The profile as all renderers see it: immutable once built, root first, weights in ticks."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterator, Mapping

from ..symbols.frame import Frame

Stack = tuple[Frame, ...]
"""Frames from the root (outermost caller) to the leaf (where the tick hit)."""


@dataclasses.dataclass(frozen=True, slots=True)
class Thread:
    """A thread of the target: its kernel id and the name it had when last seen (untrusted)."""

    tid: int
    name: str


@dataclasses.dataclass(frozen=True, slots=True)
class Meta:
    """What was measured, and how well.  ``None`` means: not measured, so not shown.

    ``samples`` counts periods of CPU time, ``ticks`` the samples that were really taken: a late one stands
    for several periods.  ``truncated`` counts those whose stack did not reach the thread's first function,
    and ``truncated_by`` splits them by reason.  ``rate_reached_hz`` is ticks per second of CPU time of
    the sampled threads.  Shares (0.01 = 1%) are of that CPU time: ``handler_share`` inside the signal
    handler, ``delivery_share`` the calibrated cost of the kernel's signal delivery.

    ``mode`` is "cpu", "wall" or "heap".  A wall profile also holds ``waiting`` samples of threads that slept
    in the kernel, and its ``rate_reached_hz`` is looks per second; a sample of any kind is one period.

    In a profile of the heap (``mode`` "heap") weights are in ``unit``, "bytes" or "blocks"; ``kind`` says
    which ones, and ``rows`` are its own facts, as label and value.
    """

    command: str = ""
    pid: int = 0
    mode: str = "cpu"
    rate_asked_hz: float = 0.0
    rate_reached_hz: float | None = None
    started_at_unix_s: float | None = None
    duration_s: float = 0.0
    cpu_time_s: float | None = None
    samples: int = 0
    dropped: int = 0
    truncated: int = 0
    unresolved: int = 0
    handler_share: float | None = None
    handler_ns_per_sample: float | None = None
    held_us: float | None = None
    ended_by: str = ""
    version: str = ""
    notes: tuple[str, ...] = ()
    delivery_share: float | None = None
    truncated_by: tuple[tuple[str, int], ...] = ()
    ticks: int | None = None
    clock: str = ""
    waiting: int | None = None
    unit: str = "samples"
    kind: str = ""
    rows: tuple[tuple[str, str], ...] = ()


@dataclasses.dataclass(frozen=True)
class Profile:
    """Samples of one session: ``weights[(tid, stack)]`` is the ticks that stack got on that thread."""

    meta: Meta
    threads: Mapping[int, Thread]
    weights: Mapping[tuple[int, Stack], int]

    @property
    def total(self) -> int:
        """All ticks."""
        return sum(self.weights.values())

    def merged(self) -> dict[Stack, int]:
        """Ticks by stack, all threads together."""
        out: collections.Counter[Stack] = collections.Counter()
        for (_tid, stack), weight in self.weights.items():
            out[stack] += weight
        return dict(out)

    def by_thread(self) -> Iterator[tuple[Thread, dict[Stack, int]]]:
        """Ticks by stack for each thread, the busiest thread first."""
        split: dict[int, dict[Stack, int]] = {}
        for (tid, stack), weight in self.weights.items():
            of_thread = split.setdefault(tid, {})
            of_thread[stack] = of_thread.get(stack, 0) + weight
        for tid in sorted(split, key=lambda tid: (-sum(split[tid].values()), tid)):
            yield self.threads.get(tid, Thread(tid, "")), split[tid]


@dataclasses.dataclass(frozen=True, slots=True)
class FunctionRow:
    """One function over all stacks.  ``self_ticks``: it was the leaf; ``total_ticks``: it was anywhere
    on the stack (counted once per stack, however often it recurs)."""

    frame: Frame
    self_ticks: int
    total_ticks: int


class FunctionTotals:
    """Self and total ticks by function, added to stack by stack (live view and text share it)."""

    def __init__(self) -> None:
        self._self: collections.Counter[Frame] = collections.Counter()
        self._total: collections.Counter[Frame] = collections.Counter()
        self.ticks = 0

    def add(self, stack: Stack, weight: int) -> None:
        """Count ``weight`` ticks for ``stack``."""
        self.ticks += weight
        if stack:
            self._self[stack[-1]] += weight
        for frame in set(stack):
            self._total[frame] += weight

    def rows(self, limit: int, *, by_total: bool = False) -> list[FunctionRow]:
        """The ``limit`` heaviest functions, by self ticks or by total; ties in order of name."""
        table, other = (self._total, self._self) if by_total else (self._self, self._total)
        order = sorted(self._total, key=lambda f: (-table[f], -other[f], f.name, f.module))
        return [FunctionRow(f, self._self[f], self._total[f]) for f in order[:limit]]


def totals_of(profile: Profile) -> FunctionTotals:
    """Function totals of a whole profile, all threads together."""
    totals = FunctionTotals()
    for stack, weight in profile.merged().items():
        totals.add(stack, weight)
    return totals
