"""ELF files: segments, build id and symbol tables.

pyelftools finds the parts; the tables themselves are unpacked in bulk, so that an executable of 100 MB
takes a fraction of a second and little of it is ever read.  The file belongs to the target and is
untrusted: whatever is wrong with it becomes MalformedInput.  It is read, not mapped: a file that is
truncated meanwhile would kill us with SIGBUS.

Formats: elf(5), the System V gABI; ``.gnu.version`` from the LSB's Symbol Versioning.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import mmap
import os
import struct
from collections.abc import Iterator
from typing import Any, BinaryIO

from ..errors import MalformedInput
from .maps import Mapping
from .table import (
    NO_STRINGS,
    STT_FUNC,
    STT_GNU_IFUNC,
    STT_NOTYPE,
    STT_TLS,
    RawSymbol,
    StringTable,
    Symbol,
    SymbolTable,
    SymbolTableBuilder,
)

__all__ = ["ElfImage", "Segment", "Symbol", "SymbolTable", "load_bias"]

PF_X, PF_W, PF_R = 1, 2, 4
_PT_LOAD, _PT_INTERP, _PT_NOTE = "PT_LOAD", "PT_INTERP", "PT_NOTE"
_PT_GNU_EH_FRAME = "PT_GNU_EH_FRAME"
_SHF_EXECINSTR = 4
_SHT_GNU_VERSYM = 0x6FFFFFFF
_SHN_UNDEF, _SHN_LORESERVE, _SHN_XINDEX = 0, 0xFF00, 0xFFFF
_STB_LOCAL = 0
_NT_GNU_BUILD_ID = 3
_VERSION_HIDDEN = 0x8000

_MAX_HEADERS = 16_384  # sections or segments; executables have dozens
_MAX_NOTES = 65_536  # bytes
_MAX_TABLE = 256 * 1024 * 1024  # bytes of one symbol table: eleven million symbols
_BATCH = 65_536  # symbols unpacked at a time: bounds the memory of the unpacked form

# What pyelftools lets through on files that are broken in ways it did not think of.
_PARSE_FAULTS = (
    ArithmeticError, AssertionError, AttributeError, EOFError, LookupError, MemoryError, OSError,
    RecursionError, TypeError, ValueError, struct.error,
)  # fmt: skip


@dataclasses.dataclass(frozen=True, slots=True)
class Segment:
    """A PT_LOAD: ``file_size`` bytes at ``offset`` in the file belong at ``vaddr`` (before relocation),
    filled up with zeros to ``memory_size``."""

    vaddr: int
    offset: int
    file_size: int
    memory_size: int
    flags: int

    @property
    def executable(self) -> bool:
        return bool(self.flags & PF_X)


@dataclasses.dataclass(frozen=True, slots=True)
class _Section:
    name_at: int
    type: str | int
    flags: int
    vaddr: int
    offset: int
    size: int
    link: int
    entry_size: int

    @property
    def executable(self) -> bool:
        return bool(self.flags & _SHF_EXECINSTR)


class ElfImage:
    """An ELF file, its headers read when it is made, its tables when they are asked for.

    ``source`` is a seekable binary file, which the image then owns, or the file's bytes.  ``path`` only
    names it in errors.  Raises MalformedInput, here and wherever more of the file is read.
    """

    machine: str  # EM_X86_64, or the number as text where pyelftools has no name for it
    type: str  # ET_EXEC, ET_DYN, ...
    bits: int
    entry: int
    segments: tuple[Segment, ...]  # the PT_LOADs, in the order of the file
    eh_frame_hdr: Segment | None  # PT_GNU_EH_FRAME: the search table of the call frame information

    def __init__(self, source: BinaryIO | bytes, path: str = "<memory>") -> None:
        self.path = path
        self._stream: BinaryIO = io.BytesIO(source) if isinstance(source, bytes) else source
        self._functions: SymbolTable | None = None
        self._dynamic: dict[bytes, Symbol] | None = None
        try:
            with self._faults_are_malformed():
                self._read_headers()
        except MalformedInput:
            self.close()
            raise

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> ElfImage:
        """The ELF file at ``path``.  Raises OSError and MalformedInput."""
        return cls(open(path, "rb"), os.fspath(path))

    def close(self) -> None:
        """Close the file; names of symbols not looked up by then are empty."""
        self._stream.close()

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

    def function_symbols(self) -> SymbolTable:
        """The functions of ``.symtab`` and ``.dynsym`` together."""
        if self._functions is None:
            with self._faults_are_malformed():
                self._functions = self._build_functions()
        return self._functions

    def dynamic_symbols(self) -> dict[bytes, Symbol]:
        """What the file exports (``.dynsym``, defined, not thread-local), by name without version; of several
        versions the default one."""
        if self._dynamic is None:
            with self._faults_are_malformed():
                self._dynamic = self._build_dynamic()
        return self._dynamic

    def dynamic_symbol(self, name: bytes) -> Symbol | None:
        """The exported symbol of exactly that name."""
        return self.dynamic_symbols().get(name)

    def section_content(self, name: bytes, limit: int) -> tuple[int, bytes] | None:
        """Address (before relocation) and content of the first section called ``name``; None if there is
        none, or it has more than ``limit`` bytes."""
        with self._faults_are_malformed():
            section = next((s for s in self._named(name) if s.size <= limit), None)
            return None if section is None else (section.vaddr, self._read(section.offset, section.size))

    def has_section(self, name: bytes) -> bool:
        """Whether there is a section called ``name``."""
        with self._faults_are_malformed():
            return next(self._named(name), None) is not None

    def _named(self, name: bytes) -> Iterator[_Section]:
        if self._names_section >= len(self._sections):
            return
        table = self._sections[self._names_section]
        names = StringTable(self._stream, table.offset, min(table.size, self._file_size - table.offset))
        for section in self._sections:
            if names.get(section.name_at) == name:
                yield section

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

    @contextlib.contextmanager
    def _faults_are_malformed(self) -> Iterator[None]:
        from elftools.common.exceptions import ELFError
        from elftools.construct import ConstructError

        try:
            yield
        except MalformedInput:
            raise
        except (*_PARSE_FAULTS, ELFError, ConstructError) as fault:
            raise MalformedInput(
                f"{self.path}: not a sound ELF file ({type(fault).__name__}: {fault})"
            ) from fault

    def _malformed(self, what: str) -> MalformedInput:
        return MalformedInput(f"{self.path}: not a sound ELF file ({what})")

    def _read(self, offset: int, size: int) -> bytes:
        if offset + size > self._file_size:
            raise self._malformed(f"{size} bytes at {offset} lie beyond its end")
        self._stream.seek(offset)
        data = self._stream.read(size)
        if len(data) != size:
            raise self._malformed("it shrank")
        return data

    def _read_headers(self) -> None:
        from elftools.elf.elffile import ELFFile

        self._file_size = self._stream.seek(0, os.SEEK_END)
        self._stream.seek(0)
        elf = ELFFile(self._stream)
        self.machine = str(elf["e_machine"])
        self.type = str(elf["e_type"])
        self.bits = int(elf.elfclass)
        self.entry = int(elf["e_entry"])
        self._endian = "<" if elf.little_endian else ">"
        headers = list(self._headers(elf, elf.structs.Elf_Phdr, "e_ph", elf.num_segments()))
        self._sections = [
            _section(h) for h in self._headers(elf, elf.structs.Elf_Shdr, "e_sh", elf.num_sections())
        ]
        self._names_section = int(elf["e_shstrndx"])
        self.segments = tuple(_segment(h) for h in headers if h["p_type"] == _PT_LOAD)
        tables = [_segment(h) for h in headers if h["p_type"] == _PT_GNU_EH_FRAME]
        self.eh_frame_hdr = tables[0] if tables else None
        self.interpreter = self._read_interpreter(headers)
        self.build_id = self._read_build_id(headers)

    def _headers(self, elf: Any, form: Any, prefix: str, count: int) -> Iterator[Any]:
        # Not elf.iter_sections(): it reads every section's name, each of which may be as long as the file.
        from elftools.common.utils import struct_parse

        start, stride = elf[prefix + "off"], elf[prefix + "entsize"]
        if not start or not count:
            return
        if count > _MAX_HEADERS or stride < form.sizeof() or start + count * stride > self._file_size:
            raise self._malformed(f"{count} headers of {stride} bytes at {start}")
        for index in range(count):
            yield struct_parse(form, self._stream, start + index * stride)

    def _read_interpreter(self, headers: list[Any]) -> str | None:
        for header in headers:
            if header["p_type"] == _PT_INTERP:
                data = self._read(
                    header["p_offset"], min(header["p_filesz"], os.pathconf("/", "PC_PATH_MAX"))
                )
                return os.fsdecode(data.partition(b"\0")[0])
        return None

    def _read_build_id(self, headers: list[Any]) -> bytes | None:
        for header in headers:
            if header["p_type"] == _PT_NOTE:
                notes = self._read(header["p_offset"], min(header["p_filesz"], _MAX_NOTES))
                build_id = _build_id_in(notes, self._endian, 8 if header["p_align"] == 8 else 4)
                if build_id:
                    return build_id
        return None

    def _build_functions(self) -> SymbolTable:
        builder = SymbolTableBuilder()
        for section in self._sections:
            if section.type in ("SHT_SYMTAB", "SHT_DYNSYM"):
                strings = self._strings_of(section)
                for batch in self._symbol_batches(section):
                    builder.add(self._functions_in(batch, strings), strings, self._limit_of_section)
        return builder.build()

    def _functions_in(self, batch: list[RawSymbol], strings: StringTable) -> list[RawSymbol]:
        code = {index for index, section in enumerate(self._sections) if section.executable}
        functions = [
            symbol
            for symbol in batch
            if (symbol[1] & 0xF == STT_FUNC or symbol[1] & 0xF == STT_GNU_IFUNC)
            and (_SHN_UNDEF < symbol[2] < _SHN_LORESERVE or symbol[2] == _SHN_XINDEX)
        ]
        labels = [
            s for s in batch if s[1] & 0xF == STT_NOTYPE and s[2] in code and _is_code_label(s, strings)
        ]
        return functions + labels

    def _limit_of_section(self, index: int) -> int:
        if index >= len(self._sections):
            return 0
        section = self._sections[index]
        return min(section.vaddr + section.size, 2**64 - 1)

    def _build_dynamic(self) -> dict[bytes, Symbol]:
        found: dict[bytes, Symbol] = {}
        for number, section in enumerate(self._sections):
            if section.type == "SHT_DYNSYM":
                strings, hidden = self._strings_of(section), self._hidden_versions(number)
                symbols = (raw for batch in self._symbol_batches(section) for raw in batch)
                for index, (name_at, info, home, value, size) in enumerate(symbols):
                    if home == _SHN_UNDEF or info & 0xF == STT_TLS or info >> 4 == _STB_LOCAL:
                        continue
                    name = strings.get(name_at)
                    if name and (name not in found or index not in hidden):
                        found[name] = Symbol(name, value, size, info & 0xF)
        return found

    def _hidden_versions(self, dynsym: int) -> set[int]:
        """Which symbols of that table are of a version that is not their name's default."""
        for section in self._sections:
            if section.type in ("SHT_GNU_versym", _SHT_GNU_VERSYM) and section.link == dynsym:
                versions = self._read_table(section, 2)
                words = struct.iter_unpack(self._endian + "H", versions)
                return {index for index, (version,) in enumerate(words) if version & _VERSION_HIDDEN}
        return set()

    def _strings_of(self, section: _Section) -> StringTable:
        if section.link >= len(self._sections):
            return NO_STRINGS
        strings = self._sections[section.link]
        if strings.type != "SHT_STRTAB":
            return NO_STRINGS
        return StringTable(self._stream, strings.offset, min(strings.size, self._file_size - strings.offset))

    def _read_table(self, section: _Section, entry_size: int) -> bytes:
        if section.size > _MAX_TABLE:
            raise self._malformed(f"a table of {section.size} bytes")
        return self._read(section.offset, section.size - section.size % entry_size)

    def _symbol_batches(self, section: _Section) -> Iterator[list[RawSymbol]]:
        form = struct.Struct(self._endian + ("IBBHQQ" if self.bits == 64 else "IIIBBH"))
        if section.entry_size != form.size:
            raise self._malformed(f"symbols of {section.entry_size} bytes")
        table = memoryview(self._read_table(section, form.size))
        for start in range(0, len(table), _BATCH * form.size):
            rows = form.iter_unpack(table[start : start + _BATCH * form.size])
            if self.bits == 64:
                yield [(name, info, home, value, size) for name, info, _, home, value, size in rows]
            else:
                yield [(name, info, home, value, size) for name, value, size, info, _, home in rows]


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


