"""Bringing the stub in: which way, on which thread, and once more when the machine was too busy."""

from __future__ import annotations

import time
from typing import NamedTuple

from ..errors import InjectionFailed, TargetDied
from ..inject import fault
from ..inject.borrow import ThreadUnderWay
from ..inject.chance import random_bits
from ..inject.layout import Unwind
from ..inject.loader import LoadedStub, Loading
from ..inject.locks import LoaderCalls, LockZones
from ..inject.outside import OutsideUnwinder
from ..inject.region import RegionPlan
from . import stale
from .choosing import ThreadChoice
from .clock import Clock
from .hold import Held, hold_any, processors_are_busy
from .places import MAX_DEPTH, SafePlaces, hold_clean
from .shared import LEASE_NS, SharedMemory
from .target import TargetProcess
from .threads import ThreadTable

PATIENCE_S = 0.05
"""How long a place for dlopen is looked for before the stub is mapped instead."""

FORCED_PATIENCE_S = 3.0
OTHERS_S = 0.5
"""How long, when dlopen is asked for, a moment is looked for at which no other thread may be inside the
loader.  Without being asked for, dlopen is never called but at such a moment."""


class Loaded(NamedTuple):
    """The stub in the target, the threads that were posted to it, and since when they are sampled
    (time.monotonic())."""

    stub: LoadedStub
    threads: ThreadTable
    began: float


class StubLoader:
    """Loads by ``way``: "auto" (dlopen where that is shown to be safe and a processor is free, else mapping),
    "dlopen", "map".

    dlopen is for the main thread alone.  Where that one sleeps and all processors are busy, each of its steps
    would wait for one, for milliseconds; mapping takes a thread that runs.
    """

    def __init__(
        self,
        target: TargetProcess,
        plan: RegionPlan,
        survey: tuple[LockZones, LoaderCalls | None],
        modules: tuple[bytes, bytes],
        way: str,
        clock: Clock,
        choice: ThreadChoice,
    ) -> None:
        self._target, self._plan, self._modules, self._way = target, plan, modules, way
        self._clock, self._choice = clock, choice
        self._zones, self._calls = survey

    def load(self) -> Loaded:
        """Load the stub.  Raises InjectionFailed (the target is then as it was) and TargetDied."""
        try:
            try:
                return self._load()
            except InjectionFailed as error:
                if isinstance(error, ThreadUnderWay) or not self._target.alive():
                    raise
                return self._load()
        except (ProcessLookupError, InjectionFailed) as error:
            if self._target.alive():
                raise
            raise TargetDied(f"process {self._target.pid} ended while pyattach attached") from error

    def _load(self) -> Loaded:
        pid = self._target.pid
        if self._way == "dlopen" and self._calls is None:
            raise InjectionFailed(f"process {pid} has no dlopen (a static executable?)", "use --loader map")
        if self._calls is not None and (self._way == "dlopen" or self._may_dlopen()):
            loaded = self._by_dlopen(PATIENCE_S if self._way == "auto" else FORCED_PATIENCE_S)
            if loaded is not None:
                return loaded
            if self._way == "dlopen":
                raise InjectionFailed(
                    f"process {pid} was at no place where dlopen is safe within {FORCED_PATIENCE_S:.0f} s",
                    "use --loader map",
                )
        loading, threads = self._prepare(by_dlopen=False)
        with hold_any(self._target) as held:
            return self._run(loading, held, threads)

    def _may_dlopen(self) -> bool:
        return self._way == "auto" and not processors_are_busy()

    def _by_dlopen(self, patience_s: float) -> Loaded | None:
        loading, threads = self._prepare(by_dlopen=True)
        unwinder = OutsideUnwinder(self._target.memory_fd, region=0, max_depth=MAX_DEPTH, mode=Unwind.CFI)
        unwinder.set_modules(self._modules[0])
        places = SafePlaces(self._target, self._zones, unwinder, strict=True)
        with hold_clean(self._target, places, patience_s, OTHERS_S) as held:
            return None if held is None else self._run(loading, held, threads)

    def _run(self, loading: Loading, held: Held, threads: ThreadTable) -> Loaded:
        """Ticks come as soon as the stub is there: the borrowed thread has a little way to go yet, and may
        run for some time until it is shown that it has gone it."""
        began = []

        def start(stub: LoadedStub) -> None:
            shared = SharedMemory(stub)
            shared.renew_lease()
            self._clock.start(shared.slots)
            shared.close()
            began.append(time.monotonic())

        return Loaded(loading.run(held, start), threads, began[0])

    def _prepare(self, *, by_dlopen: bool) -> tuple[Loading, ThreadTable]:
        """All that can be done before a thread is stopped."""
        self._clock.stop()  # of a try before
        threads = ThreadTable(self._target.pid, self._plan, self._clock, self._choice)
        slots = threads.first_slots()
        # An exact lease follows when the offset of the target's clock is known.
        control = self._plan.control(random_bits(64), time.monotonic_ns() + LEASE_NS)
        control.post_seq = 1
        control.slots_used = threads.slots_used
        stale.sign(control)
        loading = Loading(
            self._target, self._plan, self._calls, control, slots, self._modules, by_dlopen=by_dlopen
        )
        fault.reach("prepared", self._target.pid)
        return loading, threads
