"""The heap that was there before pyattach attached: by size and by type, from outside.  Nobody knows its
stacks.

Blocks of glibc's malloc, and of CPython's own allocator for small objects (``Objects/obmalloc.c``), which
takes whole arenas from the kernel and divides them into pools of blocks of one size.
"""

from __future__ import annotations

import array
import collections
import dataclasses
import struct
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from ..inject.got import loaded_modules
from ..symbols.frame import Frame, FrameKind
from ..symbols.maps import Maps
from ..symbols.resolver import Resolver
from .heap_glibc import Block, GlibcHeap
from .heap_types import TypeReader
from .pages import present
from .target import TargetProcess

NO_STACK = Frame("[no stack: allocated before attach]", "", FrameKind.UNKNOWN)
_MOST_S = 10.0
_POOL = struct.Struct("<QQQQIIII")
"""``struct pool_header``: blocks in use, first free block, next and previous pool; arena, size class, where
blocks begin that were never used, the last place for one."""

_POOL_SIZES = (16384, 4096)  # CPython 3.10 on, and before
_WINDOW = 1 << 22
_MOST_CLASSES = 32
_Key = TypeVar("_Key")


@dataclasses.dataclass
class OldHeap:
    """Blocks and bytes (as far as the program may use them) by type and by size.  Sizes are classes: the
    power of two that is not smaller; no type is ``""``."""

    kinds: dict[tuple[str, int], tuple[int, int]] = dataclasses.field(default_factory=dict)
    notes: list[str] = dataclasses.field(default_factory=list)
    took_s: float = 0.0

    def add(self, kind: str, size: int, blocks: int = 1) -> None:
        """Blocks of that many bytes each."""
        key = kind, 1 << max(4, (size - 1).bit_length())
        before = self.kinds.get(key, (0, 0))
        self.kinds[key] = before[0] + blocks, before[1] + blocks * size

    @property
    def blocks(self) -> int:
        """All of them."""
        return sum(blocks for blocks, _ in self.kinds.values())

    @property
    def size(self) -> int:
        """Bytes of all of them."""
        return sum(size for _, size in self.kinds.values())

    def by_type(self) -> list[tuple[str, int, int]]:
        """Type, blocks and bytes, most bytes first."""
        sums = _summed((kind, n, size) for (kind, _), (n, size) in self.kinds.items())
        return sorted(((kind, *total) for kind, total in sums.items()), key=lambda row: (-row[2], row[0]))

    def by_size(self) -> list[tuple[int, int, int]]:
        """Size class, blocks and bytes, smallest first."""
        sums = _summed((upto, n, size) for (_, upto), (n, size) in self.kinds.items())
        return sorted((size, *total) for size, total in sums.items())

    def stacks(self) -> Iterator[tuple[tuple[Frame, ...], int, int]]:
        """What takes a stack's place in a picture; blocks; bytes."""
        for (kind, size_class), (blocks, size) in sorted(self.kinds.items()):
            of_type = (
                Frame(kind, "", FrameKind.UNKNOWN)
                if kind
                else Frame("[no type known]", "", FrameKind.UNKNOWN)
            )
            yield (
                (NO_STACK, of_type, Frame(f"[up to {size_class:,} bytes]", "", FrameKind.UNKNOWN)),
                blocks,
                size,
            )


def _summed(rows: Iterable[tuple[_Key, int, int]]) -> dict[_Key, tuple[int, int]]:
    out: dict[_Key, tuple[int, int]] = {}
    for key, blocks, size in rows:
        before = out.get(key, (0, 0))
        out[key] = before[0] + blocks, before[1] + size
    return out


NOT_GLIBC = "what was allocated before the attach is not shown: the allocator is not glibc's, or was not used"


