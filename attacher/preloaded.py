"""The stub's stay in a program that was started with it: nothing is brought in, nothing taken out."""

from __future__ import annotations

import time
from collections.abc import Callable

from ..inject.layout import Slot, State
from ..inject.preload import PreloadedStub
from ..inject.region import RegionPlan
from ..symbols.maps import Maps
from .child import ChildProcess
from .clock import Clock, uses_glibc
from .modules import ModuleTable
from .shared import SharedMemory, SharedRegion
from .stay import DRAIN_S
from .threads import ThreadTable

_YOUNG_S = 1.0
_YOUNG_DRAIN_S = 0.01
"""A program that has just begun loads its libraries and starts its threads: look more often."""

_INSIDE_S = 0.2


class Preloaded:
    """A ``Stay`` in ``child``, whose constructor has been reached and waits for the module table."""

    def __init__(self, child: ChildProcess, stub: PreloadedStub, clock: Clock) -> None:
        self._child, self._stub = child, stub
        self.clock = clock
        self._went_ahead = False

    @property
    def plan(self) -> RegionPlan:
        return self._stub.plan

    def load(self, maps: Maps, modules: ModuleTable) -> tuple[SharedRegion, ThreadTable, float]:
        threads = ThreadTable(self._child.pid, self.plan, self.clock)
        self._child.begin()
        shared = SharedMemory(self._stub)
        try:
            if modules.refresh(maps, shared.bytes, shared.control.modules_seq):
                shared.modules_moved()
            shared.renew_lease()
            self._went_ahead = shared.control.state == State.RUN
            if self._went_ahead:  # it has armed its first thread's timer by itself
                slots = (Slot * self.plan.slot_count)()
                threads.adopt(self._child.pid, slots)
                self.clock.remove(0, slots[0])
            else:
                shared.control.spare_signal = self.plan.spare_signal if uses_glibc(maps) else 0
                threads.adopt(self._child.pid, shared.slots)
            shared.control.state = State.RUN
            self.clock.start(shared.slots)
        finally:
            shared.close()
        return self._stub, threads, time.monotonic()

    def drain_s(self, elapsed_s: float) -> float:
        return _YOUNG_DRAIN_S if elapsed_s < _YOUNG_S else DRAIN_S

    def arm(self) -> None:
        """Nothing to do: the clock of the whole process ticks for that."""

    def leave(self, shared: SharedMemory, take_rest: Callable[[], None]) -> None:
        if self._child.filtered():
            shared.stop()  # to delete its timer, a tick would need a system call
        else:
            shared.quit()
        deadline = time.monotonic() + _INSIDE_S
        while shared.control.inside and time.monotonic() < deadline:
            self._child.pause(0.001)
        take_rest()

    def verify(self) -> None:
        return None

    def notes(self) -> list[str]:
        notes = ["the stub was preloaded; no thread was held or traced"]
        if self._went_ahead:
            notes.append("the program began before its unwind tables were known: first stacks may be cut")
        return notes
