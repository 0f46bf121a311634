"""Where a process keeps the addresses of the functions it calls in other modules, found from outside.

Everything is read from the target's own memory: program headers, dynamic section, relocations, symbols.
A slot is the word that one relocation has filled: R_X86_64_JUMP_SLOT (calls through the PLT), GLOB_DAT
(calls without one, and addresses taken) or 64 (addresses in data).  Sources: elf(5), System V ABI for
x86_64, <link.h>.
"""

from __future__ import annotations

import dataclasses
import re
import struct
from collections.abc import Callable, Iterable, Iterator

from ..symbols.maps import Mapping, Maps

Read = Callable[[int, int], bytes]

_PT_DYNAMIC, _PT_GNU_RELRO = 2, 0x6474E552
_DT_PLTRELSZ, _DT_STRTAB, _DT_SYMTAB, _DT_RELA, _DT_RELASZ = 2, 5, 6, 7, 8
_DT_STRSZ, _DT_DEBUG, _DT_JMPREL, _DT_RELACOUNT = 10, 21, 23, 0x6FFFFFF9
_R_64, _R_GLOB_DAT, _R_JUMP_SLOT = 1, 6, 7
_KINDS = {_R_64: "data", _R_GLOB_DAT: "GLOB_DAT", _R_JUMP_SLOT: "JUMP_SLOT"}
_MOST_HEADERS, _MOST_DYNAMIC, _MOST_OBJECTS = 256, 1024, 4096
_MOST_TABLE = 64 << 20
_LOADER = re.compile(r"/ld-(linux|musl)?[^/]*\.so[^/]*$")


@dataclasses.dataclass(frozen=True, slots=True)
class Slot:
    """``address`` of the word, what it holds, and the name of the function it is for."""

    address: int
    value: int
    name: str
    kind: str


@dataclasses.dataclass(frozen=True, slots=True)
class LoadedModule:
    """An ELF file as it is mapped: [start, end), what was added to its addresses, its dynamic section, and
    the pages that the dynamic linker makes read-only when it has relocated the file (none: (0, 0))."""

    mapping: Mapping
    end: int
    bias: int
    dynamic: dict[int, int]
    relro: tuple[int, int] = (0, 0)

    @property
    def path(self) -> str:
        """Of its file, as the target names it."""
        return self.mapping.file_path

    @property
    def is_loader(self) -> bool:
        """The dynamic linker, which keeps what it calls elsewhere."""
        return bool(_LOADER.search(self.path))

    def placed(self, tag: int) -> int:
        """The address that a dynamic entry holds: glibc adds the bias in place, musl doesn't.  0: none."""
        value = self.dynamic.get(tag, 0)
        return value + self.bias if value and value < self.bias else value


def loaded_modules(maps: Maps, read: Read) -> list[LoadedModule]:
    """All ELF files in ``maps`` that have a dynamic section and can be read, in order of address."""
    out: list[LoadedModule] = []
    for mapping in maps:
        # lld maps the first page of small files several times: only the first is the file's begin.
        if out and mapping.start < out[-1].end:
            continue
        if mapping.is_file and mapping.offset == 0 and mapping.readable:
            module = _module(mapping, read)
            if module is not None:
                out.append(module)
    return out