def read_old_heap(target: TargetProcess, maps: Maps, resolver: Resolver) -> OldHeap | None:
    """What lies in the target's heap now; None where that is not known (NOT_GLIBC).  Raises OSError where its
    memory can't be read."""
    begin = time.monotonic()
    out = OldHeap()
    heap = GlibcHeap(target, maps)
    if not heap.arenas:
        return None
    type_of_type = _type_of_type(target, maps, resolver)
    types = TypeReader(target, maps, type_of_type)
    blocks: Iterator[Block] = heap.blocks()
    for i, block in enumerate(blocks):
        out.add(types.name(block.words), block.size)
        if i % 4096 == 0 and time.monotonic() - begin > _MOST_S:
            out.notes.append(
                f"what was allocated before the attach is shown as far as {_MOST_S:.0f} s allowed"
            )
            break
    if heap.unknown_bytes:
        out.notes.append(
            f"{heap.unknown_bytes:,} bytes of the heap were not understood: it changed just then"
        )
    total = heap.mapped_total()
    if total is None:
        out.notes.append(
            "blocks with mappings of their own (large ones) from before the attach are not shown"
        )
    if type_of_type:
        for kind, size, count in PythonPools(target, maps, types).counts():
            out.add(kind, size, count)
            if time.monotonic() - begin > 2 * _MOST_S:
                out.notes.append("not all of CPython's small objects are shown: there are too many")
                break
    out.took_s = time.monotonic() - begin
    return out


def _type_of_type(target: TargetProcess, maps: Maps, resolver: Resolver) -> int:
    """Where CPython's ``PyType_Type`` lies; 0 where there is none."""
    for module in loaded_modules(maps, target.read):
        image = resolver.image(module.mapping) if "python" in module.path else None
        symbol = image.dynamic_symbol(b"PyType_Type") if image is not None else None
        if symbol is not None and symbol.value:
            return symbol.value + module.bias
    return 0


class PythonPools:
    """Blocks that CPython's own allocator has given to objects."""

    def __init__(self, target: TargetProcess, maps: Maps, types: TypeReader) -> None:
        self._target, self._maps, self._types = target, maps, types

    def counts(self) -> Iterator[tuple[str, int, int]]:
        """Pool by pool: a type (or ``""``), the size of each block, how many of it are in use."""
        for mapping in self._maps:
            if not mapping.writable or mapping.shared or mapping.inode or mapping.path.startswith("["):
                continue
            yield from self.counts_in(mapping.start, mapping.end)

    def counts_in(self, low: int, high: int) -> Iterator[tuple[str, int, int]]:
        """The same, of what lies in [low, high)."""
        for start, data in self._windows(low, high):
            for pool_size in _POOL_SIZES:
                for at in range(-start % pool_size, len(data) - pool_size + 1, pool_size):
                    yield from self._pool(data, at, start + at, pool_size)

    def _windows(self, start: int, end: int) -> Iterator[tuple[int, bytes]]:
        """What [start, end) holds: address and bytes.  No pool lies in two of them; pages that were never
        touched, of a pool that others of are in use, read as zeros."""
        for low in range(start - start % _WINDOW, end, _WINDOW):
            first, last = max(start, low), min(end, low + _WINDOW)
            parts = list(present(self._target.pid, first, last))
            if not parts:
                continue
            data = bytearray(last - first)
            for at, size in parts:
                try:
                    data[at - first : at - first + size] = self._target.read(at, size)
                except ProcessLookupError:
                    raise
                except OSError:
                    continue
            yield first, bytes(data)

    def _pool(self, data: bytes, at: int, address: int, pool_size: int) -> Iterator[tuple[str, int, int]]:
        """Of the pool at data[at]; nothing where there is none."""
        used, free, _, _, _, size_class, never_used, last = _POOL.unpack_from(data, at)
        size = (size_class + 1) * 16
        if not 0 < used <= pool_size // 16 or size_class >= _MOST_CLASSES or last != pool_size - size:
            return
        if not _POOL.size <= never_used <= pool_size or (never_used - _POOL.size) % size:
            return
        words = array.array("Q", data[at : at + pool_size])
        unused = set()
        while address <= free < address + pool_size and free % 8 == 0 and free not in unused:
            unused.add(free)
            free = words[(free - address) // 8]
        places = [i for i in range(_POOL.size, never_used, size) if address + i not in unused]
        if len(places) != used:  # it changed just then, or is none
            return
        name_of, count = self._types.python_object, size // 8
        for name, blocks in collections.Counter(name_of(words, i // 8, count) for i in places).items():
            yield name, size, blocks
