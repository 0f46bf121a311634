"""What was sampled, kept small: each stack of addresses once, ticks counted by thread and stack."""

from __future__ import annotations

import array
import collections
import itertools
import time
from collections.abc import Callable, Iterable, Iterator

from ..inject.layout import End
from ..render.profile import FunctionTotals, Stack, Timeline
from ..symbols.address import InstructionPointer, ReturnAddress
from ..symbols.frame import TRUNCATED, Frame
from ..symbols.resolver import Resolver
from ..symbols.syscalls import is_waiting, waiting_frame

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


_MOST_TIMES = 1_000_000
"""Of so many samples the times are kept; they take 28 bytes each."""


class SampleStore:
    """Ticks by (tid, stack of addresses), and each stack's frames once they are asked for.

    A stack is resolved with the maps of the time it is first asked for.
    """

    def __init__(self, resolver: Resolver) -> None:
        self._resolver = resolver
        self._weights: collections.Counter[tuple[int, RawStack]] = collections.Counter()
        self._resolved: dict[RawStack, Stack] = {}
        self._new: list[tuple[int, RawStack, int]] = []
        self.watch: Callable[[int, Stack, int], None] | None = None
        """Told of each sample (thread, stack, ticks) once its stack has names."""
        self.totals = FunctionTotals()
        self.samples = 0
        self.truncated = 0
        self.ends: collections.Counter[int] = collections.Counter()
        self._times: _Times | None = _Times()

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
            if self._times is not None and not self._times.add(clock_ns, tid, raw, weight):
                self._times = None  # too many
            self._weights[tid, raw] += weight
            self._new.append((tid, raw, weight))
            self.samples += weight
            self.ends[end] += weight
            if not raw[1]:
                self.truncated += weight

    def function_start(self, address: int) -> int:
        """See ``Resolver.function_start``."""
        return self._resolver.function_start(address)

    def truncated_by(self) -> tuple[tuple[str, int], ...]:
        """Ticks of incomplete stacks by reason, most first."""
        incomplete = [(end, count) for end, count in self.ends.most_common() if end != End.ROOT]
        names = {int(end): words for end, words in WHY.items()}
        return tuple((names.get(end, f"reason {end}"), count) for end, count in incomplete)

    def update_totals(self) -> FunctionTotals:
        """Function totals with all samples so far."""
        for tid, raw, weight in self._new:
            stack = self._stack(raw)
            self.totals.add(stack, weight)
            if self.watch is not None:
                self.watch(tid, stack, weight)
        self._new.clear()
        return self.totals

    def weights(self) -> dict[tuple[int, Stack], int]:
        """Ticks by (tid, resolved stack, root first)."""
        out: dict[tuple[int, Stack], int] = {}
        for (tid, raw), weight in self._weights.items():
            key = (tid, self._stack(raw))
            out[key] = out.get(key, 0) + weight
        return out

    def forget_new(self) -> None:
        """``watch`` is not told of the samples so far."""
        self._new.clear()

    def timeline(self, begin_ns: int) -> Timeline | None:
        """The samples one by one, from CLOCK_MONOTONIC's ``begin_ns`` on; None where there are too many."""
        return None if self._times is None else self._times.timeline(begin_ns, self._stack)

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
        callers = addresses[1:]
        believable = sum(1 for _ in itertools.takewhile(self._is_code, callers))
        if not complete or believable < len(callers):
            yield TRUNCATED
        for address in reversed(callers[:believable]):
            yield self._resolver.resolve(ReturnAddress(address))
        leaf = addresses[0]
        yield waiting_frame(leaf) if is_waiting(leaf) else self._resolver.resolve(InstructionPointer(leaf))

    def _is_code(self, return_address: int) -> bool:
        """Whether a return address can be one: a frame pointer that is none leads to data.  Where nothing
        is mapped, a library may have gone."""
        mapping = self._resolver.maps.find(return_address - 1)
        return mapping is None or mapping.executable


class _Times:
    """The samples one by one, in columns."""

    def __init__(self) -> None:
        self._numbers: dict[RawStack, int] = {}
        self._clocks_ns, self._tids = array.array("q"), array.array("q")
        self._stack_at, self._ticks = array.array("q"), array.array("q")

    def add(self, clock_ns: int, tid: int, raw: RawStack, weight: int) -> bool:
        if len(self._tids) >= _MOST_TIMES:
            return False
        self._clocks_ns.append(min(clock_ns, (1 << 63) - 1))
        self._tids.append(tid)
        self._stack_at.append(self._numbers.setdefault(raw, len(self._numbers)))
        self._ticks.append(weight)
        return True

    def timeline(self, begin_ns: int, stack_of: Callable[[RawStack], Stack]) -> Timeline:
        times_s = array.array("d", (max(0, clock - begin_ns) / 1e9 for clock in self._clocks_ns))
        return Timeline(times_s, self._tids, self._stack_at, self._ticks, list(map(stack_of, self._numbers)))
