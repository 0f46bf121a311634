"""The entries of the module table: how a mapping is divided."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from pyattach.attacher.modules import Tables, _ranges
from pyattach.inject.layout import MODULE_CHANGES_STACKS, MODULE_OWN_INDEX, MODULE_ROOT
from pyattach.symbols.maps import Maps

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
