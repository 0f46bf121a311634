"""How the stub gets into the target and out of it: brought in by a borrowed thread, or preloaded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from ..errors import PyattachError
from ..inject import fault
from ..inject.layout import Unwind
from ..inject.loader import LoadedStub
from ..inject.locks import survey
from ..inject.outside import OutsideUnwinder
from ..inject.region import RegionPlan
from ..symbols.maps import Maps
from ..symbols.resolver import proc_opener
from .choosing import ThreadChoice
from .clock import Clock
from .leaving import call, stop_ticks, unload
from .loading import StubLoader
from .modules import ModuleTable
from .places import MAX_DEPTH, SafePlaces
from .shared import SharedMemory, SharedRegion
from .target import TargetProcess
from .threads import ThreadTable
from .verify import Verification, remains, snapshot

HOW_LOADED = "loaded by"
"""How the note begins that is of interest only to those who ask for more."""

DRAIN_S = 0.1

_CANCELLED = (
    "the target has cancelled a thread (pthread_cancel), for which its C library takes signal 32: threads "
    "that end within 0.1 s, or block signals, are not in the profile after that"
)


class Stay(Protocol):
    """The stub's stay in one target, as a session needs it."""

    @property
    def plan(self) -> RegionPlan: ...

    @property
    def clock(self) -> Clock: ...

    def load(self, maps: Maps, modules: ModuleTable) -> tuple[SharedRegion, ThreadTable, float]:
        """Begin to sample: where the shared memory is, the threads that were posted, and since when ticks
        come (time.monotonic()).

        Raises InjectionFailed and TargetDied; the target is then as it was.
        """
        ...

    def drain_s(self, elapsed_s: float) -> float:
        """How long to wait between two looks at the target, ``elapsed_s`` after the begin."""
        ...

    def arm(self) -> None:
        """See to it that posted threads are armed though no tick of another one could do it.

        Raises PyattachError and ProcessLookupError.
        """
        ...

    def leave(self, shared: SharedMemory, take_rest: Callable[[], None]) -> None:
        """No sample after this; ``take_rest`` is called when the last one is written.

        Raises PyattachError and ProcessLookupError.
        """
        ...

    def verify(self) -> Verification | None:
        """What is left in the target that should not be; None where it was to stay.  Raises OSError once
        the target is gone."""
        ...

    def notes(self) -> list[str]:
        """What is to be said about it in the report."""
        ...


class Injected:
    """Brought into a running process and taken out again, each time by a borrowed thread.

    ``loader`` as in the session's options.  What is there now is what ``verify`` compares with.
    """

    def __init__(
        self, target: TargetProcess, plan: RegionPlan, loader: str, clock: Clock, choice: ThreadChoice
    ) -> None:
        self._target, self.plan, self._way = target, plan, loader
        self.clock, self._choice = clock, choice
        self._before = snapshot(target)
        self._stub: LoadedStub | None = None
        self._given_back = 0

    def load(self, maps: Maps, modules: ModuleTable) -> tuple[SharedRegion, ThreadTable, float]:
        target, self._modules = self._target, modules
        self._zones, calls = survey(maps, proc_opener(target.pid), target.read)
        fault.reach("surveyed", target.pid)
        loader = StubLoader(
            target,
            self.plan,
            (self._zones, calls),
            modules.first(maps),
            self._way,
            self.clock,
            self._choice,
        )
        with fault.during("load"):
            loaded = loader.load()
        self._stub = loaded.stub
        return loaded

    @property
    def stub(self) -> LoadedStub:
        if self._stub is None:
            raise PyattachError("the stub was not loaded")
        return self._stub

    def drain_s(self, elapsed_s: float) -> float:
        return DRAIN_S

    def arm(self) -> None:
        call(self._target, self.stub, "pa_arm")

    def leave(self, shared: SharedMemory, take_rest: Callable[[], None]) -> None:
        with fault.during("stop"):
            stop_ticks(self._target, self.stub, shared, self.clock)
        self._given_back = int(shared.control.signal_given_back)
        take_rest()
        fault.reach("drained", self._target.pid)
        with fault.during("unload"):
            unload(self._target, self.stub, shared.control, self._places())

    def _places(self) -> SafePlaces:
        """Where dlclose may be called now."""
        if not self.stub.by_dlopen:
            return SafePlaces(self._target, self._zones, strict=False)
        region = self.stub.shared_address
        unwinder = OutsideUnwinder(
            self._target.memory_fd, region=region, max_depth=MAX_DEPTH, mode=Unwind.CFI
        )
        unwinder.set_modules(self._modules.of(self._target.maps()))
        return SafePlaces(self._target, self._zones, unwinder, strict=False)

    def verify(self) -> Verification:
        # Where the spare signal was not given back, the C library has taken it for itself.
        spare = self.plan.spare_signal if self._given_back & 2 else 0
        fault.reach("verifying", self._target.pid)
        after = snapshot(self._target)
        fault.reach("compared", self._target.pid)
        left = tuple(remains(self._before, after, (self.plan.signal, spare)))
        return Verification(self._target.pid, self._before, after, left)

    def notes(self) -> list[str]:
        notes = []
        if self.plan.spare_signal and self._given_back == 1:
            notes.append(_CANCELLED)
        held = ", ".join(f"{ns / 1e3:.0f}" for ns in self.stub.held_ns)
        how = "dlopen" if self.stub.by_dlopen else "direct mapping"
        return [*notes, f"{HOW_LOADED} {how}; one thread at a time was held, for {held} us"]
