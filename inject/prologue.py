"""The first instruction of a function: how long it is, and whether it can be run from another place.

A decoder of lengths for x86_64 and of nothing else: prefixes, opcode, ModRM, SIB, displacement, immediate.
What it does not know it refuses.  Source: Intel SDM volume 2, chapter 2 and appendix A.
"""

from __future__ import annotations

import dataclasses

ENDBR64 = bytes.fromhex("f30f1efa")
MOST_BYTES = 15
READ_BYTES = 32
"""What is read of a function to judge it."""

_PREFIXES = frozenset(bytes.fromhex("2636 2e3e 64656667 f0f2f3"))
_INVALID = frozenset(bytes.fromhex("06070e16171e1f272f373f606182 9aced4d5d6ea"))
_ROWS = range(0, 0x40, 8)
"""The arithmetic of the first four rows of the table of opcodes, eight opcodes each."""


def _opcodes(*items: int | tuple[int, int]) -> frozenset[int]:
    """Opcodes, and ranges of them with both ends."""
    ranges = (range(i, i + 1) if isinstance(i, int) else range(i[0], i[1] + 1) for i in items)
    return frozenset(opcode for numbers in ranges for opcode in numbers)


_MODRM = _opcodes(
    *((row, row + 3) for row in _ROWS), 0x63, 0x69, 0x6B, (0x80, 0x8F), 0xC0, 0xC1, 0xC6, 0xC7,
    (0xD0, 0xD3), (0xD8, 0xDF), 0xF6, 0xF7, 0xFE, 0xFF,
)  # fmt: skip
_IMM8 = _opcodes(
    *(row + 4 for row in _ROWS), 0x6A, 0x6B, (0x70, 0x7F), 0x80, 0x83, 0xA8, (0xB0, 0xB7), 0xC0, 0xC1,
    0xC6, 0xCD, (0xE0, 0xE7), 0xEB,
)  # fmt: skip
_IMM32 = _opcodes(*(row + 5 for row in _ROWS), 0x68, 0x69, 0x81, 0xA9, (0xB8, 0xBF), 0xC7)
_LEAVES = _opcodes(
    (0x70, 0x7F), 0xC2, 0xC3, 0xCA, 0xCB, 0xCC, 0xCD, 0xCF, (0xE0, 0xE3), 0xE8, 0xE9, 0xEB, 0xF1, 0xF4
)
_TWO_INVALID = _opcodes(0x04, 0x0A, 0x0C, (0x24, 0x27), 0x36, 0x39, (0x3B, 0x3F))
_TWO_WITHOUT_MODRM = _opcodes(
    (0x05, 0x09), 0x0B, 0x0E, (0x30, 0x37), 0x77, (0x80, 0x8F), (0xA0, 0xA2), (0xA8, 0xAA), (0xC8, 0xCF)
)
_TWO_IMM8 = _opcodes(0x0F, (0x70, 0x73), 0xA4, 0xAC, 0xBA, 0xC2, (0xC4, 0xC6))
_TWO_LEAVE = _opcodes(0x05, 0x07, 0x0B, 0x34, 0x35, (0x80, 0x8F), 0xAA, 0xB9, 0xFF)
_VEX_IMM8 = _opcodes((0x70, 0x73), 0xC2, (0xC4, 0xC6))


class NotMovable(ValueError):
    """Why the instruction can't be run elsewhere."""


@dataclasses.dataclass(frozen=True)
class Instruction:
    """Its bytes.  ``relative_at``: where in them a 32-bit distance from its own end stands, 0: nowhere.
    ``leaves``: what follows it may run next, or something else, or nothing."""

    code: bytes
    relative_at: int = 0
    leaves: bool = False

    @property
    def is_jump(self) -> bool:
        """A jump by a 32-bit distance without a condition."""
        return self.code[0] == 0xE9

    @property
    def distance(self) -> int:
        """From its end to what it names."""
        return int.from_bytes(self.code[self.relative_at : self.relative_at + 4], "little", signed=True)

    def at(self, old: int, new: int) -> bytes:
        """The instruction from address ``old`` as it has to be at ``new``.  Raises NotMovable."""
        if self.leaves:
            raise NotMovable("it begins with a jump, call, return or breakpoint")
        if not self.relative_at:
            return self.code
        distance = self.distance + old - new
        if not -(1 << 31) <= distance < 1 << 31:
            raise NotMovable("what it reads is too far away")
        cut = self.relative_at
        return self.code[:cut] + distance.to_bytes(4, "little", signed=True) + self.code[cut + 4 :]


