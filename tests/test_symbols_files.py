"""Names from real files, in every shape that linkers, strip and objcopy give them."""

from __future__ import annotations

import lzma
import os
import subprocess
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import build_target, requires

from pyattach.symbols.address import InstructionPointer
from pyattach.symbols.elf import ElfImage
from pyattach.symbols.files import file_opener, own_path_opener
from pyattach.symbols.frame import FrameKind
from pyattach.symbols.maps import Mapping, Maps
from pyattach.symbols.name_options import SUMMING_S
from pyattach.symbols.resolver import Resolver
from pyattach.symbols.summing import Summing

BASE = 0x7F0000000000


def symbols_of(path: Path) -> dict[str, int]:
    """Name and value, as nm has them."""
    out = subprocess.run([requires("nm"), path], capture_output=True, text=True, check=True).stdout
    rows = [line.split() for line in out.splitlines()]
    return {row[2]: int(row[0], 16) for row in rows if len(row) == 3 and row[1] in "tT"}


def mapped(path: Path, base: int) -> Maps:
    """The mappings that the kernel makes of a file whose lowest address is to be at ``base``."""
    with ElfImage.open(path) as image:
        out = []
        for segment in image.segments:
            start = segment.vaddr & ~0xFFF
            end = (segment.vaddr + segment.memory_size + 0xFFF) & ~0xFFF
            permissions = f"r{'w' if segment.flags & 2 else '-'}{'x' if segment.executable else '-'}p"
            out.append(
                Mapping(
                    base + start, base + end, permissions, segment.offset & ~0xFFF, "08:01",
                    path.stat().st_ino, str(path),
                )
            )  # fmt: skip
    return Maps(out)


def run(*words: object) -> None:
    subprocess.run([str(word) for word in words], check=True)


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """A copy, with debug information, that may be changed."""
    path = tmp_path / "program"
    path.write_bytes(build_target("split", "-g").read_bytes())
    path.chmod(0o755)
    return path


def names(path: Path, addresses: dict[str, int], base: int = BASE) -> dict[str, str]:
    """What the resolver makes of a byte inside each function, mapped at ``base``."""
    openers = [own_path_opener]
    with Resolver(mapped(path, base), file_opener, exe_path=str(path), path_openers=openers) as resolver:
        found = {name: resolver.resolve(InstructionPointer(base + at + 1)) for name, at in addresses.items()}
        assert not resolver.warnings
        assert all(frame.kind in (FrameKind.USER, FrameKind.UNKNOWN) for frame in found.values())
    return {name: frame.name for name, frame in found.items()}


def own_functions(path: Path) -> dict[str, int]:
    """Those that its source has and the compiler keeps."""
    own = ("main", "one_round", "work_70", "work_20", "work_10")
    return {name: at for name, at in symbols_of(path).items() if name in own}


def all_right(found: dict[str, str]) -> bool:
    return len(found) >= 3 and all(name == shown for name, shown in found.items())


