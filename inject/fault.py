"""Fault points: the places of a session, by name, at which tests let pyattach or its target end.

``PYATTACH_FAULT=STEP`` in the environment ends pyattach there with SIGKILL, as the kernel would when memory
is short; ``STEP:stop`` stops it (SIGSTOP) until somebody lets it go on; ``STEP:SIGNAME`` sends that signal to
the target and goes on.  Once only, at the first time the step is reached.  The steps are those of ``STEPS``.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator

from ..errors import UsageError
from .layout import BootStep

VARIABLE = "PYATTACH_FAULT"

BORROWING = (
    "seized",  # PTRACE_SEIZE is done, the thread runs
    "stopped",
    "read",  # its registers and signal mask are known
    "written",  # the bootstrap is in the cave
    "pointed",  # the thread's registers lead there; it stands still
    "released",  # it runs, no ptrace is held
    "mailed",  # it has made the memfd and waits
    "opened",
    "filled",  # all but the memfd's final size
    "sized",  # it has its sign to go on
    "done",  # the command was run
    "left",  # it was seen outside of the bootstrap
    "restored",  # the cave's bytes are back
)
"""What each borrowing of a thread passes, in this order."""


def _of(phase: str) -> tuple[str, ...]:
    """The steps of what a thread is borrowed for: ``load.seized`` and so on."""
    return tuple(f"{phase}.{step}" for step in BORROWING)


STEPS = (
    "checked",  # nothing was refused, the target's memory is open
    "surveyed",  # it is known where locks may be held
    "prepared",  # all is ready for a thread to be stopped
    *_of("load"),
    "loaded",  # the ring is there, the lease renewed, the clock runs
    "sampling",  # before the second look at the ring
    "told",  # the state is QUIT: handlers record nothing any more
    "unclocked",  # pyattach's own events are closed
    *_of("stop"),
    "quiet",  # no handler runs any more
    "drained",  # the ring's rest is read
    "outside",  # no thread is inside the stub
    *_of("unload"),
    "verifying",  # before the comparison
    "compared",  # between looking and judging
    "verified",
)
"""Every step from the first look to the last, in the order of a session."""

HEAP_STEPS = (
    "entered",  # the allocator's own code leads to the hooks
    "hooked",  # all that is to lead there does
)
"""Further ones where the heap is recorded, once its stub is there."""

BOOT_STEPS = {
    "boot.shared": BootStep.SHARED,
    "boot.dlopen": BootStep.DLOPEN,
    "boot.image": BootStep.IMAGE,
    "boot.call": BootStep.CALL,
    "boot.unload": BootStep.UNLOAD,
}
"""Steps of the loader in the target: named, each fails there, every time, as if the kernel had refused."""

LATE = frozenset(STEPS[STEPS.index("sampling") :])
"""The steps at which there are samples already."""

_EFFECT_S = 0.02
"""What a signal to the target is given to take effect.  Nothing depends on whether it does by then."""

_chosen = ""
_action = ""
_phase = ""


def choose(text: str) -> None:
    """End, stop or signal at the step that ``text`` names ("": nowhere).  Raises UsageError."""
    global _chosen, _action
    step, _, action = text.partition(":")
    if step and step not in (*STEPS, *HEAP_STEPS, *BOOT_STEPS):
        known = " ".join((*STEPS, *HEAP_STEPS, *BOOT_STEPS))
        raise UsageError(f"{VARIABLE}: there is no step {step!r}", f"take one of: {known}")
    if action not in ("", "stop") and action not in signal.Signals.__members__:
        raise UsageError(f"{VARIABLE}: {action!r} is neither 'stop' nor the name of a signal")
    _chosen, _action = step, action


def choose_from_environment() -> None:
    """As ``choose``, with the variable's value.  Raises UsageError."""
    choose(os.environ.get(VARIABLE, ""))


@contextlib.contextmanager
def during(phase: str) -> Iterator[None]:
    """Steps of a borrowing are this phase's meanwhile."""
    global _phase
    before, _phase = _phase, phase
    try:
        yield
    finally:
        _phase = before


def in_loader() -> int:
    """The step that is to fail in the target (``BootStep``); 0: none."""
    return int(BOOT_STEPS.get(_chosen, 0))


def reach(step: str, pid: int) -> None:
    """Pyattach is at this step of a session with process ``pid``."""
    global _chosen
    if not _chosen or _chosen not in (step, f"{_phase}.{step}"):
        return
    _chosen = ""
    if _action in ("", "stop"):
        os.kill(os.getpid(), signal.SIGSTOP if _action else signal.SIGKILL)
    else:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.Signals[_action])
        time.sleep(_EFFECT_S)