def _module(mapping: Mapping, read: Read) -> LoadedModule | None:
    try:
        header = read(mapping.start, 64)
        if header[:6] != b"\x7fELF\x02\x01":
            return None
        (offset,) = struct.unpack_from("<Q", header, 32)
        (count,) = struct.unpack_from("<H", header, 56)
        table = read(mapping.start + offset, min(count, _MOST_HEADERS) * 56)
        headers: list[tuple[int, ...]] = list(struct.iter_unpack("<IIQQQQQQ", table))
        first = min(vaddr for kind, _f, _o, vaddr, *_ in headers if kind == 1)
        bias = mapping.start - (first & ~0xFFF)
        place = next(
            ((v + bias, m) for kind, _f, _o, v, _p, _n, m, _a in headers if kind == _PT_DYNAMIC), None
        )
        if place is None:
            return None
        entries = struct.iter_unpack("<qQ", read(place[0], min(place[1], _MOST_DYNAMIC * 16) // 16 * 16))
        dynamic: dict[int, int] = {}
        for tag, value in entries:
            if tag == 0:
                break
            dynamic.setdefault(tag, value)
        end = max(v + bias + m for kind, _f, _o, v, _p, _n, m, _a in headers if kind == 1)
        relro = next(((v + bias & -4096, v + bias + m & -4096) for v, m in _relro(headers)), (0, 0))
        return LoadedModule(mapping, end, bias, dynamic, relro)
    except (OSError, ValueError, struct.error):
        return None


def _relro(headers: Iterable[tuple[int, ...]]) -> Iterator[tuple[int, int]]:
    return ((vaddr, size) for kind, _f, _o, vaddr, _p, _n, size, _a in headers if kind == _PT_GNU_RELRO)


def search_order(modules: list[LoadedModule], read: Read) -> list[LoadedModule]:
    """The modules in the order in which the dynamic linker searches them for a symbol (r_debug's list); those
    that are not in it are left out."""
    by_bias = {module.bias: module for module in modules}
    at = next((m.dynamic[_DT_DEBUG] for m in modules if m.dynamic.get(_DT_DEBUG)), 0)
    out: list[LoadedModule] = []
    try:
        (link,) = struct.unpack("<Q", read(at + 8, 8)) if at else (0,)
        for _ in range(_MOST_OBJECTS):
            if not link:
                break
            bias, _name, _dynamic, link = struct.unpack("<QQQQ", read(link, 32))
            if bias in by_bias:
                out.append(by_bias[bias])
    except (OSError, struct.error):
        return []
    return out


def slots(module: LoadedModule, names: frozenset[str], read: Read) -> list[Slot]:
    """The module's slots for functions of these names, with what they hold now."""
    try:
        return list(_slots(module, names, read))
    except (OSError, ValueError, struct.error):  # it has just gone, or is not what it says
        return []


def _slots(module: LoadedModule, names: frozenset[str], read: Read) -> Iterator[Slot]:
    relocations = [r for r in _relocations(module, read) if (r[1] & 0xFFFFFFFF) in _KINDS and r[1] >> 32]
    if not relocations:
        return
    numbers = {info >> 32 for _offset, info, _addend in relocations}
    low, high = min(numbers), max(numbers)
    symbols = read(module.placed(_DT_SYMTAB) + 24 * low, min(24 * (high - low + 1), _MOST_TABLE))
    strings = read(module.placed(_DT_STRTAB), min(module.dynamic.get(_DT_STRSZ, 0), _MOST_TABLE))
    wanted: dict[int, str] = {}
    for number in numbers:
        (at,) = struct.unpack_from("<I", symbols, 24 * (number - low))
        name = strings[at : strings.find(b"\0", at)].decode("ascii", "replace")
        if name in names:
            wanted[number] = name
    for offset, info, addend in relocations:
        if info >> 32 in wanted and not addend and not (offset + module.bias) % 8:
            address = offset + module.bias
            (value,) = struct.unpack("<Q", read(address, 8))
            yield Slot(address, value, wanted[info >> 32], _KINDS[info & 0xFFFFFFFF])


def _relocations(module: LoadedModule, read: Read) -> Iterator[tuple[int, int, int]]:
    for table, size, skipped in (
        (_DT_RELA, _DT_RELASZ, module.dynamic.get(_DT_RELACOUNT, 0)),
        (_DT_JMPREL, _DT_PLTRELSZ, 0),
    ):
        at, left = module.placed(table) + 24 * skipped, module.dynamic.get(size, 0) - 24 * skipped
        if module.dynamic.get(table) and left > 0:
            yield from struct.iter_unpack("<QQq", read(at, min(left, _MOST_TABLE) // 24 * 24))
