"""The heap of a process, recorded while its CPU time is sampled: ``pyattach PID --heap``.

Two stubs in one attach: the heap's hooks are in before the first tick, and out after the last.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator

from ..errors import UsageError
from ..inject.borrow import MEMFD_PREFIX
from ..render.facts import share
from ..render.formats import renderer_for
from . import procfs
from .contract import Outcome
from .heap_attach import Attached, heap_attached
from .heap_session import HeapOptions, HeapOutcome, HeapSession, size_text

_EXECUTED = "the target executed another program: the heap was recorded up to there"
_OWN_CODE = f"memfd:{MEMFD_PREFIX.decode()}"
_GROWTH_S = 2.0
_DEAR = 0.1


class HeapBeside:
    """A ``session.Beside``; ``on_look`` is called at each look.  ``outcome`` is there at the end."""

    on_look: Callable[[HeapSession], None] | None = None

    def __init__(self, pid: int, options: HeapOptions) -> None:
        self._pid, self._options = pid, options
        self._attached: Attached | None = None
        self.ended_by = ""
        self.outcome: HeapOutcome | None = None
        self._before = (0.0, 0.0)
        self._growth: float | None = None
        self._asked = False

    @contextlib.contextmanager
    def attached(self) -> Iterator[None]:
        """With the hooks in.  Raises PyattachError where they can't be."""
        with heap_attached(self._pid, self._options) as attached:
            self._attached = attached
            self._before = time.monotonic(), 0.0
            try:
                yield
            finally:
                attached.session.over()
                attached.session.ended_by = self.ended_by
                if attached.target.alive() and not attached.is_current():
                    attached.session.notes.append(_EXECUTED)
                self._attached = None
        self.outcome = attached.outcome

    def look(self) -> None:
        """Look after the recording."""
        attached = self._attached
        if attached is None or not attached.is_current():
            return
        try:
            attached.session.look()
            attached.hook_new_modules()
            if self.on_look is not None:
                self.on_look(attached.session)
        except ProcessLookupError:  # its end is seen by the sampling's own look
            return

    def write_so_far(self) -> None:
        """A report is asked for; it is written at the next look."""
        self._asked = True

    def was_asked(self) -> bool:
        """Whether one was since the last call."""
        asked, self._asked = self._asked, False
        return asked

    def header(self) -> str:
        """What a live view says of it."""
        if self._attached is None:
            return ""
        live = self._attached.session.tables.live_bytes()
        now = time.monotonic()
        if now - self._before[0] >= _GROWTH_S:
            self._growth = (live - self._before[1]) / (now - self._before[0])
            self._before = now, live
        grows = "" if self._growth is None else f", {self._growth / 1024:+,.0f} KiB/s"
        rss = procfs.rss_bytes(self._pid)
        return f"heap {size_text(live)} live{grows}" + (f", RSS {size_text(rss)}" if rss else "")

    def noted(self, outcome: Outcome) -> Outcome:
        """``outcome`` of the sampling, with what is to be known of it because of this."""
        if self.outcome is not None:
            outcome = outcome._replace(
                failure=outcome.failure or self.outcome.failure,
                residue=(*outcome.residue, *self.outcome.residue),
            )
        profile = outcome.profile
        own = sum(
            weight
            for (_, stack), weight in profile.weights.items()
            if stack and stack[-1].module.startswith(_OWN_CODE)
        )
        notes = [f"recording the heap took {share(own, profile.total)} of the CPU time"] if own else []
        if own > _DEAR * profile.total and not self._options.sample_bytes:
            notes[0] += ": --heap-sample 512K takes less"
        meta = dataclasses.replace(profile.meta, notes=(*profile.meta.notes, *notes))
        return outcome._replace(profile=dataclasses.replace(profile, meta=meta))


def heap_outputs(outputs: list[str], wanted: str | None) -> list[str]:
    """Where the heap goes beside the sampling: ``out-heap.svg`` beside ``out.svg``.  Raises UsageError."""
    return [_beside(output, wanted) for output in outputs]


def _beside(output: str, wanted: str | None) -> str:
    if output == "-":
        if wanted not in (None, "text"):
            raise UsageError(
                f"two profiles as {wanted} can't both go to stdout", "name a file with -o, or leave out -f"
            )
        return output
    known = () if wanted is not None else renderer_for(output).suffixes
    suffix = max((s for s in known if output.endswith(s)), key=len, default="")
    if not suffix:
        name = output.rpartition("/")[2]
        suffix = "." + name.rpartition(".")[2] if "." in name.lstrip(".") else ""
    return f"{output.removesuffix(suffix)}-heap{suffix}"
