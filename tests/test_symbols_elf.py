"""ELF files: crafted ones, broken ones, and the system's own against nm."""

from __future__ import annotations

import io
import random
import re
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from elfwriter import ABS, ET_EXEC, IFUNC, LOCAL, NOTYPE, OBJECT, PF_R, PF_W, PF_X, TLS, WEAK, Elf, Load, Sym
from hypothesis import given
from hypothesis import strategies as st
from support import hostile

from pyattach.errors import MalformedInput
from pyattach.symbols import elf
from pyattach.symbols.elf import ElfImage, load_bias
from pyattach.symbols.headers import Section, Segment
from pyattach.symbols.maps import Mapping, Maps
from pyattach.symbols.table import SymbolTable


def table(*symbols: Sym, **more: object) -> SymbolTable:
    return ElfImage(Elf(symtab=symbols, **more).encode()).function_symbols()  # type: ignore[arg-type]


def name_at(symbols: SymbolTable, vaddr: int) -> str | None:
    found = symbols.lookup(vaddr)
    return None if found is None else found.name.decode()


def test_headers() -> None:
    elf = Elf(interpreter="/lib/ld.so", build_id=bytes(range(20)), type=ET_EXEC, symtab=[Sym("f", 0x1000, 4)])
    image = ElfImage(elf.encode())
    assert (image.machine, image.type, image.bits, image.entry) == ("EM_X86_64", "ET_EXEC", 64, 0x1000)
    assert image.interpreter == "/lib/ld.so" and image.has_interpreter and not image.is_position_independent
    assert image.build_id == bytes(range(20))
    assert image.segments == (Segment(0x1000, 0x1000, 0x1000, 0x1000, PF_R | PF_X, align=4),)
    bare = ElfImage(Elf().encode())
    assert bare.build_id is None and not bare.has_interpreter and bare.is_position_independent
    assert len(bare.function_symbols()) == 0 and bare.function_symbols().lookup(0x1000) is None


@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize("endian", ["<", ">"])
def test_all_widths_and_byte_orders(bits: int, endian: str) -> None:
    elf = Elf(bits=bits, endian=endian, symtab=[Sym("f", 0x1100, 16)], dynsym=[Sym("g", 0x1200, 16)],
              build_id=b"12345678")  # fmt: skip
    image = ElfImage(elf.encode())
    assert name_at(image.function_symbols(), 0x110F) == "f"
    assert name_at(image.function_symbols(), 0x1200) == "g"
    assert image.build_id == b"12345678"
    assert set(image.dynamic_symbols()) == {b"g"}


def test_the_end_of_a_symbol_is_respected() -> None:
    symbols = table(Sym("f", 0x1100, 16), Sym("g", 0x1120, 1))
    wanted = {0x10FF: None, 0x1100: "f", 0x110F: "f", 0x1110: None, 0x111F: None, 0x1120: "g", 0x1121: None}
    assert {vaddr: name_at(symbols, vaddr) for vaddr in wanted} == wanted


def test_without_a_size_it_reaches_to_the_next_or_to_the_end_of_the_section() -> None:
    symbols = table(Sym("a", 0x1100), Sym("b", 0x1200, 16), Sym("c", 0x1F00), Sym("outside", 0x2000))
    wanted = {0x1100: "a", 0x11FF: "a", 0x1200: "b", 0x1210: None, 0x1F00: "c", 0x1FFF: "c", 0x2000: None}
    assert {vaddr: name_at(symbols, vaddr) for vaddr in wanted} == wanted


def test_a_label_inside_a_function_does_not_hide_it() -> None:
    symbols = table(Sym("f", 0x1100, 64), Sym("label", 0x1110, 0, NOTYPE), Sym("start", 0x1100, 0))
    assert [name_at(symbols, vaddr) for vaddr in (0x1100, 0x1110, 0x1111, 0x113F, 0x1140)] == ["f"] * 4 + [
        None
    ]


def test_the_innermost_of_nested_symbols() -> None:
    inner = [Sym(f"in{i}", 0x1110 + 16 * i, 4) for i in range(20)]
    symbols = table(Sym("outer", 0x1100, 0x800), *inner)
    assert name_at(symbols, 0x1113) == "in0"
    assert name_at(symbols, 0x1114) == name_at(symbols, 0x1800) == "outer"
    assert name_at(symbols, 0x1900) is None


