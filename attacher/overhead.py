"""What the sampling costs the target, as the handlers measured it themselves."""

from __future__ import annotations

from collections.abc import Sequence

from ..inject.layout import Slot
from .shared import SharedMemory


class HandlerCost:
    """Turns the handlers' cycle counts into time, by two readings of both clocks in the target: one at
    init, one at the latest tick."""

    def __init__(self, shared: SharedMemory) -> None:
        self._shared = shared

    def total_ns(self, slots: Sequence[Slot]) -> float | None:
        """Time that all handlers have run, ns; None where the target may not read the cycle counter
        or nothing has ticked yet."""
        rate = self._cycles_per_ns(slots)
        return sum(int(slot.cycles) for slot in slots) / rate if rate else None

    def _cycles_per_ns(self, slots: Sequence[Slot]) -> float | None:
        control = self._shared.control
        last = max(slots, key=lambda slot: int(slot.last_clock_ns), default=None)
        if last is None or not last.last_cycles or not control.init_cycles:
            return None
        elapsed_ns = int(last.last_clock_ns) - int(control.init_clock_ns)
        elapsed = int(last.last_cycles) - int(control.init_cycles)
        return elapsed / elapsed_ns if elapsed_ns > 0 and elapsed > 0 else None
