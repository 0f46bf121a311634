"""A session in a process of its own, for the Python API.

Not a thread of the caller's: the interpreter's lock may be held there for longer than the lease lasts, and
ptrace belongs to the one thread that seized.  Both ends are ours, so what goes between is pickled: a
``Request`` on stdin, whose end says stop; on stdout ``STARTED`` once samples are taken, then an ``Answer`` or
a PyattachError.
"""

from __future__ import annotations

import dataclasses
import os
import pickle
import select
import signal
import sys
from collections.abc import Callable
from typing import BinaryIO

from ..errors import PyattachError
from ..inject import fault
from ..render.profile import Profile
from .contract import Options
from .heap_profile import KINDS
from .heap_words import UNITS

STARTED = "started"


@dataclasses.dataclass(frozen=True)
class Request:
    """What is asked for: ``options`` for a session on process ``pid``; with ``heap`` also all that it
    allocates, one allocation in ``sample_bytes`` (0: each); ``leaks``: lost blocks are told apart."""

    pid: int
    options: Options
    heap: bool = False
    sample_bytes: int = 0
    leaks: bool = False


@dataclasses.dataclass(frozen=True)
class Answer:
    """A profile by kind and unit; ("", "") for samples.  ``residue``: what is left in the target."""

    profiles: dict[tuple[str, str], Profile]
    residue: tuple[str, ...]


def serve(request: Request, started: Callable[[], None], should_stop: Callable[[], bool]) -> Answer:
    """The session.  Raises PyattachError."""
    if request.heap:
        return _heap(request, started, should_stop)
    from . import family, following

    session = family.attach if request.options.subprocesses else following.attach
    outcome = session(request.pid, request.options, should_stop, lambda _progress: started())
    return Answer({("", ""): outcome.profile}, outcome.residue)


def _heap(request: Request, started: Callable[[], None], should_stop: Callable[[], bool]) -> Answer:
    from .heap_attach import attach_heap
    from .heap_session import HeapOptions

    options = HeapOptions(
        duration_s=request.options.duration_s,
        sample_bytes=request.sample_bytes,
        leaks=request.leaks,
        unwind=request.options.unwind,
        allow_seccomp=request.options.allow_seccomp,
    )
    outcome = attach_heap(request.pid, options, should_stop, lambda _session: started())
    profiles = {
        (kind, unit): Profile(outcome.meta, {}, {})
        if outcome.result is None
        else outcome.result.profile(outcome.meta, kind, unit)
        for kind in (outcome.result.kinds if outcome.result else KINDS)
        for unit in UNITS
    }
    return Answer(profiles, outcome.residue)


class _Speaker:
    """Says things once, to a reader that may be gone."""

    def __init__(self, out: BinaryIO) -> None:
        self._out, self._started = out, False

    def started(self) -> None:
        if not self._started:
            self._started = True
            self.say(STARTED)

    def say(self, what: object) -> None:
        try:
            pickle.dump(what, self._out)
            self._out.flush()
        except BrokenPipeError:
            sys.exit(1)


def main() -> None:
    """Serve one request."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # the caller decides, by the end of stdin
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # as StopSignals does, and why
    fault.choose_from_environment()
    # What is printed anywhere must not get among the answers.
    speaker = _Speaker(os.fdopen(os.dup(1), "wb"))
    os.dup2(2, 1)
    with open(0, "rb", closefd=False) as asked:
        request: Request = pickle.load(asked)
    try:
        speaker.say(serve(request, speaker.started, lambda: bool(select.select([0], [], [], 0)[0])))
    except PyattachError as error:
        speaker.say(error)
