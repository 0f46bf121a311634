"""Lines while samples still come: read by the helper process, one file at a time, without waiting for it."""

from __future__ import annotations

import time
from collections.abc import Callable

from .cache import Cache
from .codefile import CodeFile
from .lines import LineRequest
from .place import Place
from .resolver import Resolver

_PAUSE_S = 2.0
_PAUSE_TIMES = 20
"""The pause after a request, in times of what it took: so the helper takes a twentieth of a processor."""
_LONGEST_S = 120.0


class LinesAhead:
    """For the places that a resolver was asked for; to be closed.  ``clock`` as time.monotonic."""

    def __init__(
        self,
        resolver: Resolver,
        cache: Cache | None,
        *,
        inlines: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._resolver, self._cache, self._inlines, self._clock = resolver, cache, inlines, clock
        self._under_way: tuple[LineRequest, CodeFile, list[Place]] | None = None
        self._begun_at = self._next_at = float("-inf")
        self._without: set[CodeFile] = set()

    def close(self) -> None:
        """Ask for nothing more."""
        if self._under_way is not None:
            self._under_way[0].__exit__()
            self._under_way = None

    def look(self) -> list[Place]:
        """Tell the resolver what has come, and ask for more where it is time; the places whose frames may be
        others now."""
        if self._under_way is None:
            if self._clock() >= self._next_at:
                self._begin()
            return []
        request, file, places = self._under_way
        took_s = self._clock() - self._begun_at
        if not request.done() and took_s < _LONGEST_S:
            return []
        self._under_way = None
        self._next_at = self._clock() + max(_PAUSE_S, _PAUSE_TIMES * took_s)
        with request:
            found = request.result(0)
        if found is None:
            self._without.add(file)  # why, is said at the end
            return []
        self._resolver.use_lines(file, places, found)
        return places

    def _begin(self) -> None:
        """With the file of which most is not known."""
        self._next_at = self._clock() + _PAUSE_S
        wanted = self._resolver.places_by_file(without_lines=True)
        files = [file for file in wanted if file not in self._without and file.with_lines is not None]
        file = max(files, key=lambda file: len(wanted[file]), default=None)
        if file is None or file.with_lines is None:
            return
        places = wanted[file]
        try:
            vaddrs = [place.vaddr or 0 for place in places]
            request = LineRequest(file.with_lines, vaddrs, self._cache, inlines=self._inlines)
        except OSError:
            self._without.add(file)
            return
        self._begun_at, self._under_way = self._clock(), (request, file, places)
