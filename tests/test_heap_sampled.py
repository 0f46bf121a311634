"""Sampled allocations: with a mean of one byte all but the smallest are recorded, so books must agree."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from heap_support import Books, Site, record, sites_of, words
from support import build_target, requires
from support import spawn as start
from test_heap_attach import EXPECTED, attached, one_round
from test_heap_exact import FUNCTIONS
from test_heap_run import compiled

from pyattach.attacher.heap_attach import attach_heap
from pyattach.attacher.heap_session import HeapOptions, HeapOutcome
from pyattach.inject.heap_layout import SAMPLED_FIRST

EACH = HeapOptions(sample_bytes=1)
LARGE = 64
"""Blocks of so many bytes are always recorded then: no random number of the stub's is that far."""

SMALL = {"by_thread", "by_strdup"}
"""They allocate smaller ones, too."""


def blocks_of(outcome: HeapOutcome) -> dict[int, int]:
    result = outcome.result
    assert result is not None
    found = {block.address: result.tables.site(block.site)[0] for block in result.tables.blocks()}
    return {address: size for address, size in found.items() if size >= LARGE}


def check(sites: dict[str, Site], books: Books, *, without: frozenset[str] = frozenset()) -> None:
    for name, site in books.sites.items():
        if not site.allocs or name in SMALL | without:
            continue
        found = sites[name]
        assert (found.size, found.live_size) == (site.size, site.live_size), name
        # malloc(0), twice: each is recorded or not, and one of them is a temporary block.
        assert 0 <= site.allocs - found.allocs <= (2 if name == "by_malloc" else 0), name
        assert 0 <= site.temporary - found.temporary <= (1 if name == "by_malloc" else 0), name


@pytest.mark.parametrize(("mode", "status"), [("exit", 0), ("crash", 139), ("fork", 0)])
def test_every_function(tmp_path: Path, mode: str, status: int) -> None:
    report = tmp_path / "report"
    recorded = record(build_target("heap_exact"), report, mode, names=FUNCTIONS, options=EACH)
    assert recorded.status == status
    books = Books(report)
    check(recorded.sites, books)
    expected = {address: size for address, size in books.blocks.items() if size >= LARGE}
    assert len(expected) > 4 * SAMPLED_FIRST, "the table has grown"
    found = blocks_of(recorded.outcome)
    assert expected.items() <= found.items()
    assert len(found) - len(expected) <= 40, "the C library's own"
    for loss in ("room", "whole"):
        assert not [note for note in recorded.outcome.meta.notes if loss in note]


def test_the_peak_in_what_blocks_stand_for(tmp_path: Path) -> None:
    """A thousand blocks of 100 bytes, of which each stands for a mean or so, then one of 200,000."""
    source = """\
#include <stdlib.h>
static void *volatile a[50000], *volatile b;
__attribute__((noinline)) static void small(int i) { a[i] = malloc(100); }
__attribute__((noinline)) static void large(void) { b = malloc(200000); }
int main(void) {
    for (int i = 0; i < 50000; i++) small(i);
    for (int i = 0; i < 50000; i++) free(a[i]);
    large();
    return 0;
}
"""
    (tmp_path / "program.c").write_text(source)
    subprocess.run(["cc", "-O1", "program.c", "-o", "program"], cwd=tmp_path, check=True)
    recorded = record(tmp_path / "program", names=set(), options=HeapOptions(sample_bytes=10_000))
    result = recorded.outcome.result
    assert result is not None
    peak = result.amount("peak")
    assert abs(peak.size - 5_000_000) < 5 * peak.size_error


@pytest.mark.usefixtures("may_trace")
def test_attached(tmp_path: Path) -> None:
    with start(build_target("heap_linked")) as target:
        before = words(target.pid)
        for _ in range(2):
            outcome = attached(target, one_round, EACH)
            assert outcome.result is not None
            assert sites_of(outcome.result, {"make"}) == {"make": EXPECTED}
            assert outcome.residue == ()
            assert words(target.pid) == before
        target.finish()


@pytest.mark.usefixtures("may_trace")
@pytest.mark.parametrize("sample_bytes", [1, 4096])
def test_attached_to_a_storm(sample_bytes: int) -> None:
    """Blocks go from thread to thread, and the table's words are those of live blocks."""
    with start(build_target("heap_cycles", "-Wl,-z,now")) as target:
        before = words(target.pid)
        for _ in range(3):
            options = HeapOptions(duration_s=0.05, sample_bytes=sample_bytes)
            outcome = attach_heap(target.pid, options, lambda: False)
            # On a busy machine a thread may take too long to show its registers: the code stays then.
            assert outcome.residue == () or "in a register" in outcome.residue[0], outcome.residue
            result = outcome.result
            assert result is not None
            assert result.amount("allocated").blocks > 0
            blocks = list(result.tables.blocks())
            assert len({block.address for block in blocks}) == len(blocks)
            assert sum(counts.live for counts in result.counts.values()) == len(blocks)
        assert words(target.pid) == before
        target.finish()


def test_musl_where_calloc_calls_malloc(tmp_path: Path) -> None:
    """One allocation, not two; that both weigh would show in the estimate."""
    requires("musl-gcc")
    recorded = record(compiled(tmp_path, "musl-gcc"), names={"by_malloc", "by_calloc"}, options=EACH)
    malloc, calloc = recorded.sites["by_malloc"], recorded.sites["by_calloc"]
    assert (malloc.allocs, malloc.size, malloc.live) == (1009, 1009 * 101, 505)
    assert (calloc.allocs, calloc.size, calloc.live) == (1009, 1009 * 103, 1009)
    source = """\
#include <stdlib.h>
static void *volatile kept;
int main(void) { for (int i = 0; i < 40000; i++) { kept = calloc(1, 1000); free(kept); } return 0; }
"""
    (tmp_path / "program.c").write_text(source)
    subprocess.run(["musl-gcc", "-O1", "program.c", "-o", "program"], cwd=tmp_path, check=True)
    options = HeapOptions(sample_bytes=20_000)
    amounts = []
    for _ in range(5):
        result = record(tmp_path / "program", names=set(), options=options).outcome.result
        assert result is not None
        amounts.append(result.amount("allocated"))
    error = sum(amount.size_error**2 for amount in amounts) ** 0.5
    assert abs(sum(amount.size - 40_000_000 for amount in amounts)) < 5 * error
