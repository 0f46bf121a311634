"""What the heap's tables say, as profiles: bytes or blocks by stack, for each kind of question."""

from __future__ import annotations

import array
import dataclasses
import math
from collections.abc import Callable, Mapping

from ..inject.heap_layout import FIRST_ITEM, NO_STACK
from ..inject.layout import End
from ..render.profile import Column, Meta, Profile, Stack
from ..symbols.address import ReturnAddress
from ..symbols.frame import TRUNCATED, Frame, FrameKind
from ..symbols.resolver import Resolver
from .heap_before import OldHeap
from .heap_leaks import Leaks
from .heap_tables import HeapTables, SiteCounts
from .heap_words import BEFORE, LEAKED, UNITS

KINDS: dict[str, tuple[str, Callable[[SiteCounts], int]]] = {
    "allocated": ("allocated, freed or not", lambda counts: counts.allocs),
    "live": ("allocated and not freed", lambda counts: max(0, counts.live)),
    "peak": ("live when the live bytes were highest", lambda counts: max(0, counts.at_peak)),
    "temporary": ("freed before their thread allocated anything else", lambda counts: counts.temporary),
    LEAKED: ("not freed, and nothing in the program leads to them any more", lambda counts: counts.leaked),
    BEFORE: ("already there at the attach, by type and size", lambda _counts: 0),
}
"""What is asked: in words, and blocks of a site.  LEAKED and BEFORE are known only where that was looked
for; what was there BEFORE has no site."""

_PPROF = {"allocated": "alloc", "live": "inuse", "peak": "peak", LEAKED: "leaked"}
"""What pprof calls it; the first two are known to all that read its files."""

_UNRECORDED = Frame("[stack not recorded: no room]", "", FrameKind.UNKNOWN)


@dataclasses.dataclass(frozen=True)
class Amount:
    """Bytes and blocks; where allocations were sampled, estimates with their standard errors."""

    size: float = 0.0
    blocks: float = 0.0
    size_error: float = 0.0
    blocks_error: float = 0.0


@dataclasses.dataclass
class Sums:
    """Of the sites with one stack: bytes and blocks, by kind."""

    size: dict[str, float]
    blocks: dict[str, float]


def _column(kind: str, unit: str, weights: Mapping[tuple[int, Stack], int]) -> Column:
    space = unit == "bytes"
    return Column(f"{_PPROF[kind]}_{'space' if space else 'objects'}", "bytes" if space else "count", weights)


