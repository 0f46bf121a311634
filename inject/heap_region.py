"""How the heap profiler's part of the shared memory is divided, and its first contents.

Room is for the largest process there may be: what is not used of it takes addresses, no memory.
"""

from __future__ import annotations

import ctypes
import dataclasses

from .heap_layout import (
    DIRECTORY,
    ENTRIES,
    FILTER,
    FIRST_ITEM,
    FIRST_LEVEL,
    HEAP_MAGIC,
    HEAP_VERSION,
    LANDINGS,
    LEAF_WORDS,
    PATCHES,
    WIDE_DIRECTORY,
    Entry,
    Heap,
    HeapThread,
    Item,
    Landing,
    Patch,
)
from .layout import CacheLine, Control
from .region import PAGE, RegionPlan

_THREADS = 4096
_LEAVES = 1 << 15
_NODES, _NODE_LEVELS = 1 << 22, 14
_SITES, _SITE_LEVELS = 1 << 23, 15
_POOL_PAGES = 1 << 20
_LEAST_LINES, _MOST_LINES = 1 << 13, 1 << 16
_BYTES_OF_CODE = 1024
"""For so much code there is one rule kept: of the return addresses in it few are on stacks that allocate."""


def cache_lines(code_bytes: int) -> int:
    """How many rules the unwinder keeps for a program with so much code."""
    return max(_LEAST_LINES, min(_MOST_LINES, 1 << (code_bytes // _BYTES_OF_CODE).bit_length()))


@dataclasses.dataclass(frozen=True)
class HeapPlan(RegionPlan):
    """A region with a heap part behind everything else.

    ``sample_bytes``: mean bytes between two allocations that are recorded; 0: all are.
    ``heap_flags``: HEAP_ATTACHED.  ``real``: addresses of the allocator's functions, where attached.
    ``code_bytes``: of all executable mappings, as far as they are known.
    """

    sample_bytes: int = 0
    heap_flags: int = 0
    real: tuple[int, ...] = ()
    code_bytes: int = 0

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
        control.cache_lines = cache_lines(self.code_bytes)
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
            thread_count=_THREADS,
            leaf_count=_LEAVES,
            pool_pages=_POOL_PAGES,
            pool_used=1,
            leaves_used=1,
            real=self.real,
        )
        at = _Places(ctypes.sizeof(Heap))
        heap.threads_offset = at.take(_THREADS * ctypes.sizeof(HeapThread))
        for table, most, levels in ((heap.nodes, _NODES, _NODE_LEVELS), (heap.sites, _SITES, _SITE_LEVELS)):
            table.most, table.levels, table.used = most, levels, FIRST_ITEM
            table.items_offset = at.take(most * ctypes.sizeof(Item))
            table.index_offset = at.take(4 * ((1 << FIRST_LEVEL + levels) - (1 << FIRST_LEVEL)))
        heap.directory_offset = at.take(4 * DIRECTORY)
        heap.wide_offset = at.take(4 * WIDE_DIRECTORY)
        heap.next_offset = at.take(4 * _LEAVES)
        heap.leaves_offset = at.take(4 * LEAF_WORDS * _LEAVES)
        heap.patches_offset = at.take(PATCHES * ctypes.sizeof(Patch))
        heap.entries_offset = at.take(ENTRIES * ctypes.sizeof(Entry))
        heap.landings_offset = at.take(LANDINGS * ctypes.sizeof(Landing))
        heap.filter_offset = at.take(2 * FILTER)
        cache_at = at.take(_MOST_LINES * ctypes.sizeof(CacheLine))
        heap.pool_offset = at.take(_POOL_PAGES * PAGE)
        return heap, at.next, cache_at


class _Places:
    """Hands out whole pages, one behind the other."""

    def __init__(self, first: int) -> None:
        self.next = 0
        self.take(first)

    def take(self, size: int) -> int:
        at, self.next = self.next, self.next + (size + PAGE - 1) // PAGE * PAGE
        return at
