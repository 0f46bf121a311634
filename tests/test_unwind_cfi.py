"""The rules of an address, from call frame information made for the purpose, well-formed and not.

tests/native/unwind_driver.c takes registers, a stack and tables and walks one frame with the stub's own
unwinder, compiled with sanitizers: a crash or a read too far is a failed test.
"""

from __future__ import annotations

import re
import statistics
import struct
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pyattach.inject.layout import MODULE_CHANGES_STACKS as CHANGES_STACKS
from pyattach.inject.layout import MODULE_ROOT

STUB = Path(__file__).resolve().parent.parent / "inject" / "stub"
DRIVER = Path(__file__).resolve().parent / "native" / "unwind_driver.c"

STACK, TABLES, CODE = 0x7FFF00000000, 0x10000, 0x400000
WORDS = 512
SP, FP, IP = 7, 6, 16
SP_VALUE, FP_VALUE = STACK + 0x400, STACK + 0x500
PRESERVED = (3, 6, 12, 13, 14, 15)

ROOT, DEPTH, OUTSIDE, BAD_RETURN, NO_CFI, BAD_CFI = 0, 1, 3, 5, 7, 8
RULES = ("none", "offset", "deref", "signal", "root", "full", "no_cfi", "bad", "gone")
AUTO_MODE, CFI_MODE = 0, 2


def word(address: int) -> int:
    """What the stack holds there: an address outside of the module, so that the walk ends behind it."""
    return 0x500000 + (address - STACK)


def uleb(value: int) -> bytes:
    out = bytearray()
    while True:
        value, low = value >> 7, value & 0x7F
        out.append(low | (0x80 if value else 0))
        if not value:
            return bytes(out)


def sleb(value: int) -> bytes:
    out = bytearray()
    while True:
        value, low = value >> 7, value & 0x7F
        done = (value, low & 0x40) in ((0, 0), (-1, 0x40))
        out.append(low | (0 if done else 0x80))
        if done:
            return bytes(out)


def block(*operations: int) -> bytes:
    return uleb(len(operations)) + bytes(operations)


DEF_CFA_RSP_8 = bytes([0x0C, 7, 8])
RETURN_AT_CFA_8 = bytes([0x90, 1])


@dataclass(frozen=True)
class Cie:
    version: int = 1
    augmentation: bytes = b"zR"
    encoding: int = 0x1B  # pcrel sdata4
    code_align: int = 1
    data_align: int = -8
    return_register: int = 16
    instructions: bytes = DEF_CFA_RSP_8 + RETURN_AT_CFA_8
    personality: bytes = b""
    wide: bool = False

    def body(self) -> bytes:
        data = b""
        for letter in self.augmentation[1:].decode():
            data += {
                "R": bytes([self.encoding]),
                "P": self.personality,
                "L": b"\x1b",
                "S": b"",
                "B": b"",
            }.get(letter, b"??")
        out = bytes([self.version]) + self.augmentation + b"\0"
        if self.version == 4:
            out += b"\x08\0"
        out += uleb(self.code_align) + sleb(self.data_align) + uleb(self.return_register)
        if self.augmentation[:1] == b"z":
            out += uleb(len(data)) + data
        return out + self.instructions


def entry(content: bytes, wide: bool) -> bytes:
    content += b"\0" * (-(len(content) + (12 if wide else 4)) % 8)
    return (
        struct.pack("<IQ", 0xFFFFFFFF, len(content)) + content
        if wide
        else struct.pack("<I", len(content)) + content
    )


def pointer(encoding: int, value: int, place: int) -> bytes:
    value -= place if encoding & 0x70 == 0x10 else 0
    forms = {0: "Q", 3: "I", 4: "Q", 0x0A: "h", 0x0B: "i", 0x0C: "q"}
    kind = encoding & 0x0F
    if kind in (1, 9):
        return uleb(value) if kind == 1 else sleb(value)
    return struct.pack("<" + forms[kind], value % (1 << 64) if kind in (0, 4) else value)


