"""Lines and inlined calls, against addr2line's, from what gcc and clang write."""

from __future__ import annotations

import ctypes
import importlib.metadata
import os
import random
import re
import signal
import subprocess
import time
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support import SOURCES, build_target, requires
from test_attach_run import Folded, Spawn, attach, wait_for

from pyattach.attacher import cli
from pyattach.attacher.contract import Options, Progress
from pyattach.attacher.session import attach as attach_here
from pyattach.errors import ExitCode
from pyattach.symbols import codefile, lines, lines_ahead
from pyattach.symbols.address import InstructionPointer
from pyattach.symbols.cache import Cache
from pyattach.symbols.completing import NameOptions, complete
from pyattach.symbols.elf import ElfImage
from pyattach.symbols.lines import LineReader, missing_parts
from pyattach.symbols.lines_ahead import LinesAhead
from pyattach.symbols.maps import Maps
from pyattach.symbols.place import Place
from pyattach.symbols.resolver import Resolver, proc_opener

Chain = list[tuple[str, str, int]]
"""Function, file name, line; innermost first."""


def reader(cache: Cache | None = None, seconds: float = 60, *, inlines: bool = True) -> LineReader:
    return LineReader(cache, time.monotonic() + seconds, inlines=inlines)


def build(tmp_path: Path, compiler: str, *flags: str) -> Path:
    path = tmp_path / "inlined"
    words = [requires(compiler), "-std=gnu11", "-O2", "-g", *flags, "-o", path, SOURCES / "inlined.c"]
    subprocess.run([str(word) for word in words], check=True, cwd=tmp_path)
    return path


def some_addresses(path: Path, functions: tuple[str, ...], most: int = 400) -> list[int]:
    """Of instructions in these functions."""
    out: list[int] = []
    for function in functions:
        words = [requires("objdump"), "-d", f"--disassemble={function}", str(path)]
        text = subprocess.run(words, capture_output=True, text=True, check=True).stdout
        out += [int(found[1], 16) for found in re.finditer(r"^\s+([0-9a-f]+):\t", text, re.MULTILINE)]
    return random.Random(1).sample(out, min(most, len(out)))


def as_addr2line_has_it(path: Path, addresses: list[int]) -> list[Chain]:
    words = [requires("addr2line"), "-a", "-f", "-i", "-e", str(path), *map(hex, addresses)]
    text = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    out: list[Chain] = []
    rows = iter(text.splitlines())
    for row in rows:
        if row.startswith("0x"):
            out.append([])
            continue
        where = next(rows).split(" (discriminator")[0]
        file, _, line = where.rpartition(":")
        out[-1].append((row, Path(file).name, int(line) if line.isdigit() else 0))
    return out


def as_we_have_it(path: Path, addresses: list[int], used: LineReader) -> list[Chain]:
    with ElfImage.open(path) as image:
        found = used.read(image, addresses)
    assert found is not None, used.error
    return [
        [
            *[(call.function, Path(call.path).name, call.line) for call in reversed(line.inlined)],
            (line.function, Path(line.path).name, line.line),
        ]
        for line in found
    ]


@pytest.mark.parametrize("version", [2, 3, 4, 5])
@pytest.mark.parametrize("compiler", ["gcc", "clang"])
def test_as_addr2line(tmp_path: Path, compiler: str, version: int) -> None:
    path = build(tmp_path, compiler, f"-gdwarf-{version}")
    addresses = some_addresses(path, ("calls_inlined", "main"))
    assert len(addresses) > 20
    ours, theirs = as_we_have_it(path, addresses, reader()), as_addr2line_has_it(path, addresses)
    assert max(map(len, ours)) == 4  # three deep
    different = [(hex(a), o, t) for a, o, t in zip(addresses, ours, theirs, strict=True) if o != t]
    # A line 0 is one that the compiler could not tell: addr2line keeps the one before.
    assert not [d for d in different if all(line for chain in d[1:] for _, _, line in chain)]


def test_no_inlines(tmp_path: Path) -> None:
    path = build(tmp_path, "gcc")
    addresses = some_addresses(path, ("calls_inlined",))
    assert {len(chain) for chain in as_we_have_it(path, addresses, reader(inlines=False))} == {1}


@pytest.mark.parametrize("how", ["zlib", "zlib-gnu"])
def test_from_compressed_sections(tmp_path: Path, how: str) -> None:
    path = build(tmp_path, "gcc")
    addresses = some_addresses(path, ("calls_inlined",))
    plain = as_we_have_it(path, addresses, reader())
    subprocess.run(["objcopy", f"--compress-debug-sections={how}", str(path)], check=True)
    assert as_we_have_it(path, addresses, reader()) == plain


