"""``pyattach run --heap`` and ``pyattach heap`` as commands; sampling; other C libraries and allocators."""

from __future__ import annotations

import os
import re
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from heap_support import record, sites_of
from support import requires, spawn
from test_attach_run import COMMAND, ROOT

from pyattach.attacher import heap_session
from pyattach.attacher.heap_profile import HeapResult
from pyattach.attacher.heap_session import HeapOptions
from pyattach.render.reading import read_profile

SOURCE = """\
#include <stdlib.h>
__attribute__((noinline)) static void *by_malloc(size_t size)
{
    void *block = malloc(size);
    __asm__ volatile("" : : "r"(block) : "memory");
    return block;
}
__attribute__((noinline)) static void *by_calloc(size_t size)
{
    void *block = calloc(1, size);
    __asm__ volatile("" : : "r"(block) : "memory");
    return block;
}
int main(void)
{
    for (int i = 0; i < 1009; i++) {
        void *block = by_malloc(101);
        by_calloc(103);
        if (i % 2) free(block);
    }
    return 3;
}
"""


def pyattach(*words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *map(str, words)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


def compiled(folder: Path, compiler: str = "cc") -> Path:
    (folder / "program.c").write_text(SOURCE)
    subprocess.run([compiler, "-O1", "program.c", "-o", "program"], cwd=folder, check=True)
    return folder / "program"


def test_the_command(tmp_path: Path) -> None:
    program = compiled(tmp_path)
    svg, folded, text = (tmp_path / name for name in ("o.svg", "o.folded", "o.txt"))
    outputs = ("-o", svg, "-o", folded, "-o", text)
    done = pyattach("run", "--heap", "--heap-kind", "live", *outputs, "--", program)
    assert done.returncode == 3, done.stderr
    assert "allocated 205,836 bytes in 2,018 blocks" in done.stderr
    live = {line.rpartition(" ")[0].rpartition(";")[2]: int(line.split()[-1]) for line in folded.open()}
    assert live == {"by_malloc": 505 * 101, "by_calloc": 1009 * 103}
    report = text.read_text()
    assert re.search(r"(?m)^live +154,932 bytes in 1,514 blocks$", report)
    assert "50,904 100.00%          504  by_malloc < main" not in report  # none of them is temporary
    assert f"{103_927:,}  67.08%        1,009  by_calloc < main" in report
    assert "bytes allocated and not freed" in svg.read_text()


def test_how_long_it_took_is_how_long_was_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not the work afterwards: of a large heap that takes longer than the program did."""
    later = 0.0

    class Late(HeapResult):
        def __init__(self, *arguments: Any) -> None:
            nonlocal later
            super().__init__(*arguments)
            later = 1000.0

    monkeypatch.setattr(heap_session, "HeapResult", Late)
    now = time.monotonic
    monkeypatch.setattr(heap_session.time, "monotonic", lambda: now() + later)
    recorded = record(compiled(tmp_path), names={"by_malloc"})
    assert later
    assert 0 < recorded.outcome.meta.duration_s < later


@pytest.mark.parametrize(("depth", "cut"), [(64, 0), (2, 2018)])
def test_allocations_whose_stack_is_not_whole_are_counted(tmp_path: Path, depth: int, cut: int) -> None:
    recorded = record(compiled(tmp_path), names={"by_malloc"}, options=HeapOptions(max_depth=depth))
    assert recorded.outcome.result is not None
    assert recorded.outcome.result.count_truncated() == cut
    said = f"{cut:,} recorded allocations have a stack that is not whole"
    assert (said in recorded.outcome.meta.notes) == bool(cut)


def test_a_running_process(tmp_path: Path, may_trace: None) -> None:
    text = tmp_path / "o.txt"
    with spawn("heap_cycles") as target:
        done = pyattach("heap", target.pid, "-d", "0.3", "-o", text)
        # On a busy machine the code may stay, where a thread takes too long to show its registers.
        assert ("as before" in done.stderr) == (done.returncode == 0), done.stderr
        assert done.returncode == 0 or (done.returncode == 7 and "in a register" in done.stderr), done.stderr
        target.finish()
    assert "storm < " in text.read_text()
    assert "hooked" in text.read_text()


def test_what_can_not_be_asked_for() -> None:
    assert pyattach("heap").returncode == 2
    assert pyattach("run", "--heap", "--heap-sample", "many", "--", "true").returncode == 2


def test_musl_where_calloc_calls_malloc(tmp_path: Path) -> None:
    requires("musl-gcc")
    recorded = record(compiled(tmp_path, "musl-gcc"), names={"by_malloc", "by_calloc"})
    assert recorded.status == 3
    malloc, calloc = recorded.sites["by_malloc"], recorded.sites["by_calloc"]
    assert (malloc.allocs, malloc.size, malloc.live) == (1009, 1009 * 101, 505)
    assert (calloc.allocs, calloc.size, calloc.live) == (1009, 1009 * 103, 1009)


@pytest.mark.parametrize("allocator", ["libjemalloc.so.2", "libtcmalloc_minimal.so.4", "libmimalloc.so"])
def test_another_allocator_behind_it(tmp_path: Path, allocator: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = next(Path("/usr/lib/x86_64-linux-gnu").glob(f"{allocator}*"), None)
    if found is None:
        requires(allocator)
    monkeypatch.setenv("LD_PRELOAD", str(found))
    recorded = record(compiled(tmp_path), names={"by_malloc", "by_calloc"})
    assert recorded.status == 3
    malloc, calloc = recorded.sites["by_malloc"], recorded.sites["by_calloc"]
    assert (malloc.allocs, malloc.live, calloc.allocs, calloc.live) == (1009, 505, 1009, 1009)


def test_sampled_totals_are_within_their_errors(tmp_path: Path) -> None:
    """Twenty runs with seeds of their own: the estimates lie around the exact totals as their errors say."""
    source = """\
#include <stdlib.h>
static void *kept[40000];
int main(void)
{
    for (int i = 0; i < 40000; i++) {
        kept[i] = malloc(i % 100 ? 100 + i % 1000 : 100000);
        if (i % 4) free(kept[i]);
    }
    return kept[0] == 0;
}
"""
    (tmp_path / "program.c").write_text(source)
    subprocess.run(["cc", "-O0", "program.c", "-o", "program"], cwd=tmp_path, check=True)
    program = tmp_path / "program"
    exact = record(program, names={"main"}).sites["main"]
    off: dict[str, list[float]] = {"allocated": [], "live": []}
    for _ in range(20):
        result = record(program, names=set(), options=HeapOptions(sample_bytes=64 << 10)).outcome.result
        assert result is not None
        for kind, size in (("allocated", exact.size), ("live", exact.live_size)):
            amount = result.amount(kind)
            assert amount.size_error < 0.2 * size
            off[kind].append((amount.size - size) / amount.size_error)
    for values in off.values():
        # Of a mean of 20 standard normal values, 5 standard errors are never exceeded; neither is a single 5.
        assert abs(sum(values) / 20) < 5 / 20**0.5
        assert max(map(abs, values)) < 5
        assert max(map(abs, values)) > 0.05, "estimates that are all exact were not sampled"


def test_threads_that_come_and_go(tmp_path: Path) -> None:
    """Threads that come and go use the tables of those before them: many threads, few tables."""
    source = """\
#include <pthread.h>
#include <stdlib.h>
static void *work(void *p) { for (int i = 0; i < 7; i++) p = malloc(11); return p; }
int main(void)
{
    for (int i = 0; i < 1009; i++) {
        pthread_t t; void *p; pthread_create(&t, 0, work, 0); pthread_join(t, &p); free(p);
    }
    return 0;
}
"""
    (tmp_path / "program.c").write_text(source)
    subprocess.run(["cc", "-O0", "-pthread", "program.c", "-o", "program"], cwd=tmp_path, check=True)
    recorded = record(tmp_path / "program", names={"work"})
    site = recorded.sites["work"]
    assert (site.allocs, site.live) == (7 * 1009, 6 * 1009)
    assert recorded.outcome.result is not None
    assert len(recorded.outcome.result.tables.threads()) <= 4
    assert sites_of(recorded.outcome.result, {"main"}).keys() <= {"main"}


def test_go_tool_pprof_has_all_kinds(tmp_path: Path) -> None:
    go, file = requires("go"), tmp_path / "o.pb.gz"
    done = pyattach("run", "--heap", "--heap-kind", "live", "-o", file, "--", compiled(tmp_path))
    assert done.returncode == 3, done.stderr
    env = {"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}

    def top(*words: str) -> str:
        command = [go, "tool", "pprof", "-symbolize=none", "-top", *words, str(file)]
        return subprocess.run(command, capture_output=True, text=True, check=True, env=env).stdout

    assert "Type: inuse_space" in top("-unit=byte") and "of 154932B total" in top("-unit=byte")
    assert "of 205836B total" in top("-unit=byte", "-sample_index=alloc_space")
    assert "of 2018 total" in top("-sample_index=alloc_objects")
    assert "of 1514 total" in top("-sample_index=inuse_objects")
    assert "Type: peak_space" in top("-sample_index=peak_space")
    assert pyattach("report", file, "-o", tmp_path / "again.folded").returncode == 0
    back = read_profile(file)
    assert (back.meta.mode, back.meta.unit, back.total) == ("heap", "bytes", 154_932)
    lines = (tmp_path / "again.folded").read_text().splitlines()
    assert sum(int(line.rpartition(" ")[2]) for line in lines) == 154_932
