"""What was sampled, kept small: each stack of addresses once, ticks counted by thread and stack."""

from __future__ import annotations

import array
import collections
import itertools
import math
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import TYPE_CHECKING

from ..inject.layout import End
from ..symbols.address import InstructionPointer, ReturnAddress
from ..symbols.place import Place
from ..symbols.syscalls import is_waiting, waiting_frame

if TYPE_CHECKING:
    from ..render.profile import FunctionTotals, Stack, Timeline
    from ..symbols.frame import Frame
    from ..symbols.resolver import Resolver

WHY = {
    End.DEPTH: "deeper than --max-depth",
    End.UNALIGNED: "no frame pointer (unaligned)",
    End.OUTSIDE: "no frame pointer (outside the stack)",
    End.UNREADABLE: "unreadable stack",
    End.BAD_RETURN: "no return address",
    End.NO_PROGRESS: "frames do not rise",
    End.NO_CFI: "no call frame information",
    End.BAD_CFI: "unusable call frame information",
}
"""Why a stack ended before its root, in words."""

RawStack = tuple[tuple[int, ...], bool]
"""Addresses, leaf first, and whether the walk reached the root.  The leaf of a thread that waits is a
``waiting_address``."""

PlacedStack = tuple[tuple[Place, ...], bool]
"""The same once it is known what was mapped at the addresses; all are code."""

_MOST_TIMES = 1_000_000
"""Of so many samples the times are kept; they take 28 bytes each."""


