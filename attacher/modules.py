"""The module table: for each executable mapping where its unwind tables lie, kept fresh for the stub."""

from __future__ import annotations

import array
import ctypes
from collections.abc import Iterator
from typing import NamedTuple

from ..errors import MalformedInput
from ..inject.layout import (
    MODULE_CHANGES_STACKS,
    MODULE_OWN_INDEX,
    MODULE_ROOT,
    MODULES,
    IndexEntry,
    Module,
    Modules,
)
from ..inject.region import INDEX_BYTES, RegionPlan
from ..symbols.ehframe import list_fdes, search_table
from ..symbols.elf import ElfImage, load_bias
from ..symbols.golang import first_functions, is_go
from ..symbols.maps import Mapping, Maps
from ..symbols.resolver import Resolver
from .target import TargetProcess


class Tables(NamedTuple):
    """Where the tables of one mapping lie: an address in the target, or, with ``own``, an offset into
    the shared region; size in bytes (0: it has none).  ``roots`` are its functions at which a walk ends,
    [start, end) in the target."""

    address: int
    size: int
    own: bool = False
    changes_stacks: bool = False
    roots: tuple[tuple[int, int], ...] = ()

    @property
    def flags(self) -> int:
        return (MODULE_OWN_INDEX if self.own else 0) | (MODULE_CHANGES_STACKS if self.changes_stacks else 0)


class ModuleTable:
    """Builds tables from maps, and publishes them so that a handler never sees half of one.

    There are two; handlers use the one that ``modules_seq`` names, the other is filled, then the number
    is moved on.  ``left_out`` counts modules beyond the room there is, at most at any time.
    """

    def __init__(self, target: TargetProcess, resolver: Resolver, plan: RegionPlan) -> None:
        self._target, self._resolver, self._plan = target, resolver, plan
        self._known: dict[tuple[int, int, ElfImage | None], Tables] = {}
        self._index = array.array("Q")
        self._index_written = 0
        self._published: bytes = b""
        self.left_out = 0

    def first(self, maps: Maps) -> tuple[bytes, bytes]:
        """The first contents of the module table in use, and of the index area."""
        self._published = self._build(maps)
        self._index_written = len(self._index)
        return self._published, self._index.tobytes()

    def of(self, maps: Maps) -> bytes:
        """A module table for ``maps``, not published."""
        return self._build(maps)

    @property
    def published(self) -> bytes:
        """The module table in use; another object once it has changed."""
        return self._published

    def refresh(self, maps: Maps, region: ctypes.Array[ctypes.c_char], seq: int) -> bool:
        """Publish the table for ``maps`` if it differs; returns whether ``modules_seq`` must be moved
        on from ``seq``, which the caller does last."""
        new = self._build(maps)
        if new == self._published:
            return False
        fresh = self._index[self._index_written :].tobytes()
        at = self._plan.index_offset + self._index_written * 8
        ctypes.memmove(ctypes.addressof(region) + at, fresh, len(fresh))
        self._index_written = len(self._index)
        table = self._plan.modules_offset + ((seq + 1) & 1) * ctypes.sizeof(Modules)
        ctypes.memmove(ctypes.addressof(region) + table, new, len(new))
        self._published = new
        return True

    def _build(self, maps: Maps) -> bytes:
        mappings = [m for m in maps.executable() if m.path != "[vsyscall]"]
        ranges = [entry for mapping in mappings for entry in _ranges(mapping, self._tables(mapping))]
        if len(ranges) > MODULES:  # of a JIT compiler's: without tables they say no more than none
            ranges = [entry for entry in ranges if entry.table or entry.flags]
        self.left_out = max(self.left_out, len(ranges) - MODULES)
        ranges = ranges[:MODULES]
        return len(ranges).to_bytes(16, "little") + b"".join(map(bytes, ranges))

    def notes(self) -> list[str]:
        """What is to be known of it, in sentences."""
        if not self.left_out:
            return []
        return [
            f"{self.left_out:,} mappings of code had no room in the table of {MODULES:,}: there stacks lead "
            "on by frame pointers only"
        ]

    def _tables(self, mapping: Mapping) -> Tables:
        key = (mapping.start, mapping.end, self._resolver.image(mapping))
        if key not in self._known:
            try:
                self._known[key] = self._find(mapping)
            except (MalformedInput, OSError):  # no tables that can be trusted: frame pointers there
                self._known[key] = Tables(0, 0)
        return self._known[key]

    def _find(self, mapping: Mapping) -> Tables:
        image = self._resolver.image(mapping)
        if image is None:
            return Tables(0, 0)
        bias = load_bias(mapping, image)
        tables = self._find_tables(image, bias)
        if not is_go(image):
            return tables
        roots = tuple((start + bias, end + bias) for start, end in first_functions(image))
        return tables._replace(changes_stacks=True, roots=roots)

    def _find_tables(self, image: ElfImage, bias: int) -> Tables:
        if image.eh_frame_hdr is not None:
            head = self._target.read(image.eh_frame_hdr.vaddr + bias, 4)
            table = search_table(image, head)
            if table is not None:
                return Tables(table.vaddr + bias, table.size)
        return self._own_index(image, bias)

    def _own_index(self, image: ElfImage, bias: int) -> Tables:
        fdes = list_fdes(image)
        size = ctypes.sizeof(IndexEntry) * len(fdes)
        if not fdes or len(self._index) * 8 + size > INDEX_BYTES:
            return Tables(0, 0)
        offset = self._plan.index_offset + len(self._index) * 8
        for start, fde in fdes:
            self._index.append((start + bias) & 0xFFFF_FFFF_FFFF_FFFF)
            self._index.append((fde + bias) & 0xFFFF_FFFF_FFFF_FFFF)
        return Tables(offset, size, own=True)


def _ranges(mapping: Mapping, tables: Tables) -> Iterator[Module]:
    """The mapping's entries: whole, or the parts between the functions at which walks end, and these."""
    at = mapping.start
    for start, end in tables.roots:
        if at <= start < end <= mapping.end:
            if at < start:
                yield _entry(at, start, tables, tables.flags)
            yield _entry(start, end, tables, tables.flags | MODULE_ROOT)
            at = end
    if at < mapping.end:
        yield _entry(at, mapping.end, tables, tables.flags)


def _entry(start: int, end: int, tables: Tables, flags: int) -> Module:
    return Module(start=start, end=end, table=tables.address, table_size=tables.size, flags=flags)
