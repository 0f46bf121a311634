"""Registers of threads, each stopped for the moment it takes to read them."""

from __future__ import annotations

import time

from .hold import stopped
from .ptrace import Tracee, let_go_of_late_stops
from .target import TargetProcess

_STOP_S = 1.0


def registers_running(tid: int) -> dict[str, int] | None:
    """Of a thread that runs, stopped for that moment; None where it did not stop."""
    deadline = time.monotonic() + _STOP_S
    while time.monotonic() < deadline:
        if not let_go_of_late_stops():
            with Tracee(tid) as tracee:
                if tracee.interrupt(_STOP_S / 2) is not None:
                    return tracee.registers()
        time.sleep(0.001)
    return None


def registers_asleep(target: TargetProcess, tid: int) -> dict[str, int] | None:
    """Of a thread in a system call that goes on after a stop; None where it could not be stopped."""
    deadline = time.monotonic() + _STOP_S
    while time.monotonic() < deadline:
        let_go_of_late_stops()
        with stopped(target, tid) as held:
            if held is not None:
                return held.registers
        time.sleep(0.001)
    return None
