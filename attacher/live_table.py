"""Feeds a live view from the session's progress, and the session with what is asked for there."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from ..render.live_header import LiveHeader
from ..render.live_totals import LiveTotals
from ..render.plain import PlainView
from ..symbols.lines_ahead import LinesAhead
from .contract import Options, Progress
from .interim import thread_name, write_interim
from .naming import make_cache
from .samples import SampleStore
from .sampling import NAMING_S

if TYPE_CHECKING:
    from ..render.live import LiveView  # it brings rich with it
    from .heap_beside import HeapBeside


class LiveTable:
    """Called with the session's progress; ``stopped`` is to be asked between two looks at the target.  Use
    with ``with``: what reads lines meanwhile does not outlive it."""

    def __init__(
        self,
        view: LiveView | PlainView,
        pid: int,
        command: str,
        options: Options,
        heap: HeapBeside | None = None,
    ) -> None:
        self._view, self._pid, self._command, self._options = view, pid, command, options
        self._heap = heap
        self._totals = LiveTotals(lines=options.names.lines and not isinstance(view, PlainView))
        self._ahead: LinesAhead | None = None
        self._store: SampleStore | None = None
        self._progress: Progress | None = None
        if not isinstance(view, PlainView):
            view.snapshot, view.name_of = self._snapshot, self._name_of

    def __call__(self, progress: Progress) -> None:
        if progress.store is not self._store:  # the first, or that of the program executed next
            self._store = progress.store
            for (tid, stack), ticks in progress.store.weights().items():
                self._totals.add(tid, stack, ticks)
            progress.store.forget_new()
            progress.store.watch = self._totals.add
            progress.store.naming = self._naming
            self._read_ahead()
        if self._ahead is not None:
            self._totals.tell_anew(self._store.renew_names(self._ahead.look(), NAMING_S))
        progress.store.update_totals(NAMING_S)
        self._progress = progress
        self._view.update(self._header_of(progress), self._totals)

    def __enter__(self) -> LiveTable:
        return self

    def __exit__(self, *_exc: object) -> None:
        if self._ahead is not None:
            self._ahead.close()

    def _read_ahead(self) -> None:
        """Lines of what is sampled from now on, where they are wanted and somebody sees them."""
        self.__exit__()
        names = self._options.names
        if self._store is not None and self._totals.lines:
            self._ahead = LinesAhead(self._store.resolver, make_cache(names), inlines=names.inlines)

    def stopped(self, should_stop: Callable[[], bool]) -> Callable[[], bool]:
        """``should_stop``, or the key for it; keys do what they do when this is called."""
        return lambda: self._view.poll() or should_stop()

    def _naming(self, done: int, stacks: int) -> None:
        self._view.working("naming functions", done, stacks)

    def _header_of(self, progress: Progress) -> LiveHeader:
        duration = self._options.duration_s
        return LiveHeader(
            pid=self._pid,
            command=self._command,
            rate_asked_hz=self._options.rate_hz,
            rate_reached_hz=progress.rate_reached_hz,
            threads=progress.threads,
            samples=progress.store.samples,
            dropped=progress.dropped,
            overhead_share=progress.overhead_share,
            elapsed_s=progress.elapsed_s,
            mode=self._options.mode,
            remaining_s=None if duration is None else max(0.0, duration - progress.elapsed_s),
            note=progress.note,
            beside="" if self._heap is None else self._heap.header(),
        )

    def _name_of(self, tid: int) -> str:
        return thread_name(self._pid, tid)

    def _snapshot(self) -> str:
        """Write what there is so far; what to say."""
        if self._progress is None:
            return "there is nothing yet"
        if self._heap is not None:
            self._heap.write_so_far()
        return write_interim(self._pid, self._command, self._options, self._progress)
