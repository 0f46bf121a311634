"""The procedure linkage table: which of its entries calls what, as ``puts@plt``.

An entry jumps through a word of the GOT, and a relocation says whose address the dynamic linker puts there.
So the entries are read (x86-64 psABI 5.2; those of gold, lld and ``-z ibtplt`` differ in all but that jump)
instead of counted.
"""

from __future__ import annotations

import bisect
import itertools
import re
import struct
from collections.abc import Callable, Mapping

from .elf import ElfImage
from .headers import SHT_DYNSYM
from .table import STT_FUNC, Symbol

SECTIONS = (b".plt", b".plt.sec", b".plt.got", b".iplt")
LIMIT_BYTES = 4 << 20
PLT = "@plt"
"""Behind the name of a function, for its entry."""

_JUMP = re.compile(rb"\xff\x25(?P<disp>.{4})", re.DOTALL)  # jmp *disp(%rip)
_PUSH = re.compile(rb"(?:\xf3\x0f\x1e\xfa)?\x68(?P<index>.{4})(?:\xf2)?\xe9", re.DOTALL)  # push n; jmp plt0
_ENTRY = 16  # bytes

GotNames = Mapping[int, bytes]
"""Words of the GOT (addresses before relocation), and the name of what stands there."""


class PltTable:
    """Entries by address; ``add`` all sections before looking up."""

    def __init__(self) -> None:
        self._entries: dict[int, tuple[int, bytes]] = {}
        self._starts: list[int] = []

    def add(
        self, vaddr: int, code: bytes, entry_size: int, got: GotNames, lazy: Callable[[int], bytes]
    ) -> None:
        """Take the section at ``vaddr``.  ``lazy(index)`` names the index-th relocation of ``.rela.plt``, for
        entries that only push their number."""
        size = entry_size if entry_size in (8, _ENTRY, 24, 32) else _ENTRY
        for found in _JUMP.finditer(code):
            (disp,) = struct.unpack("<i", found["disp"])
            name = got.get(vaddr + found.end() + disp)
            if name:
                self._put(vaddr, found.start(), size, name)
        for found in _PUSH.finditer(code):
            if found.start() % size == 0 and vaddr + found.start() not in self._entries:
                (index,) = struct.unpack("<I", found["index"])
                name = lazy(index)
                if name:
                    self._put(vaddr, found.start(), size, name)
        self._starts = sorted(self._entries)

    def _put(self, vaddr: int, at: int, size: int, name: bytes) -> None:
        self._entries.setdefault(vaddr + at - at % size, (size, name + PLT.encode()))

    def __len__(self) -> int:
        return len(self._starts)

    def lookup(self, vaddr: int) -> Symbol | None:
        """The entry that ``vaddr`` lies in."""
        at = bisect.bisect_right(self._starts, vaddr) - 1
        if at < 0:
            return None
        start = self._starts[at]
        size, name = self._entries[start]
        return Symbol(name, start, size, STT_FUNC) if vaddr < start + size else None


_R_JUMP_SLOT, _R_GLOB_DAT, _R_IRELATIVE = 7, 6, 37  # x86-64 psABI 4.4
_OF_FUNCTIONS = bytes(kind in (_R_JUMP_SLOT, _R_GLOB_DAT, _R_IRELATIVE) for kind in range(256))
_RELOCATION = struct.Struct("<QQq")  # offset, symbol and kind, addend


def read_plt(image: ElfImage) -> PltTable:
    """The entries of ``image``; empty where it has none, or is of another machine.  Raises MalformedInput."""
    table = PltTable()
    if image.machine != "EM_X86_64":
        return table
    code = [
        (section.entry_size, *content)
        for name in SECTIONS
        if (section := image.section(name)) and (content := image.section_content(name, LIMIT_BYTES))
    ]
    if not code:
        return table
    got: dict[int, bytes] = {}
    lazy: list[bytes] = []
    for name in (b".rela.dyn", b".rela.plt", b".rela.iplt"):
        relocations = _relocations(image, name)
        got.update(relocations)
        if name == b".rela.plt":
            lazy = [target for _, target in relocations]
    for entry_size, vaddr, instructions in code:
        table.add(vaddr, instructions, entry_size, got, lambda i: lazy[i] if i < len(lazy) else b"")
    return table


def _relocations(image: ElfImage, name: bytes) -> list[tuple[int, bytes]]:
    """Word and name of what stands there, for relocations that put a function's address into the GOT; the
    name is empty for others."""
    section, found = image.section(name), image.section_content(name, 16 * LIMIT_BYTES)
    if section is None or found is None or section.link >= len(image.sections):
        return []
    content = found[1]
    home = image.sections[section.link]
    names = image.names_at(home) if home.type == SHT_DYNSYM else ()
    strings, out = image.strings_of(home), []
    # Nearly all in .rela.dyn are of other kinds, a quarter of a million in some programs.
    kinds = content[8 : len(content) // 24 * 24 : 24]
    wanted = bytes([1]) * len(kinds) if name == b".rela.plt" else kinds.translate(_OF_FUNCTIONS)
    for number in itertools.compress(range(len(kinds)), wanted):
        offset, info, addend = _RELOCATION.unpack_from(content, 24 * number)
        kind, index = info & 0xFFFF_FFFF, info >> 32
        target = b""
        if kind in (_R_JUMP_SLOT, _R_GLOB_DAT) and index < len(names):
            target = strings.get(names[index])
        elif kind == _R_IRELATIVE:  # its resolver has the name of the function
            symbol = image.function_symbols().lookup(addend)
            target = symbol.name if symbol is not None else b""
        if target or name == b".rela.plt":
            out.append((offset, target))
    return out