@pytest.mark.parametrize(
    ("flags", "base"),
    [
        (("-pie", "-fPIE"), BASE),
        (("-no-pie",), 0),
        (("-static-pie", "-fPIE"), BASE),
        (("-static",), 0),
        (("-Wl,-z,separate-code",), BASE),
        (("-Wl,-z,noseparate-code",), BASE),
        (("-fuse-ld=lld", "-Wl,--rosegment"), BASE),  # addresses that are not the offsets in the file
        (("-Wl,-Ttext-segment=0x10000000",), BASE),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_linked_in_every_way(flags: tuple[str, ...], base: int) -> None:
    if "-fuse-ld=lld" in flags:
        requires("ld.lld")
    path = build_target("split", *flags)
    assert all_right(names(path, own_functions(path), base))


def test_addresses_that_are_not_offsets_are_there() -> None:
    requires("ld.lld")
    with ElfImage.open(build_target("split", "-fuse-ld=lld", "-Wl,--rosegment")) as image:
        assert any(s.executable and s.vaddr != s.offset for s in image.segments)


def test_stripped(program: Path) -> None:
    functions = own_functions(program)
    run("strip", program)
    found = names(program, functions)
    assert all(shown == f"program+{functions[name] + 1:#x}" for name, shown in found.items())


@pytest.mark.parametrize("place", ["beside", ".debug"])
def test_debug_file_by_link(program: Path, place: str) -> None:
    functions = own_functions(program)
    debug = program.with_name("program.debug")
    run("objcopy", "--only-keep-debug", program, debug)
    run("strip", program)
    run("objcopy", f"--add-gnu-debuglink={debug}", program)
    if place == ".debug":
        (program.parent / ".debug").mkdir()
        debug = debug.rename(program.parent / ".debug" / debug.name)
    assert all_right(names(program, functions))
    other = build_target("threads", "-g")  # another program's, under the same name
    run("objcopy", "--only-keep-debug", other, debug)
    assert not any(name == shown for name, shown in names(program, functions).items())


def test_a_debug_file_that_is_too_large_is_not_summed_up(program: Path) -> None:
    """It may have holes of any size: all of it would be read, to the end of days."""
    functions = own_functions(program)
    debug = program.with_name("program.debug")
    run("objcopy", "--only-keep-debug", "--remove-section=.note.gnu.build-id", program, debug)
    run("strip", "--remove-section=.note.gnu.build-id", program)
    run("objcopy", f"--add-gnu-debuglink={debug}", program)
    assert all_right(names(program, functions))
    os.truncate(debug, (2 << 30) + 1)
    with Resolver(mapped(program, BASE), file_opener, path_openers=[own_path_opener]) as resolver:
        assert resolver.resolve(InstructionPointer(BASE + functions["main"])).name != "main"
        (warning,) = resolver.warnings
    assert warning.startswith(f"{debug}: not used, it takes too long")


def test_debug_files_are_summed_up_only_for_so_long() -> None:
    """All of a program's together: there may be any number of them."""
    warnings: list[str] = []
    path = build_target("split", "-g")
    crc = zlib.crc32(path.read_bytes())
    now = iter(n * SUMMING_S / 5 for n in range(100))
    with ElfImage.open(path) as image:
        assert Summing(warnings.append).crc_is(image, crc) and not Summing(warnings.append).crc_is(image, 0)
        assert not warnings
        summing = Summing(warnings.append, lambda: next(now))
        assert summing.crc_is(image, crc)  # the clock is looked at four times: there are two reads
        assert not summing.crc_is(image, crc) and len(warnings) == 1
        assert not summing.crc_is(image, crc) and len(warnings) == 2


def test_debug_file_by_build_id(program: Path, tmp_path: Path) -> None:
    functions = own_functions(program)
    with ElfImage.open(program) as image:
        assert image.build_id is not None
        name = image.build_id.hex()
    debug = tmp_path / "root/usr/lib/debug/.build-id" / name[:2] / f"{name[2:]}.debug"
    debug.parent.mkdir(parents=True)
    run("objcopy", "--only-keep-debug", program, debug)
    run("strip", program)
    maps = mapped(program, BASE)
    openers = [lambda path: own_path_opener(f"{tmp_path}/root{path}")]
    with Resolver(maps, file_opener, path_openers=openers) as resolver:
        for function, at in functions.items():
            assert resolver.resolve(InstructionPointer(BASE + at)).name == function


def test_debug_file_whose_segments_are_the_other_files(program: Path) -> None:
    """eu-strip, and with it RPM, copies them, though the notes lie elsewhere in what it writes."""
    functions = own_functions(program)
    debug = program.with_suffix(".debug")
    run("objcopy", "--only-keep-debug", program, debug)
    run("objcopy", "--strip-all", f"--add-gnu-debuglink={debug}", program)
    data = bytearray(debug.read_bytes())
    count = int.from_bytes(data[56:58], "little")
    notes = [at for at in range(64, 64 + 56 * count, 56) if data[at : at + 4] == b"\4\0\0\0"]
    for at in notes:
        offset = int.from_bytes(data[at + 8 : at + 16], "little")
        data[at + 8 : at + 16] = (offset + 28).to_bytes(8, "little")
    debug.write_bytes(data)
    relinked = program.with_name("relinked")
    run("objcopy", "--remove-section=.gnu_debuglink", program, relinked)
    run("objcopy", f"--add-gnu-debuglink={debug}", relinked, program)  # with the sum of what it is now
    with ElfImage.open(debug) as image, ElfImage.open(program) as stripped:
        assert notes and image.build_id == stripped.build_id is not None
    assert all_right(names(program, functions))


def test_debug_data_inside(program: Path, tmp_path: Path) -> None:
    """Fedora's way: the functions that are not exported, packed into a section."""
    functions = own_functions(program)
    mini = tmp_path / "mini"
    run("objcopy", "--strip-debug", "--remove-section=.comment", program, mini)
    packed = tmp_path / "mini.xz"
    packed.write_bytes(lzma.compress(mini.read_bytes()))
    run("strip", program)
    run("objcopy", f"--add-section=.gnu_debugdata={packed}", program)
    assert all_right(names(program, functions))


def test_debug_data_that_is_broken(program: Path, tmp_path: Path) -> None:
    functions = own_functions(program)
    packed = tmp_path / "bad.xz"
    packed.write_bytes(lzma.compress(bytes(4096))[:-20])
    run("strip", program)
    run("objcopy", f"--add-section=.gnu_debugdata={packed}", program)
    with Resolver(mapped(program, BASE), file_opener) as resolver:
        at = functions["main"]
        assert resolver.resolve(InstructionPointer(BASE + at)).name == f"program+{at:#x}"
        assert len(resolver.warnings) == 1


def test_sections_that_are_compressed(program: Path) -> None:
    functions = own_functions(program)
    run("objcopy", "--compress-debug-sections=zlib", program)
    with ElfImage.open(program) as image:
        found = image.section_content(b".debug_str", 1 << 20)
        assert found is not None and b"burn\0" in found[1]
        home = image.section(b".debug_str")
        assert home is not None
    with open(program, "r+b") as file:
        file.seek(home.offset + 8)
        size = file.read(8)
        file.seek(home.offset + 8)
        file.write(bytes(8))  # of no size: which zlib takes for any
    with ElfImage.open(program) as image:
        assert image.section_content(b".debug_str", 1 << 20) is None
    with open(program, "r+b") as file:
        file.seek(home.offset + 8)
        file.write(size)
    assert all_right(names(program, functions))


LINKED = [
    (),
    ("-Wl,-z,now",),
    ("-fcf-protection", "-Wl,-z,ibtplt"),
    ("-fuse-ld=lld",),
    ("-fuse-ld=gold",),
]


@pytest.fixture(params=LINKED, ids=lambda flags: " ".join(flags) or "lazy")
def linked(request: pytest.FixtureRequest) -> Iterator[Path]:
    flags: tuple[str, ...] = request.param
    if any("lld" in flag for flag in flags):
        requires("ld.lld")
    if any("gold" in flag for flag in flags):
        requires("ld.gold")
    yield build_target("split", *flags)


def test_calls_through_the_plt_are_named(linked: Path) -> None:
    """As objdump has them."""
    out = subprocess.run(
        ["objdump", "-d", "--no-show-raw-insn", linked], capture_output=True, text=True, check=True
    ).stdout
    entries = {}
    for line in out.splitlines():
        if line.endswith("@plt>:"):
            address, name = line.split()
            entries[name[1:-2]] = int(address, 16)
    if not entries:
        pytest.skip("objdump names none in a file of this linker")
    found = names(linked, entries)
    assert all(name == shown for name, shown in found.items())
