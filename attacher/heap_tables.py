"""The heap profiler's tables, read from the shared memory: what was allocated where.

They are read through the file, never through a mapping: a mapping would give memory to parts that hold
none.  What lies there is the target's to write, so every number is checked before it leads anywhere.
"""

from __future__ import annotations

import array
import collections
import ctypes
import dataclasses
import os
import struct
import weakref
from collections.abc import Iterator, Sequence

from ..inject.heap_layout import (
    COUNTS_IN_PAGE,
    DIRECTORY,
    FIRST_ITEM,
    LEAF_MASK,
    LEAF_SHIFT,
    LEAF_WORDS,
    LINE_SHIFT,
    LINE_WORDS,
    NODE_BITS,
    PAGED_DIRECTORY,
    PAGED_SHIFT,
    REGIONS,
    SAMPLED_FIRST,
    SAMPLED_LEVELS,
    SAMPLED_SITE_BITS,
    SITE_BITS,
    WIDE_DIRECTORY,
    WIDE_SHIFT,
    CountsPage,
    Heap,
    HeapThread,
    Node,
    Sampled,
    Site,
    Table,
    Tally,
)
from ..inject.heap_region import HeapPlan
from ..inject.region import PAGE
from ..inject.scan import Blocks as SortedBlocks

_CHUNK = 48 << 14  # whole items, and whole counts
_AREA = 1 << (LINE_SHIFT + WIDE_SHIFT)  # a block's word says where in such a stretch it begins
_MOST_LEAVES = 64  # of one place; 28 hold all blocks there can be
_COUNTS = struct.Struct("<IIiiii")
"""``struct pa_heap_counts``."""
_MOST_BEGUN = 4096
"""So many items are waited for that threads have begun and not written yet: one for each thread."""
_TALLY = struct.Struct("<QQQII")
"""``struct pa_tally``."""


@dataclasses.dataclass
class SiteCounts:
    """Blocks of one size from one stack, over all threads; ``at_peak``: live when the process's live bytes
    were highest; ``leaked``: live, and nothing leads to them, where that was looked for."""

    allocs: int = 0
    frees: int = 0
    temporary: int = 0
    at_peak: int = 0
    leaked: int = 0

    @property
    def live(self) -> int:
        """Blocks that were not freed."""
        return self.allocs - self.frees


@dataclasses.dataclass(frozen=True)
class Block:
    """A live block: its address, and the number of its site."""

    address: int
    site: int


