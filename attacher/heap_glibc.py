"""glibc's malloc in another process, from outside: its arenas, its chunks, and which of them are in use.

After malloc/malloc.c and malloc/arena.c of glibc 2.17 to 2.41.  Nothing in the target says where its arenas
are: the main one is found in the C library's data by its bins, which are empty for the most part and then
lead to themselves.  The target runs meanwhile: what is read is checked, and what does not fit is counted.
"""

from __future__ import annotations

import array
import dataclasses
import itertools
import os
import re
import struct
from collections.abc import Callable, Iterable, Iterator

from ..inject.scan import CHUNK, FREE, ChunkWalk
from ..symbols.maps import Maps
from .pages import PAGE
from .target import TargetProcess

_LIBC = re.compile(r"libc(-2\.\d+)?\.so(\.6)?")
_BINS = 254  # words: NBINS * 2 - 2
_LEAST_EMPTY = 64  # bins that must be, of 127
_NEXT = (_BINS + 2) * 8  # from the bins: binmap, then the next arena
_MOST_DATA = 1 << 20
_MOST_ARENAS = 4096
_MOST_READS = 100_000  # while they are looked for
_BEFORE_BINS = range(24, 208, 8)  # bytes from an arena's begin to its bins
_FAST_BINS = 10
_HEAP_BYTES = 1 << 26  # HEAP_MAX_SIZE: heaps of other arenas begin at its multiples
_TCACHE_BINS = 64
_TCACHE = {648: "<64H64Q", 584: "<64B64Q"}
"""Bytes of a block that is a thread's cache, and what it holds: glibc 2.30 on, and before."""

_MOST_CACHED = 1 << 20
_TRIES = 3
_MOST_PAGES = 1 << 21
_MOST_MAPPED = 65536  # DEFAULT_MMAP_MAX


@dataclasses.dataclass(frozen=True)
class Arena:
    """``struct malloc_state``: where it is, where its bins are, the chunk at its end, the next arena."""

    address: int
    bins: int
    top: int
    next: int


@dataclasses.dataclass(frozen=True)
class Stretch:
    """Chunks one behind the other: headers from ``start`` on, ``end`` is that of the last, the arena's top,
    or the end of the heap."""

    start: int
    end: int


@dataclasses.dataclass
class Block:
    """A block as malloc returned it.  ``words``: its first six, 0 behind its end."""

    address: int
    size: int
    words: tuple[int, ...]


