"""Stacks and sites are each there once, also where threads look for the same ones at the same time."""

from __future__ import annotations

import os
import re
import struct
import subprocess
from collections.abc import Iterator

import pytest
from native.drivers import build_driver

from pyattach.attacher import heap_tables
from pyattach.attacher.heap_tables import HeapTables
from pyattach.inject.heap_layout import Counts, HeapThread
from pyattach.inject.heap_region import HeapPlan


@pytest.fixture
def memfd() -> Iterator[int]:
    number = os.memfd_create("tables")
    yield number
    os.close(number)


@pytest.mark.parametrize("threads", [1, 4, 8])
@pytest.mark.parametrize("seed", [1, 2])
def test_each_is_there_once(seed: int, threads: int) -> None:
    """Addresses that differ in their upper halves only, long lists, nodes and sites below the same node."""
    driver = build_driver("heap_tree_driver")
    words = [driver, str(seed), str(threads), "30000"]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    counts = {name: int(number) for name, number in re.findall(r"(\w+) (\d+)", done.stdout)}
    assert counts["looked"] == threads * 30_000
    assert counts["differ"] == counts["wrong"] == counts["twice"] == counts["refused"] == 0
    assert counts["nodes"] > 10_000
    assert counts["sites"] > 10_000
    # What threads made at once is there, and nothing leads to the later ones: how many, is up to the machine.
    made = counts["nodes"] + counts["sites"] - 2 * 16
    assert counts["linked"] + counts["left"] == made
    assert counts["lost"] == 0
    assert threads > 1 or counts["left"] == 0


def test_an_item_that_is_being_written_is_read_again(memfd: int) -> None:
    """Its number is handed out first, and what it is under written last."""
    plan = HeapPlan(period_ns=0, slot_count=1, max_depth=64, ring_words=8, signal=0)
    heap, base = plan.heap(), plan.heap_offset
    tables = HeapTables(memfd, 0, plan)

    def write(offset: int, data: bytes) -> None:
        os.pwrite(memfd, data, base + offset)

    def node(number: int, upper: int, lower: int, under: int) -> None:
        row = struct.pack("<4I", lower, under | (upper << 22 if under else 0), 0, 0)
        write(heap.nodes.items_offset + number * 16, row)

    def site(number: int, size: int, under: int) -> None:
        row = struct.pack("<3I", size & 0xFFFF_FFFF, under | size >> 32 << 22, 0)
        write(heap.sites.items_offset + number * 12, row)

    write(heap.regions_offset, struct.pack("<3I", 0, 0x5555 + 1, 0x7FFF + 1))
    heap.nodes.used, heap.sites.used = 19, 18
    write(0, bytes(heap))
    node(16, 1, 0x1000, 3)
    node(17, 2, 0x2000, 0)  # begun
    node(18, 2, 0x3000, 16)
    site(16, 1 << 40, 18)
    write(heap.sites.items_offset + 17 * 12, struct.pack("<3I", 24, 0, 0))  # begun
    tables.update()
    assert list(tables.nodes[32:34]) == [0x5555_0000_1000, 3]
    assert list(tables.nodes[36:38]) == [0x7FFF_0000_3000, 16]
    assert tables.site(16) == (1 << 40, 18)
    node(17, 2, 0x2000, 16)
    site(17, 25, 17)
    heap.nodes.used = 20
    write(0, bytes(heap))
    node(19, 1, 0x4000, 17)
    tables.update()
    assert list(tables.nodes[32:]) == [
        0x5555_0000_1000, 3, 0x7FFF_0000_2000, 16, 0x7FFF_0000_3000, 16, 0x5555_0000_4000, 17,
    ]  # fmt: skip
    assert tables.site(17) == (25, 17)
    assert len(tables.sites) == 2 * 18


def test_items_that_are_never_written_are_given_up(memfd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each that is waited for is read at every update: the memory is the target's, which may say that it has
    begun all there are."""
    monkeypatch.setattr(heap_tables, "_MOST_BEGUN", 10)
    plan = HeapPlan(period_ns=0, slot_count=1, max_depth=64, ring_words=8, signal=0)
    heap, base = plan.heap(), plan.heap_offset
    heap.sites.used = 16 + 50
    os.pwrite(memfd, bytes(heap), base)
    tables, reads = HeapTables(memfd, 0, plan), 0
    read = tables._read

    def counted(offset: int, size: int) -> bytes:
        nonlocal reads
        reads += 1
        return read(offset, size)

    tables.update()
    assert tables.given_up == 40
    monkeypatch.setattr(tables, "_read", counted)
    tables.update()
    assert reads == 2 + 10, "the head, the upper halves, and those that are waited for"
    assert tables.given_up == 40
    os.pwrite(memfd, struct.pack("<3I", 24, 17, 0), base + heap.sites.items_offset + 16 * 12)
    tables.update()
    assert tables.site(16) == (24, 17)


def test_pages_of_counts_are_read_once(memfd: int) -> None:
    """Also where they lead in a circle, and where many threads say that they have them."""
    plan = HeapPlan(period_ns=0, slot_count=1, max_depth=64, ring_words=8, signal=0)
    heap, base, threads = plan.heap(), plan.heap_offset, 20
    os.pwrite(memfd, bytes(heap), base)
    for number in range(threads):
        thread = HeapThread(tp=1 + number, first_page=3)
        os.pwrite(memfd, bytes(thread), base + heap.threads_offset + number * len(bytes(thread)))
    for page, following in ((3, 4), (4, 3)):
        row = struct.pack("<IIQ", following, 1, 0) + bytes(Counts(site=20 + page, allocs=2, frees=1))
        os.pwrite(memfd, row, base + heap.pool_offset + (page - 1) * 4096)
    counts = HeapTables(memfd, 0, plan).counts()
    assert {site: (count.allocs, count.frees) for site, count in counts.items()} == {23: (2, 1), 24: (2, 1)}
