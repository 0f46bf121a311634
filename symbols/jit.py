"""Names of code that a JIT compiler made, from the files that runtimes write for profilers.

``perf-PID.map`` (a line for each function: start and size in hexadecimal, then the name; the Linux source's
``tools/perf/Documentation/jit-interface.txt``) and jitdump (``jitdump-specification.txt`` there).  Both grow
while the program runs and are read on from where they ended.  The target writes them: sizes are bounded,
lines that make no sense are counted and left out.
"""

from __future__ import annotations

import bisect
import itertools
import os
import struct
from collections.abc import Callable
from typing import BinaryIO

MOST_BYTES = 256 << 20  # of one file
_MOST_SYMBOLS = 2_000_000
_MOST_NAME = 4096  # bytes
_CHUNK = 8 << 20
_STEPS_BACK = 64
_LAST_ADDRESS = 2**64

_JITDUMP_MAGIC = 0x4A695444
_JITDUMP_HEADER = struct.Struct("=IIIIIIQQ")
_RECORD = struct.Struct("=IIQ")  # id, total size, timestamp
_LOAD = struct.Struct("=IIQQQQ")  # pid, tid, vma, code address, code size, code index
_MOVE = struct.Struct("=IIQQQQQ")  # pid, tid, vma, old address, new address, code size, code index
_CODE_LOAD, _CODE_MOVE = 0, 1


class JitSymbol:
    """One function as it was made: it has its addresses until another is made there."""

    __slots__ = ("end", "name", "number", "start")

    def __init__(self, name: str, start: int, end: int, number: int) -> None:
        self.name, self.start, self.end, self.number = name, start, end, number


class JitSymbols:
    """Functions by address; of several that cover one, the one that was made last."""

    def __init__(self) -> None:
        self._at: dict[int, JitSymbol] = {}
        self._count = itertools.count()
        self._starts: list[int] = []
        self._reach: list[int] = []  # how far those up to there reach
        self._fresh: set[int] = set()  # starts that are not in there yet
        self._changed = _LAST_ADDRESS  # from this start on it is not true any more

    def __len__(self) -> int:
        return len(self._at)

    def add(self, start: int, size: int, name: str) -> bool:
        """Take a function; whether it could be one."""
        if not 0 < size <= _LAST_ADDRESS - start or len(self._at) >= _MOST_SYMBOLS:
            return False
        before = self._at.get(start)
        if before is not None and (before.end, before.name) == (start + size, name):
            before.number = next(self._count)
            return True
        if before is None:
            self._fresh.add(start)
        self._at[start] = JitSymbol(name, start, start + size, next(self._count))
        self._changed = min(self._changed, start)
        return True

    def move(self, old: int, new: int, size: int) -> bool:
        """A function's code was copied elsewhere."""
        symbol = self._at.get(old)
        return symbol is not None and self.add(new, size, symbol.name)

    def find(self, address: int) -> JitSymbol | None:
        """The function at ``address``."""
        starts = self._sorted()
        last = bisect.bisect_right(starts, address) - 1
        found: JitSymbol | None = None
        for index in range(last, max(-1, last - _STEPS_BACK), -1):
            if self._reach[index] <= address:
                break
            symbol = self._at[starts[index]]
            if symbol.end > address and (found is None or symbol.number > found.number):
                found = symbol
        return found

    def _sorted(self) -> list[int]:
        if self._changed != _LAST_ADDRESS:
            self._starts += sorted(self._fresh)
            self._starts.sort()  # two sorted lists, which it merges
            self._fresh.clear()
            begin = bisect.bisect_left(self._starts, self._changed)
            ends = (self._at[start].end for start in self._starts[begin:])
            before = self._reach[begin - 1] if begin else 0
            self._reach[begin:] = list(itertools.accumulate(ends, max, initial=before))[1:]
            self._changed = _LAST_ADDRESS
        return self._starts


