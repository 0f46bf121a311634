"""Following a process through execve: each program is a session of its own, all make one profile."""

from __future__ import annotations

import time
from collections.abc import Callable

from ..errors import InjectionFailed, NoSuchTarget, PyattachError, TargetDied, UsageError
from . import procfs, session
from .contract import Beside, Options, Outcome, Progress, unasked

_PAUSE_S = 0.05
"""Between two tries: a process that executes one program after the other is given its time."""

_MOST_COMMANDS = 5

_PASSING = (InjectionFailed, NoSuchTarget, TargetDied, UsageError)
"""What may be otherwise a moment later: it was just executing, or has no thread of the chosen name yet."""


def attach(
    pid: int,
    options: Options,
    should_stop: Callable[[], bool],
    on_progress: Callable[[Progress], None],
    beside: Beside | None = None,
    on_end: Callable[[], None] = unasked,
) -> Outcome:
    """As ``session.attach``; with ``follow_exec`` also the programs that the process executes after, those
    without ``beside``."""
    stat = procfs.read_stat(pid)
    shown = Shown(on_progress)
    outcome = session.attach(pid, options, should_stop, shown, beside, on_end)
    if not (options.follow_exec and outcome.replaced and stat is not None):
        return outcome
    return go_on(pid, stat.start_time, outcome, options, should_stop, shown, on_end)


class Shown:
    """``on_progress``, for several programs in a row, and for what is to be known between two of them."""

    def __init__(self, on_progress: Callable[[Progress], None]) -> None:
        self._on_progress = on_progress
        self._last: Progress | None = None
        self.before_s = 0.0

    def __call__(self, progress: Progress) -> None:
        self._last = progress._replace(elapsed_s=progress.elapsed_s + self.before_s, before_s=self.before_s)
        self._on_progress(self._last)

    def tell(self, elapsed_s: float, note: str) -> None:
        """Show ``note`` beside what was sampled last, if it is news."""
        if self._last is not None and note != self._last.note:
            self._last = self._last._replace(elapsed_s=elapsed_s, note=note)
            self._on_progress(self._last)


def go_on(
    pid: int,
    start_time: int,
    first: Outcome,
    options: Options,
    should_stop: Callable[[], bool],
    shown: Shown,
    on_end: Callable[[], None] = unasked,
) -> Outcome:
    """What became of process ``pid`` after its ``first`` program: that and those it executed, as one."""
    return _Chase(pid, start_time, options, should_stop, shown, on_end).after(first)


class _Chase:
    def __init__(
        self,
        pid: int,
        start_time: int,
        options: Options,
        should_stop: Callable[[], bool],
        shown: Shown,
        on_end: Callable[[], None],
    ) -> None:
        self._pid, self._start_time, self._options = pid, start_time, options
        self._should_stop, self._shown, self._on_end = should_stop, shown, on_end
        self._began = 0.0
        self._ended_by = ""
        self._notes: list[str] = []

    def after(self, first: Outcome) -> Outcome:
        """Go on from the first program's end; the outcome of all."""
        self._began = time.monotonic() - first.profile.meta.duration_s
        outcomes = [first]
        while outcomes[-1].replaced:
            following = self._next()
            if following is None:
                break
            outcomes.append(following)
        import dataclasses

        from ..render.combine import combined

        profile = combined([outcome.profile for outcome in outcomes])
        execs = sum(outcome.replaced for outcome in outcomes)
        commands = list(dict.fromkeys(outcome.profile.meta.command for outcome in outcomes[1:]))
        notes = [f"the target executed another program ({execs} times seen)", *self._notes]
        notes += [f"it went on as: {command}" for command in commands[:_MOST_COMMANDS]]
        if len(commands) > _MOST_COMMANDS:
            notes.append(f"and as {len(commands) - _MOST_COMMANDS} other commands")
        meta = dataclasses.replace(
            profile.meta,
            ended_by=self._ended_by or profile.meta.ended_by,
            notes=(*notes, *profile.meta.notes),
        )
        last = outcomes[-1]
        return Outcome(
            dataclasses.replace(profile, meta=meta),
            last.residue,
            last.target_ended or self._ended_by == "the target ended",
            verified=last.verified,
            failure=next((outcome.failure for outcome in outcomes if outcome.failure), ""),
        )

    def _next(self) -> Outcome | None:
        """The next program's session; None, with the reason in ``_ended_by``, where there is none."""
        failure = "there was no time left for it"
        while not self._over():
            elapsed_s = time.monotonic() - self._began
            options = self._options
            if options.duration_s is not None:
                options = options._replace(duration_s=options.duration_s - elapsed_s)
            try:
                self._shown.before_s = elapsed_s
                return session.attach(self._pid, options, self._should_stop, self._shown, on_end=self._on_end)
            except _PASSING as error:
                failure = error.what
                self._shown.tell(elapsed_s, f"the program it runs now is not sampled: {failure}")
                time.sleep(_PAUSE_S)
            except (OSError, PyattachError) as error:
                self._ended_by = "the target replaced itself (exec)"
                self._notes.append(f"it could not be followed: {getattr(error, 'what', error)}")
                return None
        self._notes.append(f"the program it ran at the end was not sampled: {failure}")
        return None

    def _over(self) -> bool:
        stat = procfs.read_stat(self._pid)
        duration_s = self._options.duration_s
        if stat is None or stat.start_time != self._start_time or stat.state in "ZX":
            self._ended_by = "the target ended"
        elif self._should_stop():
            self._ended_by = "stopped by the user"
        elif duration_s is not None and time.monotonic() - self._began >= duration_s:
            self._ended_by = "duration reached"
        return bool(self._ended_by)
