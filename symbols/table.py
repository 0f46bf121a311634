"""Function symbols of one ELF file, sorted by address and looked up by bisection."""

from __future__ import annotations

import bisect
import dataclasses
import io
import itertools
from array import array
from collections.abc import Callable, Collection, Iterable
from typing import BinaryIO

STT_NOTYPE, STT_FUNC, STT_TLS, STT_GNU_IFUNC = 0, 2, 6, 10
_STB_LOCAL, _STB_GLOBAL, _STB_WEAK, _STB_GNU_UNIQUE = 0, 1, 2, 10

_LAST_ADDRESS = 2**64 - 1
_NAME_LIMIT = 65_536  # bytes; no compiler gets there
_NAME_CHUNK = 256  # bytes; holds nearly every name
_SEARCHED_LIMIT = 64 << 20  # bytes of names that a search by name reads
_ALIASES_LOOKED_AT = 64  # bounds the names read for one address
_STEPS_BACK = 256  # bounds the search for a symbol that encloses others

_RANKS = {_STB_GLOBAL: 0, _STB_GNU_UNIQUE: 0, _STB_WEAK: 1, _STB_LOCAL: 2}
_LEAST_RANK = 3


@dataclasses.dataclass(frozen=True, slots=True)
class Symbol:
    """A symbol as the file has it: ``value`` is its address before relocation, ``size`` in bytes (0 where
    the file gives none), ``type`` its STT_ number.  The name is mangled and untrusted."""

    name: bytes
    value: int
    size: int
    type: int = STT_FUNC


class StringTable:
    """A string section, read name by name, so that hundreds of MB of names cost nothing until asked for."""

    def __init__(self, stream: BinaryIO, offset: int, size: int) -> None:
        self._stream = stream
        self._offset = offset
        self._size = size

    def get(self, index: int) -> bytes:
        """The name at ``index`` bytes into the section; b"" outside of it.  Cut at 64 KiB."""
        name = self._read(index, _NAME_CHUNK)
        if len(name) == _NAME_CHUNK and b"\0" not in name:
            name = self._read(index, _NAME_LIMIT)
        return name.partition(b"\0")[0]

    def places(self, name: bytes) -> list[int]:
        """Where in the section this whole name stands: what ``get`` would answer with it for."""
        content, sought = b"\0" + self._read(0, _SEARCHED_LIMIT), b"\0" + name + b"\0"
        found, at = [], content.find(sought)
        while at >= 0:
            found.append(at)
            at = content.find(sought, at + 1)
        return found

    def _read(self, index: int, limit: int) -> bytes:
        length = min(limit, self._size - index)
        if length <= 0:
            return b""
        try:
            self._stream.seek(self._offset + index)
            return self._stream.read(length)
        except (OSError, ValueError):  # the file shrank, or was closed
            return b""


NO_STRINGS = StringTable(io.BytesIO(), 0, 0)

RawSymbol = tuple[int, int, int, int, int]
"""name index, info, section index, value, size."""