class GrowingFile:
    """A file that the target writes: ``fresh`` gives what has come since the last time.  ``open_it`` opens it
    (and checks whose it is); it may not be there yet."""

    def __init__(self, open_it: Callable[[], BinaryIO | None]) -> None:
        self._open, self._at, self._identity = open_it, 0, (0, 0)
        self.full = False
        """Whether it is larger than what is read of it."""

    def fresh(self) -> tuple[bytes, bool]:
        """The new bytes, no more than there is room for, and whether the file begins anew (another one has
        taken its place, or it was cut off)."""
        file = self._open()
        if file is None:
            return b"", False
        with file:
            found = os.fstat(file.fileno())
            identity = (found.st_dev, found.st_ino)
            anew = bool(self._at) and (identity != self._identity or found.st_size < self._at)
            if anew:
                self._at = 0
            self._identity = identity
            self.full = found.st_size > MOST_BYTES
            want = min(found.st_size, MOST_BYTES) - self._at
            if want <= 0:
                return b"", anew
            file.seek(self._at)
            data = file.read(min(want, _CHUNK))
            self._at += len(data)
            return data, anew


class PerfMap:
    """``perf-PID.map``."""

    def __init__(self, file: GrowingFile, symbols: JitSymbols) -> None:
        self.file, self._symbols, self._rest = file, symbols, b""
        self.bad_lines = 0

    def refresh(self) -> bool:
        """Read on; whether there may be more."""
        data, anew = self.file.fresh()
        self._rest = b"" if anew else self._rest
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > 64 + _MOST_NAME:
            self._rest = self._rest[: 64 + _MOST_NAME]
        for line in lines:
            self.bad_lines += not self._take(line)
        return bool(data)

    def _take(self, line: bytes) -> bool:
        words = line[: 64 + _MOST_NAME].split(None, 2)
        if len(words) < 3:
            return not line
        try:
            start, size = int(words[0], 16), int(words[1], 16)
        except ValueError:
            return False
        return start >= 0 and self._symbols.add(start, size, words[2].decode("utf-8", "replace").rstrip())


class JitDump:
    """A jitdump, of this machine's byte order."""

    def __init__(self, file: GrowingFile, symbols: JitSymbols) -> None:
        self.file, self._symbols, self._rest, self._begun = file, symbols, b"", False
        self.bad_lines = 0
        self._skip = 0

    def refresh(self) -> bool:
        """Read on; whether there may be more."""
        data, anew = self.file.fresh()
        if anew:
            self._rest, self._begun, self._skip = b"", False, 0
        skipped = min(self._skip, len(data))
        self._skip -= skipped
        self._rest += data[skipped:]
        at = self._header()
        while at >= 0 and at + _RECORD.size <= len(self._rest):
            kind, size, _ = _RECORD.unpack_from(self._rest, at)
            if size < _RECORD.size:
                self.bad_lines += 1
                self._rest, at = b"", 0
                break
            needed = min(size, _RECORD.size + _LOAD.size + _MOST_NAME)  # the code behind it is of no use here
            if at + needed > len(self._rest):
                break
            self._take(kind, self._rest[at + _RECORD.size : at + needed])
            at += size
        if at > 0:
            self._skip += max(0, at - len(self._rest))
            self._rest = self._rest[at:]
        return bool(data)

    def _header(self) -> int:
        """Where the records begin; -1 where they don't yet."""
        if self._begun:
            return 0
        if len(self._rest) < _JITDUMP_HEADER.size:
            return -1
        magic, _, size, *_ = _JITDUMP_HEADER.unpack_from(self._rest)
        if magic != _JITDUMP_MAGIC or not _JITDUMP_HEADER.size <= size <= 4096:
            self.bad_lines += 1
            self._rest = b""
            return -1
        if len(self._rest) < size:
            return -1
        self._begun = True
        return int(size)

    def _take(self, kind: int, body: bytes) -> None:
        if kind == _CODE_LOAD and len(body) > _LOAD.size:
            _, _, _, start, size, _ = _LOAD.unpack_from(body)
            name = body[_LOAD.size :].partition(b"\0")[0].decode("utf-8", "replace")
            self.bad_lines += not self._symbols.add(start, size, name)
        elif kind == _CODE_MOVE and len(body) >= _MOVE.size:
            _, _, _, old, new, size, _ = _MOVE.unpack_from(body)
            self._symbols.move(old, new, size)
