"""/proc/PID/maps: odd names, rubbish, and finding an address."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import hostile

from pyattach.errors import MalformedInput
from pyattach.symbols.maps import Mapping, Maps, parse_maps

LINE = b"7f0000001000-7f0000003000 r-xp 00002000 fd:01 1234567                   /usr/lib/libfoo.so.1\n"


def test_a_line() -> None:
    (mapping,) = parse_maps(LINE)
    assert mapping == Mapping(
        0x7F0000001000, 0x7F0000003000, "r-xp", 0x2000, "fd:01", 1234567, "/usr/lib/libfoo.so.1"
    )
    assert mapping.readable and mapping.executable and not mapping.writable and not mapping.shared
    assert mapping.is_file and not mapping.deleted and not mapping.is_memfd
    assert mapping.file_offset(0x7F0000001010) == 0x2010


@pytest.mark.parametrize(
    ("written", "path", "file_path"),
    [
        (b"/a b/c  d ", "/a b/c  d ", "/a b/c  d "),
        (b"/x (deleted)", "/x (deleted)", "/x"),
        (rb"/new\012line", "/new\nline", "/new\nline"),
        (b"/latin\xe9", "/latin\udce9", "/latin\udce9"),
        (b"/esc\x1b[31m", "/esc\x1b[31m", "/esc\x1b[31m"),
        (b"/carriage\rreturn\x0bfeed\x0c", "/carriage\rreturn\x0bfeed\x0c", "/carriage\rreturn\x0bfeed\x0c"),
        (b"[anon:v8 heap]", "[anon:v8 heap]", "[anon:v8 heap]"),
        (b"", "", ""),
    ],
)
def test_paths(written: bytes, path: str, file_path: str) -> None:
    (mapping,) = parse_maps(b"1000-2000 rw-s 0 00:05 7 " + b" " * 20 + written + b"\n")
    assert (mapping.path, mapping.file_path) == (path, file_path)
    assert mapping.shared and mapping.writable
    assert mapping.is_file == path.startswith("/")


def test_a_memfd_is_a_file_without_a_name() -> None:
    (mapping,) = parse_maps(b"1000-2000 r-xp 0 00:01 2051 /memfd:jit (deleted)\n")
    assert mapping.is_memfd and mapping.is_file and mapping.deleted


@pytest.mark.parametrize(
    "rubbish",
    [b"x", b"1000-2000", b"2000-1000 r-xp 0 0:0 0", b"1000-1000 r-xp 0 0:0 0", b"1000-2000 rwx 0 0:0 0",
     b"1" * 17 + b"-2000 r-xp 0 0:0 0", b"1000-2000 r-xp 0 0:0 -1", LINE[:30]],
)  # fmt: skip
def test_rubbish_is_refused(rubbish: bytes) -> None:
    with pytest.raises(MalformedInput):
        parse_maps(LINE + rubbish + b"\n")


@hostile()
@given(st.binary(max_size=200))
def test_any_bytes_are_maps_or_malformed(text: bytes) -> None:
    try:
        parse_maps(text)
    except MalformedInput as error:
        assert "maps" in str(error) or "mapping" in str(error)


def test_our_own_maps_as_the_kernel_writes_them() -> None:
    text = Path("/proc/self/maps").read_bytes()
    maps = Maps.parse(text)
    assert len(maps) == text.count(b"\n")
    assert [mapping.start for mapping in maps] == sorted(mapping.start for mapping in maps)
    assert maps == Maps(reversed(list(maps))) and hash(maps) == hash(Maps(maps))
    assert all(mapping.executable for mapping in maps.executable())
    for mapping in maps:
        assert maps.find(mapping.start) == maps.find(mapping.end - 1) == mapping


def test_nothing_is_found_between_mappings() -> None:
    maps = Maps.parse(b"1000-2000 r-xp 0 0:0 0\n3000-4000 r-xp 0 0:0 0 \n")
    assert [maps.find(a) is not None for a in (0, 0xFFF, 0x1000, 0x1FFF, 0x2000, 0x2FFF, 0x3FFF, 0x4000)] == [
        False, False, True, True, False, False, True, False,
    ]  # fmt: skip
    assert maps != Maps() and Maps() == Maps([]) and Maps().find(1) is None and maps != 3
