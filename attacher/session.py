"""One session, from check to profile, in the order it happens."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from ..inject import fault
from .contract import Beside, Options, Outcome, Progress, unasked
from .ptrace import wait_for_late_stops
from .refusals import check_seccomp
from .sampling import Session
from .target import TargetProcess
from .tries import begun


def attach(
    pid: int,
    options: Options,
    should_stop: Callable[[], bool],
    on_progress: Callable[[Progress], None],
    beside: Beside | None = None,
    on_end: Callable[[], None] = unasked,
) -> Outcome:
    """Profile process ``pid`` until ``should_stop()``, the duration, or its end.  ``on_end`` is called when
    the sampling is over, and no further program is to be followed: what takes its time comes after.

    The order of a session: check, survey, load (seize, inject, release), sample, stop, unload, verify,
    resolve.  Raises PyattachError before anything was sampled; the target is then as it was.  What fails
    after that is the outcome's ``failure``.
    """
    with contextlib.ExitStack() as undo:
        undo.callback(wait_for_late_stops)
        with beside.attached() if beside is not None else contextlib.nullcontext():
            session = undo.enter_context(_loaded(pid, options))
            try:
                session.sample(_looking(should_stop, beside), on_progress)
                if not (options.follow_exec and session.replaced):
                    on_end()
            finally:
                session.detach()
            verified = session.verify()
            if beside is not None:
                beside.ended_by = session.ended_by
        fault.reach("verified", pid)
        left, seen = (verified.left, (verified,)) if verified is not None else (session.unverified, ())
        profile = session.profile()
        return Outcome(
            profile,
            left,
            session.target_ended,
            session.replaced,
            verified=seen,
            failure=session.failure,
        )


def _looking(should_stop: Callable[[], bool], beside: Beside | None) -> Callable[[], bool]:
    if beside is None:
        return should_stop

    def stopped() -> bool:
        beside.look()
        return should_stop()

    return stopped


def _loaded(pid: int, options: Options) -> contextlib.AbstractContextManager[Session]:
    """Check, survey, load."""

    def check(pid: int) -> None:
        if not options.allow_seccomp:
            check_seccomp(pid)
        options.threads.check(pid)
        if options.mode == "wall":
            from .wall import check_wall

            check_wall(pid)

    def load(target: TargetProcess, undo: contextlib.ExitStack) -> Session:
        session = Session(target, options)
        undo.callback(session.close)
        session.load()
        return session

    return begun(pid, check, load)
