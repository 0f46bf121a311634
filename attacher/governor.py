"""Keeping the sampling's cost below a limit by lowering the rate."""

from __future__ import annotations

from .overhead import Overhead

MOST_TIMES = 64
"""The rate is lowered to this part of what was asked for at most: fewer samples say nothing."""

_WINDOW_CPU_S = 0.25


class RateGovernor:
    """Watches sampling's share of the target's CPU time (0.01 is 1%) and says by which whole
    ``factor`` the period between two ticks is to be longer: 1, 2, 4, ... 64.  It is never shortened again.

    A handler that lost the processor counts the time it waited as its own, and the first ticks find empty
    caches: two windows in a row must be above the limit, and the better of them decides.
    """

    def __init__(self, limit: float | None) -> None:
        self._limit = limit
        self.factor = 1
        self._share_before: float | None = None
        self._window: tuple[float, float] | None = None
        self._with_delivery = False

    @property
    def limited(self) -> bool:
        """Whether there is a limit."""
        return self._limit is not None

    def lowers(self, overhead: Overhead, cpu_s: float) -> bool:
        """Look at both sums so far; whether ``factor`` has become greater."""
        overhead_ns = overhead.total_ns
        if self._limit is None or overhead_ns is None:
            return False
        if self._with_delivery != (overhead.delivery_ns is not None):
            # From now on more is counted: sums of before say nothing.
            self._with_delivery = not self._with_delivery
            self._window = self._share_before = None
        begin_ns, begin_s = self._window = self._window or (overhead_ns, cpu_s)
        if cpu_s - begin_s < _WINDOW_CPU_S:
            return False
        share = (overhead_ns - begin_ns) / 1e9 / (cpu_s - begin_s)
        self._window, before = (overhead_ns, cpu_s), self._share_before
        self._share_before = share
        if before is None or not self._raise_factor(min(share, before)):
            return False
        # Threads take the new period at their next ticks: begin anew after the next look.
        self._window = self._share_before = None
        return True

    def _raise_factor(self, share: float) -> bool:
        assert self._limit is not None
        old = self.factor
        while share > self._limit and self.factor < MOST_TIMES:
            self.factor *= 2
            share /= 2
        return self.factor != old

    def notes(self, rate_hz: float, taken: int, cpu_s: float) -> list[str]:
        """What to say of it; ``taken`` is the samples taken in ``cpu_s`` seconds of CPU time."""
        if self._limit is None or self.factor == 1:
            return []
        reached = f", {taken / cpu_s:.1f} Hz of CPU time over all" if cpu_s else ""
        return [
            f"the rate was lowered to {rate_hz / self.factor:.4g} Hz to keep the overhead below "
            f"{100 * self._limit:g}%: {taken:,} samples were taken{reached}; each counts as the ticks of the "
            "rate asked for that it stands for"
        ]
