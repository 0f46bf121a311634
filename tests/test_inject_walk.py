"""The stack walk: frames written by hand, whose return addresses and ends are known; and memory that is gone.

The walk runs in a process of its own, where whatever it may not read can't be read: a crash is a report.
"""

from __future__ import annotations

import dataclasses
import struct
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given
from hypothesis import strategies as st
from native.drivers import build_driver, run_driver
from support import hostile

from pyattach.inject.layout import End, Unwind

PAGE = 4096
BASE = 0x7FFC_1230_0000
TOP = BASE + 4 * PAGE
CODE = 0x40_1000
ALL_KNOWN = (1 << 17) - 1
RBX, FP, SP, R10, R15, IP = 3, 6, 7, 10, 15, 16
USER_SPACE_END = 1 << 47
FAR = 256 << 20

# enum pa_rule_kind of unwind.h
OFFSET, DEREF, SIGNAL, ROOT, FULL, NO_CFI, BAD, GONE = range(1, 9)
SAME = 0x7FFF
PRESERVED = (3, 6, 12, 13, 14, 15)
GREGS_AT = 40
GREG_NUMBERS = (8, 9, 10, 11, 12, 13, 14, 15, 5, 4, 6, 3, 1, 0, 2, 7, 16)


def rule(
    kind: int, register: int = SP, offset: int = 8, *, saved: dict[int, int] | None = None,
    from_fp: bool = False, return_at: int = -1,
) -> bytes:  # fmt: skip
    """``struct pa_rule``; ``saved`` says where registers lie, in words."""
    places = [(saved or {}).get(number, SAME) for number in PRESERVED]
    return struct.pack("<4Bi6hhh", kind, register, from_fp, 0, offset, *places, return_at, 0)


@dataclasses.dataclass
class Case:
    """One walk: registers by DWARF number, words of the stack by address, cached rules by address."""

    ip: int = CODE
    sp: int = BASE
    fp: int = 0
    words: dict[int, int] = dataclasses.field(default_factory=dict)
    registers: dict[int, int] = dataclasses.field(default_factory=dict)
    rules: dict[int, bytes] = dataclasses.field(default_factory=dict)
    known: int = ALL_KNOWN
    mode: Unwind = Unwind.FP
    max: int = 64
    base: int = BASE
    pages: int = 4
    readable: int = (1 << 64) - 1
    content: bytes = b""

    def encode(self) -> bytes:
        registers = [0] * 17
        registers[FP], registers[SP], registers[IP] = self.fp, self.sp, self.ip
        for number, value in self.registers.items():
            registers[number] = value
        stack = bytearray(self.content.ljust(self.pages * PAGE, b"\0"))
        for address, value in self.words.items():
            struct.pack_into("<Q", stack, address - self.base, value)
        head = struct.pack(
            "<17QQQ6I", *registers, self.base, self.readable, self.known, self.mode, self.max, self.pages,
            len(self.rules), 0,
        )  # fmt: skip
        return head + b"".join(struct.pack("<Q", a) + r for a, r in self.rules.items()) + bytes(stack)


Walk = Callable[[Case], tuple[End, list[int]]]


