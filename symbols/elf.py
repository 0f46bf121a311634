"""ELF files: segments, build id and symbol tables.

The headers are read when the image is made, and the tables when they are asked for, in bulk, so that an
executable of 100 MB takes a fraction of a second and little of it is ever read.

Formats: elf(5), the System V gABI; ``.gnu.version`` from the LSB's Symbol Versioning.
"""

from __future__ import annotations

import functools
import itertools
import mmap
import os
import struct
import sys
from array import array
from collections.abc import Callable, Iterator, Sequence
from typing import BinaryIO

from ..errors import MalformedInput
from .cache import Cache
from .headers import (
    PT_GNU_EH_FRAME,
    PT_INTERP,
    PT_LOAD,
    PT_NOTE,
    SHT_DYNSYM,
    SHT_GNU_VERSYM,
    SHT_NOTE,
    SHT_STRTAB,
    SHT_SYMTAB,
    Section,
    Segment,
)
from .maps import Mapping
from .sections import SectionedFile
from .symtab import SHN_UNDEF, STB_LOCAL, RawSymbol, entry_size, functions, name_column, raw_symbols, rows_of
from .table import NO_STRINGS, STT_FUNC, STT_TLS, StringTable, Symbol, SymbolTable, SymbolTableBuilder

_NT_GNU_BUILD_ID = 3
_VERSION_HIDDEN = 0x8000

_MAX_NOTES = 65_536  # bytes
_MAX_TABLE = 128 * 1024 * 1024  # bytes of one symbol table: five million symbols
_MAX_TABLES = 16
_LONGEST_WANTED = 64  # bytes of a name that is compared with a pattern
_WORTH_KEEPING = 5_000  # symbols: fewer are sorted as fast as a file is opened


