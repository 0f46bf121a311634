"""How long first instructions are, and whether they can be moved: cross-checked with objdump."""

from __future__ import annotations

import contextlib
import glob
import re
import subprocess

import pytest
from support import requires

from pyattach.inject.entries import Room, find_jump, start_of
from pyattach.inject.heap_layout import FUNCTIONS
from pyattach.inject.padding import padding_near
from pyattach.inject.prologue import NotMovable, decode
from pyattach.symbols.elf import ElfImage
from pyattach.symbols.maps import Maps

LENGTHS = {
    "55": 1,  # push %rbp
    "4154": 2,  # push %r12
    "89ff": 2,
    "4889f8": 3,
    "4883ec08": 4,
    "b811000000": 5,
    "48b8 1122334455667788": 10,  # movabs
    "66b81100": 4,
    "4881ff00100000": 7,
    "803d0102140000": 7,  # cmpb $0,x(%rip)
    "488b0559ab0000": 7,  # mov x(%rip),%rax
    "64488b042528000000": 9,  # mov %fs:0x28,%rax
    "f605 11223344 01": 7,  # testb: an immediate by what ModRM says
    "f6d8": 2,  # neg has none
    "c5f877": 3,  # vzeroupper
    "62f17c4810442401": 8,  # vmovups 0x40(%rsp),%zmm0
    "e900000000": 5,
}
NOT_MOVABLE = ("eb00", "7400", "0f8400000000", "e800000000", "c3", "c20800", "cc", "ff25 00000000", "0f05")


@pytest.mark.parametrize("code", LENGTHS)
def test_lengths(code: str) -> None:
    assert len(decode(bytes.fromhex(code).ljust(15, b"\x90")).code) == LENGTHS[code]


@pytest.mark.parametrize("code", NOT_MOVABLE)
def test_what_leaves_is_not_moved(code: str) -> None:
    with pytest.raises(NotMovable, match="jump, call, return"):
        decode(bytes.fromhex(code).ljust(15, b"\x90")).at(0x1000, 0x2000)


def test_what_is_read_by_distance_is_read_where_it_was() -> None:
    moved = decode(bytes.fromhex("803d0102000007")).at(0x10000, 0x8000)
    assert moved == b"\x80\x3d" + (0x201 + 0x8000).to_bytes(4, "little") + b"\x07"
    with pytest.raises(NotMovable, match="too far"):
        decode(bytes.fromhex("803d0102000007")).at(1 << 40, 0x8000)


def test_cut_and_unknown_ones_are_refused() -> None:
    for code in ("", "48", "4881ff", "06", "0f04", "c4e0ff00"):
        with pytest.raises(NotMovable, match="not known"):
            decode(bytes.fromhex(code))


ALLOCATORS = (
    "/lib/x86_64-linux-gnu/libc.so.6",
    "/usr/lib/x86_64-linux-gnu/libjemalloc.so*",
    "/usr/lib/x86_64-linux-gnu/libtcmalloc_minimal.so*",
    "/usr/lib/x86_64-linux-gnu/libmimalloc.so*",
    "/usr/lib/x86_64-linux-musl/libc.so",
)


@pytest.mark.parametrize("pattern", ALLOCATORS)
def test_allocators_begin_as_objdump_says(pattern: str) -> None:
    """All instructions of the allocator's functions, not just the first."""
    requires("objdump")
    path = next(iter(sorted(glob.glob(pattern))), "/lib/x86_64-linux-gnu/libc.so.6")
    with ElfImage.open(path) as image:
        found = [image.dynamic_symbol(name.encode()) for name in FUNCTIONS]
        assert found[0] is not None
        for symbol in filter(None, found):
            ends = f"--stop-address={symbol.value + max(symbol.size, 16)}"
            command = [
                "objdump",
                "-d",
                "-w",
                "-z",
                "--insn-width=16",
                f"--start-address={symbol.value}",
                ends,
            ]
            out = subprocess.run([*command, path], capture_output=True, text=True, check=True).stdout
            lines = re.findall(r"^ +[0-9a-f]+:\t((?:[0-9a-f]{2} )+)(.*)$", out, re.MULTILINE)
            assert lines
            for line, text in lines[:-1]:  # the last one may be cut
                code = bytes.fromhex(line)
                assert "(bad)" in text or len(decode(code.ljust(15, b"\0")).code) == len(code), line


