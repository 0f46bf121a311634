"""How a function of the allocator is made to lead to a hook, at its first instruction.

Bytes of that instruction alone are changed, in one aligned word, so that no thread is ever between two
halves; the fewer the better, one if it can be.  They become a jump by 32 bits of which the last bytes are
those that follow in the function anyway: they say where it leads, and there a page is mapped (instruction
punning: Chamith and others, PLDI 2017).

    41 54        push %r12             e9 54 55 53 48    jmp +0x48535554
    55           push %rbp       -->     54 55           still read by a thread that is here
    53           push %rbx                  53
    48 89 fb     mov  %rdi,%rbx                48 89 fb

A landing is a mapping where no other is, nor is soon: far from the end of the heap and from a stack that
grows.  Should the jump lead nowhere that is free, a short one leads to padding, and the jump is there.
"""

from __future__ import annotations

import bisect
import dataclasses
import struct
from collections.abc import Iterable, Sequence

from ..symbols.maps import Maps
from .got import Read
from .heap_layout import JUMP, THROUGH, Entry, PatchState
from .prologue import ENDBR64, READ_BYTES, Instruction, NotMovable, decode

_PAGE = 4096
_CODE = Entry.code.size
_LOWEST, _HIGHEST = 1 << 16, (1 << 47) - _PAGE
_FAR = 1 << 31
_MARGIN = 16 * _PAGE
_HEAP_GROWS, _STACK_GROWS = 256 << 20, 1 << 30
"""So much room is left above the heap, which grows up, and below the stack, which grows down."""
_SHORT = 2
"""Bytes of a short jump, all of which are changed."""
_NO_EFFECT = b"\x2e"
"""A prefix that says nothing of a jump in 64-bit mode: it moves what the bytes behind it mean."""


@dataclasses.dataclass(frozen=True)
class Start:
    """A function's begin: its first ``code``, ``before`` it what shares its aligned word, and the instruction
    that gives way, ``skip`` bytes behind its begin: an endbr64 stays, as what indirect calls must lead to."""

    function: int
    before: bytes
    code: bytes
    skip: int
    first: Instruction

    @property
    def address(self) -> int:
        """Of the instruction that gives way."""
        return self.function + self.skip

    @property
    def most(self) -> int:
        """How many of its bytes may be changed: its own, in one aligned word."""
        return min(len(self.first.code), 8 - self.address % 8)

    def through(self, at: int) -> bytes:
        """Code for address ``at`` that does what the function does.  Raises NotMovable."""
        behind = self.address + len(self.first.code)
        if self.first.is_jump:
            return _jump_to(behind + self.first.distance)
        return self.first.at(self.address, at) + _jump_to(behind)


def start_of(function: int, read: Read) -> Start:
    """What ``function`` begins with.  Raises NotMovable, and OSError where it can't be read."""
    before, code = read(function & ~7, function % 8), read(function, READ_BYTES)
    skip = len(ENDBR64) if code.startswith(ENDBR64) else 0
    first = decode(code[skip:READ_BYTES])
    if first.leaves and not first.is_jump:
        raise NotMovable("it begins with a jump, call or return")
    return Start(function, before, code, skip, first)


def _jump_to(address: int) -> bytes:
    return b"\xff\x25\0\0\0\0" + struct.pack("<Q", address)


class Room:
    """Where landings may be, and what of it is taken."""

    def __init__(self, maps: Maps, program: str) -> None:
        self.gaps = list(_gaps(maps, program))
        self.taken: list[tuple[int, int]] = []
        self.padding: set[int] = set()
        self._jumps: list[tuple[int, int, int]] = []

    def pages(self) -> list[int]:
        """Those that are taken, in order."""
        return sorted({page for low, high in self.taken for page in range(low & -_PAGE, high, _PAGE)})

    def find(self, low: int, high: int, near: int) -> int | None:
        """An address in [low, high) where _CODE bytes have room: in a page that is taken already, or near."""
        for page in self.pages():
            for at in range(max(low, page), min(high, page + _PAGE - _CODE), 64):
                if self._is_free(at):
                    return at
        for gap in sorted(self.gaps, key=lambda gap: min(abs(gap[0] - near), abs(gap[1] - near))):
            first, last = max(low, gap[0]), min(high - 1, gap[1] - _CODE)
            at = first if gap[0] > near else max(first, last & -_PAGE)
            if first <= last and self._is_free(at):
                return at
        return None

    def _is_free(self, at: int) -> bool:
        index = bisect.bisect_right(self.gaps, (at, _HIGHEST)) - 1
        within = index >= 0 and at + _CODE <= self.gaps[index][1]
        return within and all(at + _CODE <= low or high <= at for low, high in self.taken)

    def take(self, at: int) -> None:
        """_CODE bytes there are not free any more."""
        self.taken.append((at, at + _CODE))

    def is_apart(self, low: int, changed: int, length: int) -> bool:
        """Whether a jump of ``length`` bytes at ``low``, of which the first are ``changed``, can be beside
        those there are: what one is made of must not be what another changes."""
        return all(
            (low + changed <= begin or end <= low) and (low + length <= begin or changed_to <= low)
            for begin, changed_to, end in self._jumps
        )

    def take_jump(self, low: int, changed: int, length: int) -> None:
        """It will be there."""
        self._jumps.append((low, low + changed, low + length))

    def landings(self) -> list[tuple[int, int]]:
        """Mappings that hold all that is taken: address and bytes."""
        out: list[tuple[int, int]] = []
        for page in self.pages():
            if out and sum(out[-1]) == page:
                out[-1] = (out[-1][0], out[-1][1] + _PAGE)
            else:
                out.append((page, _PAGE))
        return out