@pytest.mark.parametrize(
    ("aliases", "best"),
    [
        ([Sym("a", 0x1100, 8, binding=WEAK), Sym("zzz", 0x1100, 8)], "zzz"),
        ([Sym("a", 0x1100, 8, binding=LOCAL), Sym("zzz", 0x1100, 8, binding=WEAK)], "zzz"),
        ([Sym("_f", 0x1100, 8), Sym("longer", 0x1100, 8)], "longer"),
        ([Sym("long", 0x1100, 8), Sym("abcdef", 0x1100, 8)], "long"),
        ([Sym("bb", 0x1100, 8), Sym("ab", 0x1100, 8)], "ab"),
        ([Sym("good", 0x1100, 0), Sym("__local", 0x1100, 8, binding=LOCAL)], "__local"),
        ([Sym("", 0x1100, 8), Sym("__named", 0x1100, 8)], "__named"),
        ([Sym("f", 0x1100, 4), Sym("g", 0x1100, 16, binding=LOCAL)], "g"),
    ],
)
def test_aliases(aliases: list[Sym], best: str) -> None:
    vaddr = 0x1108 if best == "g" else 0x1100
    for order in (aliases, aliases[::-1]):
        assert name_at(table(*order), vaddr) == best


def test_what_is_no_function_is_left_out() -> None:
    symbols = table(
        Sym("data", 0x1100, 8, OBJECT), Sym("tls", 0x1200, 8, TLS), Sym("undefined", 0x1300, 8, section=0),
        Sym("absolute", 0x1400, 8, section=ABS), Sym("", 0x1500, 0, NOTYPE),
        Sym("$x", 0x1600, 0, NOTYPE, LOCAL), Sym("elsewhere", 0x1700, 8, NOTYPE, section=2),
    )  # fmt: skip
    assert len(symbols) == 0
    kept = table(
        Sym("ifunc", 0x1100, 8, IFUNC), Sym("asm", 0x1200, 0, NOTYPE), Sym("l", 0x1300, 0, NOTYPE, LOCAL)
    )
    assert [name_at(kept, vaddr) for vaddr in (0x1100, 0x1200, 0x1300)] == ["ifunc", "asm", "l"]


def test_exports_are_of_the_default_version_and_defined() -> None:
    old = Sym("memcpy", 0x1100, 8, hidden_version=True)
    new = Sym("memcpy", 0x1200, 8, IFUNC)
    others = [
        Sym("imported", 0, 0, section=0),
        Sym("tls", 0x10, 8, TLS),
        Sym("only_old", 0x1300, hidden_version=True),
    ]
    for order in ([old, new], [new, old]):
        image = ElfImage(Elf(dynsym=[*order, *others]).encode())
        found = image.dynamic_symbol(b"memcpy")
        assert found is not None and (found.value, found.type) == (0x1200, IFUNC)
        assert set(image.dynamic_symbols()) == {b"memcpy", b"only_old"}
        assert image.dynamic_symbol(b"mem") is None


# Where the addresses of a file are loaded.

SPLIT = (
    Load(0x0, 0x0, 0x640, PF_R),
    Load(0x1640, 0x640, 0x500, PF_R | PF_X),
    Load(0x2B40, 0xB40, 0x600, PF_R | PF_W),
)


def mapping(start: int, offset: int, permissions: str = "r-xp", size: int = 0x1000) -> Mapping:
    return Mapping(start, start + size, permissions, offset, "fd:01", 1, "/x")


def test_addresses_that_are_not_offsets() -> None:
    image = ElfImage(Elf(loads=SPLIT, text=(0x1640, 0x500), pad_to=0x1200).encode())
    assert image.vaddr_of_offset(0x640) == 0x1640
    assert image.vaddr_of_offset(0xB3F) == 0x1B3F
    assert image.vaddr_of_offset(0x10, executable=True) == 0x1010  # the page is mapped there too
    assert image.vaddr_of_offset(0x10, executable=False) == 0x10
    assert image.vaddr_of_offset(0xB40, executable=False) == 0x2B40
    assert image.vaddr_of_offset(0x1000, executable=False) == 0x3000
    assert image.vaddr_of_offset(0x2000) is None


@pytest.mark.parametrize("bias", [0, 0x7F1234560000])
def test_load_bias(bias: int) -> None:
    image = ElfImage(Elf(loads=SPLIT, pad_to=0x1200).encode())
    assert load_bias(mapping(bias, 0, "r--p"), image) == bias
    assert load_bias(mapping(bias + 0x1000, 0), image) == bias
    assert load_bias(mapping(bias + 0x3000, 0x1000, "rw-p"), image) == bias
    with pytest.raises(MalformedInput):
        load_bias(mapping(bias, 0x5000), image)


def test_load_bias_of_our_own_libraries() -> None:
    maps = Maps.parse(Path("/proc/self/maps").read_bytes())
    for own in maps.executable():
        if own.is_file and own.path.endswith((".so", ".so.6")) and not own.deleted:
            with ElfImage.open(own.path) as image:
                # The first segment of a library is at address 0.
                assert load_bias(own, image) == next(m.start for m in maps if m.path == own.path)