class HeapResult:
    """All sites with their counts and stacks.  ``sample_bytes``: as in the plan; ``leaks``: where they were
    looked for; ``before``: what lay there at the attach.

    Nodes whose frames have the same names are one place.  Places are numbered; 0 is the place of no frames.
    """

    def __init__(
        self,
        tables: HeapTables,
        resolver: Resolver,
        sample_bytes: int,
        leaks: Leaks | None = None,
        before: OldHeap | None = None,
    ) -> None:
        tables.update()
        self.tables, self._resolver, self._sample_bytes = tables, resolver, sample_bytes
        self.counts = tables.counts()
        self.leaks, self.before = leaks, before
        for site, blocks in leaks.blocks.items() if leaks else ():
            self.counts.setdefault(site, SiteCounts()).leaked = blocks
        self._callers: list[tuple[int, Frame]] = [(0, _UNRECORDED)]
        self._place_of = self._places()
        self._sums = self._sum()

    def _places(self) -> array.array[int]:
        """The place of each node.  Callers come before those they call; a node for which that is not so was
        never finished."""
        nodes = self.tables.nodes
        count = len(nodes) // 2
        places = array.array("I", bytes(4 * max(count, FIRST_ITEM)))
        self._whole = bytearray(len(places))
        self._whole[1 + End.ROOT] = 1
        known: dict[tuple[int, int], int] = {}
        numbers: dict[int, tuple[int, Frame]] = {}
        frames: dict[Frame, int] = {}

        def place(caller: int, number: int, frame: Frame) -> int:
            found = known.setdefault((caller, number), len(self._callers))
            if found == len(self._callers):
                self._callers.append((caller, frame))
            return found

        for root in range(FIRST_ITEM):
            if root == NO_STACK:
                places[root] = place(0, -1, _UNRECORDED)
            elif root != 1 + End.ROOT:
                places[root] = place(0, -2, TRUNCATED)
        for node in range(FIRST_ITEM, count):
            address, caller = nodes[2 * node], nodes[2 * node + 1] & 0xFFFF_FFFF
            if address not in numbers:
                frame = self._resolver.resolve_first(ReturnAddress(address))
                numbers[address] = frames.setdefault(frame, len(frames)), frame
            caller = caller if caller < node else 0
            self._whole[node] = self._whole[caller]
            places[node] = place(places[caller], *numbers[address])
        return places

    def _sum(self) -> dict[int, Sums]:
        out: dict[int, Sums] = {}
        for site, counts in self.counts.items():
            size, node = self.tables.site(site)
            scale, _ = self._scale(size)
            place = self._place_of[node] if node < len(self._place_of) else 0
            sums = out.get(place)
            if sums is None:
                sums = out[place] = Sums(dict.fromkeys(KINDS, 0.0), dict.fromkeys(KINDS, 0.0))
            for kind, (_, blocks_of) in KINDS.items():
                blocks = blocks_of(counts) * scale
                sums.blocks[kind] += blocks
                sums.size[kind] += blocks * size
        return out

    @property
    def kinds(self) -> tuple[str, ...]:
        """What can be asked of it."""
        unknown = {LEAKED: self.leaks is None, BEFORE: self.before is None}
        return tuple(kind for kind in KINDS if not unknown.get(kind))

    def places(self, kind: str) -> list[tuple[int, float, float]]:
        """Number, bytes and blocks of each place that has any, most bytes first."""
        found = [(place, sums.size[kind], sums.blocks[kind]) for place, sums in self._sums.items()]
        return sorted(
            (entry for entry in found if entry[2]), key=lambda entry: (-entry[1], -entry[2], entry[0])
        )

    def frames(self, place: int, most: int = 0) -> Stack:
        """Its stack, root first; with ``most`` only so many of its innermost frames."""
        out: list[Frame] = []
        while place and not (most and len(out) == most):
            place, frame = self._callers[place]
            out.append(frame)
        return tuple(reversed(out))

    def stack(self, node: int) -> Stack:
        """The stack of a node, root first."""
        return self.frames(self._place_of[node] if node < len(self._place_of) else 0)

    def amount(self, kind: str) -> Amount:
        """All of that kind."""
        if kind == BEFORE:
            return Amount(self.before.size, self.before.blocks) if self.before else Amount()
        if not self._sample_bytes:
            return Amount(
                sum(sums.size[kind] for sums in self._sums.values()),
                sum(sums.blocks[kind] for sums in self._sums.values()),
            )
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
        if kind == BEFORE:
            rows = self.before.stacks() if self.before else ()
            return {(0, stack): size if unit == "bytes" else blocks for stack, blocks, size in rows}
        chosen = ((place, size if unit == "bytes" else blocks) for place, size, blocks in self.places(kind))
        return {(0, self.frames(place)): round(weight) for place, weight in chosen if round(weight)}

    def _scale(self, size: int) -> tuple[float, float]:
        """What a recorded block stands for, and the variance it adds: it was recorded with a probability
        of 1 - exp(-(size + 1) / mean) (Horvitz and Thompson)."""
        if not self._sample_bytes:
            return 1.0, 0.0
        p = -math.expm1(-(size + 1) / self._sample_bytes)
        return (1 / p, (1 - p) / p**2) if p else (0.0, 0.0)

    def count_truncated(self) -> int:
        """Recorded allocations whose stack does not begin at a thread's first function."""
        count = 0
        for site, counts in self.counts.items():
            node = self.tables.site(site)[1]
            if not (node < len(self._whole) and self._whole[node]):
                count += counts.allocs
        return count

    def profile(self, meta: Meta, kind: str, unit: str) -> Profile:
        """For the renderers."""
        weights = self.weights(kind, unit)
        others = [(k, u) for k in self.kinds if k in _PPROF for u in UNITS if (k, u) != (kind, unit)]
        columns = (
            [_column(k, u, self.weights(k, u)) for k, u in [(kind, unit), *others]] if kind in _PPROF else []
        )
        meta = dataclasses.replace(meta, mode="heap", kind=f"{unit} {KINDS[kind][0]}", unit=unit)
        return Profile(meta, {}, weights, columns=tuple(columns))
