"""What the kernel's delivery of one tick costs, measured on the calling thread."""

from __future__ import annotations

import ctypes
import os

from .outside import library

_LIMIT_NS = 300_000_000
_FEWEST = 5


def timer_tick_ns(signal: int, kernel_tick_ns: int, most: int) -> float | None:
    """Time that one tick of a timer on the thread's CPU clock costs, ns, beyond what the kernel's own tick
    costs, with which it comes: the median of up to ``most``.  Takes twice ``kernel_tick_ns`` for each.

    The thread must be one that does nothing else and ends after it: signal and timer stay.
    """
    return _measured(signal, 2 * kernel_tick_ns, kernel_tick_ns, most)


def event_tick_ns(signal: int, most: int) -> float | None:
    """The same of a perf event's tick.  The event must be enabled, and signal this thread."""
    return _measured(signal, 0, 0, most)


def _measured(signal: int, period_ns: int, beside_ns: int, most: int) -> float | None:
    pairs = (ctypes.c_uint64 * (2 * most))()
    count = library().pa_delivery(signal, period_ns, beside_ns, _LIMIT_NS, most, ctypes.addressof(pairs))
    if count == -22:  # EINVAL: the cycle counter may not be read
        return None
    if count < 0:
        raise OSError(-count, os.strerror(-count))
    if count < _FEWEST:
        return None
    import statistics  # late: it brings decimals and fractions with it

    return max(0.0, statistics.median(pairs[2 * i] - pairs[2 * i + 1] for i in range(count)))
