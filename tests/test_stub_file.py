"""The built stub: nothing in it that would need a loader, a library, or a second thought."""

from __future__ import annotations

import ctypes
import re
import subprocess
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile

from pyattach.inject import image, layout
from pyattach.inject.arch import x86_64
from pyattach.inject.layout import BootArgs, Control, Module, RecordHead, Slot

INJECT = Path(image.__file__).parent
STUB = INJECT / "_stub.so"
SOURCES = INJECT / "stub"
EXPORTS = {"pa_init", "pa_arm", "pa_stop", "pa_leave", "pyattach_abi"}


@pytest.fixture(scope="module")
def elf() -> ELFFile:
    return ELFFile(STUB.open("rb"))


def test_needs_nothing(elf: ELFFile) -> None:
    tags = {tag.entry.d_tag for tag in elf.get_section_by_name(".dynamic").iter_tags()}
    forbidden = {"DT_NEEDED", "DT_INIT", "DT_FINI", "DT_INIT_ARRAY", "DT_FINI_ARRAY", "DT_TEXTREL", "DT_RELA"}
    assert not tags & (forbidden | {"DT_REL", "DT_JMPREL", "DT_RPATH", "DT_RUNPATH"})


def test_no_undefined_symbol_and_known_exports(elf: ELFFile) -> None:
    symbols = [s for s in elf.get_section_by_name(".dynsym").iter_symbols() if s.name]
    assert not [s.name for s in symbols if s["st_shndx"] == "SHN_UNDEF"]
    assert {s.name for s in symbols} == EXPORTS


def test_no_relocation_and_no_constructor(elf: ELFFile) -> None:
    kinds = {section["sh_type"] for section in elf.iter_sections()}
    assert not kinds & {"SHT_REL", "SHT_RELA", "SHT_INIT_ARRAY", "SHT_FINI_ARRAY", "SHT_PREINIT_ARRAY"}


def test_no_tls_and_nothing_writable_and_executable(elf: ELFFile) -> None:
    segments = list(elf.iter_segments())
    assert "PT_TLS" not in {s["p_type"] for s in segments}
    loads = [s["p_flags"] for s in segments if s["p_type"] == "PT_LOAD"]
    assert loads
    assert not [flags for flags in loads if flags & 1 and flags & 2]
    stack = next(s for s in segments if s["p_type"] == "PT_GNU_STACK")
    assert not stack["p_flags"] & 1


def test_no_vector_registers_and_no_call_to_the_outside() -> None:
    code = subprocess.run(["objdump", "-d", STUB], capture_output=True, text=True, check=True).stdout
    assert "<pa_init>" in code
    assert not re.findall(r"%[xyz]mm\d+", code)
    assert "@plt" not in code


def test_flat_binaries_fit() -> None:
    assert 256 < len(image.boot_code()) + layout.BOOT_DATA_SIZE < 1024
    assert 0 < len(image.loader_code()) <= layout.LOADER_SIZE


STRUCTS = {
    "pa_control": Control,
    "pa_slot": Slot,
    "pa_record": RecordHead,
    "pa_module": Module,
    "pa_modules": layout.Modules,
    "pa_index_entry": layout.IndexEntry,
    "pa_abi": layout.Abi,
    "boot_args": BootArgs,
    "boot_segment": layout.BootSegment,
    "pa_cache_line": layout.CacheLine,
}

CONSTANTS = {
    "PA_MAGIC": layout.MAGIC,
    "PA_VERSION": layout.VERSION,
    "PA_TICK_TAG": layout.TICK_TAG,
    "PA_MODULES": layout.MODULES,
    "PA_NO_VM_READ": layout.NO_VM_READ,
    "PA_MODULE_OWN_INDEX": layout.MODULE_OWN_INDEX,
    "MAIL_SIZE": layout.MAIL_SIZE,
    "BOOT_SIZE": layout.BOOT_SIZE,
    "LOADER_SIZE": layout.LOADER_SIZE,
    "BOOT_DATA_SIZE": layout.BOOT_DATA_SIZE,
    "BOOT_SEGMENTS": layout.BOOT_SEGMENTS,
    **{f"PA_STATE_{m.name}": m for m in layout.State},
    **{f"PA_SLOT_{m.name}": m for m in layout.SlotState},
    **{f"PA_END_{m.name}": m for m in layout.End},
    **{f"PA_UNWIND_{m.name}": m for m in layout.Unwind},
    **{f"BOOT_{m.name}": m for m in layout.BootCommand},
    **{f"BOOT_STEP_{m.name}": m for m in layout.BootStep},
}