class ElfImage(SectionedFile):
    """An ELF file, its headers read when it is made, its tables when they are asked for.

    ``source`` is a seekable binary file, which the image then owns, or the file's bytes.  ``path`` only
    names it in errors.  Raises MalformedInput, here and wherever more of the file is read.
    """

    machine: str  # EM_X86_64, or the number as text where it has no name here
    type: str  # ET_EXEC, ET_DYN, ...
    entry: int
    segments: tuple[Segment, ...]  # the PT_LOADs, in the order of the file
    eh_frame_hdr: Segment | None  # PT_GNU_EH_FRAME: the search table of the call frame information
    interpreter: str | None
    build_id: bytes | None

    def __init__(self, source: BinaryIO | bytes, path: str = "<memory>") -> None:
        self._functions: SymbolTable | None = None
        self._dynamic: dict[bytes, Symbol] | None = None
        super().__init__(source, path)

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> ElfImage:
        """The ELF file at ``path``.  Raises OSError and MalformedInput."""
        return cls(open(path, "rb"), os.fspath(path))

    def __enter__(self) -> ElfImage:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    @property
    def has_interpreter(self) -> bool:
        """Started through a dynamic loader."""
        return self.interpreter is not None

    @property
    def is_position_independent(self) -> bool:
        """A shared library or a PIE."""
        return self.type == "ET_DYN"

    @property
    def has_symtab(self) -> bool:
        """Whether it has the full table, with its local functions: it is not stripped."""
        return any(section.type == SHT_SYMTAB for section in self.sections)

    @property
    def symbols_size(self) -> int:
        """Bytes of all symbol tables."""
        return sum(section.size for section in self.sections if section.type in (SHT_SYMTAB, SHT_DYNSYM))

    def function_symbols(self, cache: Cache | None = None) -> SymbolTable:
        """The functions of ``.symtab`` and ``.dynsym`` together.  The sorted table of a large file is kept in
        ``cache``."""
        if self._functions is None:
            with self._faults_are_malformed():
                self._functions = self._build_functions(cache)
        return self._functions

    def dynamic_symbols(self) -> dict[bytes, Symbol]:
        """What the file exports (``.dynsym``, defined, not thread-local), by name without version; of several
        versions the default one."""
        if self._dynamic is None:
            with self._faults_are_malformed():
                self._dynamic = self._build_dynamic()
        return self._dynamic

    def dynamic_symbol(self, name: bytes) -> Symbol | None:
        """The exported symbol of exactly that name.  Of a large file that was not asked for all of them, this
        one alone is looked for."""
        if self._dynamic is not None:
            return self._dynamic.get(name)
        with self._faults_are_malformed():
            return self._build_dynamic(name).get(name)

    def exported_ranges(self, wanted: Callable[[bytes], object]) -> tuple[dict[int, int], set[int]]:
        """Where what the file exports begins (of all versions; what has a size), with its end; and the
        beginnings of those whose name, of less than 64 bytes, is ``wanted``."""
        ends: dict[int, int] = {}
        marked: set[int] = set()
        with self._faults_are_malformed():
            for section in self.sections:
                if section.type != SHT_DYNSYM:
                    continue
                content = self.strings_of(section).content()
                for name_at, info, home, value, size in rows_of(self._table(section), self.bits, self.endian):
                    if (
                        not value
                        or not size
                        or home == SHN_UNDEF
                        or info & 0xF == STT_TLS
                        or info >> 4 == STB_LOCAL
                    ):
                        continue
                    ends[value] = max(ends.get(value, 0), value + size)
                    end = content.find(b"\0", name_at, name_at + _LONGEST_WANTED)
                    if end > name_at and wanted(content[name_at:end]):
                        marked.add(value)
        return ends, marked

    def full_symbols(self, name: bytes) -> list[tuple[Symbol, bool]]:
        """The functions of that name in ``.symtab``, and whether all of the file could call each by it."""
        found = []
        with self._faults_are_malformed():
            for section in self.sections:
                if section.type == SHT_SYMTAB:
                    strings = self.strings_of(section)
                    for _, (_, info, home, value, size) in self._dynamic_rows(section, strings, name):
                        if home != SHN_UNDEF and info & 0xF == STT_FUNC:
                            found.append((Symbol(name, value, size, STT_FUNC), info >> 4 != STB_LOCAL))
        return found

    def names_at(self, section: Section) -> Sequence[int]:
        """Where the name of each symbol of a symbol table stands in its strings, in the table's order."""
        with self._faults_are_malformed():
            return name_column(self._table(section), self.bits, self.endian)

    def strings_of(self, section: Section) -> StringTable:
        """The names that a symbol table refers to."""
        if section.link >= len(self.sections):
            return NO_STRINGS
        strings = self.sections[section.link]
        if strings.type != SHT_STRTAB:
            return NO_STRINGS
        return StringTable(self._stream, strings.offset, min(strings.size, self._file_size - strings.offset))

    def segment_of_offset(self, file_offset: int, *, executable: bool = True) -> Segment | None:
        """The segment that byte of the file is loaded by.

        Pages at the border of two segments are in both; the one that is ``executable`` or not, as asked, is
        taken, then one that holds the byte itself and not just its page.
        """
        found = [s for s in self.segments if s.file_size and _on_pages_of(s, file_offset)]
        return min(
            found,
            key=lambda s: (s.executable != executable, not s.offset <= file_offset < s.offset + s.file_size),
            default=None,
        )

    def vaddr_of_offset(self, file_offset: int, *, executable: bool = True) -> int | None:
        """The address, before relocation, of a byte of the file; None if no segment loads it."""
        segment = self.segment_of_offset(file_offset, executable=executable)
        return None if segment is None else segment.vaddr + (file_offset - segment.offset)

    def _read_headers(self) -> None:
        super()._read_headers()
        headers = self._headers
        self.machine, self.type, self.entry = headers.machine, headers.type, headers.entry
        self.segments = tuple(s for s in headers.segments if s.type == PT_LOAD)
        self.eh_frame_hdr = next((s for s in headers.segments if s.type == PT_GNU_EH_FRAME), None)
        self.interpreter = self._read_interpreter()
        self.build_id = self._read_build_id()

    def _read_interpreter(self) -> str | None:
        for segment in self._headers.segments:
            if segment.type == PT_INTERP:
                data = self._read(segment.offset, min(segment.file_size, os.pathconf("/", "PC_PATH_MAX")))
                return os.fsdecode(data.partition(b"\0")[0])
        return None

    def _read_build_id(self) -> bytes | None:
        # Sections first: the segments of debug files by eu-strip (RPM distributions) lead to where the notes
        # were in the other file.
        places = [(s.offset, s.size, 4) for s in self.sections if s.type == SHT_NOTE]
        places += [(s.offset, s.file_size, s.align) for s in self._headers.segments if s.type == PT_NOTE]
        left = _MAX_NOTES  # of all together: there may be thousands of them
        for offset, size, align in places:
            size = min(size, left, max(0, self._file_size - offset))
            left -= size
            notes = self._read(offset, size) if size else b""
            build_id = _build_id_in(notes, self.endian, 8 if align == 8 else 4)
            if build_id:
                return build_id
        return None

    # Symbols.

    def _build_functions(self, cache: Cache | None) -> SymbolTable:
        tables = [s for s in self.sections if s.type in (SHT_SYMTAB, SHT_DYNSYM)][:_MAX_TABLES]
        # One may count as many: together they are no larger than a file's two may be.
        sizes = itertools.accumulate(section.size for section in tables)
        tables = [section for section, size in zip(tables, sizes, strict=True) if size <= 2 * _MAX_TABLE]
        strings = tuple(self.strings_of(section) for section in tables)
        key = (
            f"symbols-{self.identity}"
            if self.identity and sum(map(self._count, tables)) >= _WORTH_KEEPING
            else ""
        )
        kept = cache.get(key) if cache is not None and key else None
        found = SymbolTable.unpacked(kept, strings) if kept is not None else None
        if found is not None:
            return found
        builder = SymbolTableBuilder()
        for section, names in zip(tables, strings, strict=True):
            table = self._table(section)
            builder.add(functions(table, self.bits, self.endian, self.sections, names), names)
        found = builder.build()
        if cache is not None and key:
            cache.put(key, b"".join(found.packed()))
        return found

    def _count(self, section: Section) -> int:
        return section.size // entry_size(self.bits)

    @property
    def identity(self) -> str:
        """Hexadecimal digits for a file of this content; "" where it has no build id.  A build id is kept by
        strip, and says nothing of which tables are left: so all headers count."""
        if self.build_id is None:
            return ""
        what = repr((self.build_id, self._file_size, self._headers)).encode()
        import hashlib  # late: it brings OpenSSL with it

        return hashlib.sha256(what).hexdigest()

    def _build_dynamic(self, wanted: bytes | None = None) -> dict[bytes, Symbol]:
        """All, or those called ``wanted``."""
        found: dict[bytes, Symbol] = {}
        for number, section in enumerate(self.sections):
            if section.type == SHT_DYNSYM:
                strings, versions = self.strings_of(section), functools.cache(self._versions)
                for index, (name_at, info, home, value, size) in self._dynamic_rows(section, strings, wanted):
                    if home == SHN_UNDEF or info & 0xF == STT_TLS or info >> 4 == STB_LOCAL:
                        continue
                    name = strings.get(name_at)
                    if name and (name not in found or not _is_hidden(versions(number), index)):
                        found[name] = Symbol(name, value, size, info & 0xF)
        return found

    def _dynamic_rows(
        self, section: Section, strings: StringTable, wanted: bytes | None
    ) -> Iterator[tuple[int, RawSymbol]]:
        table = self._table(section)
        if wanted is None:
            yield from enumerate(raw_symbols(table, self.bits, self.endian))
            return
        places, size = set(strings.places(wanted)), entry_size(self.bits)
        for index, name_at in enumerate(name_column(table, self.bits, self.endian) if places else ()):
            if name_at in places:
                row = table[index * size : (index + 1) * size]
                yield index, next(raw_symbols(row, self.bits, self.endian))

    def _versions(self, dynsym: int) -> Sequence[int]:
        """Of which version each symbol of that table is; empty where there are none."""
        for section in self.sections:
            if section.type == SHT_GNU_VERSYM and section.link == dynsym and section.size <= _MAX_TABLE:
                words = array("H", self._read(section.offset, section.size - section.size % 2))
                if (self.endian == "<") != (sys.byteorder == "little"):
                    words.byteswap()
                return words
        return ()

    def _table(self, section: Section) -> bytes:
        size = entry_size(self.bits)
        if section.entry_size != size:
            raise self._malformed(f"symbols of {section.entry_size} bytes")
        if section.size > _MAX_TABLE:
            raise self._malformed(f"a table of {section.size} bytes")
        return self._read(section.offset, section.size - section.size % size)


