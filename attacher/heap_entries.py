"""Where the allocator's own code is made to lead to the hooks: for calls that go through no slot.

Such calls are those by an address of malloc that the program took before the attach, and those inside of
an executable that the allocator is linked into.  Which functions are called so, and of which the first
instruction can give way, is found out from outside; what is not reached is said, and why.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterable, Iterator

from ..errors import MalformedInput
from ..inject.entries import Room, entry_of, find_jump, start_of
from ..inject.heap_layout import ENTRIES, FUNCTIONS, JUMP, LANDINGS, Entry, Landing, PatchState
from ..inject.padding import padding_near
from ..inject.prologue import ENDBR64, NotMovable
from ..symbols.elf import load_bias
from ..symbols.maps import Mapping, Maps
from ..symbols.resolver import Resolver
from .heap_words import ALWAYS
from .pages import places_of, present
from .target import Range, TargetProcess

_MOST_LOOKED_AT = 256 << 20
_SHOWN_BYTES = 8
_OF_A_JUMP = 16
"""A jump at a function's begin is made of no byte farther on."""
_ALIKE = (("malloc", "valloc", "pvalloc"), ("memalign", "aligned_alloc"))
"""Functions whose hooks take the same arguments to the same end: the allocator may have one for them."""


class Entries:
    """The entries of one session.  ``real``: the allocator's functions, in the order of FUNCTIONS; ``mode``:
    of ENTRY_MODES; where it is NEVER nothing is to be chosen."""

    def __init__(self, target: TargetProcess, real: Iterable[int], mode: str) -> None:
        self._target, self._mode = target, mode
        self._names: dict[int, list[str]] = {}
        for name, address in zip(FUNCTIONS, real, strict=False):
            if address:
                self._names.setdefault(address, []).append(name)
        self._planned: list[int] = []
        self.refused: dict[str, str] = {}
        self.made: set[str] = set()
        self.not_looked_at = False

    def choose(self, maps: Maps, slots: set[int], *, alone: bool) -> list[int]:
        """Which functions are to be changed: addresses.  ``alone``: the program has the allocator itself, and
        calls it without slots; ``slots``: where addresses of functions are known to stand."""
        if self._mode == ALWAYS or alone:
            return list(self._names)
        taken = {value for place, value in self._words(maps) if place not in slots}
        return [address for address in self._names if address in taken]

    def _words(self, maps: Maps) -> Iterator[tuple[int, int]]:
        """Where addresses of the functions stand in memory that can be written; on the first stack they are
        left over from where the dynamic linker has looked for them."""
        left, wanted = _MOST_LOOKED_AT, set(self._names)
        for mapping in maps:
            if not mapping.writable or mapping.shared or mapping.path.startswith(("[stack", "[v")):
                continue
            for start, size in present(self._target.pid, mapping.start, mapping.end):
                left -= size
                if left < 0:
                    self.not_looked_at = True
                    return
                with contextlib.suppress(OSError):
                    for at, value in places_of(self._target.read(start, size), wanted):
                        yield start + at, value

    def plan(
        self, chosen: list[int], hooks: dict[str, int], resolver: Resolver
    ) -> tuple[list[Entry], list[Landing]]:
        """What the stub is to make of the ``chosen``; ``hooks``: where each function is to lead."""
        maps = self._target.maps()
        room = Room(maps, self._target.exe_path())
        entries: list[Entry] = []
        for function in chosen[:ENTRIES]:
            try:
                entries.append(self._entry(function, hooks, room, maps, resolver))
                self._planned.append(function)
            except (NotMovable, OSError) as error:
                self._refuse(function, str(error))
        landings = [Landing(address, size, PatchState.WANTED) for address, size in room.landings()[:LANDINGS]]
        for entry in entries:
            inside = (
                i for i, at in enumerate(landings) if at.address <= entry.lands_at < at.address + at.bytes
            )
            entry.landing = next(inside, LANDINGS)
        return entries, landings

    def _entry(
        self, function: int, hooks: dict[str, int], room: Room, maps: Maps, resolver: Resolver
    ) -> Entry:
        names = self._names[function]
        if len(names) > 1 and not any(set(names) <= set(alike) for alike in _ALIKE):
            raise NotMovable(f"it is one function with {' and '.join(names[1:])}")
        mapping = maps.find(function)
        if mapping is None or mapping.permissions != "r-xp":
            raise NotMovable("it lies in no plain code")
        start = start_of(function, self._target.read)
        jump = find_jump(start, room, self._padding(start.address, mapping, resolver))
        there = self._target.read(jump.jump_at, JUMP) if jump.jump_at else b""
        real = sum(1 << FUNCTIONS.index(name) for name in names)
        return entry_of(start, jump, hooks[names[0]], real, 5, there)

    def _padding(self, address: int, mapping: Mapping, resolver: Resolver) -> list[int]:
        """Only where all functions are known: a stripped file's padding may be code."""
        image = resolver.image(mapping)
        if image is None or not image.has_symtab:
            return []
        with contextlib.suppress(MalformedInput, OSError):
            bias = load_bias(mapping, image)
            covered = image.function_symbols().covered()
            functions = ((low + bias, high + bias) for low, high in covered)
            return [
                at
                for at in padding_near(address, functions, self._target.read)
                if self._is_apart(at, address)
            ]
        return []

    def _is_apart(self, padding: int, address: int) -> bool:
        """Whether it is in no function's word, which is compared as a whole, and in nothing that the jump of
        another than that at ``address`` is made of."""
        if address & ~7 < padding + JUMP and padding < (address & ~7) + 8:
            return False
        others = (at for at in self._names if not 0 <= address - at <= len(ENDBR64))
        return all(padding + JUMP <= at & ~7 or at + _OF_A_JUMP <= padding for at in others)

    def _refuse(self, function: int, why: str) -> None:
        with contextlib.suppress(OSError):
            code = self._target.read(function, len(ENDBR64) + _SHOWN_BYTES).removeprefix(ENDBR64)
            why += f" ({code[:_SHOWN_BYTES].hex(' ')})"
        self.refused.update(dict.fromkeys(self._names[function], why))

    def note(self, states: list[int]) -> None:
        """What came of what was planned."""
        for function, state in zip(self._planned, states, strict=True):
            if state == PatchState.MADE:
                self.made.update(self._names[function])
            else:
                self._refuse(function, "its code, or a page near it, could not be had")

    def notes(self) -> list[str]:
        """Which figures are wrong where functions are not reached that are called without slots."""
        missing = [name for name in ("malloc", "calloc", "realloc", "free") if name in self.refused]
        if not missing:
            return []
        return [
            f"not all calls of {', '.join(missing)} were seen: what is live may be too much or too little"
        ]

    def facts(self) -> list[tuple[str, str]]:
        """For the report."""
        rows = []
        if self.made:
            rows.append(
                ("entries", f"{', '.join(n for n in FUNCTIONS if n in self.made)}: by their own code")
            )
        if self.refused:
            why = "; ".join(f"{name}: {reason}" for name, reason in sorted(self.refused.items()))
            rows.append(("entries left", why))
        if self.not_looked_at:
            size = f"{_MOST_LOOKED_AT >> 20} MiB"
            rows.append(("entries unknown", f"addresses taken were looked for in the first {size} alone"))
        return rows


