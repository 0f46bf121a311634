"""The shared memory as C sees it and as Python does: every field, constant and offset."""

from __future__ import annotations

import ctypes
import enum
import re
import subprocess

import pytest
from native.drivers import STUB, compiler

from pyattach.inject import heap_layout, layout, region
from pyattach.inject.arch import x86_64 as arch

MIRRORS: dict[str, type[ctypes.Structure]] = {
    "pa_control": layout.Control,
    "pa_slot": layout.Slot,
    "pa_record": layout.RecordHead,
    "pa_module": layout.Module,
    "pa_modules": layout.Modules,
    "pa_index_entry": layout.IndexEntry,
    "pa_cache_line": layout.CacheLine,
    "pa_abi": layout.Abi,
    "pa_log": layout.Log,
    "pa_log_entry": layout.LogEntry,
    "pa_node": heap_layout.Node,
    "pa_site": heap_layout.Site,
    "pa_table": heap_layout.Table,
    "pa_heap": heap_layout.Heap,
    "pa_patch": heap_layout.Patch,
    "pa_entry": heap_layout.Entry,
    "pa_landing": heap_layout.Landing,
    "pa_heap_counts": heap_layout.Counts,
    "pa_heap_page": heap_layout.CountsPage,
    "pa_heap_thread": heap_layout.HeapThread,
    "pa_walked": heap_layout.Walked,
    "pa_memo": heap_layout.Memo,
    "pa_heap_recent": heap_layout.Recent,
    "pa_heap_child": heap_layout.Child,
    "pa_tally": heap_layout.Tally,
    "pa_sampled_thread": heap_layout.SampledThread,
    "pa_sampled": heap_layout.Sampled,
    "boot_args": layout.BootArgs,
    "boot_segment": layout.BootSegment,
}
ENUMS: dict[str, tuple[str, type[enum.IntEnum]]] = {
    "pa_state": ("PA_STATE_", layout.State),
    "pa_slot_state": ("PA_SLOT_", layout.SlotState),
    "pa_end": ("PA_END_", layout.End),
    "pa_mode": ("PA_UNWIND_", layout.Unwind),
    "pa_log_kind": ("PA_LOG_", layout.LogKind),
    "pa_patch_state": ("PA_PATCH_", heap_layout.PatchState),
    "boot_command": ("BOOT_", layout.BootCommand),
    "boot_step": ("BOOT_STEP_", layout.BootStep),
}
CONSTANTS = {
    "PA_MAGIC": layout.MAGIC,
    "PA_VERSION": layout.VERSION,
    "PA_TICK_TAG": layout.TICK_TAG,
    "PA_WAKE": layout.WAKE,
    "PA_PRELOAD_REGION": layout.PRELOAD_REGION,
    "PA_MODULES": layout.MODULES,
    "PA_NO_VM_READ": layout.NO_VM_READ,
    "PA_MODULE_OWN_INDEX": layout.MODULE_OWN_INDEX,
    "PA_MODULE_ROOT": layout.MODULE_ROOT,
    "PA_MODULE_CHANGES_STACKS": layout.MODULE_CHANGES_STACKS,
    "MAIL_SIZE": layout.MAIL_SIZE,
    "BOOT_SIZE": layout.BOOT_SIZE,
    "LOADER_SIZE": layout.LOADER_SIZE,
    "BOOT_DATA_SIZE": layout.BOOT_DATA_SIZE,
    "BOOT_SEGMENTS": layout.BOOT_SEGMENTS,
    "PA_HEAP_MAGIC": heap_layout.HEAP_MAGIC,
    "PA_HEAP_VERSION": heap_layout.HEAP_VERSION,
    "PA_FIRST_ITEM": heap_layout.FIRST_ITEM,
    "PA_NO_STACK": heap_layout.NO_STACK,
    "PA_SITE_BITS": heap_layout.SITE_BITS,
    "PA_LEAF_SHIFT": heap_layout.LEAF_SHIFT,
    "PA_LEAF_WORDS": heap_layout.LEAF_WORDS,
    "PA_LEAF_MASK": heap_layout.LEAF_MASK,
    "PA_LINE_SHIFT": heap_layout.LINE_SHIFT,
    "PA_LINE_WORDS": heap_layout.LINE_WORDS,
    "PA_DIRECTORY": heap_layout.DIRECTORY,
    "PA_WIDE_SHIFT": heap_layout.WIDE_SHIFT,
    "PA_WIDE_DIRECTORY": heap_layout.WIDE_DIRECTORY,
    "PA_PAGED_SHIFT": heap_layout.PAGED_SHIFT,
    "PA_PAGED_DIRECTORY": heap_layout.PAGED_DIRECTORY,
    "PA_NODE_BITS": heap_layout.NODE_BITS,
    "PA_REGIONS": heap_layout.REGIONS,
    "PA_FAN": heap_layout.FAN,
    "PA_FOLD_BYTES": heap_layout.FOLD_BYTES,
    "PA_HEAP_ATTACHED": heap_layout.HEAP_ATTACHED,
    "PA_FILTER": heap_layout.FILTER,
    "PA_SAMPLED_SITE_BITS": heap_layout.SAMPLED_SITE_BITS,
    "PA_SAMPLED_FIRST": heap_layout.SAMPLED_FIRST,
    "PA_SAMPLED_LEVELS": heap_layout.SAMPLED_LEVELS,
    "PA_NEAR_THREADS": heap_layout.NEAR_THREADS,
    "PA_FAR_THREADS": heap_layout.FAR_THREADS,
    "PA_PATCHES": heap_layout.PATCHES,
    "PA_ENTRIES": heap_layout.ENTRIES,
    "PA_LANDINGS": heap_layout.LANDINGS,
    "PA_THROUGH": heap_layout.THROUGH,
    "PA_JUMP": heap_layout.JUMP,
    "PA_REAL": heap_layout.REAL,
    "PA_COUNTS_IN_PAGE": heap_layout.COUNTS_IN_PAGE,
    "PA_MEMO_WORDS": heap_layout.MEMO_WORDS,
}
NOT_MIRRORED = {"frames"}
"""The flexible array behind a record's head."""

