"""Places by the mappings of their own time: libraries that come, go, and take each other's place."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import BinaryIO

import pytest
from elfwriter import Elf, Sym

from pyattach.attacher.samples import SampleStore
from pyattach.inject.layout import End
from pyattach.symbols.address import InstructionPointer
from pyattach.symbols.frame import FrameKind
from pyattach.symbols.jitfiles import JitNames
from pyattach.symbols.maps import Mapping, Maps, parse_maps
from pyattach.symbols.resolver import Resolver

ONE, OTHER = (Elf(symtab=[Sym(name, 0x1000, 64)]).encode() for name in ("of_one", "of_other"))
FILES = {"/lib/one.so": ONE, "/lib/other.so": OTHER, "/lib/again.so": ONE}
ADDRESS = InstructionPointer(0x10001010)


def open_mapping(mapping: Mapping) -> BinaryIO | None:
    data = FILES.get(mapping.path)
    return None if data is None else io.BytesIO(data)


def maps(*files: tuple[str, int]) -> Maps:
    lines = [f"10001000-10002000 r-xp 00001000 fd:01 {inode} {path}\n" for path, inode in files]
    return Maps(parse_maps("".join(lines).encode()))


ONE_THERE, OTHER_THERE, NONE_THERE = maps(("/lib/one.so", 1)), maps(("/lib/other.so", 2)), maps()


def test_each_time_has_its_own() -> None:
    """Known until 100 to have been the one, and from 200 on to be the other."""
    with Resolver(ONE_THERE, open_mapping) as resolver:
        resolver.update(OTHER_THERE, (100, 200))
        names = [resolver.frames(resolver.place(ADDRESS, clock))[-1].name for clock in (50, 100, 200, 300)]
    assert names == ["of_one", "of_one", "of_other", "of_other"]


def test_in_between_it_is_said_that_it_cant_be_told() -> None:
    with Resolver(ONE_THERE, open_mapping) as resolver:
        resolver.update(OTHER_THERE, (100, 200))
        (frame,) = resolver.frames(resolver.place(ADDRESS, 150))
        place = resolver.place(ADDRESS, 150)
        assert resolver.place(ADDRESS, 160) is place and not resolver.has_name(place)
    assert frame.kind is FrameKind.UNKNOWN
    assert (frame.name, frame.module) == ("0x10001010", "one.so or other.so")


@pytest.mark.parametrize(("before", "after"), [(ONE_THERE, NONE_THERE), (NONE_THERE, ONE_THERE)])
def test_in_between_only_one_of_them_can_have_run(before: Maps, after: Maps) -> None:
    with Resolver(before, open_mapping) as resolver:
        resolver.update(after, (100, 200))
        assert resolver.frames(resolver.place(ADDRESS, 150))[-1].name == "of_one"


def test_the_same_file_mapped_again_has_the_same_places() -> None:
    with Resolver(ONE_THERE, open_mapping) as resolver:
        first = resolver.place(ADDRESS)
        resolver.frames(first)
        resolver.update(NONE_THERE)
        assert resolver.place(ADDRESS) is not first
        resolver.update(ONE_THERE)
        again = resolver.frames(resolver.place(ADDRESS))[-1]
    assert again == resolver.frames(first)[-1]


def test_another_file_under_a_number_used_again() -> None:
    """The inode of a file that was deleted."""
    files = dict(FILES)

    def opener(mapping: Mapping) -> BinaryIO | None:
        return io.BytesIO(files[mapping.path])

    with Resolver(ONE_THERE, opener) as resolver:
        assert resolver.resolve(ADDRESS).name == "of_one"
        resolver.update(NONE_THERE)
        files["/lib/one.so"] = OTHER
        resolver.update(ONE_THERE)
        assert resolver.resolve(ADDRESS).name == "of_other"


def test_what_was_asked_first_stays() -> None:
    with Resolver(ONE_THERE, open_mapping) as resolver:
        assert resolver.resolve_first(ADDRESS).name == "of_one"
        resolver.update(OTHER_THERE)
        assert resolver.resolve_first(ADDRESS).name == "of_one"
        assert resolver.resolve(ADDRESS).name == "of_other"


def test_generated_code_gets_its_name_when_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    jit = JitNames(1)
    monkeypatch.setattr(jit, "refresh", lambda _maps: True)
    code = Maps(parse_maps(b"10001000-10002000 rwxp 00000000 00:00 0\n"))
    with Resolver(code, open_mapping, jit=jit) as resolver:
        place = resolver.place(ADDRESS)
        assert resolver.frames(place)[-1].name == "0x10001010" and not resolver.is_known(place)
        jit.symbols.add(0x10001000, 0x100, "compiled")
        resolver.refresh_jit()
        assert resolver.frames(place)[-1] == resolver.resolve(ADDRESS)
        assert (
            resolver.resolve(ADDRESS).name == "compiled" and resolver.resolve(ADDRESS).kind is FrameKind.JIT
        )
        jit.symbols.add(0x10001000, 0x100, "compiled anew")  # what was sampled before keeps its name
        assert resolver.resolve(ADDRESS).name in ("compiled", "compiled anew")
        assert resolver.frames(place)[-1].name == "compiled"


def sample(store: SampleStore) -> None:
    store.add([(1, End.ROOT, 1, (0x10001010,))])
    store.place()


def test_a_file_that_was_written_anew_in_its_place(tmp_path: Path) -> None:
    """A plugin that is closed, copied over and opened again: the same inode with other functions."""
    path = tmp_path / "plugin.so"
    path.write_bytes(ONE)
    os.utime(path, (1, 1))
    with Resolver(ONE_THERE, lambda _mapping: open(path, "rb")) as resolver:
        store = SampleStore(resolver)
        assert resolver.resolve(ADDRESS).name == "of_one"
        sample(store)
        resolver.update(NONE_THERE)
        with open(path, "r+b") as file:
            file.write(OTHER)
        resolver.update(ONE_THERE)
        assert resolver.resolve(ADDRESS).name == "of_other"
        sample(store)
        assert {s[-1].name: n for (_tid, s), n in store.weights().items()} == {"of_one": 1, "of_other": 1}


def test_code_that_was_made_where_other_code_was(monkeypatch: pytest.MonkeyPatch) -> None:
    jit = JitNames(1)
    monkeypatch.setattr(jit, "refresh", lambda _maps: True)
    code = Maps(parse_maps(b"10001000-10002000 rwxp 00000000 00:00 0\n"))
    jit.symbols.add(0x10001000, 0x100, "first")
    with Resolver(code, open_mapping, jit=jit) as resolver:
        store = SampleStore(resolver)
        sample(store)
        before = resolver.version
        resolver.refresh_jit()
        assert resolver.version == before
        jit.symbols.add(0x10001000, 0x80, "second")
        resolver.refresh_jit()
        sample(store)
        assert {stack[-1].name: n for (_tid, stack), n in store.weights().items()} == {
            "first": 1,
            "second": 1,
        }
