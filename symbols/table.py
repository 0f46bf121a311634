"""Function symbols of one ELF file, sorted by address and looked up by bisection."""

from __future__ import annotations

import bisect
import io
import itertools
import operator
import sys
from array import array
from collections.abc import Collection, Iterator
from typing import BinaryIO, NamedTuple

STT_NOTYPE, STT_FUNC, STT_TLS, STT_GNU_IFUNC = 0, 2, 6, 10
_STB_LOCAL, _STB_GLOBAL, _STB_WEAK, _STB_GNU_UNIQUE = 0, 1, 2, 10

_LAST_ADDRESS = 2**64 - 1
_NAME_LIMIT = 65_536  # bytes; no compiler gets there
_NAME_CHUNK = 256  # bytes; holds nearly every name
_ASKED_OFTEN = 200  # names one by one, then the whole section
_KEPT_LIMIT = 32 << 20  # bytes of names that are kept in memory
_SEARCHED_LIMIT = 64 << 20  # bytes of names that a search by name reads
_ALIASES_LOOKED_AT = 64  # bounds the names read for one address
_STEPS_BACK = 256  # bounds the search for a symbol that encloses others

_RANKS = {_STB_GLOBAL: 0, _STB_GNU_UNIQUE: 0, _STB_WEAK: 1, _STB_LOCAL: 2}
_LEAST_RANK = 3


class Symbol(NamedTuple):
    """A symbol as the file has it: ``value`` is its address before relocation, ``size`` in bytes (0 where
    the file gives none), ``type`` its STT_ number.  The name is mangled and untrusted."""

    name: bytes
    value: int
    size: int
    type: int = STT_FUNC


class StringTable:
    """A string section, read name by name, so that hundreds of MB of names cost nothing until asked for.
    After many names it is read as a whole, where it is not too large."""

    def __init__(self, stream: BinaryIO, offset: int, size: int) -> None:
        self._stream = stream
        self._offset = offset
        self._size = size
        self._asked = 0
        self._whole: bytes | None = None

    def get(self, index: int) -> bytes:
        """The name at ``index`` bytes into the section; b"" outside of it.  Cut at 64 KiB."""
        if self._whole is not None:
            end = self._whole.find(b"\0", index, index + _NAME_LIMIT)
            return self._whole[index : end if end >= 0 else index + _NAME_LIMIT]
        name = self._read(index, _NAME_CHUNK)
        if len(name) == _NAME_CHUNK and b"\0" not in name:
            name = self._read(index, _NAME_LIMIT)
        return name.partition(b"\0")[0]

    def places(self, name: bytes) -> list[int]:
        """Where in the section this whole name stands, also as the end of a longer one, as linkers store it:
        what ``get`` would answer with it for."""
        content, sought = self.content(), name + b"\0"
        found, at = [], content.find(sought)
        while at >= 0:
            found.append(at)
            at = content.find(sought, at + 1)
        return found

    def content(self) -> bytes:
        """The section, as far as it is searched: its first 64 MiB."""
        return self._read(0, _SEARCHED_LIMIT)

    def _read(self, index: int, limit: int) -> bytes:
        length = min(limit, self._size - index)
        if length <= 0:
            return b""
        if self._whole is None:
            self._asked += 1
            if self._asked > _ASKED_OFTEN and self._size <= _KEPT_LIMIT:
                self._whole = self._from_file(0, self._size)
        if self._whole is not None:
            return self._whole[index : index + length]
        return self._from_file(index, length)

    def _from_file(self, index: int, length: int) -> bytes:
        try:
            self._stream.seek(self._offset + index)
            return self._stream.read(length)
        except (OSError, ValueError):  # the file shrank, or was closed
            return b""


NO_STRINGS = StringTable(io.BytesIO(), 0, 0)


class Columns:
    """Symbols side by side, in no order: where the name stands, info, value, size, and the address that one
    without size can't reach beyond (0: it covers nothing)."""

    def __init__(
        self,
        names: array[int],
        infos: bytes,
        values: array[int],
        sizes: array[int],
        limits: array[int],
    ) -> None:
        self.names, self.infos = names, infos
        self.values, self.sizes, self.limits = values, sizes, limits

    def __len__(self) -> int:
        return len(self.values)


class SymbolTableBuilder:
    """Gathers the symbols of several sections, column by column, then sorts them once."""

    def __init__(self) -> None:
        self._all = Columns(array("L"), b"", array("Q"), array("Q"), array("Q"))
        self._tables = bytearray()
        self._strings: list[StringTable] = []

    def add(self, columns: Columns, strings: StringTable) -> None:
        """Take symbols that are named in ``strings``."""
        mine = self._all
        mine.names.extend(columns.names)
        mine.values.extend(columns.values)
        mine.sizes.extend(columns.sizes)
        mine.limits.extend(columns.limits)
        mine.infos += columns.infos
        self._tables += bytes([len(self._strings)]) * len(columns)
        self._strings.append(strings)

    def build(self) -> SymbolTable:
        """The table of all symbols added."""
        mine, count = self._all, len(self._all)
        # Address and number in one integer: no key function, and no tuple, for each of a million symbols.
        shift = count.bit_length()
        mask = (1 << shift) - 1
        keys = map(operator.lshift, mine.values, itertools.repeat(shift))
        order = sorted(map(operator.or_, keys, range(count)))
        order = list(map(operator.and_, order, itertools.repeat(mask)))
        values, sizes = _picked(mine.values, order), _picked(mine.sizes, order)
        ends, empty = _ends(values, sizes, mine.limits, order)
        columns = [
            values, ends, sizes, _picked(mine.names, order), _picked(array("B", mine.infos), order),
            _picked(array("B", self._tables), order),
        ]  # fmt: skip
        if empty:
            columns = [
                array(c.typecode, itertools.compress(c, map(operator.gt, ends, values))) for c in columns
            ]
        return SymbolTable(columns, tuple(self._strings))


