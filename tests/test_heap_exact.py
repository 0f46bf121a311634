"""The heap profiler's books against those a program keeps itself: equal, to the block and to the byte."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from heap_support import Books, Recorded, Site, record
from native.drivers import STUB
from support import build_target

from pyattach.attacher import heap_run
from pyattach.inject import build_stub

FUNCTIONS = {
    "by_malloc", "by_calloc", "by_realloc_new", "by_realloc_grown", "by_reallocarray", "by_posix_memalign",
    "by_aligned_alloc", "by_memalign", "by_valloc", "by_pvalloc", "by_thread", "by_strdup", "late_alloc",
}  # fmt: skip


def run(report: Path, mode: str, *more: object) -> tuple[Recorded, Books]:
    recorded = record(build_target("heap_exact"), report, mode, *more, names=FUNCTIONS)
    return recorded, Books(report)


def check(recorded: Recorded, books: Books) -> None:
    expected = {name: site for name, site in books.sites.items() if site.allocs}
    for name, site in expected.items():
        assert recorded.sites.get(name) == site, name
    ours = recorded.blocks
    assert books.blocks.items() <= ours.items()
    # What else is live is the C library's own: buffers of stdio, what threads and dlopen need.
    assert len(ours) - len(books.blocks) <= 40
    assert recorded.kinds["live"] == (sum(ours.values()), len(ours))
    for loss in ("seen", "room", "whole"):
        assert not [note for note in recorded.outcome.meta.notes if loss in note]


@pytest.mark.parametrize(("mode", "status"), [("exit", 0), ("_exit", 0), ("crash", 139), ("fork", 0)])
def test_every_function_and_every_end(tmp_path: Path, mode: str, status: int) -> None:
    recorded, books = run(tmp_path / "report", mode)
    assert recorded.status == status
    assert len([site for site in books.sites.values() if site.allocs]) == len(FUNCTIONS) - 1
    check(recorded, books)


def test_a_library_that_comes_late(tmp_path: Path) -> None:
    library = build_target("lib_heap_late", "-shared", "-fPIC")
    recorded, books = run(tmp_path / "report", "dlopen", library)
    assert books.sites["late_alloc"].allocs == 1049
    check(recorded, books)


def test_the_peak_of_one_thread_is_exact(tmp_path: Path) -> None:
    """It is reached with 700 blocks of 1009 and 300 of 2003 bytes, and then there are other ones."""
    source = """\
#include <stdlib.h>
static void *volatile a[1000], *volatile b[1000];
__attribute__((noinline)) static void small(int i) { a[i] = malloc(1009); }
__attribute__((noinline)) static void large(int i) { b[i] = malloc(2003); }
int main(void) {
    for (int i = 0; i < 700; i++) small(i);
    for (int i = 0; i < 300; i++) large(i);
    for (int i = 0; i < 500; i++) free(a[i]);
    for (int i = 300; i < 500; i++) large(i);
    return 0;
}
"""
    program = compiled(tmp_path, source)
    recorded = record(program, names={"small", "large"})
    assert recorded.kinds["peak"] == (700 * 1009 + 300 * 2003, 1000)
    assert recorded.kinds["live"] == (200 * 1009 + 500 * 2003, 700)


def test_stacks_that_differ_far_from_the_allocation(tmp_path: Path) -> None:
    """Two callers with frames of one size at one place: only the return addresses tell them apart."""
    source = """\
