"""The reader's side of the ring (``inject/stub/shared.h``): bytes in, samples out, nothing believed."""

from __future__ import annotations

import ctypes
import struct
import time
from collections.abc import Callable
from typing import NamedTuple

from ..inject.layout import Control, RecordHead
from ..inject.region import RegionPlan

_HEAD = struct.Struct("<QIHBBII")
_HEAD_WORDS = 1 + ctypes.sizeof(RecordHead) // 8
assert _HEAD.size == ctypes.sizeof(RecordHead)

STUCK_READS = 20
STUCK_S = 1.0
"""After this many reads and so many seconds that found the same record uncommitted, it is given up: its
writer is dead.  One that waits for a processor comes back."""

_POSITION_MASK = (1 << 48) - 1


class RawSample(NamedTuple):
    """One tick as the stub wrote it: ``frames`` are absolute addresses, the leaf's instruction pointer
    first, then return addresses; ``weight`` is the ticks it stands for; ``clock_ns`` the target's
    CLOCK_MONOTONIC."""

    clock_ns: int
    tid: int
    end: int
    weight: int
    frames: tuple[int, ...]


class RingReader:
    """Reads committed records from ``tail`` to ``head``.

    ``read(offset, size)`` gives bytes of the shared region.  The target can write anything there: a
    record is taken only if its first word names its own position and its length fits; what does not
    fit is skipped word by word and counted in ``lost_words``.
    """

    def __init__(
        self, plan: RegionPlan, read: Callable[[int, int], bytes], patience_s: float = STUCK_S
    ) -> None:
        self._plan, self._patience_s = plan, patience_s
        self.read = read
        self.tail = 0
        self.lost_words = 0
        self.finished = False
        self._stuck = 0
        self._stuck_since = 0.0

    def drain(self, *, final: bool = False) -> list[RawSample]:
        """All records that are committed now.  ``final``: nobody writes any more, so an uncommitted
        record is skipped at once and not waited for."""
        self.finished = final
        head = int.from_bytes(self.read(Control.head.offset, 8), "little")
        if head < self.tail or head - self.tail > self._plan.ring_words:
            # Not what a handler writes; start again at what it claims.
            self.lost_words += self._plan.ring_words
            self.tail = head
            return []
        words = self._words(self.tail, head - self.tail)
        return self._parse(words, final)

    def drain_to(self, head: int) -> list[RawSample]:
        """The records before word ``head`` of a ring that nobody has read from.  One that reaches beyond is
        left for the next call; what is none is skipped where nothing else is found."""
        before = self.tail
        words = self._words(before, head - before)
        out = self._parse(words, False)
        return out if self.tail > before else self._parse(words, True)

    def _words(self, start: int, count: int) -> bytes:
        size = self._plan.ring_words
        at = start & (size - 1)
        first = min(count, size - at)
        data = self.read(self._plan.ring_offset + at * 8, first * 8) if first else b""
        rest = count - first
        return data + self.read(self._plan.ring_offset, rest * 8) if rest else data

    def _parse(self, data: bytes, final: bool) -> list[RawSample]:
        out: list[RawSample] = []
        at, count = 0, len(data) // 8
        words = struct.unpack(f"<{count}Q", data)
        while at < count:
            length = self._length(words[at], self.tail + at, count - at)
            if length:
                out.append(self._sample(data, words, at, length))
                at += length
                self._stuck = 0
            elif final or self._give_up(at):
                self.lost_words += 1
                at += 1
            else:
                break
        if at == count:
            self._stuck = 0
        self.tail += at
        return out

    def _give_up(self, at: int) -> bool:
        """An uncommitted record at the front, read after read, will never be committed."""
        if at == 0:
            self._stuck += 1
            if self._stuck == 1:
                self._stuck_since = time.monotonic()
        return self._stuck > STUCK_READS and time.monotonic() - self._stuck_since >= self._patience_s

    @staticmethod
    def _length(word: int, position: int, room: int) -> int:
        """Words of the record that begins with ``word``; 0 when none begins there."""
        length = word & 0xFFFF
        named = (word >> 16) == position & _POSITION_MASK
        return length if named and _HEAD_WORDS < length <= room else 0

    @staticmethod
    def _sample(data: bytes, words: tuple[int, ...], at: int, length: int) -> RawSample:
        clock_ns, tid, depth, end, _flags, weight, _slot = _HEAD.unpack_from(data, (at + 1) * 8)
        first = at + _HEAD_WORDS
        frames = words[first : min(first + depth, at + length)]
        return RawSample(clock_ns, tid, end, weight, frames)