def _segment(header: Any) -> Segment:
    return Segment(
        header["p_vaddr"], header["p_offset"], header["p_filesz"], header["p_memsz"], header["p_flags"]
    )


def _section(header: Any) -> _Section:
    return _Section(
        header["sh_name"],
        header["sh_type"],
        header["sh_flags"],
        header["sh_addr"],
        header["sh_offset"],
        header["sh_size"],
        header["sh_link"],
        header["sh_entsize"],
    )


def _is_code_label(symbol: RawSymbol, strings: StringTable) -> bool:
    """Whether an untyped symbol in code can name a function: hand-written assembly often has no types."""
    name_at, info, *_ = symbol
    if not name_at:
        return False
    # Local: mapping symbols ($a, $d, $x of ARM and RISC-V) and the assembler's own labels look alike.
    return info >> 4 != _STB_LOCAL or not strings.get(name_at).startswith((b"$", b".L"))


def _build_id_in(notes: bytes, endian: str, align: int) -> bytes | None:
    position = 0
    while position + 12 <= len(notes):
        name_size, size, kind = struct.unpack_from(endian + "III", notes, position)
        name_at = position + 12
        at = _round_up(name_at + name_size, align)
        if kind == _NT_GNU_BUILD_ID and notes[name_at : name_at + name_size] == b"GNU\0":
            return notes[at : at + size] or None
        position = _round_up(at + size, align)
    return None


def _round_up(number: int, unit: int) -> int:
    return number + -number % unit