class Walker:
    """The driver, asked case after case; begun anew after a crash."""

    def __init__(self, program: Path) -> None:
        self._program = program
        self._process: subprocess.Popen[bytes] | None = None

    def __call__(self, case: Case) -> tuple[End, list[int]]:
        if self._process is None:
            self._process = subprocess.Popen([self._program], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._process.stdin is not None
        self._process.stdin.write(case.encode())
        self._process.stdin.flush()
        end, depth = struct.unpack("<II", self._take(8))
        *addresses, low, high = struct.unpack(f"<{depth + 2}Q", self._take(8 * (depth + 2)))
        assert low % PAGE == high % PAGE == 0 and low <= high
        return End(end), addresses

    def _take(self, size: int) -> bytes:
        assert self._process is not None and self._process.stdout is not None
        data = self._process.stdout.read(size)
        if len(data) != size:
            code = self._process.wait()
            self.close()
            pytest.fail(f"the walk ended its process: exit code {code}")
        return data

    def close(self) -> None:
        if self._process is not None:
            self._process.communicate()
            self._process = None


@pytest.fixture
def walk() -> Iterator[Walker]:
    walker = Walker(build_driver("walk_driver", stub_sources=["walk.c", "cfi.c", "expr.c", "string.c"]))
    yield walker
    walker.close()


def chain(frames: int, *, step: int = 32, root_fp: int = 0, start: int = BASE + 16) -> dict[int, int]:
    """Words of ``frames`` frame records, each ``step`` bytes above the last, returning to ``returns``."""
    words: dict[int, int] = {}
    for i in range(frames):
        at = start + i * step
        words[at] = at + step if i < frames - 1 else root_fp
        words[at + 8] = CODE + 0x100 * (i + 1)
    return words


def returns(frames: int) -> list[int]:
    return [CODE + 0x100 * i for i in range(frames + 1)]


@pytest.mark.parametrize("mode", [Unwind.FP, Unwind.AUTO])
@pytest.mark.parametrize("frames", [0, 1, 2, 50])
def test_frame_pointers_lead_to_the_root(walk: Walk, frames: int, mode: Unwind) -> None:
    case = Case(fp=BASE + 16 if frames else 0, words=chain(frames), mode=mode)
    assert walk(case) == (End.ROOT, returns(frames))


def test_without_tables_nor_frame_pointers(walk: Walk) -> None:
    assert walk(Case(fp=BASE + 16, words=chain(3), mode=Unwind.CFI)) == (End.NO_CFI, [CODE])
    unknown_fp = Case(fp=BASE + 16, words=chain(3), known=ALL_KNOWN & ~(1 << FP))
    assert walk(unknown_fp) == (End.NO_CFI, [CODE])


def test_a_return_address_of_zero_is_the_root(walk: Walk) -> None:
    words = chain(5)
    words[BASE + 16 + 2 * 32 + 8] = 0
    assert walk(Case(fp=BASE + 16, words=words)) == (End.ROOT, returns(2))


@pytest.mark.parametrize("max_depth", [1, 2, 7, 8])
def test_no_deeper_than_asked(walk: Walk, max_depth: int) -> None:
    """Seven callers and the leaf are eight addresses."""
    end, addresses = walk(Case(fp=BASE + 16, words=chain(7), max=max_depth))
    assert addresses == returns(7)[:max_depth]
    assert end == (End.DEPTH if max_depth < 8 else End.ROOT)


@pytest.mark.parametrize("good", [0, 1, 6])
@pytest.mark.parametrize(
    ("fp", "end"),
    [
        pytest.param(BASE + 0x1001, End.UNALIGNED, id="odd"),
        pytest.param(BASE + 0x1004, End.UNALIGNED, id="half a word"),
        pytest.param(BASE - 8, End.OUTSIDE, id="below the stack pointer"),
        pytest.param(8, End.OUTSIDE, id="near zero"),
        pytest.param(BASE + 0x1_0000 + FAR, End.OUTSIDE, id="too far above"),
        pytest.param((1 << 64) - 8, End.OUTSIDE, id="at the end of all addresses"),
        pytest.param(TOP, End.UNREADABLE, id="behind the stack"),
        pytest.param(TOP - 8, End.UNREADABLE, id="its return address behind the stack"),
    ],
)
def test_a_frame_pointer_that_is_none(walk: Walk, good: int, fp: int, end: End) -> None:
    case = Case(fp=BASE + 16 if good else fp, words=chain(good, root_fp=fp))
    assert walk(case) == (end, returns(good))


def test_a_frame_pointer_just_within_reach(walk: Walk) -> None:
    """The farthest that is believed lies on memory that can't be read; one word more is not looked at."""
    assert walk(Case(fp=BASE + FAR))[0] == End.UNREADABLE
    assert walk(Case(fp=BASE + FAR + 8))[0] == End.OUTSIDE


@pytest.mark.parametrize("ret", [1, 4095, USER_SPACE_END, (1 << 64) - 1])
def test_a_return_address_that_is_none(walk: Walk, ret: int) -> None:
    words = chain(4)
    words[BASE + 16 + 2 * 32 + 8] = ret
    assert walk(Case(fp=BASE + 16, words=words)) == (End.BAD_RETURN, returns(2))


@pytest.mark.parametrize("ret", [4096, USER_SPACE_END - 1])
def test_a_return_address_that_may_be_one(walk: Walk, ret: int) -> None:
    words = chain(1)
    words[BASE + 24] = ret
    assert walk(Case(fp=BASE + 16, words=words)) == (End.ROOT, [CODE, ret])


def test_a_frame_that_points_at_itself_or_below(walk: Walk) -> None:
    words = chain(3)
    for back in (BASE + 16 + 32, BASE + 16):
        words[BASE + 16 + 32] = back
        assert walk(Case(fp=BASE + 16, words=words)) == (End.OUTSIDE, returns(2))


@pytest.mark.parametrize("hole", [0, 1, 2, 3])
def test_a_hole_in_the_stack(walk: Walk, hole: int) -> None:
    """One frame on each page; the walk ends in front of the one that can't be read."""
    case = Case(fp=BASE + 16, words=chain(4, step=PAGE), readable=0b1111 & ~(1 << hole))
    assert walk(case) == (End.UNREADABLE, returns(hole))


def test_a_frame_over_the_edge_of_a_page(walk: Walk) -> None:
    words = chain(2, start=BASE + PAGE - 8, step=PAGE)
    assert walk(Case(fp=BASE + PAGE - 8, words=words)) == (End.ROOT, returns(2))
    for readable, depth in ((0b0001, 0), (0b0010, 0), (0b0011, 1), (0b0101, 0)):
        case = Case(fp=BASE + PAGE - 8, words=words, readable=readable)
        assert walk(case) == (End.UNREADABLE, returns(depth))


# Rules: put into the cache, as the tables would have said.


def test_a_rule_restores_what_was_saved(walk: Walk) -> None:
    """A function without a frame pointer that saved rbp, called by one that has one."""
    words = {BASE + 8: BASE + 64, BASE + 16: CODE + 0x100, **chain(2, start=BASE + 64)}
    words[BASE + 72], words[BASE + 64 + 40] = CODE + 0x200, CODE + 0x300
    case = Case(words=words, rules={CODE: rule(OFFSET, SP, 24, saved={FP: -2})}, mode=Unwind.AUTO)
    assert walk(case) == (End.ROOT, [CODE, CODE + 0x100, CODE + 0x200, CODE + 0x300])


def test_a_caller_is_looked_up_one_byte_before_its_return_address(walk: Walk) -> None:
    rules = {CODE: rule(OFFSET, SP, 8), CODE + 0xFF: rule(ROOT), CODE + 0x100: rule(BAD)}
    case = Case(words={BASE: CODE + 0x100}, rules=rules, mode=Unwind.CFI)
    assert walk(case) == (End.ROOT, [CODE, CODE + 0x100])


def test_out_of_a_signal_frame_the_address_is_exact(walk: Walk) -> None:
    gregs = BASE + GREGS_AT
    interrupted = {IP: CODE + 0x100, SP: BASE + 0x400, FP: BASE + 0x800}
    words = {gregs + 8 * i: interrupted.get(number, number) for i, number in enumerate(GREG_NUMBERS)}
    words |= {BASE + 0x800: 0, BASE + 0x808: CODE + 0x200}
    rules = {CODE: rule(SIGNAL), CODE + 0x100: rule(NO_CFI), CODE + 0xFF: rule(BAD)}
    case = Case(words=words, rules=rules, mode=Unwind.AUTO)
    assert walk(case) == (End.ROOT, [CODE, CODE + 0x100, CODE + 0x200])


def test_a_signal_frame_may_lie_on_another_stack_but_not_for_ever(walk: Walk) -> None:
    """An alternate stack lies anywhere, so a signal frame may lead down; one that leads to itself ends."""
    gregs = BASE + GREGS_AT
    words = {gregs + 8 * i: {IP: CODE, SP: BASE}.get(number, 0) for i, number in enumerate(GREG_NUMBERS)}
    case = Case(words=words, rules={CODE: rule(SIGNAL)}, mode=Unwind.AUTO, max=500)
    assert walk(case) == (End.DEPTH, [CODE] * 500)


def test_a_signal_frame_that_is_cut_off(walk: Walk) -> None:
    case = Case(sp=TOP - 64, rules={CODE: rule(SIGNAL)}, mode=Unwind.CFI)
    assert walk(case) == (End.UNREADABLE, [CODE])


@pytest.mark.parametrize(
    ("first", "end"),
    [
        pytest.param(rule(OFFSET, SP, 0), End.NO_PROGRESS, id="the frame is empty"),
        pytest.param(rule(OFFSET, SP, -8), End.NO_PROGRESS, id="it ends below its start"),
        pytest.param(rule(OFFSET, SP, FAR + 8), End.NO_PROGRESS, id="it is too large"),
        pytest.param(rule(OFFSET, SP, 4 * PAGE + 8), End.UNREADABLE, id="its return address can't be read"),
        pytest.param(rule(DEREF, SP, 4 * PAGE), End.UNREADABLE, id="where its end is said can't be read"),
        pytest.param(rule(DEREF, SP, 64), End.NO_PROGRESS, id="its end is said to be at zero"),
        pytest.param(rule(BAD), End.BAD_CFI, id="malformed"),
        pytest.param(rule(ROOT), End.ROOT, id="the root"),
        pytest.param(rule(NO_CFI), End.NO_CFI, id="no table"),
        pytest.param(rule(GONE), End.NO_CFI, id="a table that is gone"),
        pytest.param(rule(FULL), End.NO_CFI, id="tables of a module that is gone"),
    ],
)
def test_rules_that_lead_nowhere(walk: Walk, first: bytes, end: End) -> None:
    assert walk(Case(rules={CODE: first}, mode=Unwind.CFI)) == (end, [CODE])


def test_a_rule_that_needs_a_lost_register(walk: Walk) -> None:
    """A call preserves six registers: a second frame's rule may count from those, not from r10."""
    words = {BASE: CODE + 0x100, BASE + 256: CODE + 0x200}
    for register, end, depth in ((R10, End.BAD_CFI, 2), (R15, End.ROOT, 3)):
        rules = {CODE: rule(OFFSET), CODE + 0xFF: rule(OFFSET, register, 8), CODE + 0x1FF: rule(ROOT)}
        case = Case(words=words, rules=rules, registers={register: BASE + 256}, mode=Unwind.CFI)
        assert walk(case) == (end, [CODE, CODE + 0x100, CODE + 0x200][:depth])


def test_a_saved_register_that_cant_be_read_is_lost_and_no_more(walk: Walk) -> None:
    """Only a caller that needs it ends the walk."""
    words = {BASE: CODE + 0x100, BASE + 8: CODE + 0x200}
    lost = rule(OFFSET, SP, 8, saved={RBX: 4 * PAGE // 8})
    for register, end, depth in ((RBX, End.BAD_CFI, 2), (SP, End.ROOT, 3)):
        rules = {CODE: lost, CODE + 0xFF: rule(OFFSET, register, 8), CODE + 0x1FF: rule(ROOT)}
        case = Case(words=words, rules=rules, registers={RBX: BASE + 8}, mode=Unwind.CFI)
        assert walk(case) == (end, [CODE, CODE + 0x100, CODE + 0x200][:depth])


@pytest.mark.parametrize("below", range(1, 9))
def test_no_word_at_the_end_of_all_addresses_is_loaded(walk: Walk, below: int) -> None:
    """gcc's tables count from rbp behind the ``leave`` that gave rbp back to a caller to whom it is a
    number, such as 0: what they call saved lies at -8 then."""
    saved = rule(OFFSET, SP, 8, saved={R15: -1}, from_fp=True)
    words = {BASE: CODE + 0x100}
    case = Case(fp=8 - below, words=words, rules={CODE: saved, CODE + 0xFF: rule(ROOT)}, mode=Unwind.CFI)
    assert walk(case) == (End.ROOT, [CODE, CODE + 0x100])


def test_no_stack_at_the_end_of_all_addresses_is_loaded(walk: Walk) -> None:
    top = (1 << 64) - 8
    assert walk(Case(fp=top, sp=top))[0] == End.UNREADABLE
    assert walk(Case(fp=0, rules={CODE: rule(DEREF, FP, -8)}, mode=Unwind.CFI))[0] == End.UNREADABLE


# Whatever it is given, it ends, within its bounds, and touches nothing it was not allowed to.

WORDS = st.one_of(
    st.integers(BASE, TOP).map(lambda a: a & ~7),
    st.integers(CODE, CODE + 8),
    st.integers(0, (1 << 64) - 1),
    st.integers((1 << 64) - 4096, (1 << 64) - 1),
    st.sampled_from([0, 8, TOP, TOP - 8, BASE - 8, (1 << 63), (1 << 47) - 8, BASE + FAR]),
)
RULES = st.builds(
    rule,
    st.integers(0, 9),
    st.integers(0, 16),
    st.one_of(st.integers(-64, 4096), st.integers(-(1 << 31), (1 << 31) - 1)),
    saved=st.dictionaries(st.sampled_from(PRESERVED), st.integers(-64, 64), max_size=3),
    from_fp=st.booleans(),
    return_at=st.integers(-4, 4),
)


# The walker remembers nothing between two cases.
@hostile(300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    words=st.lists(WORDS, max_size=64),
    registers=st.dictionaries(st.integers(0, 16), WORDS, max_size=17),
    rules=st.lists(RULES, max_size=10),
    readable=st.integers(0, 15),
    known=st.integers(0, ALL_KNOWN),
    mode=st.sampled_from(list(Unwind)),
    max_depth=st.integers(1, 600),
    content=st.binary(max_size=64),
)
@example([], {FP: BASE, SP: BASE}, [], 15, ALL_KNOWN, Unwind.FP, 1, b"")
def test_anything(
    walk: Walk, words: Sequence[int], registers: dict[int, int], rules: list[bytes], readable: int,
    known: int, mode: Unwind, max_depth: int, content: bytes,
) -> None:  # fmt: skip
    case = Case(
        registers={FP: BASE + 64, **registers},
        words={BASE + 8 * i: word for i, word in enumerate(words)},
        rules={CODE - 1 + i: r for i, r in enumerate(rules)},
        readable=readable,
        known=known,
        mode=mode,
        max=max_depth,
        content=b"\0" * 512 + content,
    )
    end, addresses = walk(case)
    assert 1 <= len(addresses) <= max_depth
    assert addresses[0] == registers.get(IP, CODE)
    assert all(4096 <= a < USER_SPACE_END for a in addresses[1:])
    assert end != End.DEPTH or len(addresses) == max_depth


def test_memory_that_is_there_and_memory_that_is_not() -> None:
    """page_readable and vm_copy on real pages; the second of two is unmapped in between."""
    out = run_driver(build_driver("memory_driver", "memory_driver_stub.c"))
    answers = {name: int(value) for name, value in (line.split() for line in out.splitlines())}
    yes = {"probe-first", "probe-second", "probe-constant", "probe-first-again", "mask-unchanged"}
    yes |= {f"copy-{way}-{what}" for way in ("kernel", "probed") for what in ("inside", "last", "nothing")}
    yes |= {"copy-refused", "copy-refused-forbidden-after", "copy-probed-forbidden-after"}
    assert {name for name, value in answers.items() if value == 1} == yes
    assert {value for name, value in answers.items() if name not in yes} == {0}
    assert len(answers) == 11 + 2 * 10 + 2
