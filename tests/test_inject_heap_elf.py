"""The heap profiler's two libraries as built: what they export, and that a loader has nothing else to do."""

from __future__ import annotations

import pytest
from elftools.elf.elffile import ELFFile
from native.drivers import INJECT

from pyattach.inject import heap_layout, layout

HOOKS = set(heap_layout.FUNCTIONS)
ENTRIES = {"pa_init", "pa_arm", "pa_stop", "pa_forget", "pa_leave", "pyattach_abi", "pa_passing"}
OWN = {f"pa_{kind}_{name}" for kind in ("hook", "entry") for name in HOOKS}


@pytest.fixture(params=["_heap.so", "_heap_preload.so"])
def elf(request: pytest.FixtureRequest) -> ELFFile:
    with open(INJECT / request.param, "rb") as file:
        elf = ELFFile(file)
        elf.expected = HOOKS if "preload" in request.param else ENTRIES | OWN
        yield elf


def test_exports(elf: ELFFile) -> None:
    symbols = [s for s in elf.get_section_by_name(".dynsym").iter_symbols() if s.name]
    assert {s.name for s in symbols} == elf.expected
    assert not [s.name for s in symbols if s["st_shndx"] == "SHN_UNDEF"]


def test_no_relocations_constructors_or_thread_locals(elf: ELFFile) -> None:
    kinds = {section["sh_type"] for section in elf.iter_sections()}
    assert not kinds & {"SHT_REL", "SHT_RELA", "SHT_RELR", "SHT_INIT_ARRAY", "SHT_FINI_ARRAY"}
    assert "PT_TLS" not in {segment["p_type"] for segment in elf.iter_segments()}
    tags = {tag.entry.d_tag for tag in elf.get_section_by_name(".dynamic").iter_tags()}
    assert not tags & {"DT_NEEDED", "DT_TEXTREL", "DT_JMPREL", "DT_RELA"}


def test_no_segment_is_both_written_and_run(elf: ELFFile) -> None:
    loads = [s for s in elf.iter_segments() if s["p_type"] == "PT_LOAD"]
    assert len(loads) <= layout.BOOT_SEGMENTS
    assert not [s for s in loads if s["p_flags"] & 3 == 3]


def test_the_shared_memory_begins_behind_the_preloaded_one() -> None:
    assert (INJECT / "_heap_preload.so").stat().st_size <= layout.PRELOAD_REGION
