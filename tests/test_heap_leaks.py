"""Leaks: those that are known are found, and none that is not one."""

from __future__ import annotations

import collections
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from heap_support import record
from support import Target, build_target, requires
from support import spawn as start
from test_attach_run import pyattach
from test_heap_attach import attached

from pyattach.attacher.heap_profile import HeapResult
from pyattach.attacher.heap_session import HeapOptions

NODE = 96
LOST = {
    "lost_plain": (11, 11 * 31),
    "lost_list": (23, 23 * NODE),
    "lost_cycle": (10, 10 * NODE),
    "lost_behind_freed": (13, 13 * 67),
    "lost_by_thread": (17, 17 * 71),
}
"""Blocks and bytes."""


def leaked(result: HeapResult) -> dict[str, tuple[int, int]]:
    """By function of the program: blocks and bytes."""
    found: collections.Counter[str] = collections.Counter()
    sizes: collections.Counter[str] = collections.Counter()
    for place, size, blocks in result.places("leaked"):
        names = [frame.name for frame in result.frames(place)]
        name = next((n for n in reversed(names) if n.startswith(("lost_", "kept_"))), names[-1])
        found[name] += round(blocks)
        sizes[name] += round(size)
    return {name: (found[name], sizes[name]) for name in found}


def test_at_exit_the_lost_ones_are_found_and_no_others() -> None:
    recorded = record(build_target("leaks"), "exit", names=set(), options=HeapOptions(leaks=True))
    assert recorded.status == 0
    result = recorded.outcome.result
    assert result is not None
    assert leaked(result) == LOST
    assert not [note for note in recorded.outcome.meta.notes if "leak" in note]


@pytest.mark.usefixtures("may_trace")
@pytest.mark.parametrize("mode", ["wait", "spin"])
def test_attached_the_lost_ones_are_found_and_no_others(mode: str) -> None:
    """Also where a block is known to a register alone, of a thread that runs."""

    def script(target: Target) -> Iterator[bool]:
        target.tell("go")
        target.expect("done")
        yield False

    with start([str(build_target("leaks")), mode]) as target:
        outcome = attached(target, script, HeapOptions(leaks=True))
        assert outcome.result is not None
        assert leaked(outcome.result) == LOST
        assert not outcome.residue
        target.tell("end")
        target.finish()


def test_without_exit_it_is_said_that_leaks_are_not_known() -> None:
    recorded = record(build_target("leaks"), "_exit", names=set(), options=HeapOptions(leaks=True))
    assert recorded.outcome.result is not None and recorded.outcome.result.leaks is None
    assert "leaks were not looked for: the program did not end by exit()" in recorded.outcome.meta.notes


def test_valgrind_finds_the_same(tmp_path: Path) -> None:
    """By function.  When it looks, other threads have ended: what those hold is lost, too."""
    log = tmp_path / "log"
    words = ["--leak-check=full", "--show-leak-kinds=all", "--leak-resolution=high", f"--log-file={log}"]
    subprocess.run(
        [requires("valgrind"), *words, str(build_target("leaks")), "exit"], check=True, timeout=120
    )
    theirs: collections.Counter[str] = collections.Counter()
    for entry in re.split(r"==\d+== \n", log.read_text()):
        found = re.search(r"([\d,]+) (?:\(([\d,]+) direct.*\) )?bytes in .* are (\w+) lost in", entry)
        name = re.search(r": ((?:lost|kept)_\w+) ", entry)
        if found and name and found[3] in ("definitely", "indirectly") and name[1] != "kept_by_thread":
            theirs[name[1]] += int((found[2] or found[1]).replace(",", ""))
    assert dict(theirs) == {name: size for name, (_, size) in LOST.items()}, log.read_text()


def test_the_report_draws_them(tmp_path: Path) -> None:
    words = ["--heap", "--heap-kind", "leaked", "-o", tmp_path / "o.folded", "-o", "-"]
    with pyattach("run", *words, "--", build_target("leaks")) as run:
        run.finish(0)
    section = run.out[run.out.index("leaked: not freed") :]
    assert "lost_list" in section and "kept_" not in section
    folded = (tmp_path / "o.folded").read_text()
    assert sum(int(line.rsplit(" ", 1)[1]) for line in folded.splitlines()) == sum(
        size for _, size in LOST.values()
    )


@pytest.mark.parametrize(
    "words", [["--heap-sample", "1K", "--leaks"], ["--no-leaks", "--heap-kind", "leaked"]]
)
def test_what_can_not_be_is_refused(words: list[str]) -> None:
    with pyattach("run", "--heap", *words, "--", "true") as run:
        run.finish(2)
    assert "leak" in run.err


def test_before_a_start_there_is_nothing() -> None:
    with pyattach("run", "--heap", "--heap-kind", "before", "--", "true") as run:
        run.finish(2)
    assert "pyattach heap PID" in run.err
