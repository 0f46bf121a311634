"""Addresses to frames: the rules for each kind of mapping, and files opened through /proc."""

from __future__ import annotations

import ctypes
import io
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import pytest
from elfwriter import ET_EXEC, Elf, Load, Sym

from pyattach.symbols.address import InstructionPointer, ReturnAddress
from pyattach.symbols.frame import Frame, FrameKind
from pyattach.symbols.maps import Mapping, Maps, parse_maps
from pyattach.symbols.resolver import Resolver, proc_opener

PIE = Elf(symtab=[Sym("_Z3fooi", 0x1100, 16), Sym("main", 0x1110, 16)]).encode()
FIXED = Elf(
    type=ET_EXEC, loads=[Load(0x401000, 0x1000, 0x1000)], text=(0x401000, 0x1000),
    symtab=[Sym("start", 0x401000, 16)],
).encode()  # fmt: skip
SHIFTED = Elf(
    loads=[Load(0x0, 0x0, 0x640, 4), Load(0x1640, 0x640, 0x500)], text=(0x1640, 0x500),
    symtab=[Sym("shifted", 0x1650, 16)],
).encode()  # fmt: skip
HOSTILE = Elf(symtab=[Sym("evil\x1b[2J\n\u202e", 0x1000, 16), Sym("x" * 5000, 0x1010, 16)]).encode()

FILES = {
    "/app/pie": PIE,
    "/app/fixed": FIXED,
    "/usr/lib/libshifted.so": SHIFTED,
    "/app/hostile": HOSTILE,
    "/app/broken": PIE[:-1],
    "[vdso]": PIE,
    "/memfd:stub (deleted)": PIE,
    "/memfd:jit (deleted)": b"\x90" * 4096,
}

MAPS = Maps(
    parse_maps(
        b"""\
00401000-00402000 r-xp 00001000 fd:01 2 /app/fixed
10001000-10002000 r-xp 00001000 fd:01 1 /app/pie
20001000-20002000 r-xp 00000000 fd:01 3 /usr/lib/libshifted.so
30001000-30002000 r-xp 00001000 fd:01 4 /app/hostile
40001000-40002000 r-xp 00001000 fd:01 5 /app/broken
50001000-50002000 r-xp 00001000 fd:01 6 /app/no\x1bwhere.so (deleted)
60000000-60001000 r-xp 00000000 00:00 0
60001000-60002000 rwxp 00000000 00:00 0 [anon:v8]
60003000-60004000 rw-p 00000000 00:00 0 [heap]
70001000-70002000 r-xp 00001000 00:01 7 /memfd:stub (deleted)
70002000-70003000 r-xp 00000000 00:01 8 /memfd:jit (deleted)
7fff00000000-7fff00002000 r-xp 00000000 00:00 0 [vdso]
ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0 [vsyscall]
"""
    )
)


