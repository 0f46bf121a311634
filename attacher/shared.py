"""pyattach's end of the shared memory: what it writes there while the stub runs, and how it reads."""

from __future__ import annotations

import ctypes
import mmap
import os
import time
from typing import Protocol

from ..inject.layout import Control, Costs, Slot, State
from ..inject.region import RegionPlan

LEASE_NS = 900_000_000
"""How long the stub goes on by itself.  It is renewed many times in this span; once pyattach is gone,
the last tick comes within it."""


class SharedRegion(Protocol):
    """Where the shared memory is: mapped here (``region``), and from ``region_offset`` of ``memfd`` on.
    ``held_ns``: how long threads of the target were stopped for it, one entry for each time."""

    @property
    def plan(self) -> RegionPlan: ...
    @property
    def memfd(self) -> int: ...
    @property
    def region_offset(self) -> int: ...
    @property
    def region(self) -> mmap.mmap: ...
    @property
    def clock_offset_ns(self) -> int: ...
    @property
    def held_ns(self) -> list[int]: ...

    def read_in_target(self, offset: int, size: int) -> bytes:
        """Bytes of the region as the target has them; OSError once it is gone or another program."""
        ...

    def close(self) -> None: ...


class SharedMemory:
    """Words are written through a local mapping of the memfd (one aligned store each, never torn), and
    read through /proc/PID/mem while the target lives, through the memfd after that."""

    def __init__(self, stub: SharedRegion) -> None:
        self._stub = stub
        self._offset_ns = stub.clock_offset_ns
        self.control = Control.from_buffer(stub.region)
        self.slots = (Slot * stub.plan.slot_count).from_buffer(stub.region, stub.plan.slots_offset)
        self._costs = (Costs * stub.plan.slot_count).from_buffer(stub.region, stub.plan.costs_offset)
        self.bytes = (ctypes.c_char * stub.plan.size).from_buffer(stub.region)
        self.target_gone = False

    def costs_of(self, index: int) -> list[int]:
        """How often a slot's ticks took how long (PA_COSTS)."""
        return list(self._costs[index])

    def renew_lease(self, lease_ns: int = LEASE_NS) -> bool:
        """Renew; returns whether it had run out in between, so that timers may have gone quiet."""
        now_ns = time.monotonic_ns() + self._offset_ns
        lapsed = now_ns > int(self.control.lease_until_ns)
        self.control.lease_until_ns = now_ns + lease_ns
        return lapsed

    def our_ns(self, clock_ns: int) -> int:
        """What CLOCK_MONOTONIC was here when it was ``clock_ns`` in the target, whose time namespace may be
        another: to some milliseconds then."""
        return max(0, clock_ns - self._offset_ns)

    def posted(self, slots_used: int) -> None:
        """Tell handlers that slots have changed, and which have been used so far."""
        self.control.slots_used = slots_used
        self.control.post_seq = (self.control.post_seq + 1) & 0xFFFFFFFF

    def modules_moved(self) -> None:
        """Tell handlers to use the other module table."""
        self.control.modules_seq = (self.control.modules_seq + 1) & 0xFFFFFFFF

    def set_rate_factor(self, factor: int) -> None:
        """Tell handlers to make the period so many times longer than ``period_ns``."""
        self.control.rate_factor = factor

    def set_tail(self, words: int) -> None:
        """Tell handlers how far the ring was read."""
        self.control.tail = words

    def stop(self) -> None:
        """No more samples, though ticks still come: they make no system call."""
        self.control.state = State.STOP

    def quit(self) -> None:
        """No more samples, and the next tick deletes the timers: whoever says so may be killed after it."""
        self.control.state = State.QUIT

    def read(self, offset: int, size: int) -> bytes:
        """Bytes of the region; from the target while it is there, else from the memfd."""
        if not self.target_gone:
            try:
                return self._stub.read_in_target(offset, size)
            except OSError:  # it has exited or replaced itself by another program
                self.target_gone = True
        return os.pread(self._stub.memfd, size, self._stub.region_offset + offset)

    def close(self) -> None:
        """Release the views of the mapping, so that it can be closed."""
        del self.control, self.slots, self.bytes, self._costs