class SymbolTableBuilder:
    """Gathers the symbols of several sections in flat arrays (33 bytes each), then sorts them once."""

    def __init__(self) -> None:
        self._values = array("Q")
        self._sizes = array("Q")
        self._limits = array("Q")
        self._names = array("L")
        self._infos = array("B")
        self._tables = array("B")
        self._strings: list[StringTable] = []

    def add(self, symbols: Iterable[RawSymbol], strings: StringTable, limit_of: Callable[[int], int]) -> None:
        """Take function ``symbols`` named in ``strings``.

        ``limit_of(section index)`` is the address that a symbol without size can't reach beyond (0: the
        section is unknown, such a symbol covers nothing).
        """
        if not self._strings or self._strings[-1] is not strings:
            self._strings.append(strings)
        columns = list(zip(*symbols, strict=True))
        if not columns:
            return
        names, infos, sections, values, sizes = columns
        limits = {section: limit_of(section) for section in set(sections)}
        self._names.extend(names)
        self._infos.extend(infos)
        self._limits.extend(map(limits.__getitem__, sections))
        self._values.extend(values)
        self._sizes.extend(sizes)
        self._tables.extend(itertools.repeat(len(self._strings) - 1, len(names)))

    def build(self) -> SymbolTable:
        """The table of all symbols added."""
        order = self._order()
        ends = self._ends(order)
        kept = [index for index, end in zip(order, ends, strict=True) if end]
        return SymbolTable(
            values=_picked(self._values, kept),
            ends=array("Q", filter(None, ends)),
            sizes=_picked(self._sizes, kept),
            names=_picked(self._names, kept),
            infos=_picked(self._infos, kept),
            tables=_picked(self._tables, kept),
            strings=tuple(self._strings),
        )

    def _order(self) -> list[int]:
        # By address; at one address those with a size first, then the strongest binding first.
        ranks = [_RANKS.get(info >> 4, _LEAST_RANK) for info in range(256)]
        keys = [
            value << 3 | (not size) << 2 | ranks[info]
            for value, size, info in zip(self._values, self._sizes, self._infos, strict=True)
        ]
        return sorted(range(len(keys)), key=keys.__getitem__)

    def _ends(self, order: list[int]) -> list[int]:
        """The first address behind each symbol of ``order``; 0 for one that covers nothing.

        A symbol without size reaches to the next symbol, but not out of its section; inside a symbol that
        has a size it is a mere label there.
        """
        values, sizes, limits = self._values, self._sizes, self._limits
        ends = [0] * len(order)
        reached = 0
        unsized = []
        for position, index in enumerate(order):
            value, size = values[index], sizes[index]
            if size:
                end = ends[position] = min(value + size, _LAST_ADDRESS)
                if end > reached:
                    reached = end
            elif value >= reached:
                unsized.append(position)
        starts = [values[index] for index in order] if unsized else []
        for position in unsized:
            value, limit = starts[position], limits[order[position]]
            after = bisect.bisect_right(starts, value, position)
            end = min(starts[after], limit) if after < len(starts) else limit
            ends[position] = end if end > value else 0
        return ends


def _picked(column: array[int], indices: list[int]) -> array[int]:
    return array(column.typecode, map(column.__getitem__, indices))


class SymbolTable:
    """Function symbols by address.  Built by SymbolTableBuilder; names are read when a symbol is found."""

    def __init__(
        self,
        *,
        values: array[int],
        ends: array[int],
        sizes: array[int],
        names: array[int],
        infos: array[int],
        tables: array[int],
        strings: tuple[StringTable, ...],
    ) -> None:
        self._values = values
        self._ends = ends
        self._sizes = sizes
        self._names = names
        self._infos = infos
        self._tables = tables
        self._strings = strings
        # How far the symbols up to this one reach: tells when looking further back is of no use.
        self._reach = array("Q", itertools.accumulate(ends, max))

    def __len__(self) -> int:
        return len(self._values)

    def lookup(self, vaddr: int) -> Symbol | None:
        """The innermost symbol that covers ``vaddr``, an address before relocation; None in a gap."""
        index = bisect.bisect_right(self._values, vaddr) - 1
        for position in range(index, max(-1, index - _STEPS_BACK), -1):
            if self._reach[position] <= vaddr:
                return None
            if self._ends[position] > vaddr:
                return self._best_alias(self._values[position], position, vaddr)
        return None

    def named(self, names: Collection[bytes]) -> list[Symbol]:
        """All symbols with one of these names, by address."""
        wanted = [
            {place: name for name in names for place in strings.places(name)} for strings in self._strings
        ]
        if not any(wanted):
            return []
        return [
            Symbol(wanted[table][name], self._values[index], self._sizes[index], self._infos[index] & 0xF)
            for index, (table, name) in enumerate(zip(self._tables, self._names, strict=True))
            if name in wanted[table]
        ]

    def _best_alias(self, value: int, last: int, vaddr: int) -> Symbol:
        first = bisect.bisect_left(self._values, value, 0, last + 1)
        covering = (i for i in range(first, last + 1) if self._ends[i] > vaddr)
        aliases = itertools.islice(covering, _ALIASES_LOOKED_AT)
        return min(map(self._alias, aliases), key=lambda alias: alias[0])[1]

    def _alias(self, index: int) -> tuple[tuple[bool, int, bool, int, int, bytes], Symbol]:
        """The symbol, and what it is preferred by: having a size, a name, a strong binding, few underscores
        in front; then a short name, then the alphabet."""
        name = self._strings[self._tables[index]].get(self._names[index])
        info, size = self._infos[index], self._sizes[index]
        underscores = len(name) - len(name.lstrip(b"_"))
        rank = _RANKS.get(info >> 4, _LEAST_RANK)
        symbol = Symbol(name, self._values[index], size, info & 0xF)
        return (not size, rank, not name, underscores, len(name), name), symbol
