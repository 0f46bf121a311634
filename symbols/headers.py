"""The headers of an ELF file: what it is, its segments and sections, bounds checked.  elf(5), System V gABI.

By ``struct`` and not by pyelftools: importing that takes longer (40 to 80 ms) than all attaching does.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import NamedTuple

PT_LOAD, PT_INTERP, PT_NOTE, PT_GNU_EH_FRAME = 1, 3, 4, 0x6474E550
SHT_SYMTAB, SHT_STRTAB, SHT_NOTE, SHT_NOBITS, SHT_DYNSYM = 2, 3, 7, 8, 11
SHT_GNU_VERSYM = 0x6FFFFFFF
SHF_EXECINSTR, SHF_COMPRESSED = 4, 0x800
PF_X = 1

_MACHINES = {3: "EM_386", 8: "EM_MIPS", 20: "EM_PPC", 21: "EM_PPC64", 22: "EM_S390", 40: "EM_ARM",
             62: "EM_X86_64", 183: "EM_AARCH64", 243: "EM_RISCV", 258: "EM_LOONGARCH"}  # fmt: skip
_TYPES = {0: "ET_NONE", 1: "ET_REL", 2: "ET_EXEC", 3: "ET_DYN", 4: "ET_CORE"}
_MOST = 16_384  # sections or segments; executables have dozens
_XNUM, _XINDEX = 0xFFFF, 0xFFFF

Read = Callable[[int, int], bytes]
"""Exactly so many bytes (second) at an offset in the file (first); raises MalformedInput."""


class Segment(NamedTuple):
    """``file_size`` bytes at ``offset`` in the file belong at ``vaddr`` (before relocation), filled up with
    zeros to ``memory_size``.  ``type`` is its PT_ number."""

    vaddr: int
    offset: int
    file_size: int
    memory_size: int
    flags: int
    type: int = PT_LOAD
    align: int = 0

    @property
    def executable(self) -> bool:
        return bool(self.flags & PF_X)


class Section(NamedTuple):
    """A section header; ``name_at`` is an offset into the table of section names, ``type`` its SHT_
    number."""

    name_at: int
    type: int
    flags: int
    vaddr: int
    offset: int
    size: int
    link: int
    info: int
    entry_size: int

    @property
    def executable(self) -> bool:
        return bool(self.flags & SHF_EXECINSTR)


class Headers(NamedTuple):
    """``machine`` and ``type`` by name (EM_X86_64, ET_DYN), or the number as text; ``endian`` as struct has
    it; ``names_section`` is the index of the section that holds the sections' names."""

    bits: int
    endian: str
    machine: str
    type: str
    entry: int
    segments: tuple[Segment, ...]
    sections: tuple[Section, ...]
    names_section: int


class BadHeader(ValueError):
    """What is wrong with a header."""


def read_headers(read: Read, file_size: int) -> Headers:
    """All headers of a file of ``file_size`` bytes.  Raises BadHeader, and what ``read`` raises."""
    ident = read(0, 16)
    bits, endian = {1: 32, 2: 64}.get(ident[4]), {1: "<", 2: ">"}.get(ident[5])
    if ident[:4] != b"\x7fELF" or bits is None or endian is None:
        raise BadHeader("no ELF header")
    word = "Q" if bits == 64 else "I"
    form = struct.Struct(f"{endian}HHI{word}{word}{word}IHHHHHH")
    (kind, machine, _version, entry, segments_at, sections_at, _flags, _size, segment_size, segments,
     section_size, sections, names) = form.unpack(read(16, form.size))  # fmt: skip
    reader = _Reader(read, file_size, bits, endian)
    first = reader.sections(sections_at, section_size, 1)[0] if sections_at else None
    if first is not None:  # too many for the header's own fields: in the null section's (gABI 4.1)
        sections = sections or first.size
        names = first.link if names == _XINDEX else names
        segments = first.info if segments == _XNUM else segments
    return Headers(
        bits, endian, _MACHINES.get(machine, str(machine)), _TYPES.get(kind, str(kind)), entry,
        reader.segments(segments_at, segment_size, segments),
        reader.sections(sections_at, section_size, sections), names,
    )  # fmt: skip


class _Reader:
    def __init__(self, read: Read, file_size: int, bits: int, endian: str) -> None:
        self._read, self._file_size, self._wide = read, file_size, bits == 64
        self._segment = struct.Struct(endian + ("IIQQQQQQ" if self._wide else "IIIIIIII"))
        self._section = struct.Struct(endian + ("IIQQQQIIQQ" if self._wide else "IIIIIIIIII"))

    def segments(self, start: int, stride: int, count: int) -> tuple[Segment, ...]:
        return tuple(map(self._segment_of, self._rows(self._segment, start, stride, count)))

    def sections(self, start: int, stride: int, count: int) -> tuple[Section, ...]:
        rows = self._rows(self._section, start, stride, count)
        return tuple(Section(*(row[:8] + row[9:])) for row in rows)

    def _segment_of(self, row: tuple[int, ...]) -> Segment:
        if self._wide:
            kind, flags, offset, vaddr, _, file_size, memory_size, align = row
        else:
            kind, offset, vaddr, _, file_size, memory_size, flags, align = row
        return Segment(vaddr, offset, file_size, memory_size, flags, kind, align)

    def _rows(self, form: struct.Struct, start: int, stride: int, count: int) -> list[tuple[int, ...]]:
        if not start or not count:
            return []
        if count > _MOST or stride < form.size or start + count * stride > self._file_size:
            raise BadHeader(f"{count} headers of {stride} bytes at {start}")
        data = self._read(start, count * stride)
        return [form.unpack_from(data, index * stride) for index in range(count)]