class SampleStore:
    """Ticks by (tid, stack of places), and each stack's frames once they are asked for.

    Addresses become places by the mappings of the time they were sampled: ``place`` is to be called before
    the resolver is told of newer ones.
    """

    def __init__(self, resolver: Resolver) -> None:
        self.resolver = resolver
        self._pending: list[tuple[int, int, RawStack, int]] = []
        self._weights: collections.Counter[tuple[int, PlacedStack]] = collections.Counter()
        self._placed: dict[RawStack, PlacedStack] = {}
        self._placed_with = -1  # the resolver's version
        self._waits: dict[int, Place] = {}
        self._resolved: dict[PlacedStack, Stack] = {}
        self._outdated: dict[PlacedStack, None] = {}
        self._new: list[tuple[int, PlacedStack, int]] = []
        self.watch: Callable[[int, Stack, int], None] | None = None
        """Told of each sample (thread, stack, ticks) once its stack has names."""
        self.naming: Callable[[int, int], None] | None = None
        """Told by ``name_stacks`` of how many stacks, of how many, have names."""
        self._totals: FunctionTotals | None = None
        self.samples = 0
        self.truncated = 0
        self.ends: collections.Counter[int] = collections.Counter()
        self._times: _Times | None = _Times()

    @property
    def totals(self) -> FunctionTotals:
        """Self and total ticks by function, as of the last ``update_totals``."""
        if self._totals is None:
            from ..render.profile import FunctionTotals

            self._totals = FunctionTotals()
        return self._totals

    def add(
        self, samples: Iterable[tuple[int, int, int, tuple[int, ...]]], clocks_ns: Iterable[int] | None = None
    ) -> None:
        """Count samples given as (tid, end, weight, frames), taken at ``clocks_ns`` (now, if not given)."""
        for (tid, end, weight, frames), clock_ns in zip(
            samples, itertools.repeat(time.monotonic_ns()) if clocks_ns is None else clocks_ns, strict=False
        ):
            if not frames:
                continue
            raw = (frames, end == End.ROOT)
            self._pending.append((clock_ns, tid, raw, weight))
            self.samples += weight
            self.ends[end] += weight
            if not raw[1]:
                self.truncated += weight

    def place(self) -> None:
        """Find out what was mapped at the addresses of the samples so far."""
        resolver = self.resolver
        if self._placed_with != resolver.version:
            self._placed.clear()
            self._placed_with = resolver.version
        for clock_ns, tid, raw, weight in self._pending:
            placed = self._placed.get(raw) if resolver.is_settled(clock_ns) else None
            if placed is None:
                placed = self._place(raw, clock_ns)
                if resolver.is_settled(clock_ns) and all(map(resolver.is_known, placed[0])):
                    self._placed[raw] = placed
            if self._times is not None and not self._times.add(clock_ns, tid, placed, weight):
                self._times = None  # too many
            self._weights[tid, placed] += weight
            self._new.append((tid, placed, weight))
        self._pending.clear()

    def function_start(self, address: int) -> int:
        """See ``Resolver.function_start``."""
        return self.resolver.function_start(address)

    def truncated_by(self) -> tuple[tuple[str, int], ...]:
        """Ticks of incomplete stacks by reason, most first."""
        incomplete = [(end, count) for end, count in self.ends.most_common() if end != End.ROOT]
        names = {int(end): words for end, words in WHY.items()}
        return tuple((names.get(end, f"reason {end}"), count) for end, count in incomplete)

    def update_totals(self, budget_s: float = math.inf) -> FunctionTotals:
        """Function totals with all samples so far; where naming them takes longer than ``budget_s``, the
        rest is for the next time."""
        self.place()
        end, done = time.monotonic() + budget_s, 0
        for tid, placed, weight in self._new:
            if time.monotonic() > end:
                break
            done += 1
            stack = self._stack(placed)
            self.totals.add(stack, weight)
            if self.watch is not None:
                self.watch(tid, stack, weight)
        del self._new[:done]
        return self.totals

    def weights(self) -> dict[tuple[int, Stack], int]:
        """Ticks by (tid, resolved stack, root first)."""
        self.place()
        out: dict[tuple[int, Stack], int] = {}
        for (tid, placed), weight in self._weights.items():
            key = (tid, self._stack(placed))
            out[key] = out.get(key, 0) + weight
        return out

    def name_stacks(self) -> None:
        """Give all stacks their names, and tell ``naming`` meanwhile: that may take long."""
        self.place()
        stacks = list(dict.fromkeys(stack for _tid, stack in self._weights))
        for done, stack in enumerate(stacks):
            if self.naming is not None:
                self.naming(done, len(stacks))
            self._stack(stack)
        if self.naming is not None:
            self.naming(len(stacks), len(stacks))

    def forget_new(self) -> None:
        """``watch`` is not told of the samples so far."""
        self.place()
        self._new.clear()

    def forget_names(self) -> None:
        """Ask the resolver anew: it knows more by now."""
        self._resolved.clear()

    def renew_names(self, places: Collection[Place], budget_s: float) -> list[tuple[Stack, Stack]]:
        """The resolver knows more of ``places``: the stacks that ``watch`` was told of and that are others
        now, each with what it is now.  What takes longer than ``budget_s`` is for the next call."""
        if places:
            known = frozenset(places)
            self._outdated |= {placed: None for placed in self._resolved if not known.isdisjoint(placed[0])}
        end, renewed = time.monotonic() + budget_s, []
        while self._outdated and time.monotonic() < end:
            placed, _ = self._outdated.popitem()
            before = self._resolved.pop(placed, None)
            if before is not None and (stack := self._stack(placed)) != before:
                renewed.append((before, stack))
        return renewed

    def timeline(self, begin_ns: int) -> Timeline | None:
        """The samples one by one, from CLOCK_MONOTONIC's ``begin_ns`` on; None where there are too many."""
        self.place()
        return None if self._times is None else self._times.timeline(begin_ns, self._stack)

    def unresolved(self) -> int:
        """Ticks whose leaf has no name."""
        self.place()
        return sum(
            weight
            for (_tid, (places, _)), weight in self._weights.items()
            if not self.resolver.has_name(places[0])
        )

    def _place(self, raw: RawStack, clock_ns: int) -> PlacedStack:
        addresses, complete = raw
        leaf, callers = addresses[0], addresses[1:]
        if is_waiting(leaf):
            places = [self._waits.setdefault(leaf, Place(leaf, None))]
        else:
            places = [self.resolver.place(InstructionPointer(leaf), clock_ns)]
        for address in callers:
            place = self.resolver.place(ReturnAddress(address), clock_ns)
            if not place.executable:  # a frame pointer that is none leads to data
                return tuple(places), False
            places.append(place)
        return tuple(places), complete

    def _stack(self, placed: PlacedStack) -> Stack:
        stack = self._resolved.get(placed)
        if stack is None:
            stack = tuple(self._frames(placed))
            self._resolved[placed] = stack
        return stack

    def _frames(self, placed: PlacedStack) -> Iterator[Frame]:
        from ..symbols.frame import TRUNCATED

        places, complete = placed
        if not complete:
            yield TRUNCATED
        for place in reversed(places[1:]):
            yield from self.resolver.frames(place)
        leaf = places[0]
        if is_waiting(leaf.address):
            yield waiting_frame(leaf.address)
        else:
            yield from self.resolver.frames(leaf)


class _Times:
    """The samples one by one, in columns."""

    def __init__(self) -> None:
        self._numbers: dict[PlacedStack, int] = {}
        self._clocks_ns, self._tids = array.array("q"), array.array("q")
        self._stack_at, self._ticks = array.array("q"), array.array("q")

    def add(self, clock_ns: int, tid: int, placed: PlacedStack, weight: int) -> bool:
        if len(self._tids) >= _MOST_TIMES:
            return False
        self._clocks_ns.append(min(clock_ns, (1 << 63) - 1))
        self._tids.append(tid)
        self._stack_at.append(self._numbers.setdefault(placed, len(self._numbers)))
        self._ticks.append(weight)
        return True

    def timeline(self, begin_ns: int, stack_of: Callable[[PlacedStack], Stack]) -> Timeline:
        from ..render.profile import Timeline

        times_s = array.array("d", (max(0, clock - begin_ns) / 1e9 for clock in self._clocks_ns))
        return Timeline(times_s, self._tids, self._stack_at, self._ticks, list(map(stack_of, self._numbers)))
