"""What was sampled, kept small: each stack of addresses once, ticks counted by thread and stack."""

from __future__ import annotations

import collections
from collections.abc import Iterable, Iterator

from ..inject.layout import End
from ..render.profile import FunctionTotals, Stack
from ..symbols.address import InstructionPointer, ReturnAddress
from ..symbols.frame import TRUNCATED, Frame
from ..symbols.resolver import Resolver

RawStack = tuple[tuple[int, ...], bool]
"""Addresses, leaf first, and whether the walk reached the root."""


class SampleStore:
    """Ticks by (tid, stack of addresses), and each stack's frames once they are asked for.

    A stack is resolved with the maps of the time it is first asked for.
    """

    def __init__(self, resolver: Resolver) -> None:
        self._resolver = resolver
        self._weights: collections.Counter[tuple[int, RawStack]] = collections.Counter()
        self._resolved: dict[RawStack, Stack] = {}
        self._new: list[tuple[RawStack, int]] = []
        self.totals = FunctionTotals()
        self.samples = 0
        self.truncated = 0
        self.ends: collections.Counter[int] = collections.Counter()

    def add(self, samples: Iterable[tuple[int, int, int, tuple[int, ...]]]) -> None:
        """Count samples given as (tid, end, weight, frames)."""
        for tid, end, weight, frames in samples:
            if not frames:
                continue
            raw = (frames, end == End.ROOT)
            self._weights[tid, raw] += weight
            self._new.append((raw, weight))
            self.samples += weight
            self.ends[end] += weight
            if not raw[1]:
                self.truncated += weight

    def update_totals(self) -> FunctionTotals:
        """Function totals with all samples so far."""
        for raw, weight in self._new:
            self.totals.add(self._stack(raw), weight)
        self._new.clear()
        return self.totals

    def weights(self) -> dict[tuple[int, Stack], int]:
        """Ticks by (tid, resolved stack, root first)."""
        out: dict[tuple[int, Stack], int] = {}
        for (tid, raw), weight in self._weights.items():
            key = (tid, self._stack(raw))
            out[key] = out.get(key, 0) + weight
        return out

    def unresolved(self) -> int:
        """Ticks whose leaf has no name."""
        return sum(
            weight
            for (_tid, raw), weight in self._weights.items()
            if InstructionPointer(raw[0][0]) in self._resolver.unresolved
        )

    def _stack(self, raw: RawStack) -> Stack:
        stack = self._resolved.get(raw)
        if stack is None:
            stack = tuple(self._frames(raw))
            self._resolved[raw] = stack
        return stack

    def _frames(self, raw: RawStack) -> Iterator[Frame]:
        addresses, complete = raw
        if not complete:
            yield TRUNCATED
        for address in reversed(addresses[1:]):
            yield self._resolver.resolve(ReturnAddress(address))
        yield self._resolver.resolve(InstructionPointer(addresses[0]))