def test_one_byte_is_changed_where_that_will_do() -> None:
    """And the bytes behind it say where the jump leads."""
    at, code = 0x7F0000001000, bytes.fromhex("4154555348 89fb").ljust(64, b"\x90")
    start = start_of(at, lambda address, size: code[address - at :][:size])
    jump = find_jump(start, Room(Maps(), ""))
    assert jump.changed == b"\xe9"
    assert jump.lands_at == at + 5 + 0x48535554


@pytest.mark.parametrize("first", ["lower", "upper"])
@pytest.mark.parametrize("distance", [4, 5, 8])
def test_a_jump_is_not_made_of_what_another_changes(first: str, distance: int) -> None:
    """Four bytes on a function begins whose first byte the distance of the jump would be made of."""
    at, code = 0x7F0000001004, bytes.fromhex("55c39090" if distance == 4 else "5548 89e55dc3 90")
    memory = code.ljust(distance, b"\x90")[:distance] + bytes.fromhex("534889fb5bc3").ljust(64, b"\x90")

    def read(address: int, size: int) -> bytes:
        return memory[address - at :][:size].rjust(size, b"\x90") if address >= at else bytes(size)

    room, jumps = Room(Maps(), ""), {}
    for address in sorted((at, at + distance), reverse=first == "upper"):
        with contextlib.suppress(NotMovable):
            jumps[address] = find_jump(start_of(address, read), room)
    made = bytearray(memory)
    for address, jump in jumps.items():
        made[address - at : address - at + len(jump.changed)] = jump.changed
    for address, jump in jumps.items():
        begin = made.index(b"\xe9", address - at) + 1
        assert (
            at + begin + 4 + int.from_bytes(made[begin : begin + 4], "little", signed=True) == jump.lands_at
        )
    assert len(jumps) == (1 if distance == 4 else 2)


def test_what_must_not_change_is_not_changed() -> None:
    """Never more than the first instruction, nor out of its aligned word."""
    at = 0x7F0000001000
    for code in LENGTHS:
        for skip in range(8):
            begin = at + skip
            memory = bytes.fromhex(code).ljust(64, b"\x90")
            start = start_of(
                begin, lambda a, size, b=begin, m=memory: m[a - b :][:size] if a >= b else bytes(size)
            )
            assert start.most <= min(LENGTHS[code], 8 - begin % 8)


def test_padding() -> None:
    """Behind a return, nothing but nops up to the next function; and not where the first falls through."""
    nops = bytes.fromhex("66662e0f1f840000000000 0f1f00".replace(" ", ""))
    code = b"\x31\xc0\xc3" + nops + b"\x55\xc3"
    functions = [(0, 3), (3 + len(nops), len(code))]
    assert padding_near(0, functions, lambda at, size: code[at : at + size]) == [3]
    falls = code.replace(b"\xc3", b"\x90", 1)
    assert padding_near(0, functions, lambda at, size: falls[at : at + size]) == []
    used = code.replace(b"\x66\x66", b"\x66\x55", 1)
    assert padding_near(0, functions, lambda at, size: used[at : at + size]) == []
    called = b"\xe8\0\0\0\xc3" + nops + b"\x55\xc3"  # a call whose distance ends as a return does
    functions = [(0, 5), (5 + len(nops), len(called))]
    assert padding_near(0, functions, lambda at, size: called[at : at + size]) == []
    assert padding_near(1000, functions, lambda at, size: called[at : at + size]) == []
