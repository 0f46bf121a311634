"""Running programs under the heap profiler, and what it has to say in the form of a program's own books."""

from __future__ import annotations

import collections
import dataclasses
from pathlib import Path

from pyattach.attacher import child as child_module
from pyattach.attacher.heap_profile import HeapResult
from pyattach.attacher.heap_run import heap_stub, profile_heap_of_child
from pyattach.attacher.heap_session import HeapOptions, HeapOutcome
from pyattach.attacher.program import find_program
from pyattach.attacher.target import TargetProcess
from pyattach.inject.got import loaded_modules, slots
from pyattach.inject.heap_layout import FUNCTIONS as HOOKED


@dataclasses.dataclass(frozen=True)
class Site:
    """Blocks and bytes: allocated, live; and temporary blocks."""

    allocs: int = 0
    size: int = 0
    live: int = 0
    live_size: int = 0
    temporary: int = 0


class Books:
    """The report that ``heap_exact`` writes."""

    def __init__(self, path: Path) -> None:
        self.sites: dict[str, Site] = {}
        self.blocks: dict[int, int] = {}
        for line in path.read_text().splitlines():
            kind, first, *rest = line.split()
            if kind == "site":
                self.sites[first] = Site(*map(int, rest))
            else:
                self.blocks[int(first, 16)] = int(rest[0])


def sites_of(result: HeapResult, names: set[str]) -> dict[str, Site]:
    """What was recorded by function: the innermost of ``names`` on each stack."""
    sums: dict[str, list[int]] = collections.defaultdict(lambda: [0] * 5)
    for site, counts in result.counts.items():
        size, node = result.tables.site(site)
        name = next((f.name for f in reversed(result.stack(node)) if f.name in names), "")
        if name:
            more = (counts.allocs, counts.allocs * size, counts.live, counts.live * size, counts.temporary)
            sums[name] = [a + b for a, b in zip(sums[name], more, strict=True)]
    return {name: Site(*values) for name, values in sums.items()}


def blocks_of(result: HeapResult) -> dict[int, int]:
    """Live blocks: size by address."""
    return {block.address: result.tables.site(block.site)[0] for block in result.tables.blocks()}


@dataclasses.dataclass(frozen=True)
class Recorded:
    """A program that has run to its end; ``sites`` are those of the functions asked for."""

    status: int
    outcome: HeapOutcome
    sites: dict[str, Site]
    blocks: dict[int, int]
    kinds: dict[str, tuple[float, float]]


def record(*words: object, names: set[str], options: HeapOptions | None = None) -> Recorded:
    """Run a program with the profiler preloaded, to its end."""
    options = options or HeapOptions()
    program = find_program([str(word) for word in words])
    stub = heap_stub(options)
    try:
        with child_module.start(program, stub, lambda: None) as child:
            outcome = profile_heap_of_child(child, program, stub, options, lambda: False)
            status = child.wait()
        assert outcome.result is not None, outcome.warning
        result = outcome.result
        kinds = {
            kind: (result.amount(kind).size, result.amount(kind).blocks)
            for kind in ("allocated", "live", "peak", "temporary")
        }
        return Recorded(status, outcome, sites_of(result, names), blocks_of(result), kinds)
    finally:
        stub.close()


def words(pid: int) -> dict[int, tuple[int, str]]:
    """All slots of the allocator's functions: what they hold, and the protection of their pages."""
    with TargetProcess(pid) as target:
        maps = target.maps()
        return {
            slot.address: (slot.value, mapping.permissions)
            for module in loaded_modules(maps, target.read)
            for slot in slots(module, frozenset(HOOKED), target.read)
            if (mapping := maps.find(slot.address)) is not None
        }