def test_the_index_is_kept(tmp_path: Path) -> None:
    path = build(tmp_path, "gcc", "-Wl,--build-id")
    cache = Cache(tmp_path / "cache")
    addresses = some_addresses(path, ("calls_inlined",))
    first = as_we_have_it(path, addresses, reader(cache))
    (kept,) = (tmp_path / "cache").iterdir()
    assert kept.name.startswith("lines-")
    assert as_we_have_it(path, addresses, reader(cache)) == first
    cache.put(kept.name, b"nonsense" * 100)  # whole, but no index
    with ElfImage.open(path) as image:
        used = reader(cache)
        found = used.read(image, addresses)
    assert found is not None or used.error


def test_an_index_is_kept_for_the_library_that_made_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others may not read it, or make it anew each time."""
    path = build(tmp_path, "gcc", "-Wl,--build-id")
    cache = Cache(tmp_path / "cache")
    addresses = some_addresses(path, ("calls_inlined",))
    first = as_we_have_it(path, addresses, reader(cache))
    (kept,) = (tmp_path / "cache").iterdir()
    cache.put(kept.name, b"of another version")
    monkeypatch.setattr(importlib.metadata, "version", lambda _name: "999")
    assert as_we_have_it(path, addresses, reader(cache)) == first
    assert len(list((tmp_path / "cache").iterdir())) == 2


@pytest.mark.parametrize("dwarf", ["4", "5"])
def test_what_was_split_off_is_said_to_be_missing(tmp_path: Path, dwarf: str) -> None:
    path = build(tmp_path, "gcc", "-gsplit-dwarf", f"-gdwarf-{dwarf}")
    with ElfImage.open(path) as image:
        assert "-gsplit-dwarf" in missing_parts(image)
    with ElfImage.open(build(tmp_path, "gcc")) as image:
        assert missing_parts(image) == ""


def test_a_file_that_was_put_off_has_lines_at_the_end(spawn: Spawn, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its functions have no names while sampling, when there is no time for its table."""
    monkeypatch.setattr(codefile, "_MANY_SYMBOLS", 0)
    options = Options(rate_hz=99, names=NameOptions(lines=True))
    named = 0

    def look(progress: Progress) -> None:
        nonlocal named
        progress.store.update_totals()
        named += progress.ticks > 20

    with spawn([build_target("split", "-g")]) as target:
        profile = attach_here(target.pid, options, lambda: named > 2, look).profile
        target.finish()
    frames = [frame for _tid, stack in profile.weights for frame in stack if frame.name == "work_70"]
    assert frames and all(re.search(r"split\.c:\d+$", frame.line) for frame in frames)


def test_abbreviations_that_are_a_number_without_an_end() -> None:
    """Work and memory grow with the section, not with its square."""
    assert list(lines._attributes(b"\xff" * (8 << 20))) == []


def test_abbreviations_that_cannot_be_unpacked_are_told(tmp_path: Path) -> None:
    """The lines are there all the same: their index was kept."""
    path = build(tmp_path, "gcc", "-shared", "-fPIC", "-Dmain=other", "-Wl,--build-id")
    subprocess.run(["objcopy", "--compress-debug-sections=zlib", path], check=True)
    library, cache = ctypes.CDLL(str(path)), Cache(tmp_path / "cache")
    address = ctypes.cast(library.other, ctypes.c_void_p).value
    assert address is not None

    def completed() -> tuple[str, list[str]]:
        with Resolver(Maps.parse(Path("/proc/self/maps").read_bytes()), proc_opener(os.getpid())) as resolver:
            place = resolver.place(InstructionPointer(address))
            resolver.frames(place)
            notes = list(complete(resolver, NameOptions(lines=True), cache, print))
            return resolver.frames(place)[0].line, notes

    line, notes = completed()
    assert re.search(r"/inlined\.c:\d+$", line) and not notes
    with ElfImage.open(path) as image:
        home = image.section(b".debug_abbrev")
    assert home is not None
    with open(path, "r+b") as file:
        file.seek(home.offset + 24)  # behind the header of what is packed
        file.write(b"\xff" * 8)
    again, notes = completed()
    assert again == line and len(notes) == 1 and "not a sound ELF file" in notes[0]


def test_dwzs_file_is_said_to_be_missing(tmp_path: Path) -> None:
    path, link = build(tmp_path, "gcc"), tmp_path / "link"
    link.write_bytes(b"/usr/lib/debug/.dwz/common.debug\0" + bytes(20))
    subprocess.run(["objcopy", f"--add-section=.gnu_debugaltlink={link}", path], check=True)
    with ElfImage.open(path) as image:
        assert "dwz" in missing_parts(image)


def test_a_deadline_is_kept(tmp_path: Path) -> None:
    path = build(tmp_path, "gcc")
    with ElfImage.open(path) as image:
        used = reader(seconds=0)
        assert used.read(image, [image.entry]) is None
    assert "took too long" in used.error


