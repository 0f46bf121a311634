"""Starting a program and profiling it from its first instruction to its last."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable

from .. import __version__
from ..inject.preload import PreloadedStub
from ..render.facts import seconds
from ..render.profile import Meta, Profile
from . import following
from .child import ChildProcess
from .clock import SPARE_SIGNAL, Clock
from .contract import Options, Outcome, Progress, unasked
from .family import Family
from .later import import_the_rest
from .planning import plan_region
from .preloaded import Preloaded
from .program import Program
from .sampling import Session
from .shared import SharedMemory

_LOOK_S = 0.001
_LATER_LOOK_S = 0.02
_EAGER_S = 1.0
_TO_SPEAK_OF_S = 0.05

_NOT_LOADED = (
    "the program did not load what was preloaded: nothing was sampled; attach by pid instead: pyattach PID"
)
_STOPPED_EARLY = "stopped before the program had loaded its libraries: nothing was sampled"
_REPLACED = "the program replaced itself by {} (exec), which is not sampled"

_LIBSECCOMP = (
    "the program may forbid itself the system calls that sampling needs, under pain of death (it has loaded "
    "libseccomp): nothing was sampled; --allow-seccomp, where its filter answers with an error instead"
)
_FILTERED = "the program has put itself under a seccomp filter: the sampling was ended; see --allow-seccomp"

OnProgress = Callable[[Progress], None]


def sampler_stub(options: Options, clock: Clock) -> PreloadedStub:
    """The file that the program is started with.  Raises OSError."""
    import_the_rest()  # the program waits for nothing that is imported
    return PreloadedStub.create(plan_region(options, 1, clock, SPARE_SIGNAL))


def profile_child(
    child: ChildProcess,
    program: Program,
    stub: PreloadedStub,
    clock: Clock,
    options: Options,
    should_stop: Callable[[], bool],
    on_progress: OnProgress,
    on_end: Callable[[], None] = unasked,
) -> Outcome:
    """Profile a program that was started with ``stub``, until it ends or is told to stop.

    The program goes on after that; nothing in it is changed or taken out.  Where nothing could be
    sampled, the profile is empty and its first note says why.  ``on_end``: as ``session.attach``.  Raises
    PyattachError.
    """
    if options.subprocesses:
        with Family(child.pid, options) as family:

            def look_and_ask() -> bool:
                family.look()
                return should_stop()

            alone = options._replace(subprocesses=False)
            outcome = profile_child(
                child, program, stub, clock, alone, look_and_ask, on_progress, family.tell_to_stop
            )
            family.stop()
            return family.joined(outcome)
    begin_unix_s, begin = time.time(), time.monotonic()
    why_not = why_not_reached(child, program, stub, options, should_stop)
    if why_not:
        while child.alive() and not should_stop():
            child.pause(_LATER_LOOK_S)
        meta = Meta(
            command=child.command,
            pid=child.pid,
            rate_asked_hz=options.rate_hz,
            started_at_unix_s=begin_unix_s,
            duration_s=time.monotonic() - begin,
            ended_by="stopped by the user" if child.alive() else "the target ended",
            version=__version__,
            notes=(why_not,),
        )
        return Outcome(Profile(meta, {}, {}), (), not child.alive(), warning=why_not)
    shown = following.Shown(on_progress)
    outcome = _sample(child, stub, clock, options, should_stop, shown, on_end)
    if not (options.follow_exec and child.replaced):
        return outcome
    # The preloaded stub is gone with the program it was in: the next one is attached to.
    first = outcome._replace(replaced=True)
    return following.go_on(child.pid, child.start_time, first, options, should_stop, shown, on_end)


def why_not_reached(
    child: ChildProcess,
    program: Program,
    stub: PreloadedStub,
    options: Options,
    should_stop: Callable[[], bool],
) -> str:
    """Wait until the stub is reached in the program, which then waits for the module table; empty, or why
    that is not to be."""
    why_not = program.refusal or _reach(child, stub, should_stop)
    if not why_not and not options.allow_seccomp and any("/libseccomp.so" in m.path for m in child.maps()):
        _say_no(stub)
        return _LIBSECCOMP
    return why_not


def _reach(child: ChildProcess, stub: PreloadedStub, should_stop: Callable[[], bool]) -> str:
    """Wait until the constructor is reached; why it was not, otherwise.  The dynamic linker may take its
    time before: it loads all libraries first."""
    shared = SharedMemory(stub)
    begin = time.monotonic()
    try:
        while not shared.control.here:
            if not child.alive():
                return "" if shared.control.here else _NOT_LOADED
            if should_stop():
                return _STOPPED_EARLY
            shared.renew_lease()
            child.pause(_LOOK_S if time.monotonic() - begin < _EAGER_S else _LATER_LOOK_S)
        shared.control.preparing = 1
        return ""
    finally:
        shared.close()


def _say_no(stub: PreloadedStub) -> None:
    shared = SharedMemory(stub)
    shared.quit()
    shared.close()


def _sample(
    child: ChildProcess,
    stub: PreloadedStub,
    clock: Clock,
    options: Options,
    should_stop: Callable[[], bool],
    on_progress: OnProgress,
    on_end: Callable[[], None],
) -> Outcome:
    with contextlib.ExitStack() as undo:
        stub.is_there = lambda: not child.replaced
        session = Session(child, options, Preloaded(child, stub, clock))
        undo.callback(session.close)
        session.load()
        warning = ""

        def filtered() -> bool:
            return not options.allow_seccomp and child.filtered()

        try:
            session.sample(lambda: should_stop() or filtered(), on_progress)
            if not (options.follow_exec and child.replaced):
                on_end()
            if filtered():
                session.ended_by = warning = _FILTERED
        finally:
            session.detach()
        if child.replaced and not options.follow_exec:
            warning = _REPLACED.format(child.exe_path() or "another one")
        others_s = child.children_cpu_s()
        if (
            not warning
            and not options.subprocesses
            and others_s > session.cpu.known_s
            and others_s >= _TO_SPEAK_OF_S
        ):
            warning = f"programs that it started used {seconds(others_s)} of CPU time; they are not sampled"
        session.notes += [warning] if warning else []
        profile = session.profile()
        return Outcome(profile, (), session.target_ended, warning=warning, failure=session.failure)
