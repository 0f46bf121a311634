"""Names of generated code: what runtimes write for profilers, grown, broken, forged."""

from __future__ import annotations

import io
import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path
from typing import BinaryIO

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import hostile, requires
from test_attach_run import Folded, Spawn, attach

from pyattach.symbols import jit
from pyattach.symbols.cache import Cache
from pyattach.symbols.completing import NameOptions, complete
from pyattach.symbols.jit import GrowingFile, JitDump, JitSymbols, PerfMap
from pyattach.symbols.jitfiles import JitNames
from pyattach.symbols.maps import Maps
from pyattach.symbols.resolver import Resolver


class File:
    """A file that grows, in a folder of the test's."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, data: bytes) -> None:
        with open(self.path, "ab") as file:
            file.write(data)

    def open(self) -> BinaryIO | None:
        return open(self.path, "rb") if self.path.exists() else None


@pytest.fixture
def file(tmp_path: Path) -> File:
    return File(tmp_path / "perf-1.map")


def name_at(symbols: JitSymbols, address: int) -> str | None:
    found = symbols.find(address)
    return None if found is None else found.name


def test_a_map_is_read_on_as_it_grows(file: File) -> None:
    symbols = JitSymbols()
    names = PerfMap(GrowingFile(file.open), symbols)
    assert not names.refresh()  # not there yet
    file.append(b"1000 10 first one\n2000 20 sec")
    names.refresh()
    assert name_at(symbols, 0x1000) == "first one" and name_at(symbols, 0x100F) == "first one"
    assert name_at(symbols, 0x1010) is None and name_at(symbols, 0x2000) is None
    file.append(b"ond\n0x3000 0x8 third\n")
    names.refresh()
    assert name_at(symbols, 0x201F) == "second" and name_at(symbols, 0x3007) == "third"
    assert not names.refresh() and not names.bad_lines


def test_the_last_one_made_counts(file: File) -> None:
    """Compilers use memory again."""
    symbols = JitSymbols()
    names = PerfMap(GrowingFile(file.open), symbols)
    file.append(b"1000 100 old\n1010 10 new\n")
    names.refresh()
    assert [name_at(symbols, a) for a in (0x1000, 0x1010, 0x101F, 0x1020)] == ["old", "new", "new", "old"]
    before = symbols.find(0x1010)
    file.append(b"1000 100 newest\n")
    names.refresh()
    assert name_at(symbols, 0x1010) == "newest" and before is not None and before.name == "new"
    file.append(b"1010 10 new\n")  # the same once more
    names.refresh()
    assert name_at(symbols, 0x1010) == "new" and name_at(symbols, 0x1020) == "newest"


@given(st.lists(st.lists(st.tuples(st.integers(0, 60), st.integers(1, 20)), max_size=8), max_size=8))
def test_any_order_of_making(rounds: list[list[tuple[int, int]]]) -> None:
    """What is looked up in between is as it would be with all of it sorted anew."""
    symbols, made = JitSymbols(), [(0, 0)]
    for functions in rounds:
        for start, size in functions:
            symbols.add(start, size, f"function {len(made)}")
            made.append((start, size))
        last = {start: number for number, (start, _size) in enumerate(made)}
        for address in range(82):
            covering = [n for s, n in last.items() if s <= address < s + made[n][1]]
            want = f"function {max(covering)}" if covering else None
            assert name_at(symbols, address) == want


def test_a_file_that_begins_anew_is_read_anew(file: File) -> None:
    symbols = JitSymbols()
    names = PerfMap(GrowingFile(file.open), symbols)
    file.append(b"1000 10 one\n2000 10 two\n")
    names.refresh()
    file.path.write_bytes(b"3000 10 three\n")  # cut off and written again
    names.refresh()
    assert name_at(symbols, 0x3000) == "three"
    file.path.unlink()
    file.append(b"4000 10 four\n" * 4)
    names.refresh()
    assert name_at(symbols, 0x4000) == "four"


@pytest.mark.parametrize(
    "line",
    [b"x", b"1000", b"1000 10", b"1000 zz name", b"-1000 10 name", b"1000 0 name", b"1000 -5 name",
     b"ffffffffffffffff 10 name", b"1000 ffffffffffffffffffff name", b"\xff\xfe 1 name"],
)  # fmt: skip
def test_lines_that_make_no_sense_are_counted(file: File, line: bytes) -> None:
    symbols = JitSymbols()
    names = PerfMap(GrowingFile(file.open), symbols)
    file.append(line + b"\n5000 10 good\n")
    names.refresh()
    assert names.bad_lines == 1 and len(symbols) == 1 and name_at(symbols, 0x5000) == "good"


@hostile(300)
@given(st.lists(st.binary(max_size=200), max_size=8))
def test_any_bytes(pieces: list[bytes]) -> None:
    """As a map and as a jitdump: nothing raised, memory bounded."""
    content = b""
    symbols = JitSymbols()
    source = GrowingFile(lambda: _InMemory(content))
    readers = [PerfMap(source, symbols), JitDump(GrowingFile(lambda: _InMemory(content)), symbols)]
    for piece in pieces:
        content += piece
        for reader in readers:
            reader.refresh()
            assert len(reader._rest) < 10_000
    assert symbols.find(0x1000) is None or symbols.find(0x1000) is not None


class _InMemory(io.BytesIO):
    """With a file number, for fstat."""

    def __init__(self, content: bytes) -> None:
        super().__init__(content)
        self._file = os.memfd_create("content")
        os.write(self._file, content)

    def fileno(self) -> int:
        return self._file

    def close(self) -> None:
        if not self.closed:
            os.close(self._file)
        super().close()


def test_a_huge_file_has_an_end(file: File, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jit, "MOST_BYTES", 1 << 16)
    monkeypatch.setattr(jit, "_MOST_SYMBOLS", 100)
    symbols = JitSymbols()
    growing = GrowingFile(file.open)
    names = PerfMap(growing, symbols)
    file.append(b"".join(b"%x 10 f%d\n" % (n << 8, n) for n in range(1, 20_000)))
    while names.refresh():
        pass
    assert len(symbols) == 100 and growing.full


def header() -> bytes:
    return struct.pack("=IIIIIIQQ", 0x4A695444, 1, 40, 62, 0, 1, 0, 0)


def load(start: int, size: int, name: str, code: bytes = b"") -> bytes:
    body = struct.pack("=IIQQQQ", 1, 1, start, start, size, 0) + name.encode() + b"\0" + code
    return struct.pack("=IIQ", 0, 16 + len(body), 0) + body


def move(old: int, new: int, size: int) -> bytes:
    body = struct.pack("=IIQQQQQ", 1, 1, new, old, new, size, 0)
    return struct.pack("=IIQ", 1, 16 + len(body), 0) + body


@pytest.mark.parametrize("step", [1, 7, 40, 100_000])
def test_a_jitdump_in_pieces(file: File, step: int) -> None:
    symbols = JitSymbols()
    names = JitDump(GrowingFile(file.open), symbols)
    other = struct.pack("=IIQ", 3, 16 + 5, 0) + b"close"
    whole = header() + load(0x1000, 16, "first", bytes(5000)) + other + load(0x2000, 32, "second", bytes(3))
    whole += move(0x1000, 0x5000, 16)
    for at in range(0, len(whole), step):
        file.append(whole[at : at + step])
        names.refresh()
    assert [name_at(symbols, a) for a in (0x100F, 0x201F, 0x5001)] == ["first", "second", "first"]
    assert not names.bad_lines


@pytest.mark.parametrize(
    "data",
    [b"no jitdump" * 10, header()[:20], struct.pack("=IIIIIIQQ", 0x4A695444, 1, 1 << 31, 62, 0, 1, 0, 0),
     header() + struct.pack("=IIQ", 0, 3, 0) + bytes(40), header() + load(2**64 - 4, 16, "wraps")],
)  # fmt: skip
def test_a_jitdump_that_makes_no_sense(file: File, data: bytes) -> None:
    symbols = JitSymbols()
    names = JitDump(GrowingFile(file.open), symbols)
    file.append(data)
    names.refresh()
    assert not len(symbols)


def test_only_the_processs_own_files_are_believed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """/tmp is everybody's."""
    monkeypatch.setattr("pyattach.symbols.jitfiles._temporary_folders", lambda _pid: [str(tmp_path)])
    path = tmp_path / f"perf-{os.getpid()}.map"
    path.write_text("1000 10 name\n")

    def names() -> int:
        found = JitNames(os.getpid())
        found.refresh(Maps())
        return len(found.symbols)

    assert names() == 1
    os.utime(path, (1e9, 1e9))  # an earlier process of this number has left it
    assert names() == 0
    path.touch()
    assert names() == 1
    path.chmod(0o666)
    assert names() == 0
    path.chmod(0o644)
    if os.geteuid() == 0:
        os.chown(path, 12345, 12345)
        assert names() == 0
        os.chown(path, 0, 0)
    target = path.rename(tmp_path / "elsewhere")
    path.symlink_to(target)
    assert names() == 0
    path.unlink()
    os.mkfifo(path)
    assert names() == 0


