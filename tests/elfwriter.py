"""Writes small ELF files from values, so that no test needs a checked-in binary.  elf(5) has the layouts."""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Sequence

ET_EXEC, ET_DYN = 2, 3
PT_LOAD, PT_INTERP, PT_NOTE = 1, 3, 4
PF_X, PF_W, PF_R = 1, 2, 4
NOTYPE, OBJECT, FUNC, TLS, IFUNC = 0, 1, 2, 6, 10
LOCAL, GLOBAL, WEAK = 0, 1, 2
TEXT = 1  # the index of .text, the first section behind the null one
ABS = 0xFFF1


@dataclasses.dataclass(frozen=True)
class Load:
    vaddr: int
    offset: int
    file_size: int
    flags: int = PF_R | PF_X


@dataclasses.dataclass(frozen=True)
class Sym:
    name: str
    value: int
    size: int = 0
    type: int = FUNC
    binding: int = GLOBAL
    section: int = TEXT
    hidden_version: bool = False


@dataclasses.dataclass(frozen=True)
class Elf:
    """``text`` is (vaddr, size) of the code section; ``pad_to`` makes the file at least that long."""

    loads: Sequence[Load] = (Load(0x1000, 0x1000, 0x1000),)
    symtab: Sequence[Sym] = ()
    dynsym: Sequence[Sym] = ()
    text: tuple[int, int] = (0x1000, 0x1000)
    type: int = ET_DYN
    bits: int = 64
    endian: str = "<"
    interpreter: str | None = None
    build_id: bytes | None = None
    pad_to: int = 0

    def encode(self) -> bytes:
        return _Writer(self).write()


class _Writer:
    def __init__(self, elf: Elf) -> None:
        self.elf = elf
        self.wide = elf.bits == 64
        self.body = bytearray()
        self.header_size = 64 if self.wide else 52
        self.program_size = 56 if self.wide else 32
        extra = (elf.interpreter is not None) + (elf.build_id is not None)
        self.base = self.header_size + self.program_size * (len(elf.loads) + extra)

    def write(self) -> bytes:
        elf = self.elf
        programs = [self._program(PT_LOAD, x.flags, x.offset, x.vaddr, x.file_size) for x in elf.loads]
        if elf.interpreter is not None:
            data = elf.interpreter.encode() + b"\0"
            programs.append(self._program(PT_INTERP, PF_R, self._put(data), 0, len(data)))
        if elf.build_id is not None:
            data = self._pack("III", 4, len(elf.build_id), 3) + b"GNU\0" + elf.build_id
            programs.append(self._program(PT_NOTE, PF_R, self._put(data), 0, len(data)))
        sections = [self._section(0), self._section(1, flags=6, addr=elf.text[0], size=elf.text[1])]
        sections += self._table(2, elf.symtab, len(sections))
        sections += self._table(11, elf.dynsym, len(sections))
        self.body += bytes(max(0, elf.pad_to - self.base - len(self.body)))
        sections_at = self._put(b"".join(sections))
        return self._header(len(programs), len(sections), sections_at) + b"".join(programs) + bytes(self.body)

    def _pack(self, form: str, *values: int | bytes) -> bytes:
        return struct.pack(self.elf.endian + form, *values)

    def _put(self, data: bytes) -> int:
        self.body += bytes(-(self.base + len(self.body)) % 8)
        at = self.base + len(self.body)
        self.body += data
        return at

    def _header(self, programs: int, sections: int, sections_at: int) -> bytes:
        ident = b"\x7fELF" + bytes([2 if self.wide else 1, 1 if self.elf.endian == "<" else 2, 1]) + bytes(9)
        word = "Q" if self.wide else "I"
        return self._pack(
            f"16sHHI{word}{word}{word}IHHHHHH", ident, self.elf.type, 62 if self.wide else 3, 1,
            self.elf.text[0], self.header_size, sections_at, 0, self.header_size, self.program_size,
            programs, 64 if self.wide else 40, sections, 0,
        )  # fmt: skip

    def _program(self, kind: int, flags: int, offset: int, vaddr: int, size: int) -> bytes:
        if self.wide:
            return self._pack("IIQQQQQQ", kind, flags, offset, vaddr, vaddr, size, size, 4)
        return self._pack("IIIIIIII", kind, offset, vaddr, vaddr, size, size, flags, 4)

    def _section(
        self, kind: int, *, flags: int = 0, addr: int = 0, at: int = 0, size: int = 0, link: int = 0,
        entry: int = 0,
    ) -> bytes:  # fmt: skip
        form = "IIQQQQIIQQ" if self.wide else "IIIIIIIIII"
        return self._pack(form, 0, kind, flags, addr, at, size, link, 0, 1, entry)

    def _table(self, kind: int, symbols: Sequence[Sym], index: int) -> list[bytes]:
        """The symbol section, its strings and, for a dynamic one, its versions."""
        if not symbols:
            return []
        strings, rows = bytearray(b"\0"), [self._symbol(0, Sym("", 0, 0, 0, 0, 0))]
        for symbol in symbols:
            rows.append(self._symbol(len(strings) if symbol.name else 0, symbol))
            strings += symbol.name.encode() + b"\0" if symbol.name else b""
        data = b"".join(rows)
        out = [
            self._section(kind, at=self._put(data), size=len(data), link=index + 1, entry=len(rows[0])),
            self._section(3, at=self._put(bytes(strings)), size=len(strings)),
        ]
        if kind == 11:
            words = [1, *(0x8002 if symbol.hidden_version else 2 for symbol in symbols)]
            versions = self._pack(f"{len(words)}H", *words)
            out.append(
                self._section(0x6FFFFFFF, at=self._put(versions), size=len(versions), link=index, entry=2)
            )
        return out

    def _symbol(self, name: int, symbol: Sym) -> bytes:
        info = symbol.binding << 4 | symbol.type
        if self.wide:
            return self._pack("IBBHQQ", name, info, 0, symbol.section, symbol.value, symbol.size)
        return self._pack("IIIBBH", name, symbol.value, symbol.size, info, 0, symbol.section)