def decode(code: bytes) -> Instruction:
    """The instruction that ``code`` begins with.  Raises NotMovable where it is not known."""
    try:
        return _decode(code[:MOST_BYTES])
    except IndexError:
        raise NotMovable("its first instruction is not known") from None


def _decode(code: bytes) -> Instruction:
    at = 0
    while code[at] in _PREFIXES:
        at += 1
    narrow, wide = 0x66 in code[:at], False
    if code[at] & 0xF0 == 0x40:
        wide = bool(code[at] & 8)
        at += 1
    opcode = code[at]
    if opcode in (0xC4, 0xC5, 0x62):
        return _vector(code, at)
    if opcode == 0x0F:
        return _two_bytes(code, at + 1)
    if opcode in _INVALID:
        raise NotMovable("its first instruction is not known")
    at += 1
    immediate = (opcode in _IMM8) + (4 if not narrow or wide else 2) * (opcode in _IMM32)
    if (wide and opcode in range(0xB8, 0xC0)) or opcode in range(0xA0, 0xA4):
        immediate = 8
    immediate += {0xC2: 2, 0xC8: 3, 0xCA: 2, 0xE8: 4, 0xE9: 4}.get(opcode, 0)
    leaves = opcode in _LEAVES
    if opcode in (0xF6, 0xF7) and code[at] >> 3 & 7 < 2:
        immediate = 1 if opcode == 0xF6 else 2 if narrow and not wide else 4
    if opcode == 0xFF:
        leaves = 2 <= code[at] >> 3 & 7 <= 5
    if opcode in (0xC6, 0xC7) and code[at] >= 0xF8:  # xabort, xbegin
        leaves = True
    relative_at = at if opcode in (0xE8, 0xE9) else 0
    return _whole(code, at, opcode in _MODRM, immediate, leaves=leaves, relative_at=relative_at)


def _two_bytes(code: bytes, at: int) -> Instruction:
    opcode = code[at]
    if opcode in (0x38, 0x3A):
        return _whole(code, at + 2, True, int(opcode == 0x3A))
    if opcode in _TWO_INVALID:
        raise NotMovable("its first instruction is not known")
    immediate = 4 if opcode in range(0x80, 0x90) else int(opcode in _TWO_IMM8)
    return _whole(code, at + 1, opcode not in _TWO_WITHOUT_MODRM, immediate, leaves=opcode in _TWO_LEAVE)


def _vector(code: bytes, at: int) -> Instruction:
    """VEX and EVEX: the map of opcodes stands in their second byte."""
    table, size = {0xC5: (1, 2), 0xC4: (code[at + 1] & 31, 3), 0x62: (code[at + 1] & 7, 4)}[code[at]]
    if table not in (1, 2, 3):
        raise NotMovable("its first instruction is not known")
    at += size
    opcode = code[at]
    immediate = table == 3 or (table == 1 and opcode in _VEX_IMM8)
    return _whole(code, at + 1, not (table == 1 and opcode == 0x77), int(immediate))


def _whole(
    code: bytes, at: int, modrm: bool, immediate: int, *, leaves: bool = False, relative_at: int = 0
) -> Instruction:
    if modrm:
        mod, rm = code[at] >> 6, code[at] & 7
        at += 1
        base = rm
        if mod != 3 and rm == 4:
            base = code[at] & 7
            at += 1
        if mod == 0 and rm == 5:
            relative_at = at
        at += 4 if mod == 2 or (mod == 0 and base == 5) else int(mod == 1)
    end = at + immediate
    if end > len(code):
        raise NotMovable("its first instruction is not known")
    return Instruction(code[:end], relative_at, leaves)
