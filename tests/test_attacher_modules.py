"""The entries of the module table: how a mapping is divided."""

from __future__ import annotations

import ctypes
import itertools
import os
from pathlib import Path

import pytest
from elfwriter import Elf, Sym
from hypothesis import given
from hypothesis import strategies as st

from pyattach.attacher.clock import TimerClock
from pyattach.attacher.contract import Options
from pyattach.attacher.modules import ModuleTable, Tables, _ranges
from pyattach.attacher.planning import plan_region
from pyattach.inject.layout import MODULE_CHANGES_STACKS, MODULE_OWN_INDEX, MODULE_ROOT, MODULES, Module
from pyattach.symbols.maps import Mapping, Maps
from pyattach.symbols.resolver import Resolver

START, END = 0x400000, 0x401000
MAPPING = next(iter(Maps.parse(b"00400000-00401000 r-xp 00000000 08:01 12 /bin/program\n").executable()))


def entries(*roots: tuple[int, int]) -> list[tuple[int, int, int]]:
    tables = Tables(0x1234, 56, changes_stacks=True, roots=roots)
    found = list(_ranges(MAPPING, tables))
    assert all((m.table, m.table_size) == (0x1234, 56) for m in found)
    assert all(m.flags & MODULE_CHANGES_STACKS for m in found)
    return [(m.start, m.end, m.flags & MODULE_ROOT) for m in found]


def test_whole_without_roots() -> None:
    assert entries() == [(START, END, 0)]


def test_own_index_is_said() -> None:
    (only,) = _ranges(MAPPING, Tables(8, 16, own=True))
    assert only.flags == MODULE_OWN_INDEX


def test_divided_at_roots() -> None:
    assert entries((START + 0x10, START + 0x20), (START + 0x20, START + 0x30)) == [
        (START, START + 0x10, 0),
        (START + 0x10, START + 0x20, MODULE_ROOT),
        (START + 0x20, START + 0x30, MODULE_ROOT),
        (START + 0x30, END, 0),
    ]


def test_roots_at_both_ends() -> None:
    assert entries((START, START + 8), (END - 8, END)) == [
        (START, START + 8, MODULE_ROOT),
        (START + 8, END - 8, 0),
        (END - 8, END, MODULE_ROOT),
    ]


@given(st.lists(st.tuples(st.integers(START - 64, END + 64), st.integers(-8, 64))))
def test_entries_always_cover_the_mapping_in_order(roots: list[tuple[int, int]]) -> None:
    """Whatever a file says of its functions: overlapping, outside, backwards."""
    found = entries(*((start, start + size) for start, size in sorted(roots)))
    assert found[0][0] == START and found[-1][1] == END
    assert all(low < high for low, high, _ in found)
    assert all(before[1] == after[0] for before, after in itertools.pairwise(found))


class Target:
    """Nothing is read of it here."""


def table_of(resolver: Resolver) -> ModuleTable:
    return ModuleTable(Target(), resolver, plan_region(Options(), 1, TimerClock()))  # type: ignore[arg-type]


def modules_in(table: bytes) -> list[Module]:
    size = ctypes.sizeof(Module)
    return [
        Module.from_buffer_copy(table, 16 + at * size) for at in range(int.from_bytes(table[:8], "little"))
    ]


def generated(count: int) -> str:
    return "".join(
        f"{0x10000000 + n * 0x2000:x}-{0x10001000 + n * 0x2000:x} r-xp 00000000 00:00 0\n"
        for n in range(count)
    )


def libraries(count: int) -> str:
    lines = (f"7f{n:06x}0000-7f{n:06x}1000 r-xp 00000000 08:01 {n + 1} /lib/{n}.so\n" for n in range(count))
    return "".join(lines)


@pytest.fixture
def with_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each file has a table."""
    monkeypatch.setattr(
        ModuleTable,
        "_find",
        lambda _self, mapping: Tables(5 if mapping.path else 0, 5 if mapping.path else 0),
    )


@pytest.mark.usefixtures("with_tables")
def test_generated_code_leaves_room_for_the_libraries() -> None:
    """Which lie above it, and thousands of pieces of it have no tables."""
    maps = Maps.parse((generated(1100) + libraries(3)).encode())
    with Resolver(maps, lambda _mapping: None) as resolver:
        table = table_of(resolver)
        modules = modules_in(table.of(maps))
    assert [module.start for module in modules if module.table] == [
        0x7F0000000000,
        0x7F0000010000,
        0x7F0000020000,
    ]
    assert not table.notes()


@pytest.mark.usefixtures("with_tables")
def test_what_has_no_room_is_told() -> None:
    maps = Maps.parse(libraries(MODULES + 7).encode())
    with Resolver(maps, lambda _mapping: None) as resolver:
        table = table_of(resolver)
        assert len(modules_in(table.of(maps))) == MODULES
        table.of(Maps.parse(libraries(1).encode()))
    (note,) = table.notes()
    assert note.startswith("7 mappings of code had no room")


def test_the_tables_of_a_file_that_was_written_anew_in_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, looked = tmp_path / "plugin.so", 0
    path.write_bytes(Elf(symtab=[Sym("one", 0x1000, 64)]).encode())
    os.utime(path, (1, 1))
    there, gone = Maps.parse(b"10001000-10002000 r-xp 00001000 fd:01 1 /lib/plugin.so\n"), Maps()

    def find(_self: ModuleTable, _mapping: Mapping) -> Tables:
        nonlocal looked
        looked += 1
        return Tables(0, 0)

    monkeypatch.setattr(ModuleTable, "_find", find)
    with Resolver(there, lambda _mapping: open(path, "rb")) as resolver:
        table = table_of(resolver)
        for _ in range(2):
            for maps in (there, gone):
                resolver.update(maps)
                table.of(maps)
        assert looked == 1
        with open(path, "r+b") as file:
            file.write(Elf(symtab=[Sym("other", 0x1000, 64)]).encode())
        resolver.update(there)
        table.of(there)
    assert looked == 2