def ranges_of(entries: Iterable[Entry], landings: Iterable[Landing]) -> list[Range]:
    """Where a thread may be that has been led away by an entry, and is in no hook yet or any more."""
    made = [at for at in landings if at.state == PatchState.MADE]
    ranges = [(at.address, at.address + at.bytes) for at in made]
    return ranges + [(e.jump_at, e.jump_at + JUMP) for e in entries if e.jump_at]


def has_several_changed(entry: Entry) -> bool:
    """More bytes than one: their page had to be writable for it."""
    changed = (entry.before ^ entry.after).to_bytes(8, "little")
    return bool(entry.state == PatchState.MADE and len(changed.replace(b"\0", b"")) > 1)


def entries_that_lead(target: TargetProcess, entries: Iterable[Entry]) -> list[str]:
    """Those that are not as before: where, what is there, and what was."""
    out = []
    for entry in entries:
        with contextlib.suppress(OSError):
            now = int.from_bytes(target.read(entry.address, 8), "little")
            if entry.state != PatchState.REFUSED and now != entry.before:
                out.append(f"{entry.address:x}: {now:016x}, was {entry.before:016x} (state {entry.state})")
    return out


def entry_tables(
    region: object, entries_at: int, landings_at: int
) -> tuple[ctypes.Array[Entry], ctypes.Array[Landing]]:
    """Both tables in the shared memory."""
    entries = (Entry * ENTRIES).from_buffer(region, entries_at)  # type: ignore[arg-type]
    return entries, (Landing * LANDINGS).from_buffer(region, landings_at)  # type: ignore[arg-type]