def _gaps(maps: Maps, program: str) -> Iterable[tuple[int, int]]:
    low = _LOWEST
    heap = next((m.path for m in maps if m.path == "[heap]"), program)  # it will be behind the program
    for mapping in maps:
        high = min(mapping.start - (_STACK_GROWS if mapping.path == "[stack]" else _MARGIN), _HIGHEST)
        if low < high:
            yield low, high
        low = max(low, mapping.end + (_HEAP_GROWS if mapping.path == heap else _MARGIN))
    if low < _HIGHEST:
        yield low, _HIGHEST


@dataclasses.dataclass(frozen=True)
class Jump:
    """``changed``: the bytes that replace the first ones of the instruction; where they lead to."""

    changed: bytes
    lands_at: int
    jump_at: int = 0


def find_jump(start: Start, room: Room, padding: Sequence[int] = ()) -> Jump:
    """With as few bytes changed as can be; ``padding``: where a jump may be put, that a short one leads to.
    Takes its landing from ``room``, and is apart from the jumps that have one there.  Raises NotMovable where
    there is none."""
    for count in range(1, start.most + 1):
        for prefixes in range(max(0, count - JUMP), count):
            if not room.is_apart(start.address, count, prefixes + JUMP):
                continue
            end = start.address + prefixes + JUMP
            low, spread = _reach(start, count, prefixes)
            at = _landing(start, room, end + low, end + low + spread)
            if at is not None:
                room.take_jump(start.address, count, prefixes + JUMP)
                jump = _NO_EFFECT * prefixes + b"\xe9" + (at - end).to_bytes(4, "little", signed=True)
                return Jump(jump[:count], at)
    if start.most >= _SHORT and room.is_apart(start.address, _SHORT, _SHORT):
        for place in padding:
            if place in room.padding:
                continue
            at = _landing(start, room, place + JUMP - _FAR, place + JUMP + _FAR)
            if at is not None:
                room.padding.add(place)
                room.take_jump(start.address, _SHORT, _SHORT)
                short = (place - start.address - _SHORT).to_bytes(1, "little", signed=True)
                return Jump(b"\xeb" + short, at, place)
    raise NotMovable("there is no room where a jump could lead")


def _reach(start: Start, count: int, prefixes: int) -> tuple[int, int]:
    """The lowest distance of a jump of which all but the first ``count`` bytes are the function's own, and
    how many there are."""
    chosen = count - prefixes - 1
    fixed = start.code[start.skip + count : start.skip + prefixes + JUMP]
    if not fixed:
        return -_FAR, 2 * _FAR
    return int.from_bytes(bytes(chosen) + fixed, "little", signed=True), 1 << 8 * chosen


def _landing(start: Start, room: Room, low: int, high: int) -> int | None:
    at = room.find(low, high, start.address)
    if at is None:
        return None
    try:
        start.through(at + THROUGH)
    except NotMovable:
        return None
    room.take(at)
    return at


def entry_of(start: Start, jump: Jump, hook: int, real: int, protection: int, padding: bytes) -> Entry:
    """The stub's order to make it so; ``padding``: what is at ``jump.jump_at`` now."""
    word = start.address & ~7
    whole = start.before + start.code
    cut = word - (start.function & ~7)
    before, at = whole[cut : cut + 8], start.address - word
    after = before[:at] + jump.changed + before[at + len(jump.changed) :]
    code = _jump_to(hook).ljust(THROUGH, b"\xcc") + start.through(jump.lands_at + THROUGH)
    entry = Entry(
        address=word,
        before=int.from_bytes(before, "little"),
        after=int.from_bytes(after, "little"),
        function=start.function,
        lands_at=jump.lands_at,
        jump_at=jump.jump_at,
        real=real,
        protection=protection,
        state=PatchState.WANTED,
    )
    entry.code[:] = code.ljust(_CODE, b"\xcc")
    if jump.jump_at:
        there = b"\xe9" + (jump.lands_at - jump.jump_at - JUMP).to_bytes(4, "little", signed=True)
        entry.jump_before[:] = padding.ljust(8, b"\0")
        entry.jump_after[:] = there.ljust(8, b"\0")
    return entry