def test_what_was_not_taken_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyattach.symbols.jitfiles._temporary_folders", lambda _pid: [str(tmp_path)])
    path, maps = tmp_path / f"perf-{os.getpid()}.map", Maps.parse(Path("/proc/self/maps").read_bytes())
    path.write_text("1000 10 name\n")
    os.utime(path, (1e9, 1e9))
    with Resolver(maps, lambda _mapping: None, jit=JitNames(os.getpid())) as resolver:
        resolver.refresh_jit()
        (old,) = complete(resolver, NameOptions(), Cache(None), print)
    assert f"{path} is older than the process" in old
    path.touch()
    with Resolver(maps, lambda _mapping: None, jit=JitNames(os.getpid())) as resolver:
        resolver.refresh_jit()
        assert not list(complete(resolver, NameOptions(), Cache(None), print))
        with open(path, "a") as file:
            file.write("no sense\n" * 1200 + "2000 10 other\n")
        monkeypatch.setattr(jit, "MOST_BYTES", path.stat().st_size - 1)
        resolver.refresh_jit()
        bad, full = complete(resolver, NameOptions(), Cache(None), print)
    assert "1,200 lines" in bad and "only the first 256 MB" in full


# Real runtimes.


def test_node_tells_its_names(spawn: Spawn, tmp_path: Path) -> None:
    script = tmp_path / "work.js"
    script.write_text(
        "function spendTimeHere(n) {\n"
        "  let x = 1; for (let i = 0; i < n; i++) x = (x * 31 + i) % 65521; return x }\n"
        "process.stdin.on('data', () => {});\n"
        "process.stdin.on('end', () => { console.log('done'); process.exit(0) });\n"
        "console.log('ready'); (function again() { spendTimeHere(3e6); setImmediate(again) })();\n"
    )
    folded = tmp_path / "o.folded"
    with spawn([requires("node"), "--perf-basic-prof", str(script)], cwd=tmp_path) as target:
        attach(target.pid, "-d", "1s", "-o", folded)
        profile = Folded(folded)
        target.finish()
    Path(f"/tmp/perf-{target.pid}.map").unlink()
    named = sum(ticks for name, ticks in profile.leaves().items() if "spendTimeHere" in name)
    assert named > 0.8 * profile.total


