"""Taking the stub out: no tick any more, no thread inside, then unload."""

from __future__ import annotations

import time

from ..errors import InjectionFailed
from ..inject.loader import LoadedStub
from ..inject.locks import LockZones
from .clock import Clock
from .hold import hold_any, hold_clean
from .shared import SharedMemory
from .target import TargetProcess

DEADLINE_S = 2.0
OTHERS_S = 0.5
"""How long a moment is looked for at which no other thread may be inside the loader.  After that dlclose
may have to wait for one: leaving the stub behind would be the worse end."""


def stop_ticks(target: TargetProcess, stub: LoadedStub, shared: SharedMemory, clock: Clock) -> None:
    """Stop the clock, delete the timers, give the signal back, wait until handlers that run have returned.

    Raises InjectionFailed, ProcessLookupError.
    """
    shared.stop()
    clock.stop()
    borrowing = stub.prepare_call("pa_stop")
    with hold_any(target) as held:
        stub.run(borrowing, held)
    deadline = time.monotonic() + DEADLINE_S
    while shared.control.inside and time.monotonic() < deadline:
        time.sleep(0.001)


def unload(target: TargetProcess, stub: LoadedStub, shared: SharedMemory, zones: LockZones) -> None:
    """Remove the stub, but only when no thread can be inside of it or come there again.

    Raises InjectionFailed when that can't be shown: the stub then stays mapped, and quiet.
    """
    if shared.control.inside:
        raise InjectionFailed("a signal handler has not returned: the stub stays mapped")
    if not shared.control.signal_given_back & 1:
        raise InjectionFailed(
            "the target has changed its handler of the profiling signal and may still call ours: "
            "the stub stays mapped"
        )
    inside = target.wait_outside(target.threads(), stub.text_ranges, DEADLINE_S)
    if inside:
        raise InjectionFailed(f"threads {sorted(inside)} were not seen outside of the stub: it stays mapped")
    borrowing = stub.prepare_unload()
    if not stub.by_dlopen:
        with hold_any(target) as held:
            stub.run(borrowing, held)
        return
    with hold_clean(target, zones, DEADLINE_S, OTHERS_S) as held:
        if held is None:
            raise InjectionFailed("no place was found where dlclose is safe: the stub stays mapped")
        stub.run(borrowing, held)