class Opener:
    """Hands out FILES and remembers what was asked for."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def __call__(self, mapping: Mapping) -> BinaryIO | None:
        self.asked.append(mapping.path)
        data = FILES.get(mapping.path)
        return None if data is None else io.BytesIO(data)


@pytest.fixture
def opener() -> Opener:
    return Opener()


@pytest.fixture
def resolver(opener: Opener) -> Iterator[Resolver]:
    with Resolver(MAPS, opener, exe_path="/usr/lib/libshifted.so") as resolver:
        yield resolver


@pytest.mark.parametrize(
    ("address", "name", "module", "kind"),
    [
        (0x10001100, "foo", "pie", FrameKind.USER),
        (0x10001110, "main", "pie", FrameKind.USER),
        (0x10001200, "pie+0x1200", "pie", FrameKind.UNKNOWN),
        (0x401008, "start", "fixed", FrameKind.USER),
        (0x401010, "fixed+0x401010", "fixed", FrameKind.UNKNOWN),
        (0x20001650, "shifted", "libshifted.so", FrameKind.USER),  # in /usr/lib, but it is the executable
        (0x20001640, "libshifted.so+0x1640", "libshifted.so", FrameKind.UNKNOWN),
        (0x30001000, "evil\ufffd[2J\ufffd\ufffd", "hostile", FrameKind.USER),
        (0x30001010, "x" * 1000, "hostile", FrameKind.USER),
        (0x40001100, "broken+0x1100", "broken", FrameKind.UNKNOWN),
        (0x50001234, "no\ufffdwhere.so+0x1234", "no\ufffdwhere.so", FrameKind.UNKNOWN),
        (0x60000010, "0x60000010", "[anon]", FrameKind.JIT),
        (0x60001010, "0x60001010", "[anon:v8]", FrameKind.JIT),
        (0x60003010, "0x60003010", "", FrameKind.UNKNOWN),
        (0x70001100, "foo", "memfd:stub", FrameKind.USER),
        (0x70002100, "0x70002100", "memfd:jit", FrameKind.JIT),
        (0x7FFF00001100, "foo", "[vdso]", FrameKind.KERNEL),
        (0xFFFFFFFFFF600400, "[vsyscall]+0x400", "[vsyscall]", FrameKind.KERNEL),
        (0x90000000, "0x90000000", "", FrameKind.UNKNOWN),
        (0, "0x0", "", FrameKind.UNKNOWN),
    ],
)
def test_rules(resolver: Resolver, address: int, name: str, module: str, kind: FrameKind) -> None:
    pointer = InstructionPointer(address)
    assert resolver.resolve(pointer) == Frame(name, module, kind)
    assert resolver.has_name(resolver.place(pointer)) == (kind not in (FrameKind.UNKNOWN, FrameKind.JIT))


def test_a_return_address_belongs_to_the_call_before_it(resolver: Resolver) -> None:
    assert resolver.resolve(ReturnAddress(0x10001110)).name == "foo"
    assert resolver.resolve(InstructionPointer(0x10001110)).name == "main"
    assert resolver.resolve(ReturnAddress(0)).kind is FrameKind.UNKNOWN


def test_each_file_is_opened_once_and_complained_of_once(resolver: Resolver, opener: Opener) -> None:
    for address in (0x40001100, 0x40001104, 0x50001234, 0x50001238, 0x70002100, 0x10001100, 0x10001110):
        resolver.resolve(InstructionPointer(address))
    assert sorted(opener.asked) == sorted(set(opener.asked))
    assert len(resolver.warnings) == 2  # not for the memfd with generated code
    assert resolver.warnings[0].startswith("/app/broken: ")
    assert resolver.warnings[1].startswith("/app/no\\u001bwhere.so")


def test_system_libraries_are_told_from_the_users(opener: Opener) -> None:
    with Resolver(MAPS, opener, exe_path="/app/pie") as resolver:
        assert resolver.resolve(InstructionPointer(0x20001650)).kind is FrameKind.LIBRARY
        assert resolver.resolve(InstructionPointer(0x401000)).kind is FrameKind.USER


def test_a_place_stays_what_it_was_when_the_mappings_change(opener: Opener) -> None:
    with Resolver(Maps(m for m in MAPS if m.path == "/app/pie"), opener) as resolver:
        early, late = InstructionPointer(0x10001100), InstructionPointer(0x401000)
        place = resolver.place(early)
        assert resolver.resolve(late).kind is FrameKind.UNKNOWN
        resolver.update(Maps(m for m in MAPS if m.path == "/app/fixed"))
        assert [frame.name for frame in resolver.frames(place)] == ["foo"]
        assert resolver.resolve(late).name == "start"
        assert resolver.resolve(early).name == "0x10001100" and resolver.maps.find(0x10001100) is None
        resolver.update(Maps(m for m in MAPS if m.path == "/app/pie"))
        assert resolver.place(early) is not place  # it may be another file of the same number
        assert resolver.resolve(early).name == "foo"


# Our own process, through /proc.


def own_maps() -> Maps:
    return Maps.parse(Path("/proc/self/maps").read_bytes())


def test_our_own_libc_and_vdso() -> None:
    with Resolver(own_maps(), proc_opener(os.getpid())) as resolver:
        address = ctypes.cast(ctypes.CDLL(None).getpid, ctypes.c_void_p).value
        assert address is not None
        frame = resolver.resolve(InstructionPointer(address))
        assert frame.name.endswith("getpid") and frame.kind is FrameKind.LIBRARY
        vdso = next((m for m in resolver.maps if m.path == "[vdso]"), None)
        image = vdso and resolver.image(vdso)
        if vdso is not None and image is not None:
            symbol = image.dynamic_symbol(b"__vdso_clock_gettime") or image.dynamic_symbol(
                b"__kernel_clock_gettime"
            )
            assert symbol is not None
            frame = resolver.resolve(InstructionPointer(vdso.start + symbol.value))
            assert "clock_gettime" in frame.name and frame.kind is FrameKind.KERNEL
        assert not resolver.warnings


def test_the_executable_is_opened_even_when_deleted(tmp_path: Path) -> None:
    copy = tmp_path / "sleeper"
    shutil.copy(shutil.which("sleep") or "/bin/sleep", copy)
    with subprocess.Popen([copy, "60"]) as process:
        try:
            _wait_for_exec(process.pid, copy)
            copy.unlink()
            maps = Maps.parse(Path(f"/proc/{process.pid}/maps").read_bytes())
            mapping = next(m for m in maps.executable() if m.file_path == str(copy))
            stream = proc_opener(process.pid)(mapping)
            assert mapping.deleted and stream is not None
            with stream:
                assert stream.read(4) == b"\x7fELF"
        finally:
            process.kill()


def _wait_for_exec(pid: int, path: Path) -> None:
    # Popen returns at exec's point of no return; the file is mapped a moment after that.
    end = time.monotonic() + 10
    while f"{path}\n" not in Path(f"/proc/{pid}/maps").read_text():
        assert time.monotonic() < end
        time.sleep(0.001)
    assert Path(f"/proc/{pid}/exe").readlink() == path


def fake(path: str, inode: int) -> Mapping:
    return Mapping(0x10000, 0x11000, "r-xp", 0, "00:00", inode, path)


def test_only_the_mapped_regular_file_is_opened(tmp_path: Path) -> None:
    fifo, file = tmp_path / "fifo", tmp_path / "file"
    os.mkfifo(fifo)
    file.write_bytes(b"data")
    open_mapping = proc_opener(os.getpid())
    assert open_mapping(fake(str(fifo), fifo.stat().st_ino)) is None  # and does not hang
    assert open_mapping(fake("/dev/null", Path("/dev/null").stat().st_ino)) is None
    assert open_mapping(fake(str(file), file.stat().st_ino + 1)) is None
    assert open_mapping(fake("/nul\0", 5)) is None
    assert open_mapping(fake("[heap]", 0)) is None
    stream = open_mapping(fake(str(file), file.stat().st_ino))
    assert stream is not None
    with stream:
        assert stream.read() == b"data"
    gone = proc_opener(2**22 + 1)
    assert gone(fake(str(file), file.stat().st_ino)) is None
    assert gone(Mapping(0x10000, 0x11000, "r-xp", 0, "00:00", 0, "[vdso]")) is None


def test_python_itself_has_names() -> None:
    exe = str(Path(sys.executable).resolve())
    with Resolver(own_maps(), proc_opener(os.getpid()), exe_path=exe) as resolver:
        address = ctypes.cast(ctypes.pythonapi.PyList_New, ctypes.c_void_p).value
        assert address is not None
        assert resolver.resolve(InstructionPointer(address)).name == "PyList_New"
