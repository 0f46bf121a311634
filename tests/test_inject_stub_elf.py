"""The built stub and the flat binaries: nothing a loader would have to do, nothing the handler may not."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile
from native.drivers import INJECT, STUB, compiler
from support import requires

from pyattach.inject import build_stub, image, layout

EXPORTS = {
    "pa_init": "STT_FUNC",
    "pa_arm": "STT_FUNC",
    "pa_stop": "STT_FUNC",
    "pa_leave": "STT_FUNC",
    "pyattach_abi": "STT_OBJECT",
}
HANDLER_STACK = 8 * 1024

PF_X, PF_W = 1, 2
SHF_WRITE, SHF_EXECINSTR, SHF_TLS = 1, 4, 0x400


@pytest.fixture(scope="module")
def elf() -> Iterator[ELFFile]:
    with open(INJECT / "_stub.so", "rb") as file:
        yield ELFFile(file)


@pytest.fixture(scope="module")
def listing() -> str:
    objdump = requires("objdump")
    command = [objdump, "-d", "--no-show-raw-insn", INJECT / "_stub.so"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def instructions(listing: str) -> list[tuple[int, str, str]]:
    """(address, mnemonic, operands) of each instruction."""
    found = re.findall(
        r"^ +([0-9a-f]+):\t((?:(?:rep|repz|lock|notrack|data16|cs) )*\S+) *(.*)$", listing, re.MULTILINE
    )
    assert len(found) > 1000
    return [(int(address, 16), mnemonic, operands.strip()) for address, mnemonic, operands in found]


# The file.


def test_the_dynamic_section_asks_for_nothing(elf: ELFFile) -> None:
    tags = {tag.entry.d_tag for tag in elf.get_section_by_name(".dynamic").iter_tags()}
    needed_to_be_found = {"DT_GNU_HASH", "DT_STRTAB", "DT_SYMTAB", "DT_STRSZ", "DT_SYMENT"}
    assert tags == needed_to_be_found | {"DT_NULL"}


def test_exports_are_the_entry_points_and_no_symbol_is_undefined(elf: ELFFile) -> None:
    symbols = [s for s in elf.get_section_by_name(".dynsym").iter_symbols() if s.name]
    assert {s.name: s["st_info"]["type"] for s in symbols} == EXPORTS
    assert not [s.name for s in symbols if s["st_shndx"] == "SHN_UNDEF"]


@pytest.mark.parametrize("name", ["_stub.so", "_preload.so"])
def test_all_code_lies_between_the_header_and_the_private_data(name: str) -> None:
    """By these two the handler tells its own code."""
    with open(INJECT / name, "rb") as file:
        elf = ELFFile(file)
        place = {s.name: s["st_value"] for s in elf.get_section_by_name(".symtab").iter_symbols()}
        code = [s for s in elf.iter_sections() if s["sh_flags"] & SHF_EXECINSTR]
        for section in code:
            begin, end = section["sh_addr"], section["sh_addr"] + section["sh_size"]
            assert place["__ehdr_start"] < begin < end <= place["pa"]
        assert code


def test_no_relocations_constructors_or_thread_locals(elf: ELFFile) -> None:
    kinds = {section["sh_type"] for section in elf.iter_sections()}
    assert not kinds & {
        "SHT_REL",
        "SHT_RELA",
        "SHT_RELR",
        "SHT_INIT_ARRAY",
        "SHT_FINI_ARRAY",
        "SHT_PREINIT_ARRAY",
    }
    names = {section.name for section in elf.iter_sections()}
    assert not names & {".init", ".fini", ".plt", ".got", ".got.plt", ".ctors", ".dtors", ".data"}
    assert not [section.name for section in elf.iter_sections() if section["sh_flags"] & SHF_TLS]


def test_segments(elf: ELFFile) -> None:
    segments = list(elf.iter_segments())
    assert {s["p_type"] for s in segments} == {
        "PT_LOAD", "PT_DYNAMIC", "PT_GNU_EH_FRAME", "PT_GNU_STACK", "PT_GNU_RELRO",
    }  # fmt: skip
    loads = [s for s in segments if s["p_type"] == "PT_LOAD"]
    assert len(loads) <= layout.BOOT_SEGMENTS
    assert not [s for s in loads if s["p_flags"] & PF_X and s["p_flags"] & PF_W]
    assert sum(bool(s["p_flags"] & PF_X) for s in loads) == 1
    (stack,) = [s for s in segments if s["p_type"] == "PT_GNU_STACK"]
    assert not stack["p_flags"] & PF_X


def test_no_section_is_both_written_and_run(elf: ELFFile) -> None:
    flags = {section.name: section["sh_flags"] for section in elf.iter_sections()}
    assert not [name for name, value in flags.items() if value & SHF_WRITE and value & SHF_EXECINSTR]
    assert [name for name, value in flags.items() if value & SHF_EXECINSTR] == [".text"]


def test_it_starts_with_the_abi_this_code_knows() -> None:
    stub = image.stub_image()
    assert set(stub.entries) == EXPORTS.keys() - {"pyattach_abi"}
    low, high = stub.text
    assert all(low <= address < high <= stub.span for address in stub.entries.values())
    assert low % 4096 == high % 4096 == stub.span % 4096 == 0


# Its code.


def test_code_goes_nowhere_else(listing: str) -> None:
    """Direct calls and jumps end on an instruction of .text; through a register or memory go only the
    calls of the unwinder's callbacks, the old handler's, and jump tables."""
    code = instructions(listing)
    starts = {address for address, *_ in code}
    indirect = []
    for address, mnemonic, operands in code:
        if not re.fullmatch(r"(notrack )?(call\w*|j\w+|loop\w*)", mnemonic):
            continue
        if operands.startswith("*"):
            indirect.append((address, mnemonic.removeprefix("notrack ")[:4], operands))
            assert "%rip" not in operands, (
                f"{address:x} goes through a table that a loader would have to fill"
            )
        else:
            assert int(operands.split()[0], 16) in starts, f"{address:x}: {mnemonic} {operands}"
    assert {mnemonic for _, mnemonic, _ in indirect} <= {"call", "jmp"}
    assert indirect


def test_no_vector_or_x87_register_is_touched(listing: str) -> None:
    assert not re.findall(r"%[xyzt]mm\d*|%st\b|%mm\d|%k[0-7]|%bnd\d", listing)
    forbidden = re.compile(r"(f(ld|st|n?init|n?stcw|ldcw)|emms|x?(save|rstor)|ldmxcsr|stmxcsr|vzero)")
    assert not [i for i in instructions(listing) if forbidden.match(i[1])]


def test_no_thread_local_and_no_trap_is_touched(listing: str) -> None:
    code = instructions(listing)
    assert not [i for i in code if re.search(r"%[fg]s:", i[2])]
    assert not [i for i in code if i[1] in {"int3", "int", "hlt", "ud2"}]


# How much stack the handler takes.

Frames = dict[str, int]
Calls = dict[str, set[str]]


def compile_for_stack(directory: Path) -> tuple[Frames, Calls]:
    """Bytes of stack of each function, by gcc's own account of the sources as they are built, and which
    functions it may call: through a pointer, any whose address is taken somewhere."""
    # A section for each function: what refers to one then names it.
    command = [
        *compiler(),
        *build_stub.FREESTANDING,
        f"-I{STUB}",
        "-ffunction-sections",
        "-fstack-usage",
        "-c",
    ]
    frames: Frames = {}
    calls: Calls = {}
    taken: set[str] = set()
    through_pointers: set[str] = set()
    for source in sorted(STUB.glob("*.c")):
        built = directory / f"{source.stem}.o"
        subprocess.run([*command, source, "-o", built], check=True)
        for line in built.with_suffix(".su").read_text().splitlines():
            where, size, kind = line.split("\t")
            assert "dynamic" not in kind or "bounded" in kind, f"{where} takes an unbounded amount of stack"
            name = _plain(where.rsplit(":", 1)[1])
            frames[name] = max(frames.get(name, 0), int(size))
        name = instruction = ""
        for line in _listing_of(built):
            if header := re.match(r"[0-9a-f]+ <([^>]+)>:", line):
                name = _plain(header[1])
                calls.setdefault(name, set())
            elif relocation := re.search(r": R_X86_64_\w+\s+(?:\.text\.)?([A-Za-z_][\w.]*)", line):
                if re.match(r"call|j", instruction):
                    calls[name].add(_plain(relocation[1]))
                else:
                    taken.add(_plain(relocation[1]))
            elif found := re.match(r" +[0-9a-f]+:\t(.*)", line):
                instruction = found[1]
                if instruction.startswith("call") and "*" in instruction:
                    through_pointers.add(name)
    called_back = (taken & frames.keys()) - {"pa_handler"}
    assert {"vm_copy", "page_readable", "modules_find"} <= called_back
    for name in through_pointers:
        calls[name] |= called_back
    return frames, calls


def _plain(name: str) -> str:
    """Without what the compiler hangs on to the clones and parts it makes of a function."""
    return name.split(".")[0]


def _listing_of(built: Path) -> list[str]:
    command = [requires("objdump"), "-dr", "--no-show-raw-insn", built]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()


def deepest(
    name: str, frames: Frames, calls: Calls, path: tuple[str, ...] = ()
) -> tuple[int, tuple[str, ...]]:
    """Bytes of the deepest chain of calls from ``name``, and that chain."""
    assert name not in path, f"recursion: {' > '.join((*path, name))}"
    below = [
        deepest(callee, frames, calls, (*path, name))
        for callee in calls.get(name, ())
        if callee in frames and callee != name  # a clone or part of itself
    ]
    size, chain = max(below, default=(0, ()))
    return size + frames[name] + 8, (name, *chain)


def test_the_handlers_stack_is_small(tmp_path: Path, record_property: pytest.RecordProperty) -> None:
    """It runs on whatever stack the thread has: goroutines and alternate stacks (MINSIGSTKSZ) are small."""
    if "clang" in os.path.basename(shutil.which(compiler()[0]) or ""):
        pytest.skip("the account is gcc's")
    frames, calls = compile_for_stack(tmp_path)
    assert frames.keys() >= {"pa_handler", "pa_walk", "pa_cfi_rule", "pa_cfi_step", "pa_expression"}
    size, chain = deepest("pa_handler", frames, calls)
    told = f"the handler takes {size} bytes of stack: " + " > ".join(
        f"{name} {frames[name]}" for name in chain
    )
    print(told)
    record_property("handler_stack", told)
    assert 1024 < size < HANDLER_STACK, told


# The flat binaries.


def test_flat_binaries_fit() -> None:
    boot, loader = (INJECT / "_boot.bin").read_bytes(), (INJECT / "_loader.bin").read_bytes()
    assert boot[: layout.BOOT_DATA_SIZE] == bytes(layout.BOOT_DATA_SIZE)
    assert image.boot_code() == boot[layout.BOOT_DATA_SIZE :]
    assert image.boot_code()[:6] == b"\x8b\x3d\xea\xff\xff\xff", "boot_entry begins with mov D_TIMER, %edi"
    assert len(boot) <= 1024, "few mappings have more than a quarter of a page to spare"
    assert image.loader_code() == loader
    assert 0 < len(loader) <= layout.LOADER_SIZE


@pytest.mark.parametrize("name", ["_boot.bin", "_loader.bin"])
def test_flat_binaries_know_no_absolute_address(name: str, tmp_path: Path) -> None:
    """Linked for another place, the bytes are the same."""
    source = {"_boot.bin": "boot/boot.S", "_loader.bin": "boot/loader.c"}[name]
    built, script = tmp_path / "flat.o", tmp_path / "flat.ld"
    script.write_text((STUB / "boot/flat.ld").read_text().replace("    . = 0;", "    . = 0x7f0012340000;"))
    command = [
        *compiler(),
        *build_stub.FREESTANDING,
        *build_stub.FLAT_CODE,
        "-I.",
        "-c",
        source,
        "-o",
        str(built),
    ]
    subprocess.run(command, cwd=STUB, check=True)
    linked = tmp_path / "flat.bin"
    subprocess.run([requires("ld"), *build_stub.FLAT_LINK, "-T", script, built, "-o", linked], check=True)
    assert linked.read_bytes() == (INJECT / name).read_bytes()
