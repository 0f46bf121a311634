"""One session, from check to profile, in the order it happens."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

from ..errors import InjectionFailed, NoPermission, TargetDied
from ..inject import fault
from ..inject.cave import NoRoom
from .contract import Beside, Options, Outcome, Progress, unasked
from .ptrace import wait_for_late_stops
from .refusals import check_seccomp
from .sampling import Session
from .target import TargetProcess

_EXECS_FOR_S = 1.0


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


@contextlib.contextmanager
def _loaded(pid: int, options: Options) -> Iterator[Session]:
    """Check, survey, load.  A target that executes another program just then, or has just begun, is looked at
    again, and so on for ``_EXECS_FOR_S``."""
    deadline = time.monotonic() + _EXECS_FOR_S
    while True:
        again = time.monotonic() < deadline
        with contextlib.ExitStack() as undo:
            target = undo.enter_context(TargetProcess(pid))
            if not options.allow_seccomp:
                check_seccomp(pid)
            options.threads.check(pid)
            if options.mode == "wall":
                from .wall import check_wall

                check_wall(pid)
            fault.reach("checked", pid)
            try:
                session = Session(target, options)
                undo.callback(session.close)
                session.load()
            except ProcessLookupError as error:
                if again and target.alive():  # the thread has ended, not the process
                    continue
                raise TargetDied(f"process {pid} ended while pyattach looked at it") from error
            except NoPermission:
                raise
            except (InjectionFailed, OSError) as error:
                moved = not target.memory_is_current()
                if again and (moved or isinstance(error, NoRoom)):
                    continue
                if moved:
                    raise InjectionFailed(
                        f"process {pid} executed another program each time that pyattach attached",
                        "try again",
                    ) from error
                if isinstance(error, InjectionFailed):
                    raise
                raise InjectionFailed(f"process {pid} can't be read: {error}", "try again") from error
            yield session
            return