def _ends(
    values: array[int], sizes: array[int], limits: array[int], order: list[int]
) -> tuple[array[int], bool]:
    """The first address behind each symbol, which is its own for one that covers nothing, and whether there
    are such.

    A symbol without size reaches to the next symbol, but not out of its section; inside a symbol that
    has a size it is a mere label there.
    """
    try:
        ends = array("Q", map(operator.add, values, sizes))
    except OverflowError:
        ends = array(
            "Q", (min(value + size, _LAST_ADDRESS) for value, size in zip(values, sizes, strict=True))
        )
    unsized = list(itertools.compress(range(len(sizes)), map(operator.not_, sizes)))
    if not unsized:
        return ends, False
    reach = array("Q", itertools.accumulate(ends, max))
    empty = False
    for position in unsized:
        value, limit = values[position], limits[order[position]]
        after = bisect.bisect_right(values, value, position)
        if reach[after - 1] > value:
            end = value
        else:
            end = min(values[after], limit) if after < len(values) else limit
        ends[position] = max(end, value)
        empty = empty or end <= value
    return ends, empty


def _picked(column: array[int], indices: list[int]) -> array[int]:
    return array(column.typecode, map(column.__getitem__, indices))


_TYPECODES = "QQQLBB"


class SymbolTable:
    """Function symbols by address.  Built by SymbolTableBuilder; names are read when a symbol is found.

    A symbol is known by its number, from 0 in order of address.
    """

    def __init__(self, columns: list[array[int]], strings: tuple[StringTable, ...]) -> None:
        self._values, self._ends, self._sizes, self._names, self._infos, self._tables = columns
        self._strings = strings
        # How far the symbols up to this one reach: tells when looking further back is of no use.
        self._reach = array("Q", itertools.accumulate(self._ends, max))

    def __len__(self) -> int:
        return len(self._values)

    def packed(self) -> list[bytes]:
        """The columns as bytes, in this machine's order; for ``unpacked``."""
        columns = (self._values, self._ends, self._sizes, self._names, self._infos, self._tables)
        return [len(self).to_bytes(8, sys.byteorder), *(column.tobytes() for column in columns)]

    @classmethod
    def unpacked(cls, data: bytes, strings: tuple[StringTable, ...]) -> SymbolTable | None:
        """From the joined bytes of ``packed``; None where they can't be that."""
        count, at, columns = int.from_bytes(data[:8], sys.byteorder), 8, []
        for code in _TYPECODES:
            column = array(code)
            end = at + count * column.itemsize
            if end > len(data):
                return None
            column.frombytes(memoryview(data)[at:end])
            columns.append(column)
            at = end
        if at != len(data) or (count and max(columns[-1]) >= len(strings)):
            return None
        return cls(columns, strings)

    def covered(self) -> Iterator[tuple[int, int]]:
        """Where each begins and ends, by begin."""
        return zip(self._values, self._ends, strict=True)

    def find(self, vaddr: int) -> int:
        """The number of the innermost symbol that covers ``vaddr``, an address before relocation; -1 in a
        gap.  Of several that start there it is the last."""
        index = bisect.bisect_right(self._values, vaddr) - 1
        if index >= 0 and self._ends[index] > vaddr:
            return index
        for position in range(index, max(-1, index - _STEPS_BACK), -1):
            if self._reach[position] <= vaddr:
                return -1
            if self._ends[position] > vaddr:
                return position
        return -1

    def lookup(self, vaddr: int) -> Symbol | None:
        """The innermost symbol that covers ``vaddr``, of several at one address the one with the name that
        people know best; None in a gap."""
        position = self.find(vaddr)
        return None if position < 0 else self.symbol(position, vaddr)

    def symbol(self, position: int, vaddr: int) -> Symbol:
        """What ``lookup`` answers for ``vaddr``, where ``find`` has found ``position``."""
        first = bisect.bisect_left(self._values, self._values[position], 0, position + 1)
        covering = (i for i in range(first, position + 1) if self._ends[i] > vaddr)
        aliases = itertools.islice(covering, _ALIASES_LOOKED_AT)
        return min(map(self._alias, aliases), key=lambda alias: alias[0])[1]

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

    def _alias(self, index: int) -> tuple[tuple[bool, int, bool, int, int, bytes], Symbol]:
        """The symbol, and what it is preferred by: having a size, a name, a strong binding, few underscores
        in front; then a short name, then the alphabet."""
        name = self._strings[self._tables[index]].get(self._names[index])
        info, size = self._infos[index], self._sizes[index]
        underscores = len(name) - len(name.lstrip(b"_"))
        rank = _RANKS.get(info >> 4, _LEAST_RANK)
        symbol = Symbol(name, self._values[index], size, info & 0xF)
        return (not size, rank, not name, underscores, len(name), name), symbol
