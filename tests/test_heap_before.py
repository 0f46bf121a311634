"""What was allocated before the attach: every block that is in use, none that is not, and its type where it
has one."""

from __future__ import annotations

import array
import random
import shutil
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import Target, build_target, hostile, skip_unless_ci, spawn
from test_attach_run import pyattach

from pyattach.attacher.heap_before import OldHeap, PythonPools, read_old_heap
from pyattach.attacher.heap_glibc import GlibcHeap, find_arenas
from pyattach.attacher.heap_types import TypeReader
from pyattach.attacher.naming import make_resolver
from pyattach.attacher.target import TargetProcess
from pyattach.symbols.maps import Maps

pytestmark = pytest.mark.usefixtures("may_trace")

SCRIPT = """\
import sys
class Plain:
    def __init__(self):
        self.one, self.two = [1], {}
class Slots:
    __slots__ = ("one",)
class Meta(type):
    pass
class OfMeta(metaclass=Meta):
    pass
kept = [Plain() for _ in range(5003)] + [Slots() for _ in range(3001)] + [OfMeta() for _ in range(1009)]
gone = [Slots() for _ in range(2000)]
del gone[::2]
kept += [bytes(2000 + i) for i in range(211)]
print("ready", flush=True)
sys.stdin.readline()
"""
PYTHONS = sorted(
    {str(Path(p).resolve()) for p in (sys.executable, shutil.which("python3", path="/usr/bin")) if p}
)


def old_heap(target: Target) -> OldHeap | None:
    with TargetProcess(target.pid) as process:
        maps = process.maps()
        resolver = make_resolver(process)
        try:
            return read_old_heap(process, maps, resolver)
        finally:
            resolver.close()


def test_all_that_is_in_use_and_nothing_else(tmp_path: Path) -> None:
    """Blocks in arenas, in caches and bins, and with mappings of their own."""
    report = tmp_path / "report"
    with spawn([str(build_target("heap_before")), str(report)]) as target:
        said = dict(line.split() for line in report.read_text().splitlines())
        with TargetProcess(target.pid) as process:
            heap = GlibcHeap(process, process.maps())
            found = {block.address: block.size for block in heap.blocks()}
            total = heap.mapped_total()
            free = list(heap.free())
        target.tell("end")
        target.finish()
    in_use = {int(address, 16) for address, what in said.items() if what == "in-use"}
    freed = {int(address, 16) for address in said} - in_use
    assert len(in_use) > 9_000 and len(freed) > 5_000
    assert in_use <= found.keys()
    again = 3001 + 507 + 20  # objects, their vector, and what the C library keeps, some where others were
    assert len(found) - len(in_use) <= again
    assert len(freed & found.keys()) <= again
    assert len(heap.arenas) >= 2 and heap.unknown_bytes == 0
    assert total is not None and total[0] == 5
    assert sum(1 for size in found.values() if size >= 300 << 10) == 5
    for low, high in free:
        assert low < high
    assert not any(low <= address < high for address in list(in_use)[:200] for low, high in free)


def test_classes_of_objects() -> None:
    with spawn([str(build_target("heap_before"))]) as target:
        old = old_heap(target)
        target.tell("end")
        target.finish()
    assert old is not None
    types = {kind: blocks for kind, blocks, _ in old.by_type()}
    assert types["geometry::Circle"] == 3001
    assert types["geometry::Square<int>"] == 507


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("allocator", ["pymalloc", "malloc"])
def test_types_of_python_objects(python: str, allocator: str) -> None:
    with spawn([python, "-c", SCRIPT], env={"PYTHONMALLOC": allocator}) as target:
        old = old_heap(target)
        target.tell("end")
        target.finish()
    assert old is not None
    types = {kind: blocks for kind, blocks, _ in old.by_type()}
    assert (types["Plain"], types["Slots"], types["OfMeta"]) == (5003, 3001 + 1000, 1009)
    assert types["bytes"] >= 211 and types["list"] >= 5003
    assert not old.notes


