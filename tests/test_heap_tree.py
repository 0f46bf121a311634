"""Stacks and sites are each there once, also where threads look for the same ones at the same time."""

from __future__ import annotations

import os
import re
import struct
import subprocess
from collections.abc import Iterator

import pytest
from native.drivers import build_driver

from pyattach.attacher.heap_tables import HeapTables
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

    write(heap.regions_offset, struct.pack("<3I", 0, 0x5555 + 1, 0x7FFF + 1))
    heap.nodes.used, heap.sites.used = 19, 18
    write(0, bytes(heap))
    node(16, 1, 0x1000, 3)
    node(17, 2, 0x2000, 0)  # begun
    node(18, 2, 0x3000, 16)
    write(heap.sites.items_offset + 16 * 16, struct.pack("<Q2I", 1 << 40, 18, 0))
    write(heap.sites.items_offset + 17 * 16, struct.pack("<Q2I", 24, 0, 0))  # begun
    tables.update()
    assert list(tables.nodes[32:34]) == [0x5555_0000_1000, 3]
    assert list(tables.nodes[36:38]) == [0x7FFF_0000_3000, 16]
    assert tables.site(16) == (1 << 40, 18)
    node(17, 2, 0x2000, 16)
    write(heap.sites.items_offset + 17 * 16, struct.pack("<Q2I", 25, 17, 0))
    heap.nodes.used = 20
    write(0, bytes(heap))
    node(19, 1, 0x4000, 17)
    tables.update()
    assert list(tables.nodes[32:]) == [
        0x5555_0000_1000, 3, 0x7FFF_0000_2000, 16, 0x7FFF_0000_3000, 16, 0x5555_0000_4000, 17,
    ]  # fmt: skip
    assert tables.site(17) == (25, 17)
    assert len(tables.sites) == 2 * 18
