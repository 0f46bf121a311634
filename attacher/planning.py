"""How much shared memory a session needs, and what the stub is told in it."""

from __future__ import annotations

import itertools
import os

from ..inject.layout import NO_VM_READ
from ..inject.region import RegionPlan
from .clock import Clock, jitter_ns, kernel_hz
from .contract import Options

_RING_SECONDS = 4.0
_WORDS_PER_SAMPLE = 64
_SPARE_SLOTS = 4
_STRAYS_MET = (6, 4)
"""The Linux whose process-wide timers signal the thread that runs; before, they wake the main thread."""


def strays_can_be_met() -> bool:
    """Whether this kernel's timers of a whole process signal the thread that runs."""
    release = os.uname().release.split(".")
    return tuple(int("".join(itertools.takewhile(str.isdigit, part))) for part in release[:2]) >= _STRAYS_MET


def plan_region(options: Options, threads: int, clock: Clock, spare: int = 0) -> RegionPlan:
    """Slots for several times the threads there are; a ring for seconds of all processors' ticks."""
    slots = 1 << max(256, threads * 4).bit_length()
    per_second = options.rate_hz * (os.cpu_count() or 1) * _WORDS_PER_SAMPLE
    words = 1 << max(1 << 16, int(per_second * _RING_SECONDS)).bit_length()
    return RegionPlan(
        period_ns=round(1e9 / options.rate_hz),
        slot_count=slots,
        # A stray thread has no name yet.
        spare_slots=_SPARE_SLOTS if strays_can_be_met() and not options.threads.patterns else 0,
        tick_ns=round(1e9 / kernel_hz()),
        max_depth=options.max_depth,
        ring_words=words,
        signal=clock.signal,
        spare_signal=spare,
        unwind=options.unwind,
        flags=NO_VM_READ if options.allow_seccomp else 0,
        jitter_ns=jitter_ns(options.rate_hz) if options.jitter else 0,
        event_base=clock.event_base,
    )