@pytest.mark.parametrize(
    "section", [".debug_info", ".debug_abbrev", ".debug_line", ".debug_str", ".debug_rnglists"]
)
def test_nonsense_in_debug_sections(tmp_path: Path, section: str) -> None:
    """No crash: at worst there are no lines."""
    path = build(tmp_path, "gcc", "-gdwarf-5")
    addresses = some_addresses(path, ("calls_inlined",), 20)
    with ElfImage.open(path) as image:
        home = image.section(section.encode())
    assert home is not None
    for seed in range(4):
        data = bytearray(path.read_bytes())
        noise = random.Random(seed)
        for at in noise.sample(range(home.size), min(home.size, 40)):
            data[home.offset + at] = noise.randrange(256)
        bad = tmp_path / f"bad{seed}"
        bad.write_bytes(data)
        with ElfImage.open(bad) as image:
            used = reader()
            found = used.read(image, addresses)
        assert (found is None) == bool(used.error)


def test_in_all_that_is_written(spawn: Spawn, tmp_path: Path) -> None:
    """Inlined frames are marked, and lines are in the text and the picture."""
    folded, by_line, text, svg = (tmp_path / name for name in ("o.folded", "l.folded", "o.txt", "o.svg"))
    program = [str(build_target("inlined", "-g"))]
    with spawn(program) as target:
        attach(target.pid, "--lines", "-d", "500ms", "-o", folded, "-o", text, "-o", svg)
        stacks = Folded(folded).stacks
        attach(target.pid, "--lines", "--folded-lines", "-d", "500ms", "-o", by_line)
        attach(target.pid, "--lines", "--no-inlines", "-d", "500ms", "-o", folded)
        plain = Folded(folded).stacks
        target.finish()
    deep = "calls_inlined;outer (inlined);middle (inlined);innermost (inlined)"
    assert any(deep in ";".join(stack) for stack in stacks)
    assert not any("(inlined)" in ";".join(stack) for stack in plain)
    assert re.search(r"innermost \(inlined\).*inlined\.c:[89]\b", by_line.read_text())
    assert "inlined.c:" in text.read_text()


@pytest.fixture
def asked(tmp_path: Path) -> Iterator[tuple[Resolver, Place]]:
    """A resolver that was asked for a place in a loaded file with lines."""
    path = build(tmp_path, "gcc", "-shared", "-fPIC", "-Dmain=other")
    library = ctypes.CDLL(str(path))
    address = ctypes.cast(library.other, ctypes.c_void_p).value
    assert address is not None
    with Resolver(Maps.parse(Path("/proc/self/maps").read_bytes()), proc_opener(os.getpid())) as resolver:
        place = resolver.place(InstructionPointer(address))
        assert [frame.line for frame in resolver.frames(place)] == [""]
        yield resolver, place


def test_lines_are_read_while_nobody_waits(asked: tuple[Resolver, Place]) -> None:
    resolver, place = asked
    now_s = 100.0
    ahead = LinesAhead(resolver, None, clock=lambda: now_s)
    assert ahead.look() == []  # it has begun
    told: list[Place] = []
    wait_for("lines", lambda: told.extend(ahead.look()) or told)
    assert told == [place]
    assert re.search(r"/inlined\.c:\d+$", resolver.frames(place)[0].line)
    now_s += 3600
    assert ahead.look() == [] == ahead.look()  # nothing is asked for twice
    ahead.close()


def test_the_reader_of_lines_does_not_outlive_it(
    asked: tuple[Resolver, Place], monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[subprocess.Popen[bytes]] = []

    def popen(*words: Any, **options: Any) -> subprocess.Popen[bytes]:
        begun.append(subprocess.Popen(["sleep", "600"], **options))
        return begun[-1]

    monkeypatch.setattr(lines, "subprocess", types.SimpleNamespace(Popen=popen, DEVNULL=subprocess.DEVNULL))
    ahead = LinesAhead(asked[0], None)
    assert ahead.look() == []
    assert len(begun) == 1 and begun[0].poll() is None
    ahead.close()
    assert begun[0].returncode == -signal.SIGKILL


def test_a_file_whose_lines_cannot_be_read_is_asked_once(
    asked: tuple[Resolver, Place], monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s, count = 0.0, 0

    def fails(*_words: Any, **_options: Any) -> None:
        nonlocal count
        count += 1
        raise OSError

    monkeypatch.setattr(lines_ahead, "LineRequest", fails)
    ahead = LinesAhead(asked[0], None, clock=lambda: now_s)
    for _ in range(5):
        assert ahead.look() == []
        now_s += 100
    assert count == 1


def test_without_the_package_it_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(lines, "available", lambda: False)
    assert cli.main(["1", "--lines"]) == ExitCode.USAGE
    assert "pip install 'pyattach[lines]'" in capsys.readouterr().err
