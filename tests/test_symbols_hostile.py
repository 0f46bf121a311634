"""Files that lie: real ones cut off at every edge, words of theirs made wild.  Names go, nothing else."""

from __future__ import annotations

import contextlib
import io
import os
import random
import resource
import shutil
import struct
import subprocess
import time
import zlib
from pathlib import Path
from typing import BinaryIO

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import build_target, hostile

from pyattach.errors import MalformedInput
from pyattach.symbols.address import InstructionPointer
from pyattach.symbols.ehframe import list_fdes
from pyattach.symbols.elf import ElfImage
from pyattach.symbols.maps import Mapping, Maps
from pyattach.symbols.resolver import Resolver

BASE = 0x7F0000000000


def resolve(data: bytes, *vaddrs: int) -> list[str]:
    """Through everything that names are made of; a warning or a name, and nothing is raised."""

    def opener(_mapping: Mapping) -> BinaryIO:
        return io.BytesIO(data)

    maps = Maps([Mapping(BASE, BASE + (1 << 30), "r-xp", 0, "08:01", 1, "/app/program")])
    with Resolver(maps, opener, exe_path="/app/program", path_openers=[lambda _path: None]) as resolver:
        frames = [resolver.resolve(InstructionPointer(BASE + vaddr)) for vaddr in vaddrs]
        assert all(frame.name for frame in frames)
        assert len(resolver.warnings) < 20
    return [frame.name for frame in frames]


def libc() -> Path:
    return Path(next(w for w in Path("/proc/self/maps").read_text().split() if w.endswith("/libc.so.6")))


@pytest.mark.parametrize("which", ["split -g", "split -s", "libc"])
def test_cut_off_at_every_edge(which: str) -> None:
    """Of sections, segments and headers, a byte before and after."""
    path = libc() if which == "libc" else build_target("split", which.split()[1])
    whole = path.read_bytes()
    with ElfImage.open(path) as image:
        edges = {0, 1, 16, 63, 64, len(whole) - 1}
        for section in image.sections:
            edges |= {section.offset, section.offset + section.size}
        for segment in image.segments:
            edges |= {segment.offset, segment.offset + segment.file_size}
    cuts = {min(max(edge + by, 0), len(whole)) for edge in edges for by in (-1, 0, 1)}
    assert len(cuts) > 50
    for cut in sorted(cuts):
        resolve(whole[:cut], 0x1000, 0x1234, 0x12345)


WORDS = [0, 1, 0xFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 1 << 40, (1 << 63) - 1, (1 << 64) - 1]


@hostile(150)
@given(st.integers(0, 2**32), st.lists(st.sampled_from(WORDS), min_size=1, max_size=6))
def test_wild_words_in_the_headers(seed: int, words: list[int]) -> None:
    path = build_target("split", "-g")
    data = bytearray(path.read_bytes())
    chance = random.Random(seed)
    with ElfImage.open(path) as image:
        tables = [s for s in image.sections if s.type in (2, 3, 4, 11)]
    at_headers = int.from_bytes(data[40:48], "little")
    for word in words:
        table = chance.choice(tables)
        at = chance.choice([
            chance.randrange(0, 64, 8), at_headers + chance.randrange(0, len(data) - at_headers - 8),
            table.offset + chance.randrange(0, max(1, table.size - 8)),
        ])  # fmt: skip
        size = chance.choice([2, 4, 8])
        data[at : at + size] = (word & ((1 << 8 * size) - 1)).to_bytes(size, "little")
    resolve(bytes(data), 0x1000, 0x1200, 0x4010)


@pytest.mark.parametrize("hurried", [True, False])
@pytest.mark.parametrize("how", ["-s", "-g"])
def test_a_file_that_shrinks_while_it_is_looked_at(tmp_path: Path, how: str, hurried: bool) -> None:
    """As where a program is overwritten by another."""
    path = tmp_path / "program"
    shutil.copy(build_target("split", how), path)
    maps = Maps([Mapping(BASE, BASE + (1 << 30), "r-xp", 0, "08:01", 1, "/app/program")])
    with Resolver(maps, lambda _mapping: open(path, "rb"), path_openers=[]) as resolver:
        resolver.hurried = hurried
        place = resolver.place(InstructionPointer(BASE + 0x1234))
        os.truncate(path, 100)
        assert resolver.frames(place)[-1].name == "program+0x1234"
        assert place.file is not None and place.file.with_lines is None
        resolver.take_time()
        assert resolver.frames(place)[-1].name == "program+0x1234"
        assert 0 < len(resolver.warnings) < 20


def fdes_in(eh_frame: bytes) -> list[tuple[int, int]]:
    """What is listed of a program with that call frame information, and no zero behind it."""
    data = bytearray(build_target("split", "-g").read_bytes())
    with ElfImage(bytes(data), "program") as image:
        section = image.section(b".eh_frame")
    assert section is not None and len(eh_frame) <= section.size
    data[section.offset : section.offset + section.size] = eh_frame.ljust(section.size, b"\x01")
    with ElfImage(bytes(data), "program") as image:
        return list_fdes(image)


FDE = struct.pack("<II", 12, 4)
"""The begin of one whose CIE is at 0: it is itself."""


@pytest.mark.parametrize(
    "eh_frame", [FDE, FDE + b"\1\0" + b"\x80" * 60, FDE + b"\1zR\0" + b"\x80" * 60], ids=["text", "leb", "z"]
)
def test_a_cie_without_an_end(eh_frame: bytes) -> None:
    with pytest.raises(MalformedInput, match="eh_frame"):
        fdes_in(eh_frame)


@hostile(150)
@given(st.binary(max_size=60))
def test_any_bytes_as_call_frame_information(eh_frame: bytes) -> None:
    with contextlib.suppress(MalformedInput):
        assert all(0 <= start < 1 << 64 for start, _ in fdes_in(eh_frame))


def test_sizes_that_promise_much_cost_nothing() -> None:
    """Memory is taken for what is there, not for what is said to be."""
    path = build_target("split", "-g")
    data = bytearray(path.read_bytes())
    at_headers = int.from_bytes(data[40:48], "little")
    with ElfImage.open(path) as image:
        count = len(image.sections)
    for index in range(count):
        at = at_headers + 64 * index + 32
        data[at : at + 8] = (1 << 40).to_bytes(8, "little")
    before, begin = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    resolve(bytes(data), 0x1000)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KiB
    assert time.process_time() - begin < 5


def test_packed_sections_that_are_bombs(tmp_path: Path) -> None:
    """A few KB that unpack to GB: left packed."""
    bomb = tmp_path / "bomb"
    packed = zlib.compress(bytes(1 << 28), 9)
    bomb.write_bytes(
        (1).to_bytes(4, "little") + bytes(4) + (1 << 40).to_bytes(8, "little") + bytes(8) + packed
    )
    program = tmp_path / "program"
    words = ["objcopy", f"--add-section=.debug_str2={bomb}", "--set-section-flags=.debug_str2=readonly"]
    subprocess.run([*words, build_target("split"), program], check=True)
    data = bytearray(program.read_bytes())
    with ElfImage.open(program) as image:
        section = image.section(b".debug_str2")
        assert section is not None
        index = image.sections.index(section)
    at = int.from_bytes(data[40:48], "little") + 64 * index + 8
    data[at : at + 8] = (0x800).to_bytes(8, "little")  # SHF_COMPRESSED
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with ElfImage(bytes(data), "program") as image, contextlib.suppress(MalformedInput):
        assert image.section_content(b".debug_str2", 1 << 20) is None
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000
