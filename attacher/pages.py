"""Which pages of a process hold anything."""

from __future__ import annotations

import array
import os
from collections.abc import Collection, Iterator

PAGE = 4096
_CHUNK = 1 << 22
_PRESENT = 0b11 << 62  # in memory or in swap (Documentation/admin-guide/mm/pagemap.rst)


def places_of(data: bytes, wanted: Collection[int]) -> Iterator[tuple[int, int]]:
    """Where aligned words of ``data`` are in ``wanted``, and which.  It is quick where those differ in their
    low 16 bits alone, or nearly so."""
    for high in {address >> 16 for address in wanted}:
        pattern = high.to_bytes(6, "little")
        at = data.find(pattern)
        while at >= 0:
            if at >= 2 and (at - 2) % 8 == 0:
                word = int.from_bytes(data[at - 2 : at + 6], "little")
                if word in wanted:
                    yield at - 2, word
            at = data.find(pattern, at + 1)


def present(pid: int, start: int, end: int) -> Iterator[tuple[int, int]]:
    """The parts of [start, end) that have been touched: address and bytes, no more than 4 MiB at a time.
    Raises OSError."""
    with open(f"/proc/{pid}/pagemap", "rb", buffering=0) as file:
        for low in range(start, end, _CHUNK):
            pages = (min(end, low + _CHUNK) - low) // PAGE
            entries = array.array("Q", os.pread(file.fileno(), pages * 8, low // PAGE * 8))
            run = 0
            for i, entry in enumerate(entries):
                if entry & _PRESENT:
                    run += 1
                elif run:
                    yield low + (i - run) * PAGE, run * PAGE
                    run = 0
            if run:
                yield low + (len(entries) - run) * PAGE, run * PAGE
