"""An ELF file as bytes: its headers, and the content of sections by name.

The file belongs to the target and is untrusted: whatever is wrong with it becomes MalformedInput.  It is
read, not mapped: a file that is truncated meanwhile would kill us with SIGBUS.
"""

from __future__ import annotations

import contextlib
import io
import os
import struct
import zlib
from collections.abc import Iterator
from typing import BinaryIO

from ..errors import MalformedInput
from .headers import SHF_COMPRESSED, SHT_NOBITS, BadHeader, Section, read_headers

_COMPRESSED_BY_ZLIB = 1
_MOST_NAMES = 1 << 20  # bytes

# What unpacking runs into in files that are broken in ways nobody thought of.
_PARSE_FAULTS = (
    ArithmeticError, BadHeader, LookupError, MemoryError, OSError, TypeError, ValueError, struct.error,
    zlib.error,
)  # fmt: skip


class SectionedFile:
    """The file that an ElfImage is of; see there."""

    bits: int
    endian: str  # as struct has it
    sections: tuple[Section, ...]

    def __init__(self, source: BinaryIO | bytes, path: str) -> None:
        self.path = path
        self._stream: BinaryIO = io.BytesIO(source) if isinstance(source, bytes) else source
        self._section_names: bytes | None = None
        self.version = self._version()
        try:
            with self._faults_are_malformed():
                self._read_headers()
        except MalformedInput:
            self.close()
            raise

    def _version(self) -> tuple[int, ...] | None:
        """What tells the file, as it was when it was opened; None where it is none."""
        try:
            found = os.fstat(self._stream.fileno())
        except (OSError, ValueError):
            return None
        return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns

    def close(self) -> None:
        """Close the file; names of symbols not looked up by then are empty."""
        self._stream.close()

    @property
    def stream(self) -> BinaryIO:
        """The file itself."""
        return self._stream

    def section_content(self, name: bytes, limit: int) -> tuple[int, bytes] | None:
        """Address (before relocation) and content, unpacked where zlib had packed it, of the first section
        called ``name``; None if there is none, or it has more than ``limit`` bytes."""
        with self._faults_are_malformed():
            for section in self._named(name):
                data = self._content(section, limit)
                if data is not None:
                    return section.vaddr, data
            return None

    def section(self, name: bytes) -> Section | None:
        """The header of the first section called ``name``."""
        with self._faults_are_malformed():
            return next(self._named(name), None)

    def has_section(self, name: bytes) -> bool:
        """Whether there is a section called ``name``."""
        return self.section(name) is not None

    def _read_headers(self) -> None:
        self._file_size = self._stream.seek(0, os.SEEK_END)
        self._headers = headers = read_headers(self._read, self._file_size)
        self.bits, self.endian, self.sections = headers.bits, headers.endian, headers.sections

    @contextlib.contextmanager
    def _faults_are_malformed(self) -> Iterator[None]:
        try:
            yield
        except MalformedInput:
            raise
        except _PARSE_FAULTS as fault:
            raise self._malformed(f"{type(fault).__name__}: {fault}") from fault

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

    def _named(self, name: bytes) -> Iterator[Section]:
        if self._headers.names_section >= len(self.sections):
            return
        if self._section_names is None:
            table = self.sections[self._headers.names_section]
            at = min(table.offset, self._file_size)
            self._section_names = self._read(at, min(table.size, self._file_size - at, _MOST_NAMES))
        names = self._section_names
        for section in self.sections:
            at = section.name_at
            if names[at : at + len(name) + 1] == name + b"\0":
                yield section

    def _content(self, section: Section, limit: int) -> bytes | None:
        if section.type == SHT_NOBITS or section.size > limit:
            return None
        data = self._read(section.offset, section.size)
        if not section.flags & SHF_COMPRESSED:
            return data
        form = struct.Struct(self.endian + ("IIQQ" if self.bits == 64 else "III"))
        kind, *rest = form.unpack_from(data)
        size = rest[1] if self.bits == 64 else rest[0]
        if kind != _COMPRESSED_BY_ZLIB or not 0 < size <= limit:  # 0 would be without limit
            return None
        return zlib.decompressobj().decompress(data[form.size :], size)