def test_cpython_tells_its_names(spawn: Spawn, tmp_path: Path) -> None:
    """-X perf, from 3.12 on: a trampoline in machine code for each function."""
    python = newer_cpython()
    if python is None:
        pytest.skip("needs CPython 3.12 or newer")
    script = tmp_path / "work.py"
    script.write_text(
        "import select, sys\n"
        "def spend_time_here():\n    return sum(i * i % 7 for i in range(20000))\n"
        "def main():\n"
        "    print('ready', flush=True)\n"
        "    while not select.select([sys.stdin], [], [], 0)[0]:\n        spend_time_here()\n"
        "    print('done')\n"
        "main()\n"
    )
    folded = tmp_path / "o.folded"
    with spawn([python, "-X", "perf", str(script)], cwd=tmp_path) as target:
        attach(target.pid, "-d", "1s", "-o", folded)
        profile = Folded(folded)
        target.finish()
    Path(f"/tmp/perf-{target.pid}.map").unlink()
    named = sum(ticks for stack, ticks in profile.stacks.items() if "spend_time_here" in ";".join(stack))
    assert named > 0.8 * profile.total


def newer_cpython() -> str | None:
    """One that has -X perf."""
    probe = "import sys; sys.exit(sys.version_info < (3, 12))"
    found = [*map(shutil.which, ("python3.13", "python3.12", "python3")), sys.executable]
    found += [str(path) for path in Path("~/.pyenv/versions").expanduser().glob("3.1[23].*/bin/python3")]
    return next(
        (p for p in found if p and not subprocess.run([p, "-c", probe], capture_output=True).returncode), None
    )


def test_what_was_read_is_not_read_again(file: File) -> None:
    """However many names there are, a refresh costs what is new."""
    symbols, read = JitSymbols(), 0

    class Counted(io.FileIO):
        def readinto(self, buffer: object) -> int:
            nonlocal read
            size = super().readinto(buffer)  # type: ignore[arg-type]
            read += size
            return size

    names = PerfMap(GrowingFile(lambda: io.BufferedReader(Counted(file.path))), symbols)
    file.append(b"".join(b"%x 10 f%d\n" % (n << 8, n) for n in range(1, 200_000)))
    while names.refresh():
        pass
    whole = file.path.stat().st_size
    for _ in range(100):
        names.refresh()
    file.append(b"f0000000 10 late\n")
    names.refresh()
    assert len(symbols) == 200_000 and name_at(symbols, 0xF0000000) == "late"
    assert whole < read < whole + 10_000
