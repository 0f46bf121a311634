"""The preloaded library as built: a constructor, and nothing else a loader would have to do."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from elftools.elf.elffile import ELFFile
from native.drivers import INJECT

from pyattach.inject import layout

DF_1_INITFIRST = 0x20


@pytest.fixture(scope="module")
def elf() -> Iterator[ELFFile]:
    with open(INJECT / "_preload.so", "rb") as file:
        yield ELFFile(file)


def test_the_dynamic_section_names_a_constructor_that_runs_first(elf: ELFFile) -> None:
    tags = {tag.entry.d_tag: tag.entry.d_val for tag in elf.get_section_by_name(".dynamic").iter_tags()}
    tables = {"DT_GNU_HASH", "DT_STRTAB", "DT_SYMTAB", "DT_STRSZ", "DT_SYMENT", "DT_NULL"}
    assert tags.keys() == tables | {"DT_INIT", "DT_FLAGS_1"}
    assert tags["DT_FLAGS_1"] == DF_1_INITFIRST
    text = elf.get_section_by_name(".text")
    assert text["sh_addr"] <= tags["DT_INIT"] < text["sh_addr"] + text["sh_size"]


def test_no_symbol_takes_the_place_of_one_of_the_programs(elf: ELFFile) -> None:
    assert not [s.name for s in elf.get_section_by_name(".dynsym").iter_symbols() if s.name]


def test_no_relocation_and_no_library(elf: ELFFile) -> None:
    kinds = {section["sh_type"] for section in elf.iter_sections()}
    assert not kinds & {"SHT_REL", "SHT_RELA", "SHT_RELR", "SHT_INIT_ARRAY", "SHT_FINI_ARRAY"}
    assert "PT_TLS" not in {s["p_type"] for s in elf.iter_segments()}


def test_the_shared_memory_begins_behind_it() -> None:
    assert (INJECT / "_preload.so").stat().st_size <= layout.PRELOAD_REGION
    assert layout.PRELOAD_REGION % 4096 == 0