class GlibcHeap:
    """The heap as it is in these moments.  Raises OSError where the target can't be read."""

    def __init__(self, target: TargetProcess, maps: Maps) -> None:
        self._target, self._maps = target, maps
        self.arenas: list[Arena] = []
        self.stretches: list[Stretch] = []
        self.unknown_bytes = 0
        """In arenas, but not understood: the target changed it just then, or damaged it."""
        self._data = list(self._libc_data())
        for base, data in self._data:
            self.arenas = find_arenas(base, data, self._word)
            if self.arenas:
                break
        self._parameters = self._find_parameters()
        for arena in self.arenas:
            self.stretches += self._stretches(arena)

    def _libc_data(self) -> Iterator[tuple[int, array.array[int]]]:
        """Writable data of the C library: where it begins, its words."""
        libc, end = False, 0
        for mapping in self._maps:
            named = bool(_LIBC.fullmatch(os.path.basename(mapping.file_path)))  # noqa: PTH119
            libc = named or (libc and not mapping.inode and mapping.start == end)  # .bss lies behind it
            end = mapping.end
            if libc and mapping.writable and not mapping.shared:
                yield mapping.start, self._words(mapping.start, min(end - mapping.start, _MOST_DATA))

    def _words(self, address: int, size: int) -> array.array[int]:
        words = array.array("Q")
        words.frombytes(self._target.read(address, size // 8 * 8))
        return words

    def _word(self, address: int) -> int:
        try:
            return int.from_bytes(self._target.read(address, 8), "little")
        except ProcessLookupError:
            raise
        except OSError:
            return 0

    def _stretches(self, arena: Arena) -> Iterator[Stretch]:
        """The parts of an arena that hold chunks."""
        heap = arena.top & -_HEAP_BYTES
        if self._word(heap) != arena.address:
            yield from self._main_stretch(arena)
            return
        first = arena.address & -_HEAP_BYTES
        info = arena.address - first  # sizeof(heap_info), which lies at the begin of each
        behind_arena = -(-(arena.bins + _NEXT + 40) // 16) * 16
        end = arena.top
        seen: set[int] = set()
        while heap and heap not in seen and len(seen) < _MOST_ARENAS:
            seen.add(heap)
            start = behind_arena if heap == first else heap + info
            if start < end:
                yield Stretch(start, end)
            heap = self._word(heap + 8)
            end = heap + self._word(heap + 16) if heap else 0
            if heap & (_HEAP_BYTES - 1) or not 0 < end - heap <= _HEAP_BYTES:
                return

    def _main_stretch(self, arena: Arena) -> Iterator[Stretch]:
        """From the break's begin to the top.  Where the program itself has moved the break before, malloc's
        part begins later than the mapping."""
        mapping = self._maps.find(arena.top)
        if mapping is None:
            return
        start = self._parameters[2] if self._parameters else 0
        if not start:
            start = mapping.start
            for other in reversed(list(self._maps)):
                if other.end == start and other.path == mapping.path and other.writable:
                    start = other.start
        if start < arena.top:
            yield Stretch(start, arena.top)

    def mapped(self) -> Iterator[Block]:
        """Blocks that have mappings of their own.  The kernel may have made one mapping of several, so they
        are looked for at each page until there are as many as glibc counts."""
        wanted = self._parameters[0] if self._parameters else 0
        looked = found = 0
        for mapping in self._maps:
            if not mapping.writable or mapping.shared or mapping.inode or mapping.path.startswith("["):
                continue
            at = mapping.start
            while at < mapping.end and found < wanted and looked < _MOST_PAGES:
                block = self._mapped_at(at, mapping.end)
                looked += 1
                found += block is not None
                at += PAGE if block is None else block.size + 16
                if block is not None:
                    yield block

    def _mapped_at(self, at: int, end: int) -> Block | None:
        words = self._words_of_chunk(at)
        if not words or words[0] or words[1] % PAGE != 2 or not PAGE <= words[1] <= end - at + 2:
            return None
        return Block(at + 16, words[1] - 2 - 16, words[2:])

    def _words_of_chunk(self, at: int) -> tuple[int, ...]:
        try:
            return tuple(self._words(at, 64))
        except ProcessLookupError:
            raise
        except OSError:
            return ()

    def mapped_total(self) -> tuple[int, int] | None:
        """How many blocks have mappings of their own, and the bytes of those, as glibc counts them; None
        where that is not found."""
        return self._parameters[:2] if self._parameters else None

    def _find_parameters(self) -> tuple[int, int, int] | None:
        """Of ``struct malloc_par``: n_mmaps, mmapped_mem, sbrk_base.  It is known by its limit of mappings,
        and by the break's begin."""
        tops = [arena.top for arena in self.arenas]
        for _, data in self._data:
            halves = array.array("I", data.tobytes())
            for i in range(len(halves) - 4):
                # n_mmaps, n_mmaps_max, max_n_mmaps, no_dyn_threshold; mmapped_mem, max_mmapped_mem, sbrk_base
                count, limit, most, fixed = halves[i : i + 4]
                if limit != _MOST_MAPPED or not count <= most <= limit or fixed > 1:
                    continue
                now, highest, start = (*data[(i + 5) // 2 : (i + 5) // 2 + 3], 0, 0, 0)[:3]
                if now > highest or now % PAGE or start % 16 or bool(most) != bool(highest):
                    continue
                if not start or any(start < top for top in tops):
                    return count, now, start
        return None

    def cached(self) -> tuple[set[int], set[int]]:
        """Addresses of blocks that are free though their chunks do not say so, because they lie in a thread's
        cache or in an arena's fast bins; and of the caches themselves."""
        found: set[int] = set()
        caches: set[int] = set()
        for size in _TCACHE:
            for address, _, in_use, *_ in self._chunks(only=size):
                if in_use:
                    blocks = self._cache(address, size)
                    if blocks is not None:
                        caches.add(address)
                        found |= blocks
                    if len(found) > _MOST_CACHED:
                        return found, caches
        for arena in self.arenas:
            if arena.bins - arena.address >= 24 + 8 * _FAST_BINS:
                first = arena.bins - 16 - 8 * _FAST_BINS
                for i, head in enumerate(self._words(first, 8 * _FAST_BINS)):
                    found.update(self._list(head, 32 + 16 * i, header=16))
        return found, caches

    def _cache(self, address: int, size: int) -> set[int] | None:
        """The blocks in the thread's cache at ``address``; None where there is none."""
        form = struct.Struct(_TCACHE[size])
        try:
            values = form.unpack(self._target.read(address, form.size))
        except ProcessLookupError:
            raise
        except OSError:
            return None
        counts, entries = values[:_TCACHE_BINS], values[_TCACHE_BINS:]
        if any(
            bool(count) != bool(entry) or entry % 16 for count, entry in zip(counts, entries, strict=True)
        ):
            return None
        found: set[int] = set()
        for i, (count, entry) in enumerate(zip(counts, entries, strict=True)):
            if entry and self._word(entry - 8) & ~15 != 32 + 16 * i:
                return None
            found.update(itertools.islice(self._list(entry, 32 + 16 * i), count))
        first = any(stretch.start + 16 == address for stretch in self.stretches)
        return found if found or first else None

    def _list(self, first: int, chunk_size: int, header: int = 0) -> Iterator[int]:
        """Blocks of one size, each with the next one's address in its first word: as it is, or since glibc
        2.32 mixed with its own place.  ``header``: so far before the block the addresses lead (fast bins:
        16)."""
        seen: set[int] = set()
        block = first + header if first else 0
        while len(seen) < _MOST_CACHED and block not in seen and self._is_block(block, chunk_size):
            seen.add(block)
            yield block
            word = self._word(block)
            mixed = word ^ (block >> 12)
            if not mixed or not word:
                return
            block = mixed + header if self._is_block(mixed + header, chunk_size) else word + header

    def _is_block(self, block: int, chunk_size: int) -> bool:
        return bool(block) and block % 16 == 0 and self._word(block - 8) & ~15 == chunk_size

    def _chunks(self, only: int = 0) -> Iterator[tuple[int, ...]]:
        self.unknown_bytes = 0
        for stretch in self.stretches:
            at = stretch.start
            for _ in range(_TRIES):
                walk = ChunkWalk(self._target.memory_fd, at, stretch.end, only)
                for batch in walk:
                    yield from CHUNK.iter_unpack(batch)
                at = walk.at
                if at == stretch.end:
                    break
            if stretch.end - at > 64:  # an older heap of an arena ends with two marks that are no chunks
                self.unknown_bytes += stretch.end - at

    def blocks(self) -> Iterator[Block]:
        """All blocks in use: address, bytes that can be used, first words."""
        free, caches = self.cached()
        free |= caches
        for address, size, in_use, *words in self._chunks():
            if in_use and address not in free:
                yield Block(address, size, tuple(words))
        yield from self.mapped()

    def holds(self, address: int) -> bool:
        """Whether it is in an arena, or in a block with a mapping of its own."""
        if any(stretch.start <= address < stretch.end for stretch in self.stretches):
            return True
        return any(block.address <= address < block.address + block.size for block in self.mapped())

    def free(self) -> Iterator[tuple[int, int]]:
        """Memory in arenas that is no block in use, and arenas themselves, sorted: begin and end of each
        part. Where chunks are not understood, nothing is said."""
        cached, caches = self.cached()
        out = [(address, address + size) for address, size, *_ in self._chunks(only=FREE)]
        out += [(address, address + (self._word(address - 8) & ~15) - 8) for address in cached | caches]
        for arena in self.arenas:
            # Its own words lead to headers, of which the first is a part of the block before.
            out.append((arena.address, arena.bins + _NEXT + 8))
            out.append((arena.top, arena.top + 8 + (self._word(arena.top + 8) & ~15)))
        yield from merged(out)


def merged(ranges: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Sorted, without overlaps and without empty ones."""
    last: tuple[int, int] | None = None
    for low, high in sorted(ranges):
        if low >= high:
            continue
        if last is not None and low <= last[1]:
            last = last[0], max(last[1], high)
            continue
        if last is not None:
            yield last
        last = low, high
    if last is not None:
        yield last


def find_arenas(base: int, data: array.array[int], word_at: Callable[[int], int]) -> list[Arena]:
    """The main arena in ``data``, words from ``base`` on, and behind it all others; empty where there is
    none.

    Of an empty bin both words are the address 16 bytes before it.
    """
    empty = [
        data[i] == base + 8 * i - 16 and i + 1 < len(data) and data[i + 1] == data[i]
        for i in range(len(data))
    ]
    sums = [list(itertools.accumulate(empty[parity::2], initial=0)) for parity in (0, 1)]
    left = _MOST_READS

    def counted(address: int) -> int:
        nonlocal left
        left -= 1
        return word_at(address)

    for i in range(len(data) - _BINS - 3):
        at, parity = i // 2, i % 2
        if sums[parity][at + _BINS // 2] - sums[parity][at] < _LEAST_EMPTY:
            continue
        if left < 0:
            break
        bins = base + 8 * i
        for before in _BEFORE_BINS:
            arenas = _ring(bins - before, before, counted)
            if arenas:
                return arenas
    return []


def _ring(first: int, before: int, word_at: Callable[[int], int]) -> list[Arena]:
    """All arenas, if that is what lies at ``first``: each knows the next, the last one the first."""
    out: list[Arena] = []
    address = first
    while len(out) < _MOST_ARENAS:
        bins = address + before
        follows = word_at(bins + _NEXT)
        out.append(Arena(address, bins, word_at(bins - 16), follows))
        if follows == first:
            return [arena for arena in out if arena.top]
        if not follows or follows % 16 not in (0, first % 16):
            return []
        address = follows
    return []
