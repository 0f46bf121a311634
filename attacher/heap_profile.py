"""What the heap's tables say, as profiles: bytes or blocks by stack, for each kind of question."""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Callable

from ..inject.heap_layout import NO_STACK
from ..inject.layout import End
from ..render.profile import Meta, Profile, Stack
from ..symbols.address import ReturnAddress
from ..symbols.frame import TRUNCATED, Frame, FrameKind
from ..symbols.resolver import Resolver
from .heap_tables import HeapTables, SiteCounts

KINDS: dict[str, tuple[str, Callable[[SiteCounts], int]]] = {
    "allocated": ("allocated, freed or not", lambda counts: counts.allocs),
    "live": ("allocated and not freed", lambda counts: max(0, counts.live)),
    "peak": ("live when the live bytes were highest", lambda counts: max(0, counts.at_peak)),
    "temporary": ("freed before their thread allocated anything else", lambda counts: counts.temporary),
}
"""What is asked: in words, and blocks of a site."""

UNITS = ("bytes", "blocks")

_UNRECORDED = Frame("[stack not recorded: no room]", "", FrameKind.UNKNOWN)


@dataclasses.dataclass(frozen=True)
class Amount:
    """Bytes and blocks; where allocations were sampled, estimates with their standard errors."""

    size: float = 0.0
    blocks: float = 0.0
    size_error: float = 0.0
    blocks_error: float = 0.0


class HeapResult:
    """All sites with their counts and stacks.  ``sample_bytes``: as in the plan."""

    def __init__(self, tables: HeapTables, resolver: Resolver, sample_bytes: int) -> None:
        tables.update()
        self.tables, self._resolver, self._sample_bytes = tables, resolver, sample_bytes
        self.counts = tables.counts()
        self._stacks: dict[int, Stack] = {}

    def amount(self, kind: str) -> Amount:
        """All of that kind."""
        total = [0.0] * 4
        for site, counts in self.counts.items():
            size, _ = self.tables.site(site)
            n = KINDS[kind][1](counts)
            scale, variance = self._scale(size)
            for i, value in enumerate((n * size * scale, n * scale, n * variance * size**2, n * variance)):
                total[i] += value
        return Amount(total[0], total[1], math.sqrt(total[2]), math.sqrt(total[3]))

    def weights(self, kind: str, unit: str) -> dict[tuple[int, Stack], int]:
        """By (0, stack), root first: threads are not told apart."""
        sums: collections.defaultdict[Stack, float] = collections.defaultdict(float)
        for site, counts in self.counts.items():
            size, node = self.tables.site(site)
            n = KINDS[kind][1](counts)
            if n:
                scale, _ = self._scale(size)
                sums[self.stack(node)] += n * scale * (size if unit == "bytes" else 1)
        return {(0, stack): round(value) for stack, value in sums.items() if round(value)}

    def _scale(self, size: int) -> tuple[float, float]:
        """What a recorded block stands for, and the variance it adds: it was recorded with a probability
        of 1 - exp(-size / mean) (Horvitz and Thompson)."""
        if not self._sample_bytes:
            return 1.0, 0.0
        p = -math.expm1(-max(size, 1e-9) / self._sample_bytes)
        return 1 / p, (1 - p) / p**2

    def stack(self, node: int) -> Stack:
        """Its frames, root first."""
        if node not in self._stacks:
            self._stacks[node] = self._resolve(node)
        return self._stacks[node]

    def _resolve(self, node: int) -> Stack:
        addresses, root = self.tables.stack(node)
        frames = [self._resolver.resolve(ReturnAddress(address)) for address in reversed(addresses)]
        if root == NO_STACK:
            return (_UNRECORDED, *frames)
        return tuple(frames) if root == 1 + End.ROOT else (TRUNCATED, *frames)

    def count_truncated(self) -> int:
        """Recorded allocations whose stack does not begin at a thread's first function."""
        return sum(
            counts.allocs
            for site, counts in self.counts.items()
            if (stack := self.stack(self.tables.site(site)[1])) and stack[0] in (TRUNCATED, _UNRECORDED)
        )

    def profile(self, meta: Meta, kind: str, unit: str) -> Profile:
        """For the renderers."""
        weights = self.weights(kind, unit)
        meta = dataclasses.replace(meta, mode="heap", kind=f"{unit} {KINDS[kind][0]}", unit=unit)
        return Profile(meta, {}, weights)
