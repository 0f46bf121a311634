"""What the sampling costs the target, as the handlers measured it themselves and the delivery was calibrated;
and what it costs pyattach."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import NamedTuple

from ..inject.layout import COSTS_FROM, Slot
from .delivery import TickCost
from .shared import SharedMemory


class Overhead(NamedTuple):
    """Time of the target's threads that sampling took so far, ns; None where it is not known.

    ``handler_ns`` counts cycles from the handlers' begin to their end, without those in which one had lost
    the processor for some time.  ``delivery_ns`` is what the kernel needs to get there and back, calibrated.
    """

    handler_ns: float | None
    delivery_ns: float | None

    @property
    def total_ns(self) -> float | None:
        """Both, as far as they are known."""
        return None if self.handler_ns is None else self.handler_ns + (self.delivery_ns or 0.0)


class HandlerCost:
    """Turns the handlers' cycle counts into time, by two readings of both clocks in the target: one at
    init, one at the latest tick."""

    def __init__(self, shared: SharedMemory) -> None:
        self._shared = shared

    def overhead(self, slots: Sequence[Slot], tick: TickCost | None) -> Overhead:
        """What all ticks so far have cost, each delivered for ``tick``."""
        control = self._shared.control
        rate = self._cycles_per_ns(slots)
        cycles = sum(int(slot.cycles) for slot in slots) + int(control.process_cycles)
        delivery_ns = None
        if tick is not None:
            own = sum(int(slot.ticks) for slot in slots)
            delivery_ns = own * tick.own_ns + int(control.process_ticks) * tick.process_ns
        return Overhead(cycles / rate if rate else None, delivery_ns)

    def percentiles_ns(self, slots: Sequence[Slot], used: Sequence[int]) -> tuple[float, float] | None:
        """What half of the samples' handlers took at most, and 99% of them, ns; None where ``overhead`` has
        no handler time.  ``used`` are the slots' numbers."""
        rate = self._cycles_per_ns(slots)
        counts = [sum(column) for column in zip(*map(self._shared.costs_of, used), strict=True)]
        if not rate or not sum(counts):
            return None
        return percentile_cycles(counts, 0.5) / rate, percentile_cycles(counts, 0.99) / rate

    def _cycles_per_ns(self, slots: Sequence[Slot]) -> float | None:
        control = self._shared.control
        last = max(slots, key=lambda slot: int(slot.last_clock_ns), default=None)
        if last is None or not last.last_cycles or not control.init_cycles:
            return None
        elapsed_ns = int(last.last_clock_ns) - int(control.init_clock_ns)
        elapsed = int(last.last_cycles) - int(control.init_cycles)
        return elapsed / elapsed_ns if elapsed_ns > 0 and elapsed > 0 else None


def percentile_cycles(counts: Sequence[int], share: float) -> float:
    """What ``share`` of the ticks took at most, by their counts in the buckets of ``shared.h`` (PA_COSTS),
    which are taken to be evenly filled; at least one must be counted."""
    wanted = share * sum(counts)
    for bucket, count in enumerate(counts):
        if count and wanted <= count:
            low, width = bucket_cycles(bucket)
            return low + width * wanted / count
        wanted -= count
    return float(sum(bucket_cycles(len(counts) - 1)))


def bucket_cycles(bucket: int) -> tuple[int, int]:
    """Where a bucket begins and how wide it is, cycles."""
    if not bucket:
        return 0, 1 << COSTS_FROM
    octave, quarter = divmod(bucket - 1, 4)
    width = 1 << (COSTS_FROM + octave - 2)
    return (4 + quarter) * width, width


_lap_from: dict[int, float] = {}
"""CPU time that this process had used at the last lap; a fork begins with none."""


def own_cpu_lap_s() -> float:
    """CPU time that this process has used since the last call, or since its begin, seconds."""
    now = time.process_time()
    passed_s = now - _lap_from.get(os.getpid(), 0.0)
    _lap_from[os.getpid()] = now
    return passed_s
