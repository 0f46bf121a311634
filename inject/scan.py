"""The heap of another process from outside: what lies in it, and what of it can still be reached.

The work is done by C (``stub/outside/{chunks,live,marks}.c``) in this process; it reads over /proc/PID/mem.
"""

from __future__ import annotations

import array
import ctypes
import dataclasses
import struct
from collections.abc import Iterable, Iterator, Sequence

from .heap_layout import LEAF_SHIFT, LEAF_WORDS
from .outside import library

FREE = 1
CHUNK = struct.Struct("<9Q")
"""``struct pa_chunk``: a block of glibc's malloc: its address, its bytes, whether it is in use, its first six
words."""

_SCAN_BYTES = 65536
_BATCH = 4096
_MOST_BYTES = 1 << 26
"""Of blocks looked through in one call."""

_u32, _u64 = ctypes.c_uint32, ctypes.c_uint64


class Window(ctypes.Structure):
    """``struct pa_window``."""

    _fields_ = (("base", _u64), ("filled", _u64), ("bytes", _u64 * (_SCAN_BYTES // 8)))


class _Ranges(ctypes.Structure):
    """``struct pa_ranges``."""

    _fields_ = (("begins", ctypes.c_void_p), ("ends", ctypes.c_void_p), ("count", _u64))


class _Marks(ctypes.Structure):
    """``struct pa_marks``."""

    _fields_ = (
        ("memory", ctypes.c_int32),
        ("pad", _u32),
        ("blocks", _Ranges),
        ("skipped", _Ranges),
        ("reached", ctypes.c_void_p),
        ("queue", ctypes.c_void_p),
        ("queued", _u64),
        ("looked_through", _u64),
        ("bytes", _u64),
        ("window", ctypes.c_void_p),
    )


class ChunkWalk:
    """The chunks from the header at ``at`` to the one at ``end``, batch by batch, as the bytes of a
    ``struct pa_chunk`` each (CHUNK); all, or those that are free (FREE), or those whose block has just so
    many bytes.  ``at`` is
    afterwards where the walk ended: ``end``, or where there is nothing that could be a chunk."""

    def __init__(self, memory_fd: int, at: int, end: int, only: int = 0) -> None:
        self._memory, self.at, self._end, self._only = memory_fd, at, end, only

    def __iter__(self) -> Iterator[memoryview]:
        walk = library().pa_chunks
        walk.restype = _u64
        batch, window, goes_on = (_u64 * (_BATCH * CHUNK.size // 8))(), Window(), _u64()
        count = 1
        while count and self.at < self._end:
            count = walk(
                self._memory, ctypes.byref(window), _u64(self.at), _u64(self._end), _u64(self._only), batch,
                _u64(_BATCH), ctypes.byref(goes_on),
            )  # fmt: skip
            self.at = goes_on.value
            yield memoryview(batch).cast("B")[: count * CHUNK.size]


@dataclasses.dataclass
class Blocks:
    """Blocks in the order of their addresses: where each begins and ends, and its site."""

    begins: array.array[int] = dataclasses.field(default_factory=lambda: array.array("Q"))
    ends: array.array[int] = dataclasses.field(default_factory=lambda: array.array("Q"))
    sites: array.array[int] = dataclasses.field(default_factory=lambda: array.array("I"))

    def add_leaves(
        self, place: int, leaves: Sequence[bytes | None], sites: array.array[int], *, glibc: bool = False
    ) -> None:
        """Those of 4 MB of addresses, which must be behind those that were added before: the leaf of a line
        for each KB, the wide one (None: there is none), the paged ones.  ``glibc``: blocks are as long as
        glibc's malloc makes them."""
        if any(leaf is not None and len(leaf) != 4 * LEAF_WORDS for leaf in leaves):
            raise ValueError("a leaf has another size")
        decode = library().pa_live_blocks
        decode.restype = _u64
        room = LEAF_WORDS * len(leaves)
        begins, ends, found_sites = (_u64 * room)(), (_u64 * room)(), (_u32 * room)()
        pointers = (ctypes.c_char_p * len(leaves))(*leaves)
        at, known = sites.buffer_info()
        count = decode(
            pointers, _u32(len(leaves)), _u64(place << LEAF_SHIFT), ctypes.c_void_p(at), _u64(known // 2),
            ctypes.c_int(glibc), begins, ends, found_sites,
        )  # fmt: skip
        self.begins.frombytes(memoryview(begins).cast("B")[: 8 * count])
        self.ends.frombytes(memoryview(ends).cast("B")[: 8 * count])
        self.sites.frombytes(memoryview(found_sites).cast("B")[: 4 * count])

    def __len__(self) -> int:
        return len(self.begins)


class Reachability:
    """Which of the ``blocks`` something leads to.  ``skipped``: memory that leads nowhere (free chunks), as
    sorted ranges that do not overlap."""

    def __init__(self, memory_fd: int, blocks: Blocks, skipped: Sequence[tuple[int, int]] = ()) -> None:
        count = len(blocks)
        self._library = library()
        self._reached, self._queue = (ctypes.c_uint8 * count)(), (_u32 * count)()
        self._window = Window()
        self._skipped = [array.array("Q", (r[i] for r in skipped)) for i in (0, 1)]
        self._blocks = [array.array("Q", blocks.begins), array.array("Q", blocks.ends)]  # as they are now
        self._marks = _Marks(
            memory=memory_fd,
            blocks=self._ranges(self._blocks),
            skipped=self._ranges(self._skipped),
            reached=ctypes.addressof(self._reached),
            queue=ctypes.addressof(self._queue),
            window=ctypes.addressof(self._window),
        )

    @staticmethod
    def _ranges(pair: Sequence[array.array[int]]) -> _Ranges:
        return _Ranges(pair[0].buffer_info()[0], pair[1].buffer_info()[0], len(pair[0]))

    def words(self, words: Iterable[int]) -> None:
        """Roots: registers."""
        copied = array.array("Q", words)
        at, count = copied.buffer_info()
        self._library.pa_mark_words(ctypes.byref(self._marks), ctypes.c_void_p(at), _u64(count))

    def memory(self, begin: int, end: int) -> None:
        """Roots: all words of [begin, end) but those of blocks and of what is skipped."""
        self._library.pa_mark_roots(ctypes.byref(self._marks), _u64(begin), _u64(end))

    def goes_on(self) -> bool:
        """Look through some more of the blocks that are reached; whether there are more still."""
        look = self._library.pa_mark_blocks
        look.restype = _u64
        return bool(look(ctypes.byref(self._marks), _u64(_MOST_BYTES)))

    def reached(self) -> bytes:
        """1 for each block that was reached so far, else 0, in the order of the blocks."""
        return bytes(self._reached)

    @property
    def bytes_read(self) -> int:
        """So much memory was looked through."""
        return int(self._marks.bytes)