# Broken files.

SAMPLE = Elf(
    symtab=[Sym(f"f{i}", 0x1000 + 16 * i, 16) for i in range(8)],
    dynsym=[Sym("dlopen", 0x1080, 16), Sym("old", 0x1090, hidden_version=True)],
    interpreter="/lib64/ld-linux-x86-64.so.2",
    build_id=b"\xab" * 20,
).encode()


def use(data: bytes) -> None:
    """Everything that can be asked of an image; only MalformedInput may come out, with the path in it."""
    try:
        image = ElfImage(data, "/the/path")
        symbols = image.function_symbols()
        for vaddr in (0, 0x1000, 0x1085, 2**63, 2**64 - 1):
            symbols.lookup(vaddr)
        image.dynamic_symbols()
        image.vaddr_of_offset(0x1000)
        load_bias(mapping(0x7F0000000000, 0x1000), image)
    except MalformedInput as error:
        assert "/the/path" in str(error)


def test_cut_short_at_every_byte() -> None:
    for length in range(len(SAMPLE)):
        use(SAMPLE[:length])


@hostile(400)
@given(st.lists(st.tuples(st.integers(0, len(SAMPLE) - 1), st.binary(min_size=1, max_size=9)), max_size=6))
def test_overwritten_anywhere(changes: list[tuple[int, bytes]]) -> None:
    data = bytearray(SAMPLE)
    for at, new in changes:
        data[at : at + len(new)] = new
    use(bytes(data))


@pytest.mark.parametrize("value", [0x00, 0x7F, 0x80, 0xFF])
def test_each_byte_set(value: int) -> None:
    for at in range(len(SAMPLE)):
        use(SAMPLE[:at] + bytes([value]) + SAMPLE[at + 1 :])


@pytest.mark.parametrize("value", [2**64 - 1, 2**63, 2**40])
def test_each_word_huge(value: int) -> None:
    for at in range(0, len(SAMPLE) - 8, 4):
        use(SAMPLE[:at] + value.to_bytes(8, "little") + SAMPLE[at + 8 :])


