"""How the shared memory is divided (drawn in ``stub/shared.h``), and its first contents."""

from __future__ import annotations

import ctypes

from .chance import random_bits
from .layout import (
    COSTS,
    MAGIC,
    TICK_TAG,
    VERSION,
    WALK_BYTES,
    CacheLine,
    Control,
    Modules,
    Slot,
    State,
    Unwind,
)

PAGE = 4096
INDEX_BYTES = 4 << 20
"""Room for search tables that pyattach makes; not touched, so not used, where none is needed."""

CACHE_LINES = 1 << 13


def _pages(size: int) -> int:
    return (size + PAGE - 1) // PAGE * PAGE


class RegionPlan:
    """Sizes chosen for one session; offsets in bytes from the region's start."""

    def __init__(
        self, *, period_ns: int, slot_count: int, max_depth: int, ring_words: int, signal: int,
        unwind: Unwind = Unwind.AUTO, flags: int = 0, jitter_ns: int = 0, event_base: int = 0,
        spare_slots: int = 0, spare_signal: int = 0, tick_ns: int = 4_000_000,
    ) -> None:  # fmt: skip
        if ring_words & (ring_words - 1):
            raise ValueError(f"ring_words must be a power of two, not {ring_words}")
        self.period_ns, self.slot_count, self.max_depth = period_ns, slot_count, max_depth
        self.ring_words, self.signal, self.unwind, self.flags = ring_words, signal, unwind, flags
        self.jitter_ns, self.event_base = jitter_ns, event_base
        self.spare_slots, self.spare_signal, self.tick_ns = spare_slots, spare_signal, tick_ns
        self.tick_tag = TICK_TAG | random_bits(16)

    @property
    def modules_offset(self) -> int:
        return _pages(ctypes.sizeof(Control))

    @property
    def index_offset(self) -> int:
        return _pages(self.modules_offset + 2 * ctypes.sizeof(Modules))

    @property
    def cache_offset(self) -> int:
        return self.index_offset + INDEX_BYTES

    @property
    def slots_offset(self) -> int:
        return _pages(self.cache_offset + CACHE_LINES * ctypes.sizeof(CacheLine))

    @property
    def costs_offset(self) -> int:
        return _pages(self.slots_offset + self.slot_count * ctypes.sizeof(Slot))

    @property
    def scratch_offset(self) -> int:
        return _pages(self.costs_offset + self.slot_count * COSTS * 4)

    @property
    def kept_offset(self) -> int:
        return _pages(self.scratch_offset + self.slot_count * self.max_depth * 8)

    @property
    def ring_offset(self) -> int:
        return _pages(self.kept_offset + self.slot_count * WALK_BYTES)

    @property
    def size(self) -> int:
        return _pages(self.ring_offset + self.ring_words * 8)

    def control(self, nonce: int, lease_until_ns: int) -> Control:
        """The control block to start from: state RUN, nothing posted, ring empty."""
        return Control(
            magic=MAGIC,
            version=VERSION,
            control_size=ctypes.sizeof(Control),
            nonce=nonce,
            region_size=self.size,
            period_ns=self.period_ns,
            slot_count=self.slot_count,
            max_depth=self.max_depth,
            slots_offset=self.slots_offset,
            scratch_offset=self.scratch_offset,
            kept_offset=self.kept_offset,
            ring_offset=self.ring_offset,
            ring_words=self.ring_words,
            signal=self.signal,
            unwind=self.unwind,
            modules_offset=self.modules_offset,
            index_offset=self.index_offset,
            cache_offset=self.cache_offset,
            cache_lines=CACHE_LINES,
            flags=self.flags,
            jitter_ns=self.jitter_ns,
            event_base=self.event_base,
            spare_slots=self.spare_slots,
            spare_signal=self.spare_signal,
            stray=int(self.spare_slots > 0),
            tick_ns=self.tick_ns,
            costs_offset=self.costs_offset,
            tick_tag=self.tick_tag,
            lease_until_ns=lease_until_ns,
            state=State.RUN,
            rate_factor=1,
        )