def _is_hidden(versions: Sequence[int], index: int) -> bool:
    """Whether a symbol is of a version that is not its name's default."""
    return index < len(versions) and bool(versions[index] & _VERSION_HIDDEN)


def load_bias(mapping: Mapping, image: ElfImage) -> int:
    """What to add to an address of the file ``image`` to get the absolute one: 0 for an executable that
    is not position-independent.

    ``mapping`` should be an executable mapping of the file.  Of others the first page can belong to two
    segments that look alike (constants, and relocated data made read-only), and the wrong one be taken.

    Raises MalformedInput if no segment of the file is loaded by such a mapping.
    """
    vaddr = image.vaddr_of_offset(mapping.offset, executable=mapping.executable)
    if vaddr is None:
        raise MalformedInput(f"{image.path}: no segment is loaded from offset {mapping.offset:#x}")
    return mapping.start - vaddr


def _on_pages_of(segment: Segment, file_offset: int) -> bool:
    # The kernel maps whole pages: also what stands before and behind the segment in the file.
    first = segment.offset - segment.offset % mmap.PAGESIZE
    end = segment.offset + segment.file_size
    return first <= file_offset < _round_up(end, mmap.PAGESIZE)


def _build_id_in(notes: bytes, endian: str, align: int) -> bytes | None:
    position = 0
    while position + 12 <= len(notes):
        name_size, size, kind = struct.unpack_from(endian + "III", notes, position)
        name_at = position + 12
        at = _round_up(name_at + name_size, align)
        if kind == _NT_GNU_BUILD_ID and notes[name_at : name_at + name_size] == b"GNU\0":
            return notes[at : at + size] if 0 < size <= len(notes) - at else None
        position = _round_up(at + size, align)
    return None


def _round_up(number: int, unit: int) -> int:
    return number + -number % unit