POOLS = """\
import ctypes, mmap, sys
memory = mmap.mmap(-1, 12 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
memory.madvise(mmap.MADV_NOHUGEPAGE)
begin = ctypes.addressof(ctypes.c_char.from_buffer(memory))
pools = [at for at in range(-begin % 16384, (12 << 20) - 16384, 16384)][::3]
for at in pools:  # a block of 16 bytes in use, in the pool's first page; the other pages are never touched
    memory[at : at + 48] = b"".join(
        n.to_bytes(size, "little") for n, size in
        [(1, 8), (0, 8), (0, 8), (0, 8), (0, 4), (0, 4), (64, 4), (16384 - 16, 4)])
print("pools", begin, len(pools), flush=True)
sys.stdin.readline()
"""


def test_pools_of_which_most_was_never_touched() -> None:
    """They lie across where the memory is read in parts, too."""
    with spawn([sys.executable, "-c", POOLS], ready=None) as target:
        begin, count = map(int, target.expect("pools").split()[1:])
        with TargetProcess(target.pid) as process:
            mapped = process.maps()
            pools = PythonPools(process, mapped, TypeReader(process, mapped))
            mapping = next(m for m in mapped if m.start <= begin < m.end)
            found = list(pools.counts_in(mapping.start, mapping.end))
        target.tell("end")
        target.finish()
    assert found.count(("", 16, 1)) >= count
    assert count > 250


def test_the_report_and_a_picture(tmp_path: Path) -> None:
    folded = tmp_path / "o.folded"
    with spawn([str(build_target("heap_before"))]) as target:
        with pyattach("heap", target.pid, "-d", "300ms", "--kind", "before", "-o", folded, "-o", "-") as run:
            run.finish(0)
        target.tell("end")
        target.finish()
    section = run.out[run.out.index("before: already there") :]
    assert "no stack: allocated before attach" in section and "geometry::Circle" in section
    assert "up to 32 bytes" in section
    lines = folded.read_text().splitlines()
    assert any(line.startswith("[no stack: allocated before attach];geometry::Circle;") for line in lines)


def test_without_glibcs_malloc_it_is_not_said_to_be_nothing(tmp_path: Path) -> None:
    with spawn([str(build_target("quiet", "-static"))]) as target:
        assert old_heap(target) is None
        target.finish()
    library = next(Path("/usr/lib").glob("*-linux-gnu*/libjemalloc.so.2"), None)
    if library is None:
        skip_unless_ci("needs libjemalloc2")
    with spawn([str(build_target("heap_before"))], env={"LD_PRELOAD": str(library)}) as target:
        with pyattach("heap", target.pid, "-d", "300ms", "-o", "-") as run:
            run.finish(0)
        target.tell("end")
        target.finish()
    assert "is not shown: the allocator is not glibc's" in run.out and "before  " not in run.out


words = st.lists(st.integers(0, (1 << 64) - 1), max_size=24)


@hostile()
@given(data=st.randoms(use_true_random=False), count=st.integers(0, 1200))
def test_arenas_in_anything(data: random.Random, count: int) -> None:
    """Bins that lead to themselves, and rings that do not end where they should."""
    base = 0x7F0000000000
    memory = array.array(
        "Q", (data.choice([0, data.getrandbits(64), base + 8 * i - 16]) for i in range(count))
    )
    for i in range(0, count - 1, 2):
        if data.random() < 0.9:
            memory[i] = memory[i + 1] = base + 8 * i - 16

    def word_at(address: int) -> int:
        i = (address - base) // 8
        return memory[i] if 0 <= i < count else data.choice([0, base, data.getrandbits(47)])

    for arena in find_arenas(base, memory, word_at):
        assert arena.top


class Memory:
    """A target whose memory holds anything, and whose words like to be addresses of it."""

    def __init__(self, data: random.Random) -> None:
        self._data = data

    def read(self, address: int, size: int) -> bytes:
        kind = self._data.random()
        if kind < 0.1:
            raise OSError(5, "can't be read")
        words = [
            self._data.choice([0, 0x1008, 0x2010, 1 << 12, self._data.getrandbits(64)])
            for _ in range(-(-size // 8))
        ]
        return b"".join(word.to_bytes(8, "little") for word in words)[:size]


@hostile()
@given(data=st.randoms(use_true_random=False), first=words)
def test_types_of_anything(data: random.Random, first: list[int]) -> None:
    reader = TypeReader(Memory(data), Maps(), 0x1008)  # type: ignore[arg-type]
    padded = [*first, *[0] * 6]
    for i in range(len(first)):
        assert isinstance(reader.name(padded[i : i + 6]), str)
