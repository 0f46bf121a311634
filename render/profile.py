"""The profile as all renderers see it: immutable once built, root first, weights in ticks."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
from collections.abc import Iterator, Mapping, Sequence

from ..symbols.frame import Frame
from .thread import Thread as Thread


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """Without the search for garbage in cycles: where millions of tuples are made and no cycle, it takes
    most of the time."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


Stack = tuple[Frame, ...]
"""Frames from the root (outermost caller) to the leaf (where the tick hit)."""


@dataclasses.dataclass(frozen=True, slots=True)
class Meta:
    """What was measured, and how well.  ``None`` means: not measured, so not shown.

    ``samples`` counts periods of CPU time, ``ticks`` the samples that were really taken: a late one stands
    for several periods.  ``truncated`` counts those whose stack did not reach the thread's first function,
    and ``truncated_by`` splits them by reason.  ``rate_reached_hz`` is ticks per second of CPU time of
    the sampled threads.  Shares (0.01 = 1%) are of that CPU time: ``handler_share`` inside the signal
    handler, ``delivery_share`` the calibrated cost of the kernel's signal delivery; ``overhead_of_wall`` is
    both as a share of the time that passed.  ``handler_ns_per_sample`` is a mean, with the time that handlers
    waited for a processor; ``handler_percentiles_ns`` p50 and p99.  ``own_..._cpu_s`` is CPU time of pyattach
    itself, until all that it needs was imported, and from then until the target was let go of.

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
    handler_percentiles_ns: tuple[float, float] | None = None
    delivery_ns_per_tick: float | None = None
    overhead_of_wall: float | None = None
    own_startup_cpu_s: float | None = None
    own_sampling_cpu_s: float | None = None
    unit: str = "samples"
    kind: str = ""
    rows: tuple[tuple[str, str], ...] = ()


@dataclasses.dataclass(frozen=True)
class Timeline:
    """When the samples were taken: columns, in the order in which they came.  Times are seconds from the
    begin of the session; ``stack_at`` are indices into ``stacks``."""

    times_s: Sequence[float]
    tids: Sequence[int]
    stack_at: Sequence[int]
    ticks: Sequence[int]
    stacks: Sequence[Stack]

    def samples(self) -> Iterator[tuple[float, int, Stack, int]]:
        """Time, thread, stack and ticks of each sample."""
        for time_s, tid, at, ticks in zip(self.times_s, self.tids, self.stack_at, self.ticks, strict=True):
            yield time_s, tid, self.stacks[at], ticks


@dataclasses.dataclass(frozen=True)
class Column:
    """A measure of the same stacks: pprof's name for it ("inuse_space"), its unit ("bytes", "count")."""

    name: str
    unit: str
    weights: Mapping[tuple[int, Stack], int]


@dataclasses.dataclass(frozen=True)
class Profile:
    """Samples of one session: ``weights[(tid, stack)]`` is the ticks that stack got on that thread.
    ``timeline``: the same one by one, where that was kept.  ``columns``: all that was measured of these
    stacks, where that is more than one thing, what the weights are first."""

    meta: Meta
    threads: Mapping[int, Thread]
    weights: Mapping[tuple[int, Stack], int]
    timeline: Timeline | None = None
    columns: tuple[Column, ...] = ()

    @property
    def total(self) -> int:
        """All ticks."""
        return sum(self.weights.values())

    def merged(self) -> dict[Stack, int]:
        """Ticks by stack, all threads together."""
        out: dict[Stack, int] = {}
        for (_tid, stack), weight in self.weights.items():
            out[stack] = out.get(stack, 0) + weight
        return out

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
    """Self and total ticks by function, added to stack by stack (live view and text share it).

    ``by_line``: by function and line of the source.
    """

    def __init__(self, *, by_line: bool = False) -> None:
        self._by_line = by_line
        self._number: dict[int, int] = {}  # by identity: hashing a Frame costs more than all else here
        self._of_frame: dict[Frame, int] = {}
        self._seen: list[Frame] = []  # keeps the identities valid
        self._self: list[int] = []
        self._total: list[int] = []
        self._lines: dict[int, dict[str, int]] = {}  # by function: ticks of each of its lines
        self._with_line: dict[int, tuple[int, str]] = {}  # by identity: function and line
        self.ticks = 0

    def add(self, stack: Stack, weight: int) -> None:
        """Count ``weight`` ticks for ``stack``; a negative weight takes off what was counted before."""
        self.ticks += weight
        number = self._number
        for key, frame in zip(map(id, stack), stack, strict=True):
            if key not in number:
                self._meet(frame)
        if stack:
            self._self[number[id(stack[-1])]] += weight
        for index in {number[key] for key in map(id, stack)}:
            self._total[index] += weight
        if self._with_line:
            for function, line in {self._with_line[key] for key in map(id, stack) if key in self._with_line}:
                self._lines[function][line] = self._lines[function].get(line, 0) + weight

    def _meet(self, frame: Frame) -> None:
        self._seen.append(frame)
        has_line = bool(frame.line) and not self._by_line
        whole = dataclasses.replace(frame, line="") if has_line else frame
        index = self._of_frame.setdefault(whole, len(self._of_frame))
        self._number[id(frame)] = index
        if has_line:
            self._with_line[id(frame)] = (index, frame.line)
            self._lines.setdefault(index, {})
        if index == len(self._self):
            self._self.append(0)
            self._total.append(0)

    def rows(self, limit: int, *, by_total: bool = False) -> list[FunctionRow]:
        """The ``limit`` heaviest functions, by self ticks or by total; ties in order of name."""
        key, other = (self._total, self._self) if by_total else (self._self, self._total)
        order = sorted(
            (item for item in self._of_frame.items() if self._total[item[1]]),
            key=lambda f: (-key[f[1]], -other[f[1]], f[0].name, f[0].module, f[0].line),
        )
        return [
            FunctionRow(self._shown(frame, i), self._self[i], self._total[i]) for frame, i in order[:limit]
        ]

    def _shown(self, frame: Frame, index: int) -> Frame:
        """With the line that most of its ticks are at."""
        lines = {line: ticks for line, ticks in self._lines.get(index, {}).items() if ticks}
        if not lines:
            return frame
        return dataclasses.replace(frame, line=min(lines, key=lambda line: (-lines[line], line)))


def totals_of(profile: Profile) -> FunctionTotals:
    """Function totals of a whole profile, all threads together."""
    totals = FunctionTotals()
    for stack, weight in profile.merged().items():
        totals.add(stack, weight)
    return totals
