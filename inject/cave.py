"""Finding room for the bootstrap: zero bytes behind the code of an executable mapping.

A linker fills the last page of a code segment with zeros that nothing ever runs.  They are mapped, so
nothing has to be allocated to get the first instructions in; and writing them through /proc/pid/mem
gives this process its own copy of that one page.
"""

from __future__ import annotations

from typing import NamedTuple

from ..errors import InjectionFailed
from ..symbols.maps import Mapping
from .tracee import Target

ALIGN = 16
MARGIN = 16  # bytes left untouched behind the code: a disassembler or unwinder may peek there


class Cave(NamedTuple):
    """Room for ``size`` bytes at ``address``, all zero, executable, in ``mapping``."""

    address: int
    size: int
    mapping: Mapping


class NoRoom(InjectionFailed):
    """No mapping has room.  A program that has just begun may not have mapped its libraries yet."""


def _zero_tail(target: Target, mapping: Mapping, size: int) -> Cave | None:
    window = min(4096, mapping.end - mapping.start)
    try:
        tail = target.read(mapping.end - window, window)
    except OSError:  # the file is shorter than its mapping
        return None
    zeros = window - len(tail.rstrip(b"\0"))
    start = (mapping.end - zeros + MARGIN + ALIGN - 1) // ALIGN * ALIGN
    return Cave(start, size, mapping) if start + size <= mapping.end else None


def find_cave(target: Target, size: int) -> Cave:
    """The first fitting room in the target's maps; libraries before the executable, vdso last.

    Raises NoRoom when there is none.
    """
    candidates = [m for m in target.maps() if m.executable and not m.shared and not m.is_memfd]
    candidates.sort(key=lambda m: (m.path == "[vdso]", not m.is_file, "/libc" not in m.path))
    for mapping in candidates:
        cave = _zero_tail(target, mapping, size) if mapping.path != "[vsyscall]" else None
        if cave:
            return cave
    raise NoRoom(
        f"pid {target.pid}: no {size} spare bytes behind the code of any of its {len(candidates)} "
        "executable mappings",
        "this happens with tiny static executables; pyattach can't profile this one",
    )
