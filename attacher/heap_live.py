"""Feeds the live view of a heap from the session's tables."""

from __future__ import annotations

import collections
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from . import procfs
from .heap_profile import HeapResult
from .heap_session import HeapSession

if TYPE_CHECKING:
    from ..render.heap_view import HeapRow, HeapView

_WINDOW_S = 10.0
_MOST_SHARE = 0.05
"""Of a processor, for reading tables: large ones are read more rarely."""

_MOST_ROWS = 200
_CALLERS = 6


class _Seen:
    """The heap at one moment: live and allocated bytes by place."""

    def __init__(self, at: float, result: HeapResult, rss: int) -> None:
        self.at, self.rss = at, rss
        self.live = {place: size for place, size, _ in result.places("live")}
        self.allocated = {place: size for place, size, _ in result.places("allocated")}


class HeapLive:
    """Called at each look at the target; ``stopped`` is to be asked, too."""

    def __init__(self, view: HeapView, pace_s: float) -> None:
        self._view, self._pace_s = view, pace_s
        self._past: collections.deque[_Seen] = collections.deque()
        self._next = float("-inf")
        self._session: HeapSession | None = None

    def __call__(self, session: HeapSession) -> None:
        """Read and show what there is, where the time for that has come."""
        self._session = session
        begin = time.monotonic()
        if begin < self._next:
            return
        self._show(session, begin)
        took = time.monotonic() - begin
        self._next = begin + max(self._pace_s, took / _MOST_SHARE)

    def stopped(self, should_stop: Callable[[], bool]) -> Callable[[], bool]:
        """``should_stop``, or the key for it."""
        return lambda: self._view.poll() or should_stop()

    def _show(self, session: HeapSession, now: float) -> None:
        from ..render.heap_view import HeapState

        result = HeapResult(session.tables, session.resolver, session.options.sample_bytes)
        rss = procfs.rss_bytes(session.target.pid) or None
        seen = _Seen(now, result, rss or 0)
        while len(self._past) > 1 and now - self._past[1].at >= _WINDOW_S:
            self._past.popleft()
        before = self._past[0] if self._past else seen
        self._past.append(seen)
        window = max(now - before.at, 1e-3) if before is not seen else self._pace_s
        rows = _rows(result, seen, before, window)
        duration = session.options.duration_s
        elapsed = now - session.started
        self._view.update(
            HeapState(
                pid=session.target.pid,
                command=session.target.command,
                elapsed_s=elapsed,
                remaining_s=None if duration is None else max(0.0, duration - elapsed),
                rss=rss,
                rss_growth=(seen.rss - before.rss) / window,
                live=sum(seen.live.values()),
                growth=(sum(seen.live.values()) - sum(before.live.values())) / window,
                allocated=(sum(seen.allocated.values()) - sum(before.allocated.values())) / window,
                blocks=sum(blocks for _, _, blocks in result.places("live")),
                own_memory=session.tables.memory(),
                window_s=window,
            ),
            rows,
        )


def _rows(result: HeapResult, seen: _Seen, before: _Seen, window: float) -> list[HeapRow]:
    """Those that may be shown in any order: the first of each."""
    from ..render.heap_view import HeapRow

    blocks = {place: count for place, _, count in result.places("live")}
    growth = {place: (size - before.live.get(place, 0.0)) / window for place, size in seen.live.items()}
    for place, size in before.live.items():
        growth.setdefault(place, -size / window)
    rates = {p: (size - before.allocated.get(p, 0.0)) / window for p, size in seen.allocated.items()}
    chosen: set[int] = set()
    for values in (seen.live, growth, rates, blocks):
        chosen.update(sorted(values, key=lambda place: -values[place])[:_MOST_ROWS])
    return [
        HeapRow(
            names=tuple(frame.name for frame in reversed(result.frames(place, 1 + _CALLERS))),
            live=seen.live.get(place, 0.0),
            growth=growth.get(place, 0.0),
            allocated=rates.get(place, 0.0),
            blocks=blocks.get(place, 0.0),
        )
        for place in chosen
    ]