def tables(
    program: bytes = b"", cie: Cie | None = None, start: int = CODE, size: int = 0x1000, own: bool = False
) -> bytes:
    """A header (or an own index), one CIE, one FDE."""
    cie = cie or Cie()
    head = 16 if own else 20
    head += 4  # so that nothing is aligned by accident
    first = entry((b"\0" * (8 if cie.wide else 4)) + cie.body(), cie.wide)
    at = TABLES + head + len(first)
    content_at = at + (12 if cie.wide else 4)
    content = struct.pack("<Q" if cie.wide else "<I", content_at - (TABLES + head))
    content += pointer(cie.encoding, start, content_at + len(content))
    content += pointer(cie.encoding & 0x0F, size, 0)
    if cie.augmentation[:1] == b"z":
        lsda = b"\x01\x02\x03\x04" if b"L" in cie.augmentation else b""
        content += uleb(len(lsda)) + lsda
    fde = entry(content + program, cie.wide)
    if own:
        header = struct.pack("<QQ", start, at)
    else:
        header = struct.pack("<4BiIii", 1, 0x1B, 0x03, 0x3B, head - 4, 1, start - TABLES, at - TABLES)
    return header.ljust(head, b"\0") + first + fde + b"\0\0\0\0"


@dataclass(frozen=True)
class Step:
    end: int
    depth: int
    known: int
    copies: int
    addresses: tuple[int, ...]
    registers: tuple[int, ...]

    def knows(self, register: int) -> bool:
        return bool(self.known >> register & 1)


def registers(ip: int) -> list[int]:
    values = [0x1111 * (n + 1) for n in range(17)]
    values[SP], values[FP], values[IP] = SP_VALUE, FP_VALUE, ip
    return values


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("driver") / "unwind_driver"
    sources = [str(STUB / name) for name in ("walk.c", "cfi.c", "expr.c")]
    flags = "-O1 -g -Wall -Wextra -Werror -fsanitize=address,undefined -fno-sanitize-recover=all -pthread"
    subprocess.run(["cc", *flags.split(), f"-I{STUB}", str(DRIVER), *sources, "-o", str(output)], check=True)
    return output


