"""Taking the stub out: no tick any more, no thread inside, then unload."""

from __future__ import annotations

import time
from collections.abc import Callable

from ..errors import InjectionFailed
from ..inject import fault
from ..inject.borrow import Borrowing, ThreadGaveUp
from ..inject.layout import Control
from ..inject.loader import LoadedStub, MappedStub
from .clock import Clock
from .hold import hold_any
from .places import SafePlaces, hold_clean
from .shared import SharedMemory
from .target import TargetProcess

DEADLINE_S = 2.0
_TRIES = 3
DLCLOSE_DEADLINE_S = 10.0
"""How long a place is looked for where dlclose is safe.  The samples are taken by then and nothing ticks, so
waiting costs nobody anything; a program that does nothing but allocate is seldom at such a place."""
OTHERS_S = 0.5
"""How long a moment is looked for at which no other thread may be inside the loader.  After that dlclose
may have to wait for one: leaving the stub behind would be the worse end."""


def stop_ticks(target: TargetProcess, stub: LoadedStub, shared: SharedMemory, clock: Clock) -> None:
    """Stop the clock, delete the timers, give the signal back, wait until handlers that run have returned.

    Raises InjectionFailed, ProcessLookupError.
    """
    shared.quit()
    fault.reach("told", target.pid)
    clock.stop()
    fault.reach("unclocked", target.pid)
    call_stop(target, stub)
    deadline = time.monotonic() + DEADLINE_S
    while shared.control.inside and time.monotonic() < deadline:
        time.sleep(0.001)
    fault.reach("quiet", target.pid)


def call_stop(target: TargetProcess, stub: MappedStub) -> None:
    """Have a thread delete the timers and give the signal back."""
    call(target, stub, "pa_stop")


def call(target: TargetProcess, stub: MappedStub, entry: str) -> None:
    """Have a thread call a function of the stub.  Raises InjectionFailed and ProcessLookupError."""
    _borrow(target, stub, lambda: stub.prepare_call(entry))


def take_out(target: TargetProcess, stub: MappedStub) -> None:
    """Have a thread unmap a stub that was mapped directly, where nobody comes any more.  Raises the same."""
    _borrow(target, stub, stub.prepare_unload)


def _borrow(target: TargetProcess, stub: MappedStub, prepare: Callable[[], Borrowing]) -> None:
    def attempt() -> None:
        borrowing = prepare()
        with hold_any(target) as held:
            stub.run(borrowing, held)

    again(attempt)


def again(attempt: Callable[[], None]) -> None:
    """Once more where the thread gave up waiting because the machine was busy: it has done nothing."""
    for _ in range(_TRIES - 1):
        try:
            attempt()
        except ThreadGaveUp:
            continue
        return
    attempt()


def unload(target: TargetProcess, stub: MappedStub, control: Control, places: SafePlaces) -> None:
    """Remove a stub that was stopped, but only when no thread can be inside of it or come there again.

    Raises InjectionFailed when that can't be shown: the stub then stays mapped, and quiet.
    """
    if control.inside:
        raise InjectionFailed("a signal handler has not returned: the stub stays mapped")
    if not control.signal_given_back & 1:
        raise InjectionFailed(
            "the target has changed its handler of the profiling signal and may still call ours: "
            "the stub stays mapped"
        )
    inside = target.wait_outside(target.threads(), stub.text_ranges, DEADLINE_S)
    if inside:
        raise InjectionFailed(f"threads {sorted(inside)} were not seen outside of the stub: it stays mapped")
    fault.reach("outside", target.pid)
    if stub.by_dlopen:
        again(lambda: _dlclose(target, stub, places))
    else:
        take_out(target, stub)


def _dlclose(target: TargetProcess, stub: MappedStub, places: SafePlaces) -> None:
    borrowing = stub.prepare_unload()
    with hold_clean(target, places, DLCLOSE_DEADLINE_S, OTHERS_S) as clean:
        if clean is None:
            raise InjectionFailed("no place was found where dlclose is safe: the stub stays mapped")
        stub.run(borrowing, clean)
