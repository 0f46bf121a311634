"""Holding a thread at a place where it may call the loader: dlopen and dlclose take locks.

A thread that holds one of them and is made to call dlopen waits for itself for ever.  So its whole stack is
looked at, from outside, before it is: no frame of it may lie in the loader or an allocator, none may be a
signal's, for whatever that has interrupted.  See ``inject.locks`` for where such code lies.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

from ..inject.layout import End
from ..inject.locks import LIMIT_BYTES, LockZones
from ..inject.outside import OutsideUnwinder
from ..symbols.maps import Maps
from .hold import ENDS_A_CALL, Candidate, Held, candidates, stopped
from .ptrace import let_go_of_late_stops
from .target import TargetProcess

OTHERS_LIMIT = 32
MAX_DEPTH = 4096
"""A stack of more frames is not walked to its end, so no place for dlopen."""
_HELD_SCAN_BYTES = 16 * 1024


class SafePlaces:
    """Judges where a thread stands.

    Two ways: by its frames, walked by the unwinder (exact, where all of the stack can be walked), or by every
    word of its stack, live or stale: each return address is a word of it, so none is missed, and a stale one
    costs a refusal.  ``unwinder`` None: by words alone.  ``strict``: only what was walked to its end is safe.
    """

    def __init__(
        self,
        target: TargetProcess,
        zones: LockZones,
        unwinder: OutsideUnwinder | None = None,
        *,
        strict: bool,
    ) -> None:
        self._target, self._zones, self._unwinder = target, zones, unwinder
        self._strict = strict

    def promising(self, maps: Maps, thread: Candidate) -> bool:
        """Whether it is worth stopping: a thread that sleeps can be looked at before, one that runs can't."""
        if thread.blocked is None:
            return True
        if self._words_clean(maps, thread.blocked.sp, thread.blocked.ip, LIMIT_BYTES):
            return True
        if self._unwinder is None:
            return False
        end, frames = self._unwinder.walk(thread.blocked.sp, thread.blocked.ip)
        return end == End.ROOT and not self._zones.on_stack(frames)

    def others_quiet(self, maps: Maps, others: list[Candidate]) -> bool:
        """Whether all other threads sleep outside of the loader and the allocators.

        dlopen waits for another thread that holds a lock, and that one could in turn wait for ours.
        """
        if len(others) > OTHERS_LIMIT:
            return False
        return all(
            other.blocked is not None
            and self._words_clean(maps, other.blocked.sp, other.blocked.ip, LIMIT_BYTES)
            for other in others
        )

    def is_safe(self, held: Held) -> bool:
        """Whether the thread, stopped now, may call the loader."""
        if self._unwinder is not None:
            end, frames = self._unwinder.walk_stopped(held.registers)
            if end in (End.ROOT, End.NONE):
                return end == End.ROOT and not self._zones.on_stack(frames)
            if self._strict:
                return False
        sp, ip = held.registers["rsp"], held.registers["rip"]
        return self._words_clean(self._target.maps(), sp, ip, _HELD_SCAN_BYTES)

    def _words_clean(self, maps: Maps, sp: int, ip: int, limit: int) -> bool:
        """Whether no word from ``sp`` to the end of its mapping lies in a zone, and that is not too much."""
        mapping = maps.find(sp)
        if mapping is None or mapping.end - sp > limit:
            return False
        try:
            stack = self._target.read(sp, mapping.end - sp)
        except ProcessLookupError:
            raise
        except OSError:
            return False
        return self._zones.holds(stack, ip) is None


@contextlib.contextmanager
def hold_clean(
    target: TargetProcess, places: SafePlaces, deadline_s: float, others_for_s: float
) -> Iterator[Held | None]:
    """Stop the main thread at a place where it may call the loader; None when there was none in time.

    For the first ``others_for_s`` seconds a moment is waited for in which all other threads are seen
    asleep outside of the loader and the allocators; after that the main thread's own place decides.

    Only the main thread: any other may not have used the allocator yet, which would then make an
    arena for it that stays.
    """
    start = time.monotonic()
    deadline = start + deadline_s
    pause_s = 0.001
    while True:
        let_go_of_late_stops()
        maps, threads = target.maps(), candidates(target)
        main = next((c for c in threads if c.tid == target.pid), None)
        if main is None:
            raise ProcessLookupError(f"process {target.pid} is gone")
        others = [c for c in threads if c is not main]
        relaxed = time.monotonic() - start > others_for_s
        promising = main.rank < ENDS_A_CALL and places.promising(maps, main)
        if promising and (relaxed or places.others_quiet(maps, others)):
            with stopped(target, main.tid) as held:
                if held is not None and places.is_safe(held):
                    yield held
                    return
        if time.monotonic() + pause_s > deadline:
            yield None
            return
        time.sleep(pause_s)
        pause_s = min(pause_s * 2, 0.05)