#include <stdlib.h>
#define KEEP __attribute__((noinline, noclone, noipa))
KEEP static void *leaf(int n) { void *p = malloc(n); __asm__ volatile("" : : "r"(p) : "memory"); return p; }
KEEP static void *middle(int n) { void *p = leaf(n); __asm__ volatile("" : : "r"(p) : "memory"); return p; }
KEEP static void *one(int n) { void *p = middle(n); __asm__ volatile("" : : "r"(p) : "memory"); return p; }
KEEP static void *two(int n) { void *p = middle(n); __asm__ volatile("" : : "r"(p) : "memory"); return p; }
KEEP static void deep(int n, int size) { if (n) deep(n - 1, size); else one(size); __asm__ volatile(""); }
int main(void) {
    for (int i = 0; i < 1009; i++) {
        one(11); two(13); if (i % 3 == 0) two(11); if (i % 7 == 0) deep(i % 50, 17);
    }
    return 0;
}
"""
    recorded = record(compiled(tmp_path, source), names={"one", "two"})
    deep = len(range(0, 1009, 7))
    assert recorded.sites["one"].size == 1009 * 11 + deep * 17
    assert recorded.sites["two"].size == 1009 * 13 + len(range(0, 1009, 3)) * 11
    assert recorded.outcome.result is not None
    assert not [note for note in recorded.outcome.meta.notes if "whole" in note]


def test_a_python_program_with_the_allocator_of_the_c_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """A list of a thousand blocks of a prime size, among all that the interpreter does."""
    monkeypatch.setenv("PYTHONMALLOC", "malloc")
    script = "x = [bytearray(100_002) for i in range(1009)]; y = x[503:]; del x; import os; os._exit(7)"
    recorded = record(sys.executable, "-c", script, names={"PyByteArray_Resize"})
    assert recorded.status == 7
    assert list(recorded.blocks.values()).count(100_003) == 1009 - 503
    assert recorded.kinds["live"] == (sum(recorded.blocks.values()), len(recorded.blocks))
    result = recorded.outcome.result
    assert result is not None
    counts = [counts for site, counts in result.counts.items() if result.tables.site(site)[0] == 100_003]
    assert (sum(c.allocs for c in counts), sum(c.frees for c in counts)) == (1009, 503)


MANY = """\
#include <pthread.h>
#include <stdlib.h>
#define KEEP __attribute__((noinline, noclone, noipa))
#define SIZES 30000
#define SMALL 200000
static void *kept[SMALL];
#define SEEN(p) ({ __asm__ volatile("" : : "r"(p) : "memory"); p; })
KEEP static void *any_size(size_t n) { void *p = malloc(n); return SEEN(p); }
KEEP static void *small(size_t n) { void *p = malloc(n); return SEEN(p); }
static void *work(void *unused) {
    for (int round = 0; round < 2; round++)
        for (size_t n = 1; n <= SIZES; n++)
            free(any_size(n));
    return unused;
}
int main(void) {
    pthread_t threads[4];
    for (int i = 0; i < 4; i++) pthread_create(&threads[i], 0, work, 0);
    for (int i = 0; i < 4; i++) pthread_join(threads[i], 0);
    for (int i = 0; i < SMALL; i++) kept[i] = small(1 + i % 24);
    for (int i = 0; i < SMALL; i += 3) free(kept[i]);
    return 0;
}
"""


def test_tables_that_grow_while_four_threads_add_to_them(tmp_path: Path) -> None:
    """Of 30,000 sizes from one stack none is lost or counted twice, nor of 200,000 small blocks one where
    lines have no room."""
    recorded = record(compiled(tmp_path, MANY, "-pthread"), names={"any_size", "small"})
    size = 8 * sum(range(30_001))
    assert recorded.sites["any_size"] == Site(240_000, size, 0, 0, 240_000)
    left = [1 + i % 24 for i in range(200_000) if i % 3]
    small = recorded.sites["small"]
    assert (small.allocs, small.live, small.live_size) == (200_000, len(left), sum(left))
    assert sorted(length for length in recorded.blocks.values() if length <= 24) == sorted(left)
    result = recorded.outcome.result
    assert result is not None
    tables = result.tables
    assert dict(zip(*(tables.live().begins, tables.live().sites), strict=True)) == {
        block.address: block.site for block in tables.blocks()
    }
    counted = [tables.site(number) for number in result.counts]
    assert len(set(counted)) == len(counted) > 30_000, "each pair of size and stack has one site"


MIXED = """
#include <stdlib.h>
#define KEEP __attribute__((noinline, noclone, noipa))
#define MIDDLE 40000
#define SMALL 100000
static void *middles[MIDDLE], *smalls[SMALL];
#define SEEN(p) ({ __asm__ volatile("" : : "r"(p) : "memory"); p; })
KEEP static void *middle(size_t n) { void *p = malloc(n); return SEEN(p); }
KEEP static void *small(size_t n) { void *p = malloc(n); return SEEN(p); }
int main(int argc, char **argv) {
    (void)argv;
    for (int i = 0; i < MIDDLE; i++) middles[i] = middle(400 + i % 200);
    if (argc > 1) return 0;
    for (int i = 0; i < MIDDLE; i += 2) free(middles[i]);
    for (int i = 0; i < SMALL; i++) smalls[i] = small(1 + i % 24);
    for (int i = 1; i < MIDDLE; i += 4) free(middles[i]);
    for (int i = 0; i < SMALL; i += 3) free(smalls[i]);
    for (int i = 0; i < SMALL; i += 3) smalls[i] = small(1 + i % 24);
    return 0;
}
"""


def test_addresses_that_become_crowded(tmp_path: Path) -> None:
    """Small blocks among larger ones, for which there was one line for 4 KB: each is found again."""
    recorded = record(compiled(tmp_path, MIXED), names={"middle", "small"})
    result = recorded.outcome.result
    assert result is not None
    assert not sum(thread.unknown_frees for thread in result.tables.threads())
    middle, small = recorded.sites["middle"], recorded.sites["small"]
    assert middle.live_size == sum(400 + i % 200 for i in range(3, 40_000, 4)) and middle.live == 10_000
    assert small.live_size == sum(1 + i % 24 for i in range(100_000)) and small.allocs == 133_334
    live = result.tables.live()
    assert len(live) == len(recorded.blocks) >= 110_000
    assert dict(zip(live.begins, live.sites, strict=True)) == {
        block.address: block.site for block in result.tables.blocks()
    }


def test_blocks_of_some_hundred_bytes_take_little_memory(tmp_path: Path) -> None:
    """A word each and as much again that is empty, not a cache line for each KB."""
    recorded = record(compiled(tmp_path, MIXED), "some", names={"middle"})
    result = recorded.outcome.result
    assert result is not None and recorded.sites["middle"].live == 40_000
    assert result.tables.memory() < 1 << 20, "a cache line for each KB takes 1.2 MB alone"


def test_numbers_that_outgrow_their_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A library that is made to begin new counts of a site at 64 of anything, not at 2^30."""
    source = tmp_path / "stub"
    shutil.copytree(STUB, source)
    layout = source / "heap" / "layout.h"
    small = layout.read_text().replace("#define PA_COUNTS_FULL (1 << 30)", "#define PA_COUNTS_FULL 64")
    assert small != layout.read_text()
    layout.write_text(small)
    build_stub.build(source, tmp_path / "built")
    image = (tmp_path / "built" / "_heap_preload.so").read_bytes()
    monkeypatch.setattr(heap_run, "heap_preload_image", lambda: image)
    recorded, books = run(tmp_path / "report", "exit")
    check(recorded, books)
    result = recorded.outcome.result
    assert result is not None
    assert max(counts.allocs for counts in result.counts.values()) > 64


def compiled(folder: Path, source: str, *flags: str) -> Path:
    (folder / "program.c").write_text(source)
    command = ["cc", "-O1", "-fno-optimize-sibling-calls", *flags, "program.c", "-o", "program"]
    subprocess.run(command, cwd=folder, check=True)
    return folder / "program"
