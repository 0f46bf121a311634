"""A process together with its children, theirs, and those that come: one profile, a process as the root
of each stack."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable
from types import TracebackType

from ..render.combine import below, combined
from ..render.facts import short_command
from ..render.profile import Profile
from ..symbols.frame import Frame, FrameKind
from ..symbols.name_options import LONGEST_S
from . import following, procfs
from .children import descendants, share_memory
from .contract import Options, Outcome, Progress
from .helpers import Helper

MOST_AT_ONCE = 32
"""Children beyond wait until others have ended: each costs pyattach a process."""

_LEAVE_S = 20.0
"""How long a session may take to leave its target once it is told to."""

END_DEADLINE_S = _LEAVE_S + LONGEST_S
_SHOWN = 10


def attach(
    pid: int, options: Options, should_stop: Callable[[], bool], on_progress: Callable[[Progress], None]
) -> Outcome:
    """As ``following.attach``, with the process's descendants.  It ends when the process does."""
    with Family(pid, options) as family:

        def look_and_ask() -> bool:
            family.look()
            return should_stop()

        outcome = following.attach(pid, options, look_and_ask, on_progress, on_end=family.tell_to_stop)
        family.stop()
        return family.joined(outcome)


@dataclasses.dataclass
class _Child:
    pid: int
    start_time: int
    name: str
    helper: Helper


class Family:
    """The descendants of process ``pid`` and who samples them.  ``look`` often; ``tell_to_stop``
    when the process is sampled no more, ``stop`` when it has its names."""

    def __init__(self, pid: int, options: Options) -> None:
        self._pid = pid
        self._options = options._replace(duration_s=None)
        self._children: list[_Child] = []
        self._known: set[tuple[int, int]] = set()
        self._sharing: set[int] = set()
        self._too_short: list[str] = []
        self._refused: list[str] = []
        self._stop_fd, self._stop_end = os.pipe()
        self._told_at = 0.0

    def __enter__(self) -> Family:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.tell_to_stop()
        # All have ended by now, unless an exception comes by: nobody waits for their names then.
        self._wait(_LEAVE_S)
        os.close(self._stop_fd)

    def look(self) -> None:
        """Attach to the children that have come."""
        running = [child for child in self._children if not child.helper.ended()]
        for child in self._children:
            if child not in running and child.helper.error:
                self._note_failure(child)
        self._children = [c for c in self._children if c in running or c.helper.outcome is not None]
        roots = [self._pid, *(child.pid for child in running)]
        room = MOST_AT_ONCE - len(running)
        for pid, parent in descendants(roots, but=os.getpid()):
            stat = procfs.read_stat(pid)
            if room <= 0 or stat is None or stat.state in "ZX" or (pid, stat.start_time) in self._known:
                continue
            if share_memory(pid, parent):
                # Between vfork and execve: what is mapped into it is mapped into its parent.
                self._sharing.add(pid)
                continue
            self._sharing.discard(pid)
            self._known.add((pid, stat.start_time))
            try:
                helper = Helper(pid, self._options, self._stop_fd, self._stop_end)
            except OSError as error:  # a limit of processes, a container's for one
                self._refused.append(f"{pid} {stat.name}: {error.strerror}")
                continue
            self._children.append(_Child(pid, stat.start_time, stat.name, helper))
            room -= 1

    def tell_to_stop(self) -> None:
        """End the sampling of all of them; ``look`` no more.  Waits for nothing."""
        if self._stop_end >= 0:
            os.close(self._stop_end)
            self._stop_end = -1
            self._told_at = time.monotonic()

    def stop(self) -> None:
        """End all sessions and wait for their ends: for the names of what they have sampled, too."""
        self.tell_to_stop()
        self._wait(END_DEADLINE_S)

    def _wait(self, longest_s: float) -> None:
        deadline = self._told_at + longest_s
        for child in self._children:
            child.helper.wait(deadline)

    def joined(self, outcome: Outcome) -> Outcome:
        """One outcome of the process's own and its children's."""
        for child in self._children:
            if child.helper.error:
                self._note_failure(child)
        children = [(c.pid, c.helper.outcome) for c in self._children if c.helper.outcome is not None]
        profiles = [_rooted(outcome.profile)]
        profiles += [_rooted(_notes_named(child.profile)) for _, child in children]
        profile = combined(profiles)
        meta = dataclasses.replace(
            profile.meta,
            ended_by=outcome.profile.meta.ended_by,
            notes=(*self._notes(len(children)), *profile.meta.notes),
        )
        residue = [f"in its child {pid}: {line}" for pid, child in children for line in child.residue]
        return outcome._replace(
            profile=dataclasses.replace(profile, meta=meta),
            residue=(*outcome.residue, *residue),
            verified=(*outcome.verified, *(seen for _, child in children for seen in child.verified)),
        )

    def _note_failure(self, child: _Child) -> None:
        stat = procfs.read_stat(child.pid)
        if stat is None or stat.start_time != child.start_time or stat.state in "ZX":
            self._too_short.append(f"{child.pid} {child.name}")
        else:
            self._refused.append(f"{child.pid} {child.name}: {child.helper.error}")

    def _notes(self, sampled: int) -> list[str]:
        notes = [f"{sampled} child processes were sampled too; those of less than 0.1 s may have gone unseen"]
        if self._too_short:
            notes.append(
                f"{len(self._too_short)} child processes ended before they could be attached to: "
                + _listed(self._too_short)
            )
        if self._refused:
            notes.append(f"{len(self._refused)} child processes were not sampled: {_listed(self._refused)}")
        sharing = [pid for pid in sorted(self._sharing) if procfs.read_stat(pid) is not None]
        if sharing:
            notes.append(f"{len(sharing)} child processes use their parent's memory and were not sampled")
        return notes


def _listed(words: list[str]) -> str:
    more = [f"and {len(words) - _SHOWN} more"] if len(words) > _SHOWN else []
    return "; ".join(words[:_SHOWN] + more)


def _rooted(profile: Profile) -> Profile:
    meta = profile.meta
    return below(profile, Frame(f"{meta.pid} {short_command(meta)}", "", FrameKind.MARK))


def _notes_named(profile: Profile) -> Profile:
    notes = tuple(f"process {profile.meta.pid}: {note}" for note in profile.meta.notes)
    return dataclasses.replace(profile, meta=dataclasses.replace(profile.meta, notes=notes))
