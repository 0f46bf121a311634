"""Kinds of code, by the file it is in; names that are put off, and names that are kept."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import pytest
from elfwriter import Elf, Sym

from pyattach.symbols import codefile, demangle, frame_names, keptnames
from pyattach.symbols.address import InstructionPointer
from pyattach.symbols.cache import Cache
from pyattach.symbols.frame import FrameKind
from pyattach.symbols.kinds import kind_of_file
from pyattach.symbols.maps import Mapping, Maps, parse_maps
from pyattach.symbols.resolver import Resolver

FILE = Elf(build_id=b"\x01" * 20, symtab=[Sym(f"_Z2f{n}i", 0x1000 + 16 * n, 16) for n in range(10)]).encode()
MAPS = Maps(parse_maps(b"10001000-10002000 r-xp 00001000 fd:01 1 /app/pie\n"))


def open_file(_mapping: Mapping) -> BinaryIO:
    return io.BytesIO(FILE)


def names(of: Resolver) -> list[str]:
    return [of.resolve(InstructionPointer(0x10001000 + 16 * n)).name for n in range(10)]


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/srv/app", FrameKind.USER),
        ("/usr/bin/app", FrameKind.USER),
        ("/srv/libown.so.1", FrameKind.USER),
        ("/usr/lib/x86_64-linux-gnu/libc.so.6", FrameKind.LIBRARY),
        ("/usr/lib64/libz.so.1", FrameKind.LIBRARY),
        ("[vdso]", FrameKind.KERNEL),
        ("/usr/bin/python3.11", FrameKind.INTERPRETER),
        ("/root/.pyenv/versions/3.12.1/lib/libpython3.12.so.1.0", FrameKind.INTERPRETER),
        ("/usr/bin/perl", FrameKind.INTERPRETER),
        ("/usr/lib/x86_64-linux-gnu/libperl.so.5.36", FrameKind.INTERPRETER),
        ("/usr/lib/x86_64-linux-gnu/libruby-3.1.so.3.1", FrameKind.INTERPRETER),
        ("/usr/bin/node", FrameKind.INTERPRETER),
        ("/usr/lib/jvm/java-17/lib/server/libjvm.so", FrameKind.INTERPRETER),
        ("/srv/nodes", FrameKind.USER),
        ("/srv/python-server", FrameKind.USER),
        ("/usr/lib/x86_64-linux-gnu/libRmath.so.1", FrameKind.LIBRARY),
    ],
)
def test_kinds(path: str, kind: FrameKind) -> None:
    assert kind_of_file(path, "/srv/app") is kind


def test_an_executable_among_the_libraries_is_the_users() -> None:
    assert kind_of_file("/usr/lib/postgresql/15/bin/postgres", None) is FrameKind.LIBRARY
    path = "/usr/lib/postgresql/15/bin/postgres"
    assert kind_of_file(path, path) is FrameKind.USER


def test_large_tables_are_put_off_while_there_is_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codefile, "_MANY_SYMBOLS", 100)
    with Resolver(MAPS, open_file) as of:
        of.hurried = True
        assert names(of) == [f"pie+{0x1000 + 16 * n:#x}" for n in range(10)]
        assert of.function_start(0x10001018) == 0
        of.take_time()
        assert names(of) == [f"f{n}" for n in range(10)]
        assert of.function_start(0x10001018) == 0x10001010


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(keptnames, "_FEW", 5)
    yield
    demangle.display_name.cache_clear()
    demangle.demangle.cache_clear()


@pytest.mark.usefixtures("few")
def test_names_are_kept_by_file_and_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = Cache(tmp_path / "cache")
    with Resolver(MAPS, open_file, cache=cache) as of:
        assert names(of) == [f"f{n}" for n in range(10)]
    monkeypatch.setattr(frame_names, "display_name", lambda name: f"anew {name}")
    with Resolver(MAPS, open_file, cache=cache) as of:
        assert names(of) == [f"f{n}" for n in range(10)]
    with Resolver(MAPS, open_file, cache=cache, full_names=True) as of:
        assert names(of) == [f"f{n}(int)" for n in range(10)]
    with Resolver(MAPS, open_file) as of:
        assert names(of)[0] == "anew _Z2f0i"


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize("content", [b"", b"nonsense", b"0 x f", b"0 1\n", b"\xff\xfe", b"0 0 one\n0 1"])
def test_kept_names_that_are_none(tmp_path: Path, content: bytes) -> None:
    cache = Cache(tmp_path / "cache")
    with Resolver(MAPS, open_file, cache=cache) as of:
        names(of)
    (kept,) = (tmp_path / "cache").glob("names-*")
    cache.put(kept.name, content)
    with Resolver(MAPS, open_file, cache=cache) as of:
        assert names(of) == [f"f{n}" for n in range(10)]
