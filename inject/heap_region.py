"""How the heap profiler's part of the shared memory is divided, and its first contents.

Room is for the largest process there may be: what is not used of it takes addresses, no memory.
"""

from __future__ import annotations

import ctypes

from .heap_layout import (
    DIRECTORY,
    ENTRIES,
    FAN,
    FIRST_ITEM,
    HEAP_MAGIC,
    HEAP_VERSION,
    LANDINGS,
    LEAF_WORDS,
    NODE_BITS,
    PAGED_DIRECTORY,
    PATCHES,
    REGIONS,
    SAMPLED_FIRST,
    SAMPLED_LEVELS,
    SAMPLED_SITE_BITS,
    SITE_BITS,
    WIDE_DIRECTORY,
    Counts,
    Entry,
    Heap,
    HeapThread,
    Landing,
    Node,
    Patch,
    Site,
    Tally,
)
from .layout import CacheLine, Control, Unwind
from .region import PAGE, RegionPlan

_THREADS = 4096
_LEAVES = 1 << 15
_NODES, _SITES, _FANS = 1 << NODE_BITS, 1 << SITE_BITS, 1 << 20
_POOL_PAGES = 1 << 20
_LEAST_LINES, _MOST_LINES = 1 << 12, 1 << 16
_BYTES_OF_CODE = 2048
"""For so much code there is one rule kept: of the return addresses in it few are on stacks that allocate."""

_CONTEXTS = 64
_SAMPLED_SITES = 1 << SAMPLED_SITE_BITS
_LEAST_SAMPLED_LINES, _SAMPLED_BYTES_OF_CODE = 1 << 7, 1 << 14
_LINE = 64


def cache_lines(code_bytes: int, sample_bytes: int = 0) -> int:
    """How many rules the unwinder keeps for a program with so much code: few where few stacks are walked."""
    least = _LEAST_SAMPLED_LINES if sample_bytes else _LEAST_LINES
    per_line = _SAMPLED_BYTES_OF_CODE if sample_bytes else _BYTES_OF_CODE
    return max(least, min(_MOST_LINES, 1 << (code_bytes // per_line).bit_length()))


class HeapPlan(RegionPlan):
    """A region with a heap part behind everything else.

    ``sample_bytes``: mean bytes between two allocations that are recorded; 0: all are.
    ``heap_flags``: HEAP_ATTACHED.  ``real``: addresses of the allocator's functions, where attached.
    ``code_bytes``: of all executable mappings, as far as they are known.
    """

    def __init__(
        self, *, period_ns: int, slot_count: int, max_depth: int, ring_words: int, signal: int,
        unwind: Unwind = Unwind.AUTO, flags: int = 0,
        sample_bytes: int = 0, heap_flags: int = 0, real: tuple[int, ...] = (), code_bytes: int = 0,
    ) -> None:  # fmt: skip
        super().__init__(
            period_ns=period_ns, slot_count=slot_count, max_depth=max_depth, ring_words=ring_words,
            signal=signal, unwind=unwind, flags=flags,
        )  # fmt: skip
        self.sample_bytes, self.heap_flags = sample_bytes, heap_flags
        self.real, self.code_bytes = real, code_bytes

    @property
    def heap_offset(self) -> int:
        """From the region's begin."""
        return RegionPlan.size.__get__(self)  # type: ignore[no-any-return]

    @property
    def size(self) -> int:
        return self.heap_offset + self._divided()[1]

    def control(self, nonce: int, lease_until_ns: int) -> Control:
        control = RegionPlan.control(self, nonce, lease_until_ns)
        control.heap_offset = self.heap_offset
        control.cache_offset = self.heap_offset + self._divided()[2]
        control.cache_lines = cache_lines(self.code_bytes, self.sample_bytes)
        return control

    def heap(self) -> Heap:
        """``struct pa_heap`` to start from."""
        return self._divided()[0]

    def _divided(self) -> tuple[Heap, int, int]:
        """And the bytes of the heap part, and where in it the rules of the unwinder are kept."""
        heap = Heap(
            magic=HEAP_MAGIC,
            version=HEAP_VERSION,
            size=ctypes.sizeof(Heap),
            max_depth=self.max_depth,
            flags=self.heap_flags,
            sample_bytes=self.sample_bytes,
            thread_count=_CONTEXTS if self.sample_bytes else _THREADS,
            leaf_count=_LEAVES,
            pool_pages=_POOL_PAGES,
            pool_used=1,
            leaves_used=1,
            private_bytes=PAGE,
            real=self.real,
        )
        at = _Places(ctypes.sizeof(Heap))
        most_sites = _SAMPLED_SITES if self.sample_bytes else _SITES
        if self.sample_bytes:
            _place_sampled(heap, at)
        else:
            _place_exact(heap, at)
        for table, most, size in (
            (heap.nodes, _NODES, ctypes.sizeof(Node)),
            (heap.sites, most_sites, ctypes.sizeof(Site)),
            (heap.fans, _FANS, 4 * FAN),
        ):
            table.most, table.used = most, FIRST_ITEM
            table.items_offset = at.take(most * size)
        heap.regions_offset = at.take(4 * REGIONS)
        heap.patches_offset = at.take(PATCHES * ctypes.sizeof(Patch))
        heap.entries_offset = at.take(ENTRIES * ctypes.sizeof(Entry))
        heap.landings_offset = at.take(LANDINGS * ctypes.sizeof(Landing))
        cache_at = at.take(_MOST_LINES * ctypes.sizeof(CacheLine))
        heap.pool_offset = at.take(_POOL_PAGES * PAGE)
        heap.first_counts_offset = at.take(_SITES * ctypes.sizeof(Counts))
        return heap, at.next, cache_at


def _place_exact(heap: Heap, at: _Places) -> None:
    heap.threads_offset = at.take(_THREADS * ctypes.sizeof(HeapThread))
    heap.directory_offset = at.take(4 * DIRECTORY)
    heap.wide_offset = at.take(4 * WIDE_DIRECTORY)
    heap.paged_offset = at.take(4 * PAGED_DIRECTORY)
    heap.next_offset = at.take(4 * _LEAVES)
    heap.leaves_offset = at.take(4 * LEAF_WORDS * _LEAVES)


def _place_sampled(heap: Heap, at: _Places) -> None:
    """The first blocks and contexts lie in the head's own page: often no more are needed."""
    heap.sampled_offset = (ctypes.sizeof(Heap) + _LINE - 1) // _LINE * _LINE
    heap.threads_offset = heap.sampled_offset + 8 * SAMPLED_FIRST
    at.next = 0
    at.take(heap.threads_offset + _CONTEXTS * ctypes.sizeof(HeapThread))
    heap.more_offset = at.take(8 * sum(SAMPLED_FIRST << 2 * level for level in range(1, SAMPLED_LEVELS)))
    heap.tallies_offset = at.take(_SAMPLED_SITES * ctypes.sizeof(Tally))


class _Places:
    """Hands out whole pages, one behind the other."""

    def __init__(self, first: int) -> None:
        self.next = 0
        self.take(first)

    def take(self, size: int) -> int:
        at, self.next = self.next, self.next + (size + PAGE - 1) // PAGE * PAGE
        return at