def call(
    driver: Path,
    what: str,
    data: bytes,
    ip: int,
    own: int,
    values: list[int] | None = None,
    words: dict[int, int] | None = None,
    mode: int = CFI_MODE,
    flags: int = 0,
) -> str:
    """``words``: what the stack holds, by address, where it is not ``word(address)``."""
    head = struct.pack("<17Q6Q", *(values or registers(ip)), 0x1FFFF, mode, own, flags, WORDS, len(data))
    addresses = range(STACK, STACK + 8 * WORDS, 8)
    stack = struct.pack(f"<{WORDS}Q", *((words or {}).get(address, word(address)) for address in addresses))
    done = subprocess.run([str(driver), what], input=head + stack + data, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode()


@pytest.fixture(scope="module")
def walk(driver: Path) -> Callable[..., Step]:
    def walk_once(
        data: bytes, ip: int = CODE + 0x10, own: int = 0, values: list[int] | None = None, **more: Any
    ) -> Step:
        first, addresses, after = call(driver, "walk", data, ip, own, values, **more).splitlines()
        match = re.match(r"end (\d+) depth (\d+) known ([0-9a-f]+) copies (\d+)", first)
        assert match
        numbers = [int(match[1]), int(match[2]), int(match[3], 16), int(match[4])]
        lists = [tuple(int(text, 16) for text in line.split()) for line in (addresses, after)]
        return Step(*numbers, *lists)  # type: ignore[arg-type]

    return walk_once


@pytest.fixture(scope="module")
def rule(driver: Path) -> Callable[..., str]:
    def rule_kind(data: bytes, ip: int = CODE + 0x10, own: int = 0) -> str:
        match = re.match(r"kind (\d+)", call(driver, "rule", data, ip, own))
        assert match
        return RULES[int(match[1])]

    return rule_kind


def stepped(step: Step, cfa: int) -> Step:
    """That the walk made one step, to the caller whose frame lies at `cfa`."""
    assert (step.end, step.depth) == (NO_CFI, 2), step
    assert step.registers[SP] == cfa, hex(step.registers[SP])
    assert step.addresses[1] == word(cfa - 8)
    return step


# name, instructions, CFA, {register: value it has in the caller}, kind of rule
PROGRAMS: list[tuple[str, bytes, int, dict[int, int], str]] = [
    ("nothing", b"", SP_VALUE + 8, {3: 0x4444}, "offset"),
    ("def_cfa", bytes([0x0C, 6, 16]), FP_VALUE + 16, {}, "offset"),
    ("def_cfa_sf", bytes([0x12, 6]) + sleb(-2), FP_VALUE + 16, {}, "offset"),
    ("def_cfa_register", bytes([0x0D, 6]), FP_VALUE + 8, {}, "offset"),
    ("def_cfa_offset", bytes([0x0E]) + uleb(400), SP_VALUE + 400, {}, "offset"),
    ("def_cfa_offset_sf", bytes([0x13]) + sleb(-50), SP_VALUE + 400, {}, "offset"),
    ("offset", bytes([0x83, 2]), SP_VALUE + 8, {3: word(SP_VALUE - 8)}, "offset"),
    ("offset_extended", bytes([0x05, 12, 3]), SP_VALUE + 8, {12: word(SP_VALUE - 16)}, "offset"),
    ("offset_extended_sf", bytes([0x11, 13]) + sleb(-2), SP_VALUE + 8, {13: word(SP_VALUE + 24)}, "offset"),
    ("negative_offset_extended", bytes([0x2F, 13, 2]), SP_VALUE + 8, {13: word(SP_VALUE + 24)}, "offset"),
    ("val_offset", bytes([0x14, 14, 2]), SP_VALUE + 8, {14: SP_VALUE - 8}, "full"),
    ("val_offset_sf", bytes([0x15, 14]) + sleb(-4), SP_VALUE + 8, {14: SP_VALUE + 40}, "full"),
    ("register", bytes([0x09, 15, 2]), SP_VALUE + 8, {15: 0x3333}, "full"),
    ("same_value", bytes([0x83, 2, 0x08, 3]), SP_VALUE + 8, {3: 0x4444}, "offset"),
    ("restore", bytes([0x83, 2, 0xC3]), SP_VALUE + 8, {3: 0x4444}, "offset"),
    ("restore_extended", bytes([0x83, 2, 0x06, 3]), SP_VALUE + 8, {3: 0x4444}, "offset"),
    ("remember, restore", bytes([0x0A, 0x0E, 64, 0x83, 2, 0x0B]), SP_VALUE + 8, {3: 0x4444}, "offset"),
    ("six remembered", b"\x0a" * 6 + b"\x0b" * 6, SP_VALUE + 8, {}, "offset"),
    ("args_size", bytes([0x2E]) + uleb(1000), SP_VALUE + 8, {}, "offset"),
    ("columns that are not kept", bytes([0x99, 2, 0x05, 90, 2, 0x07, 80]), SP_VALUE + 8, {}, "offset"),
    (
        "expression rbp-8",
        bytes([0x10, 3]) + block(0x76, 0x78),
        SP_VALUE + 8,
        {3: word(FP_VALUE - 8)},
        "offset",
    ),
    ("expression CFA+8", bytes([0x10, 3]) + block(0x23, 8), SP_VALUE + 8, {3: word(SP_VALUE + 16)}, "full"),
    ("val_expression", bytes([0x16, 3]) + block(0x77, 32), SP_VALUE + 8, {3: SP_VALUE + 32}, "full"),
    ("def_cfa_expression", b"\x0f" + block(0x77, 24), SP_VALUE + 24, {}, "offset"),
    ("def_cfa_expression, twice", b"\x0f" + block(0x77, 24, 0x23, 8), SP_VALUE + 32, {}, "full"),
    (
        "both, CFA and rbp",
        bytes([0x83, 2, 0x10, 12]) + block(0x76, 8),
        SP_VALUE + 8,
        {12: word(FP_VALUE + 8)},
        "full",
    ),
    ("advance 1", bytes([0x02, 1, 0x0E, 24]), SP_VALUE + 24, {}, "offset"),
    ("advance 1, behind", bytes([0x02, 0x40, 0x0E, 24]), SP_VALUE + 8, {}, "offset"),
    ("advance 2", bytes([0x03, 0, 1, 0x0E, 24]), SP_VALUE + 8, {}, "offset"),
    ("advance 4", bytes([0x04, 0, 0, 1, 0, 0x0E, 24]), SP_VALUE + 8, {}, "offset"),
    ("more than a chunk", b"\x00" * 700 + bytes([0x0E, 24]), SP_VALUE + 24, {}, "offset"),
    (
        "expressions over chunks",
        (bytes([0x16, 40]) + block(*[0x96] * 60)) * 20 + b"\x0e\x18",
        SP_VALUE + 24,
        {},
        "offset",
    ),
]


@pytest.mark.parametrize(
    ("name", "program", "cfa", "found", "kind"), PROGRAMS, ids=[row[0] for row in PROGRAMS]
)
def test_instructions(
    walk, rule, name: str, program: bytes, cfa: int, found: dict[int, int], kind: str
) -> None:
    for own in (False, True):
        data = tables(program, own=own)
        step = stepped(walk(data, own=int(own)), cfa)
        assert rule(data, own=int(own)) == kind
        for register, value in found.items():
            assert step.knows(register)
            assert step.registers[register] == value
        for register in range(16):
            assert step.knows(register) or register not in (*PRESERVED, SP)


ROWS = b"".join(
    bytes([0x41 + n % 5, 0x0E, 16 + 8 * (n % 3), 0x83 + n % 2, 2 + n % 4])
    + bytes([0x03, *divmod(n * 37, 256)][::-1])
    for n in range(20)
)
"""Rows of a few bytes and of hundreds."""


@pytest.mark.parametrize(
    ("program", "says_much"),
    [
        pytest.param(b"", True, id="one row"),
        pytest.param(b"\x41\x0e\x10\x42\x0e\x18", True, id="a prologue"),
        pytest.param(ROWS, True, id="rows of many lengths"),
        pytest.param(b"\x04\xff\x00\x00\x00\x0e\x18\x41\x0e\x10", True, id="rows at the edge of a block"),
        pytest.param(
            b"\x0f" + block(0x77, 8, 0x80, 0, 0x3F, 0x1A, 0x3B, 0x2A, 0x33, 0x24, 0x22), False, id="plt"
        ),
        pytest.param(b"\x16\x03" + block(0x77, 32), False, id="full"),
    ],
)
def test_what_is_kept_by_block_is_what_the_tables_say(driver: Path, program: bytes, says_much: bool) -> None:
    for size in (0x1000, 0x777):
        said, silent = map(int, re.findall(r"\d+", call(driver, "near", tables(program, size=size), CODE, 0)))
        assert silent > 0
        assert (said > 10_000) == says_much, said


def many_functions(own: bool) -> tuple[bytes, list[tuple[int, int, int]]]:
    """One CIE, 2,000 functions of unequal sizes, each with its own frame; their starts, sizes and frames."""
    sizes = [1 + (n * n * 7 % 29) * (n % 2) + (900 if n % 500 == 499 else 0) for n in range(2000)]
    head = (16 if own else 8) * len(sizes) + 16
    first = entry(b"\0" * 4 + Cie().body(), False)
    index, fdes, functions, at, start = [], b"", [], TABLES + head + len(first), CODE + 5
    for number, size in enumerate(sizes):
        frame = 16 + 8 * (number % 40)
        content = struct.pack("<I", at + 4 - (TABLES + head)) + pointer(0x1B, start, at + 8)
        fde = entry(content + struct.pack("<IB", size, 0) + b"\x0e" + uleb(frame), False)
        index.append((start, at))
        functions.append((start, size, frame))
        fdes, at, start = fdes + fde, at + len(fde), start + size + (number % 3 == 0)  # with gaps
    if own:
        header = b"".join(struct.pack("<QQ", *pair) for pair in index)
    else:
        header = struct.pack("<4BiI", 1, 0x1B, 0x03, 0x3B, head - 4, len(index))
        header += b"".join(struct.pack("<ii", begin - TABLES, place - TABLES) for begin, place in index)
    return header.ljust(head, b"\0") + first + fdes + b"\0\0\0\0", functions


@pytest.mark.parametrize("own", [False, True], ids=["search table", "own index"])
def test_a_function_among_many_is_found_with_few_reads(walk, own: bool) -> None:
    data, functions = many_functions(own)
    assert functions[-1][0] + functions[-1][1] < CODE + 0x10000
    reads: list[int] = []
    for start, size, frame in [*functions[:3], *functions[100::230], *functions[499::500], *functions[-3:]]:
        for ip in {start, start + size - 1}:
            step = stepped(walk(data, ip, own=len(functions) if own else 0), SP_VALUE + frame)
            reads.append(step.copies)
    assert statistics.mean(reads) < 9 and max(reads) <= 14, (
        reads
    )  # 14 each, were the table halved entry by entry
    gaps = [start + size for start, size, _ in functions[0::300]]
    for ip in (CODE, CODE + 4, *gaps, functions[-1][0] + functions[-1][1], CODE + 0xFFFF):
        step = walk(data, ip, own=len(functions) if own else 0)
        assert (step.end, step.depth) == (NO_CFI, 1), hex(ip)


def test_caller_saved_registers_are_lost(walk) -> None:
    step = stepped(walk(tables()), SP_VALUE + 8)
    assert [n for n in range(17) if step.knows(n)] == sorted((*PRESERVED, SP, IP))


def test_deref_of_a_realigned_stack(walk, rule) -> None:
    data = tables(b"\x0f" + block(0x76, 0x78, 0x06))  # CFA = *(rbp - 8)
    values = registers(CODE + 0x10)
    assert rule(data) == "deref"
    assert walk(data, values=values).end not in (ROOT, DEPTH)  # what lies there is no stack address
    assert walk(data, values=values).depth == 1


@pytest.mark.parametrize("offset", range(16))
def test_plt_entries(walk, rule, offset: int) -> None:
    data = tables(b"\x0f" + bytes.fromhex("0b 77 08 80 00 3f 1a 3b 2a 33 24 22"))
    ip = CODE + 0x20 + offset
    assert rule(data, ip) == "offset"
    stepped(walk(data, ip), SP_VALUE + 8 + 8 * (offset >= 11))


@pytest.mark.parametrize("encoding", [0x00, 0x03, 0x04, 0x0B, 0x0C, 0x10, 0x1B, 0x1C, 0x14, 0x01, 0x09, 0x19])
def test_pointer_encodings(walk, encoding: int) -> None:
    stepped(walk(tables(b"\x0e\x18", Cie(encoding=encoding))), SP_VALUE + 24)


@pytest.mark.parametrize(
    "cie",
    [
        Cie(wide=True),
        Cie(version=3),
        Cie(version=4),
        Cie(augmentation=b"", encoding=0x00),
        Cie(augmentation=b"zPLR", personality=b"\x9b\x01\x02\x03\x04"),
        Cie(augmentation=b"zPLR", personality=b"\x00" + b"\x07" * 8),
        Cie(augmentation=b"zRB"),
        Cie(augmentation=b"zRX"),
        Cie(augmentation=b"zLR", wide=True, encoding=0x1C),
    ],
    ids=str,
)
def test_cies(walk, cie: Cie) -> None:
    step = stepped(walk(tables(bytes([0x0E, 24, 0x83, 3]), cie)), SP_VALUE + 24)
    assert step.registers[3] == word(SP_VALUE)


def test_code_alignment(walk) -> None:
    data = tables(bytes([0x44, 0x0E, 24, 0x41, 0x0E, 32]), Cie(code_align=4))  # by 16, by 4
    stepped(walk(data, CODE + 15), SP_VALUE + 8)
    stepped(walk(data, CODE + 16), SP_VALUE + 24)
    stepped(walk(data, CODE + 20), SP_VALUE + 32)


def test_set_loc(walk) -> None:
    # absolute, so that its bytes do not depend on where it lies
    data = tables(b"\x01" + struct.pack("<Q", CODE + 0x20) + b"\x0e\x18", Cie(encoding=0x00))
    stepped(walk(data, CODE + 0x1F), SP_VALUE + 8)
    stepped(walk(data, CODE + 0x20), SP_VALUE + 24)


def test_signal_frame(walk, rule) -> None:
    data = tables(cie=Cie(augmentation=b"zRS"))
    assert rule(data) == "signal"
    step = walk(data)
    base = SP_VALUE + 40
    assert step.addresses[1] == word(base + 16 * 8)
    assert step.registers[SP] == word(base + 15 * 8)
    assert step.known == 0x1FFFF


def test_undefined_return_address_is_the_root(walk, rule) -> None:
    data = tables(bytes([0x07, 16]))
    assert rule(data) == "root"
    assert (walk(data).end, walk(data).depth) == (ROOT, 1)


def test_return_address_in_a_register(walk, rule) -> None:
    data = tables(bytes([0x09, 16, 3, 0x0E, 24]))
    values = registers(CODE + 0x10)
    values[3] = 0x700000
    assert rule(data) == "full"
    step = walk(data, values=values)
    assert (step.end, step.addresses) == (NO_CFI, (CODE + 0x10, 0x700000))


def test_outside_of_the_only_fde(walk, rule) -> None:
    for ip in (CODE + 0x1000, CODE + 0x2000):
        assert rule(tables(), ip) == "no_cfi"
        assert (walk(tables(), ip).end, walk(tables(), ip).depth) == (NO_CFI, 1)
    assert rule(tables(start=CODE + 0x100), CODE) == "no_cfi"


def test_a_function_of_more_rows_than_most(rule) -> None:
    """Some of gcc's own have 13,000 instructions; 6,001 are behind each other here."""
    long = tables(b"\x41\x0e\x10" * 3000 + b"\x0e\x20")
    assert rule(long, CODE + 0xBB0) == rule(long, CODE + 0xFFF) == "offset"


MALFORMED: list[tuple[str, bytes]] = [
    ("no bytes", b""),
    ("header version", b"\x02" + tables()[1:]),
    ("header encodings", tables()[:3] + b"\x1b" + tables()[4:]),
    ("count too large", tables()[:8] + b"\xff\xff\xff\x7f" + tables()[12:]),
    ("cie version", tables(cie=Cie(version=2))),
    ("unknown augmentation", tables(cie=Cie(augmentation=b"armcc", encoding=0))),
    ("return register", tables(cie=Cie(return_register=40))),
    ("seven remembered", tables(b"\x0a" * 7)),
    ("nothing remembered", tables(b"\x0b")),
    ("unknown instruction", tables(b"\x3f")),
    ("register out of range", tables(bytes([0x0C, 17, 8]))),
    ("register of a register", tables(bytes([0x09, 3, 17]))),
    ("def_cfa_register after an expression", tables(b"\x0f" + block(0x77, 8) + b"\x0d\x06")),
    ("endless leb", tables(b"\x0e" + b"\x80" * 30)),
    ("expression too long", tables(b"\x0f\x7f" + b"\x96" * 127)),
    ("expression beyond the end", tables(b"\x0f\x3f\x77\x08")),
    ("too many instructions", tables(b"\x0a\x0b" * 16_400)),
    ("huge length", tables()[:24] + b"\xfe\xff\xff\xff" + tables()[28:]),
    ("huge wide length", tables()[:24] + b"\xff" * 12 + tables()[36:]),
    (
        "pointer encoding",
        tables(cie=Cie(encoding=0x1B), program=b"").replace(
            b"zR\0\x01\x78\x10\x01\x1b", b"zR\0\x01\x78\x10\x01\x4b"
        ),
    ),
    ("the FDE names itself", tables()[:16] + struct.pack("<i", 24) + tables()[20:]),
]


@pytest.mark.parametrize(("name", "data"), MALFORMED, ids=[row[0] for row in MALFORMED])
def test_malformed(walk, rule, name: str, data: bytes) -> None:
    assert rule(data) in ("bad", "gone", "no_cfi")
    step = walk(data)
    assert step.end in (NO_CFI, BAD_CFI)
    assert step.depth == 1
    assert step.copies < 40_000


@pytest.mark.parametrize(
    "operations",
    [(0x06,), (0x30, 0x06), (0x2F, 0xFD, 0xFF), (0x2F, 0x70, 0x70), (0x30, 0x30, 0x1B), (0x30, 0x30, 0x1D),
     (0x12,), (0x30,) * 17, (0x15, 9), (0x8F, 0), (0x80, 0), (0xFF,), (0x94, 9), (0x0E, 1), (0x03,), ()],
    ids=lambda operations: bytes(operations).hex(),
)  # fmt: skip
def test_malformed_expressions(walk, operations: tuple[int, ...]) -> None:
    """Empty stacks, full ones, loops, divisions by nothing, lost or unknown registers, cut operands."""
    step = walk(tables(b"\x0f" + block(*operations)))
    assert step.depth == 1 or step.end != ROOT
    assert step.end != ROOT


def test_every_cut_and_every_broken_byte(walk, rule) -> None:
    data = tables(bytes([0x0E, 24, 0x10, 3]) + block(0x23, 8))
    for length in range(0, len(data), 3):
        assert walk(data[:length]).depth >= 1
    for index in range(len(data)):
        assert walk(data[:index] + b"\xff" + data[index + 1 :]).depth >= 1


def test_addresses_at_the_end_of_the_address_space(walk) -> None:
    """A word at the last few bytes wraps around: it is not readable, and never lies within the stack."""
    for back in range(1, 24):
        values = registers(CODE + 0x10)
        values[FP] = 2**64 - back
        step = walk(tables(bytes([0x10, 3]) + block(0x76, 0)), values=values)
        assert step.depth == 2
        assert not step.knows(3)


# Frame after frame.


@pytest.mark.parametrize("pushed", [0, 1, 6])
def test_a_chain_of_frames(walk, pushed: int) -> None:
    """Forty frames of one function, each with so many registers pushed below its return address; the driver
    walks it with and without a cache."""
    offsets = b"".join(bytes([0x80 | reg]) + uleb(2 + at) for at, reg in enumerate(PRESERVED[::-1][:pushed]))
    data = tables(b"\x0e" + uleb(8 * (pushed + 1)) + offsets)
    size = 8 * (pushed + 1)
    returns = {SP_VALUE + size * frame - 8: CODE + 0x20 for frame in range(1, 40)}
    step = walk(data, words=returns)
    assert step.addresses[:40] == (CODE + 0x10, *(CODE + 0x20,) * 39)
    assert (step.end, step.depth) == (NO_CFI, 41)
    assert step.registers[SP] == SP_VALUE + 40 * size
    for at, reg in enumerate(PRESERVED[::-1][:pushed]):
        assert step.registers[reg] == word(step.registers[SP] - 16 - 8 * at)


def frames(*places: tuple[int, int]) -> dict[int, int]:
    """The two words of each frame of a chain of frame pointers: (where, return address)."""
    out = {}
    for (at, ret), (after, _) in zip(places, (*places[1:], (0, 0)), strict=True):
        out |= {at: after, at + 8: ret}
    return out


def test_a_frame_pointer_into_another_stack_is_followed_where_code_does_that(walk) -> None:
    """From a stack that ends at STACK + 0x500 to one that lies below it, and on there."""
    chain = frames((FP_VALUE, CODE + 0x30), (STACK + 0x100, CODE + 0x40), (STACK + 0x180, CODE + 0x50))
    followed = walk(b"", words=chain, mode=AUTO_MODE, flags=CHANGES_STACKS)
    assert followed.addresses == (CODE + 0x10, CODE + 0x30, CODE + 0x40, CODE + 0x50)
    assert followed.end == ROOT
    cut = walk(b"", words=chain, mode=AUTO_MODE)
    assert (cut.end, cut.addresses) == (OUTSIDE, (CODE + 0x10, CODE + 0x30))


@pytest.mark.parametrize(
    ("why", "there"),
    [
        ("returns to no such code", {STACK + 0x108: 0x900000}),
        ("goes on downwards", {STACK + 0x100: STACK + 0x80}),
        ("is not aligned", {STACK + 0x100: STACK + 0x181}),
    ],
)
def test_another_stack_is_not_believed_on_less(walk, why: str, there: dict[int, int]) -> None:
    chain = frames((FP_VALUE, CODE + 0x30), (STACK + 0x100, CODE + 0x40), (STACK + 0x180, CODE + 0x50))
    step = walk(b"", words=chain | there, mode=AUTO_MODE, flags=CHANGES_STACKS)
    assert (step.end, step.depth) == (OUTSIDE, 2), why


def test_stacks_that_lead_to_each_other_end(walk) -> None:
    here, there = (FP_VALUE, CODE + 0x30), (STACK + 0x100, CODE + 0x40)
    chain = frames(here, there) | {STACK + 0x100: FP_VALUE}
    assert walk(b"", words=chain, mode=AUTO_MODE, flags=CHANGES_STACKS).end == OUTSIDE


def test_a_function_that_nobody_waits_for_is_the_root(walk) -> None:
    step = walk(tables(), flags=MODULE_ROOT)
    assert (step.end, step.depth) == (ROOT, 1)


def test_torn_cache_lines_match_no_key(driver: Path) -> None:
    done = subprocess.run([str(driver), "torn"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "whole 2\n"), done.stderr


def test_module_tables_that_change_under_their_readers(driver: Path) -> None:
    done = subprocess.run([str(driver), "flip"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[1]) > 1000