def test_notes_are_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Thousands of headers may lead to the same ones."""
    count, read = 2000, 0
    header = struct.pack("<16sHHIQQQIHHHHHH", b"\x7fELF\2\1\1", 3, 62, 1, 0, 64, 0, 0, 64, 56, count, 0, 0, 0)
    one = struct.pack("<IIQQQQQQ", 4, 4, 64 + 56 * count, 0, 0, 65536, 65536, 4)
    build_id_in = elf._build_id_in

    def counting(notes: bytes, endian: str, align: int) -> bytes | None:
        nonlocal read
        read += len(notes)
        return build_id_in(notes, endian, align)

    monkeypatch.setattr(elf, "_build_id_in", counting)
    assert ElfImage(header + one * count + bytes(65536)).build_id is None
    assert read == 65536


def test_one_table_that_counts_as_many_is_not_read_for_each(monkeypatch: pytest.MonkeyPatch) -> None:
    data = bytearray(Elf(symtab=[Sym(f"f{n}", 0x1000 + n, 1) for n in range(50)]).encode())
    at, count = int.from_bytes(data[40:48], "little"), int.from_bytes(data[60:62], "little")
    rows = [bytes(data[at + 64 * n : at + 64 * (n + 1)]) for n in range(count)]
    (symtab,) = (row for row in rows if row[4] == 2)
    data[40:48], data[60:62] = len(data).to_bytes(8, "little"), (count + 20).to_bytes(2, "little")
    image = ElfImage(bytes(data) + b"".join(rows) + symtab * 20)
    monkeypatch.setattr(elf, "_MAX_TABLE", int.from_bytes(symtab[32:40], "little"))
    read = 0
    table = ElfImage._table

    def counting(image: ElfImage, section: Section) -> bytes:
        nonlocal read
        read += 1
        return table(image, section)

    monkeypatch.setattr(ElfImage, "_table", counting)
    assert image.function_symbols().lookup(0x1000) is not None
    assert read == 2


def test_a_build_id_that_is_cut_off_is_none() -> None:
    whole = Elf(build_id=bytes(range(20))).encode()
    assert ElfImage(whole).build_id == bytes(range(20))
    at = whole.index(struct.pack("<IIQ", 4, 4, whole.index(b"GNU\0") - 12)) + 32
    assert ElfImage(whole[:at] + (20).to_bytes(8, "little") + whole[at + 8 :]).build_id is None


def test_string_offsets_outside_give_no_name() -> None:
    at = SAMPLE.index(b"\0f0\0")
    row = SAMPLE.index((1).to_bytes(4, "little") + bytes([0x12, 0, 1, 0]))
    assert row < at
    image = ElfImage(SAMPLE[:row] + b"\xff\xff\xff\xff" + SAMPLE[row + 4 :])
    found = image.function_symbols().lookup(0x1000)
    assert found is not None and found.name == b""


@pytest.mark.parametrize("data", [b"", b"\x7fELF", b"MZ" * 100, bytes(4096), SAMPLE[:64]])
def test_what_is_no_elf_file(data: bytes) -> None:
    with pytest.raises(MalformedInput, match="/some/file"):
        ElfImage(data, "/some/file")


# The system's own files, against nm.


def libraries() -> list[str]:
    found = ["libc.so.6", "libstdc++.so.6"]
    paths = [str(path) for name in found for path in Path("/usr/lib").glob(f"*-linux-gnu*/{name}")]
    return [*paths, str(Path(sys.executable).resolve())]


def nm(path: str, *options: str) -> list[tuple[int, int, str]]:
    """(value, size, name) of the code symbols with a size."""
    lines = subprocess.run(["nm", "-S", *options, path], capture_output=True, text=True, check=True).stdout
    rows = [line.split() for line in lines.splitlines()]
    return [
        (int(r[0], 16), int(r[1], 16), r[3].partition("@")[0])
        for r in rows
        if len(r) == 4 and r[2] in "tTwWi"
    ]


@pytest.mark.skipif(shutil.which("nm") is None, reason="needs binutils' nm")
@pytest.mark.parametrize("path", libraries())
def test_names_as_nm_has_them(path: str) -> None:
    known = nm(path, "-D") + nm(path)
    names: dict[int, set[str]] = {}
    for value, _size, name in known:
        names.setdefault(value, set()).add(name)
    with ElfImage.open(path) as image:
        symbols = image.function_symbols()
        for value, size, _name in random.Random(1).sample(known, min(len(known), 500)):
            for vaddr in (value, value + size // 2, value + size - 1):
                found = symbols.lookup(vaddr)
                assert found is not None and found.value <= vaddr < found.value + found.size
                assert found.name.decode().partition("@")[0] in names[found.value]


def test_an_executable_of_100_mb() -> None:
    """node; Debian's own is small, and has all in a library."""
    files = [Path("/usr/bin/node"), *Path("/usr/lib/x86_64-linux-gnu").glob("libnode.so.*")]
    largest = max((f for f in files if f.exists()), key=lambda f: f.stat().st_size, default=None)
    if largest is None:
        pytest.skip("no node here")
    with ElfImage.open(str(largest)) as image:
        assert len(image.function_symbols()) > 10_000
        if image.entry:
            found = image.function_symbols().lookup(image.entry)
            assert found is not None and found.name in (b"_start", b"")


@pytest.mark.parametrize("path", libraries())
def test_one_symbol_is_found_as_among_all(path: str) -> None:
    """Also one whose name is stored as the end of a longer one."""
    with ElfImage.open(path) as image:
        exported = image.dynamic_symbols()
    names = random.Random(1).sample(sorted(exported), min(len(exported), 50))
    with ElfImage.open(path) as image:
        for name in [*names, b"malloc", b"alloc", b"free", b"there_is_no_such_name"]:
            assert image.dynamic_symbol(name) == exported.get(name)


@pytest.mark.parametrize("path", libraries())
def test_ranges_of_what_is_exported_are_those_of_the_symbols(path: str) -> None:
    """Of all versions, where the symbols by name have the default ones alone."""
    with ElfImage.open(path) as image:
        ends, marked = image.exported_ranges(re.compile(rb"[a-m][a-z]*$").match)
        sized = [symbol for symbol in image.dynamic_symbols().values() if symbol.value and symbol.size]
    assert {symbol.value for symbol in sized} <= set(ends)
    assert all(ends[symbol.value] >= symbol.value + symbol.size for symbol in sized)
    named = {s.value for s in sized if re.match(rb"[a-m][a-z]*$", s.name) and len(s.name) < 64}
    assert named <= marked <= set(ends)


def test_a_name_without_an_end_is_not_looked_through_for_each_symbol() -> None:
    """Strings of a file may lack their zeros; "malloc" that the strings end with is no name, either."""
    image = ElfImage(
        io.BytesIO(
            Elf(loads=(Load(0, 0, 0x1000),), dynsym=(Sym("g" * 64, 0x100, 8), Sym("free", 0x200, 8))).encode()
        ),
        "x",
    )
    asked: list[bytes] = []
    ends, marked = image.exported_ranges(asked.append)
    assert ends == {0x100: 0x108, 0x200: 0x208}
    assert (asked, marked) == ([b"free"], set())