class HeapTables:
    """Reads the heap part of the region that ``memfd`` holds from ``region_offset`` on; it keeps the file
    open as long as it is there itself."""

    def __init__(self, memfd: int, region_offset: int, plan: HeapPlan) -> None:
        self._memfd = os.dup(memfd)
        weakref.finalize(self, os.close, self._memfd)
        self._offset = region_offset + plan.heap_offset
        self._heap = plan.heap()
        self.nodes = array.array("Q")
        """Two words for each node: return address; the caller's node (32 bits)."""
        self.sites = array.array("Q")
        self._begun: dict[int, list[int]] = {}
        self.given_up = 0
        """Nodes and sites that were begun, and too many to be waited for."""

    def head(self) -> Heap:
        """The heap's first bytes as they are now."""
        return Heap.from_buffer_copy(self._read(0, ctypes.sizeof(Heap)))

    def memory(self) -> int:
        """Bytes of memory that the whole file takes now, and the stub's own."""
        own = min(int(self.head().private_bytes), ctypes.sizeof(Sampled))
        return os.fstat(self._memfd).st_blocks * 512 + own

    def update(self) -> None:
        """Read the nodes and sites that have come since."""
        head = self.head()
        halves = array.array("I", self._read(self._heap.regions_offset, 4 * REGIONS))
        upper = [half - 1 if half else 0 for half in halves]
        self._update(self.nodes, self._heap.nodes, head.nodes.used, ctypes.sizeof(Node), upper)
        self._update(self.sites, self._heap.sites, head.sites.used, ctypes.sizeof(Site), range(REGIONS))

    def _update(
        self, items: array.array[int], table: Table, used: int, size: int, upper: Sequence[int]
    ) -> None:
        """The table's items, of ``size`` bytes each, begin with the lower half of an address or a size, and
        what that is under with a number that ``upper`` makes the upper half of."""
        for first, found in self._items(items, table, used, size):
            words = size // 4
            under = found[1::words]
            packed = array.array("I", bytes(16 * len(under)))
            packed[0::4] = found[0::words]
            packed[1::4] = array.array("I", [upper[word >> NODE_BITS] for word in under])
            packed[2::4] = array.array("I", [word & (1 << NODE_BITS) - 1 for word in under])
            self._take(items, first, packed)

    def _items(
        self, items: array.array[int], table: Table, used: int, size: int
    ) -> Iterator[tuple[int, array.array[int]]]:
        """Those that have come to the table since, or were not whole yet: the first one's number, and all
        words of each."""
        begun, self._begun[id(items)] = self._begun.get(id(items), []), []
        have, used = len(items) // 2, min(used, table.most)
        parts = [(number, 1) for number in begun]
        parts += [(at, min(used - at, _CHUNK // size)) for at in range(have, used, _CHUNK // size)]
        for first, count in parts:
            yield first, array.array("I", self._read(table.items_offset + first * size, count * size))

    def _take(self, items: array.array[int], first: int, packed: array.array[int]) -> None:
        """Two words of each, in halves.  An item's number is handed out before it is written, the third half
        last: what has none is read again the next time."""
        begun = (first + i for i, word in enumerate(packed[2::4]) if not word)
        wait_for = self._begun[id(items)]
        for number in begun:
            if number >= FIRST_ITEM and len(wait_for) < _MOST_BEGUN:
                wait_for.append(number)
            else:
                self.given_up += number >= FIRST_ITEM
        items[2 * first : 2 * first + len(packed) // 2] = array.array("Q", packed.tobytes())

    def site(self, site: int) -> tuple[int, int]:
        """Size in bytes and node; of one that is not known, nothing."""
        if not FIRST_ITEM <= site < len(self.sites) // 2:
            return 0, 0
        return self.sites[2 * site], self.sites[2 * site + 1] & 0xFFFF_FFFF

    def threads(self) -> list[HeapThread]:
        """All that have allocated or freed, and some that have ended."""
        size = ctypes.sizeof(HeapThread)
        table = self._read(self._heap.threads_offset, size * self._heap.thread_count)
        empty = bytes(8)
        return [
            HeapThread.from_buffer_copy(table, at)
            for at in range(0, len(table), size)
            if table[at : at + 8] != empty
        ]

    def live_bytes(self) -> int:
        """Of blocks that were recorded and not freed since."""
        return int(self.head().live) + sum(int(thread.pending) for thread in self.threads())

    def counts(self) -> dict[int, SiteCounts]:
        """By site."""
        if self._heap.sample_bytes:
            return self._tallies()
        seq = self.head().peak_seq
        out: collections.defaultdict[int, SiteCounts] = collections.defaultdict(SiteCounts)
        for part in self._all_counts():
            for site, peak_seq, allocs, frees, temporary, at_peak in _COUNTS.iter_unpack(part):
                total = out[site]
                total.allocs += allocs
                total.frees += frees
                total.temporary += temporary
                # Since the peak nothing has changed, or it was noted before the first change.
                total.at_peak += at_peak if peak_seq == seq else allocs - frees
        out.pop(0, None)
        return dict(out)

    def _all_counts(self) -> Iterator[bytes]:
        """Of all threads, in parts."""
        size = min(self.head().sites.used, self._heap.sites.most) * _COUNTS.size
        for at in range(0, size, _CHUNK):
            yield self._read(self._heap.first_counts_offset + at, min(_CHUNK, size - at))
        seen: set[int] = set()
        for thread in self.threads():
            yield from self._pages(thread, seen)

    def _tallies(self) -> dict[int, SiteCounts]:
        """Sampled: all threads count together."""
        head = self.head()
        used = min(head.sites.used, self._heap.sites.most)
        table = self._read(self._heap.tallies_offset, used * ctypes.sizeof(Tally))
        out = {}
        for site, (allocs, frees, temporary, at_peak, peak_seq) in enumerate(_TALLY.iter_unpack(table)):
            if allocs:
                at_peak = at_peak if peak_seq == head.peak_seq else allocs - frees
                out[site] = SiteCounts(allocs, frees, temporary, at_peak)
        return out

    def _pages(self, thread: HeapThread, seen: set[int]) -> Iterator[bytes]:
        """Counts, page by page; each of all threads' once."""
        number = thread.first_page
        while number and number <= self._heap.pool_pages and number not in seen:
            seen.add(number)
            page = self._read(self._heap.pool_offset + (number - 1) * PAGE, PAGE)
            number, used = struct.unpack_from("<II", page)
            start = CountsPage.counts.offset
            yield page[start : start + min(used, COUNTS_IN_PAGE) * _COUNTS.size]

    def blocks(self) -> Iterator[Block]:
        """All live blocks, in no order."""
        if self._heap.sample_bytes:
            yield from self._sampled()
            return
        for place, leaf in self._directory(self._heap.directory_offset, DIRECTORY):
            if leaf < self._heap.leaf_count:
                yield from self._leaf(leaf, place << LEAF_SHIFT, LINE_SHIFT)
        for place, leaf in self._directory(self._heap.wide_offset, WIDE_DIRECTORY):
            if leaf < self._heap.leaf_count:
                yield from self._leaf(leaf, place << LEAF_SHIFT + WIDE_SHIFT, LINE_SHIFT + WIDE_SHIFT)
        for place, leaves in self._paged_leaves():
            for leaf in leaves:
                yield from self._leaf(leaf, place << LEAF_SHIFT + PAGED_SHIFT, LINE_SHIFT + PAGED_SHIFT)

    def _sampled(self) -> Iterator[Block]:
        more = 8 * sum(SAMPLED_FIRST << 2 * level for level in range(1, SAMPLED_LEVELS))
        for offset, size in ((self._heap.sampled_offset, 8 * SAMPLED_FIRST), (self._heap.more_offset, more)):
            for _, data in self._written(offset, size):
                words = array.array("Q")
                words.frombytes(data)
                for word in filter(None, words):
                    yield Block(word >> SAMPLED_SITE_BITS << 3, word & ((1 << SAMPLED_SITE_BITS) - 1))

    def live(self, *, glibc: bool = False) -> SortedBlocks:
        """All live blocks, in the order of their addresses; ``glibc``: as long as glibc's malloc makes
        them."""
        out = SortedBlocks()
        crowded = dict(self._directory(self._heap.directory_offset, DIRECTORY))
        wide = dict(self._directory(self._heap.wide_offset, WIDE_DIRECTORY))
        paged = dict(self._paged_leaves())
        places = {place << PAGED_SHIFT | i for place in paged for i in range(1 << PAGED_SHIFT)}
        for place in sorted(places.union(crowded)):
            there = [crowded.get(place, 0), wide.get(place >> WIDE_SHIFT, 0)]
            there += paged.get(place >> PAGED_SHIFT, [])
            leaves = [
                self._read(self._heap.leaves_offset + number * LEAF_WORDS * 4, LEAF_WORDS * 4)
                if 0 < number < self._heap.leaf_count
                else None
                for number in there
            ]
            out.add_leaves(place, leaves, self.sites, glibc=glibc)
        return out

    def _paged_leaves(self) -> Iterator[tuple[int, list[int]]]:
        """By 16 MB of addresses, the leaves of what is not crowded and of what had no room elsewhere."""
        follow = array.array("I", self._read(self._heap.next_offset, 4 * self._heap.leaf_count))
        for place, leaf in self._directory(self._heap.paged_offset, PAGED_DIRECTORY):
            leaves: dict[int, None] = {}
            leaf &= LEAF_MASK
            while leaf and leaf < self._heap.leaf_count and leaf not in leaves and len(leaves) < _MOST_LEAVES:
                leaves[leaf] = None
                leaf = follow[leaf]
            yield place, list(leaves)

    def _directory(self, offset: int, places: int) -> Iterator[tuple[int, int]]:
        for at, data in self._written(offset, 4 * places):
            words = array.array("I")
            words.frombytes(data)
            yield from ((at // 4 + i, leaf) for i, leaf in enumerate(words) if leaf)

    def _leaf(self, leaf: int, base: int, line_shift: int) -> Iterator[Block]:
        for at, data in self._written(self._heap.leaves_offset + leaf * LEAF_WORDS * 4, LEAF_WORDS * 4):
            words = array.array("I")
            words.frombytes(data)
            for i, word in enumerate(words, at // 4):
                if word:
                    area = (base + (i // LINE_WORDS << line_shift)) & -_AREA
                    address = area + (word >> SITE_BITS << 3)
                    yield Block(address, word & ((1 << SITE_BITS) - 1))

    def _written(self, offset: int, size: int) -> Iterator[tuple[int, bytes]]:
        """The parts of [offset, offset + size) that have memory: where each begins there, and its bytes."""
        at, end = self._offset + offset, self._offset + offset + size
        while at < end:
            try:
                begin = max(at, os.lseek(self._memfd, at, os.SEEK_DATA))
            except OSError:  # ENXIO: nothing is written from here on
                return
            if begin >= end:
                return
            at = min(end, os.lseek(self._memfd, begin, os.SEEK_HOLE))
            while begin < at:
                data = os.pread(self._memfd, min(_CHUNK, at - begin), begin)
                if not data:
                    return
                yield begin - self._offset - offset, data
                begin += len(data)

    def _read(self, offset: int, size: int) -> bytes:
        data = bytearray()
        while len(data) < size:
            piece = os.pread(self._memfd, size - len(data), self._offset + offset + len(data))
            if not piece:
                break
            data += piece
        return bytes(data).ljust(size, b"\0")