HEADERS = ("shared.h", "unwind.h", "boot/boot.h", "heap/layout.h")


def header_text() -> str:
    return re.sub(r"/\*.*?\*/", "", "".join((STUB / name).read_text() for name in HEADERS), flags=re.DOTALL)


def body(kind: str, name: str) -> str:
    found = re.search(rf"{kind} {name} \{{(.*?)\}}(?: __attribute__\(\(.*?\)\))?;", header_text(), re.DOTALL)
    assert found, f"{kind} {name} is in none of {HEADERS}"
    return found[1]


@pytest.fixture(scope="module")
def c_says(tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    """What the compiler makes of the headers, printed by a program made of the mirrors' fields."""
    wanted = [f"sizeof(struct {name})" for name in MIRRORS]
    for name, mirror in MIRRORS.items():
        for field, *_ in mirror._fields_:
            wanted.append(f"__builtin_offsetof(struct {name}, {field})")
            wanted.append(f"sizeof(((struct {name} *)0)->{field})")
            # Whether it is signed: for scalars only, where minus one is below zero.
            if not issubclass(dict_of(mirror)[field], (ctypes.Array, ctypes.Structure)):
                wanted.append(f"((__typeof__(((struct {name} *)0)->{field}))-1 < 0)")
    wanted += [*CONSTANTS, *(prefix + member.name for prefix, mirror in ENUMS.values() for member in mirror)]
    wanted += re.findall(r"#define (D_\w+) ", (STUB / "boot/boot.h").read_text())
    lines = [f'\tprintf("%lu %s\\n", (unsigned long)({name}), "{name}");' for name in wanted]
    directory = tmp_path_factory.mktemp("layout")
    source, program = directory / "layout.c", directory / "layout"
    includes = "".join(f'#include "{name}"\n' for name in HEADERS)
    source.write_text(
        f"#include <stdio.h>\n{includes}int main(void)\n{{\n" + "\n".join(lines) + "\n\treturn 0;\n}\n"
    )
    subprocess.run([*compiler(), "-w", f"-I{STUB}", source, "-o", program], check=True)
    out = subprocess.run([program], capture_output=True, text=True, check=True).stdout
    return {name: int(value) for value, name in (line.split(" ", 1) for line in out.splitlines())}


def dict_of(mirror: type[ctypes.Structure]) -> dict[str, type]:
    return {field[0]: field[1] for field in mirror._fields_}


@pytest.mark.parametrize("name", MIRRORS)
def test_every_field(name: str, c_says: dict[str, int]) -> None:
    mirror = MIRRORS[name]
    assert c_says[f"sizeof(struct {name})"] == ctypes.sizeof(mirror)
    for field, kind in dict_of(mirror).items():
        place = getattr(mirror, field)
        assert c_says[f"__builtin_offsetof(struct {name}, {field})"] == place.offset, field
        assert c_says[f"sizeof(((struct {name} *)0)->{field})"] == place.size == ctypes.sizeof(kind), field
        if f"((__typeof__(((struct {name} *)0)->{field}))-1 < 0)" in c_says:
            signed = kind(-1).value < 0
            assert c_says[f"((__typeof__(((struct {name} *)0)->{field}))-1 < 0)"] == signed, field


@pytest.mark.parametrize("name", MIRRORS)
def test_no_field_is_left_out(name: str) -> None:
    """One more field in place of padding would shift nothing, and go unseen by its offset."""
    declared = re.findall(r"(\w+)\s*(?:\[[^\]]*\])?\s*[;,]", body("struct", name))
    assert [field for field in declared if field not in NOT_MIRRORED] == list(dict_of(MIRRORS[name]))


def test_constants(c_says: dict[str, int]) -> None:
    assert {name: c_says[name] for name in CONSTANTS} == CONSTANTS


@pytest.mark.parametrize("name", ENUMS)
def test_enums(name: str, c_says: dict[str, int]) -> None:
    prefix, mirror = ENUMS[name]
    assert {member.name: c_says[prefix + member.name] for member in mirror} == {
        m.name: m.value for m in mirror
    }
    declared = set(re.findall(r"\b([A-Z][A-Z_]+)\b\s*=", body("enum", name))) - NOT_MIRRORED
    assert declared == {prefix + member.name for member in mirror}


def test_the_data_block_lies_where_the_bootstrap_looks(c_says: dict[str, int]) -> None:
    """A value of its own for each word; each must be found at the offset boot.S reads it from."""
    registers = {name: 0x1111_0000_0000_0000 + i for i, name in enumerate(
        "rip rsp eflags rax rbx rcx rdx rsi rdi rbp r8 r9 r10 r11 r12 r13 r14 r15".split())}  # fmt: skip
    others = {"orig_rax": 1, "cs": 2, "ss": 3, "ds": 4, "es": 5, "fs": 6, "gs": 7, "fs_base": 8, "gs_base": 9}
    words = {name: 0x2222_0000_0000_0000 + i for i, name in enumerate(
        "mail nonce file_size boot_offset limit_ns memfd_flags".split())}  # fmt: skip
    block = arch.boot_data(
        {**registers, **others},
        0x3333_4444_5555_6666,
        arch.boot_settings(**words, name=b"the name"),
        process_timer=55,
        processor=77,
    )
    assert len(block) == layout.BOOT_DATA_SIZE
    expected = {
        "D_RFLAGS" if name == "eflags" else f"D_{name.upper()}": value for name, value in registers.items()
    }
    expected |= {f"D_{name.upper()}": value for name, value in words.items()}
    expected |= {"D_ALL_SIGNALS": (1 << 64) - 1, "D_OLD_MASK": 0x3333_4444_5555_6666}
    expected |= {"D_TIMER": 55, "D_PROCESSOR": 77}
    places = {name: at for name, at in c_says.items() if name.startswith("D_")}
    assert places.keys() == expected.keys() | {"D_NAME"}
    found = {
        name: int.from_bytes(block[at : at + 8], "little") for name, at in places.items() if name != "D_NAME"
    }
    assert found == expected
    assert block[places["D_NAME"] : places["D_TIMER"]].rstrip(b"\0") == b"the name"


def test_words_that_are_waited_for_are_aligned() -> None:
    """One aligned store is never seen half done."""
    for name in ("lease_until_ns", "tail", "state", "post_seq", "modules_seq", "head", "inside", "seen_seq"):
        place = getattr(layout.Control, name)
        assert place.offset % place.size == 0
    assert layout.BootArgs.done.offset % 4 == 0


def test_the_region_needs_no_more_than_c_has_room_for() -> None:
    assert region.PAGE == layout.MAIL_SIZE
    assert layout.BOOT_SIZE % region.PAGE == layout.LOADER_SIZE % region.PAGE == 0
    assert ctypes.sizeof(layout.BootArgs) < layout.BOOT_SIZE // 2, "the rest is the loader's stack"
