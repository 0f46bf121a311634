"""The symbols of a section, unpacked in bulk and chosen in bulk: of a hundred thousand in tens of
milliseconds."""

from __future__ import annotations

import itertools
import struct
import sys
from array import array
from collections.abc import Iterator, Sequence

from .headers import Section
from .table import STT_FUNC, STT_GNU_IFUNC, STT_NOTYPE, Columns, StringTable

SHN_UNDEF, SHN_LORESERVE, SHN_XINDEX = 0, 0xFF00, 0xFFFF
STB_LOCAL = 0

_FUNCTION, _LABEL = 1, 2
_OF_TYPE = bytes(
    _FUNCTION if info & 0xF in (STT_FUNC, STT_GNU_IFUNC) else _LABEL if info & 0xF == STT_NOTYPE else 0
    for info in range(256)
)
_NATIVE = "<" if sys.byteorder == "little" else ">"
_ENTRY_64 = 24  # bytes: name (4), info, other, section (2), value (8), size (8)

RawSymbol = tuple[int, int, int, int, int]
"""name index, info, section index, value, size."""


def entry_size(bits: int) -> int:
    """Bytes of one symbol."""
    return _ENTRY_64 if bits == 64 else 16


def raw_symbols(table: bytes, bits: int, endian: str) -> Iterator[RawSymbol]:
    """One after the other: for when they are needed one by one."""
    if bits == 64:
        for name, info, _, home, value, size in struct.iter_unpack(endian + "IBBHQQ", table):
            yield name, info, home, value, size
    else:
        for name, value, size, info, _, home in struct.iter_unpack(endian + "IIIBBH", table):
            yield name, info, home, value, size


def rows_of(table: bytes, bits: int, endian: str) -> Iterator[RawSymbol]:
    """One after the other: for when most of them are needed."""
    return zip(*_columns(table, bits, endian), strict=True)


def name_column(table: bytes, bits: int, endian: str) -> Sequence[int]:
    """Where the name of each symbol stands in the strings."""
    if bits == 64 and endian == _NATIVE:
        return array("I", table)[0::6]
    return _columns(table, bits, endian)[0]


def functions(
    table: bytes, bits: int, endian: str, sections: Sequence[Section], strings: StringTable
) -> Columns:
    """The functions of a symbol table, and labels in code that can name one: hand-written assembly often has
    no types."""
    names, infos, homes, values, sizes = _columns(table, bits, endian)
    # One byte for each symbol says what its type could make it, another what its section allows.
    allowed = bytes(map(_allowed(sections).__getitem__, homes))
    both = int.from_bytes(infos.translate(_OF_TYPE), "little") & int.from_bytes(allowed, "little")
    kind = both.to_bytes(len(infos), "little")
    if _LABEL in kind:
        kind = _without_mere_labels(kind, names, infos, strings)
    limits = _limits(sections)
    return Columns(
        array("L", itertools.compress(names, kind)),
        bytes(itertools.compress(infos, kind)),
        array("Q", itertools.compress(values, kind)),
        array("Q", itertools.compress(sizes, kind)),
        array("Q", (limits.get(home, 0) for home in itertools.compress(homes, kind))),
    )


def _columns(
    table: bytes, bits: int, endian: str
) -> tuple[Sequence[int], bytes, Sequence[int], Sequence[int], Sequence[int]]:
    if bits != 64 or endian != _NATIVE:
        rows = list(raw_symbols(table, bits, endian))
        names, infos, homes, values, sizes = zip(*rows, strict=True) if rows else ((),) * 5
        return names, bytes(infos), homes, values, sizes
    words, halves, shorts = array("Q", table), array("I", table), array("H", table)
    return halves[0::6], table[4::_ENTRY_64], shorts[3::12], words[1::3], words[2::3]


def _allowed(sections: Sequence[Section]) -> bytes:
    allowed = bytearray(0x10000)
    allowed[SHN_UNDEF + 1 : SHN_LORESERVE] = bytes([_FUNCTION]) * (SHN_LORESERVE - 1)
    allowed[SHN_XINDEX] = _FUNCTION
    for index, section in enumerate(sections):
        if section.executable and index < SHN_LORESERVE:
            allowed[index] |= _LABEL
    return bytes(allowed)


def _limits(sections: Sequence[Section]) -> dict[int, int]:
    ends = (min(section.vaddr + section.size, 2**64 - 1) for section in sections)
    return dict(zip(range(SHN_LORESERVE), ends, strict=False))


def _without_mere_labels(kind: bytes, names: Sequence[int], infos: bytes, strings: StringTable) -> bytes:
    """Of the labels only those with a name.  Local ones: mapping symbols ($a, $d, $x of ARM and RISC-V) and
    the assembler's own labels look alike."""
    out = bytearray(kind)
    at = kind.find(_LABEL)
    while at >= 0:
        local = infos[at] >> 4 == STB_LOCAL
        if not names[at] or (local and strings.get(names[at]).startswith((b"$", b".L"))):
            out[at] = 0
        at = kind.find(_LABEL, at + 1)
    return bytes(out)