def c_layout(tmp_path: Path) -> dict[str, int]:
    """What the C compiler makes of the headers: ``struct.field`` and ``struct`` to offset and size."""
    lines = []
    for name, mirror in STRUCTS.items():
        lines.append(f'printf("{name} %zu\\n", sizeof(struct {name}));')
        for field, *_ in mirror._fields_:
            lines.append(f'printf("{name}.{field} %zu\\n", __builtin_offsetof(struct {name}, {field}));')
    lines += [f'printf("{name} %lu\\n", (unsigned long)({name}));' for name in CONSTANTS]
    source = tmp_path / "layout.c"
    source.write_text(
        '#include <stdio.h>\n#include "unwind.h"\n#include "boot/boot.h"\nint main(void) {\n'
        + "\n".join(lines)
        + "\n}\n"
    )
    program = tmp_path / "layout"
    subprocess.run(["cc", "-w", f"-I{SOURCES}", source, "-o", program], check=True)
    out = subprocess.run([program], capture_output=True, text=True, check=True).stdout
    return {key: int(value) for key, value in (line.split() for line in out.splitlines())}


def test_python_and_c_see_the_same_memory(tmp_path: Path) -> None:
    mirrored: dict[str, int] = {}
    for name, mirror in STRUCTS.items():
        mirrored[name] = ctypes.sizeof(mirror)
        for field, *_ in mirror._fields_:
            mirrored[f"{name}.{field}"] = getattr(mirror, field).offset
    assert c_layout(tmp_path) == mirrored | {name: int(value) for name, value in CONSTANTS.items()}


def test_every_field_is_mirrored() -> None:
    """A field added to a header and not here would shift nothing at a struct's end, and go unseen."""
    text = (SOURCES / "shared.h").read_text() + (SOURCES / "boot/boot.h").read_text()
    for name in ("pa_control", "pa_slot", "pa_module", "boot_args"):
        body = re.sub(r"/\*.*?\*/", "", text[text.index(f"struct {name} {{") :], flags=re.DOTALL)
        body = body[body.index("{") + 1 : body.index("};")]
        declared = re.findall(r"(\w+)(?:\[[^\]]*\])?\s*[;,]", body)
        assert declared == [field for field, *_ in STRUCTS[name]._fields_]


def test_the_data_block_is_where_the_bootstrap_looks() -> None:
    header = (SOURCES / "boot/boot.h").read_text()
    places = {name: int(value) for name, value in re.findall(r"#define D_(\w+) (\d+)", header)}
    registers = {name: 0x1000 + i for i, name in enumerate(x86_64._SAVED)}
    settings = x86_64.boot_settings(
        mail=1, nonce=2, file_size=3, boot_offset=4, limit_ns=5, memfd_flags=6, name=b"name"
    )
    block = x86_64.boot_data(registers, 7, settings)
    assert len(block) == layout.BOOT_DATA_SIZE

    def word(name: str) -> int:
        return int.from_bytes(block[places[name] : places[name] + 8], "little")

    for name, value in registers.items():
        assert word("RFLAGS" if name == "eflags" else name.upper()) == value
    assert [word(n) for n in ("MAIL", "NONCE", "FILE_SIZE", "BOOT_OFFSET", "LIMIT_NS", "MEMFD_FLAGS")] == [
        1, 2, 3, 4, 5, 6,
    ]  # fmt: skip
    assert word("ALL_SIGNALS") == (1 << 64) - 1
    assert word("OLD_MASK") == 7
    assert block[places["NAME"] :].startswith(b"name\0")
