"""``pyattach PID --heap``: CPU time and allocations in one attach, each as if it were alone."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from heap_support import Site, sites_of, words
from support import Target, build_target, spawn
from test_attach_run import MARK, Folded, maps_text, pyattach

from pyattach.attacher.contract import Options
from pyattach.attacher.following import attach
from pyattach.attacher.heap_beside import HeapBeside, heap_outputs
from pyattach.attacher.heap_session import HeapOptions
from pyattach.attacher.procfs import read_status
from pyattach.errors import ExitCode, UnsupportedTarget, UsageError

pytestmark = pytest.mark.usefixtures("may_trace")

EXPECTED = Site(1009, 1009 * 101, 1009 - 503, (1009 - 503) * 101, 0)


def test_exact_beside_sampling() -> None:
    def script(target: Target) -> Iterator[bool]:
        target.tell("go")
        target.expect("done")
        yield False

    with spawn(build_target("heap_linked")) as target:
        before, caught = words(target.pid), read_status(target.pid)["SigCgt"]
        for _ in range(2):
            steps = script(target)
            heap = HeapBeside(target.pid, HeapOptions())
            outcome = attach(target.pid, Options(), lambda s=steps: next(s, True), lambda _p: None, heap)
            assert outcome.residue == () and heap.outcome is not None
            assert heap.outcome.residue == () and heap.outcome.result is not None
            assert heap.outcome.meta.ended_by == outcome.profile.meta.ended_by == "stopped by the user"
            assert sites_of(heap.outcome.result, {"make"}) == {"make": EXPECTED}
            assert not any(
                "another pyattach" in n for n in (*outcome.profile.meta.notes, *heap.outcome.meta.notes)
            )
        assert words(target.pid) == before
        assert read_status(target.pid)["SigCgt"] == caught
        target.finish()


@pytest.mark.parametrize("mode", ["cpu", "wall"])
def test_both_pictures_and_both_summaries(tmp_path: Path, mode: str) -> None:
    outputs = ["-o", tmp_path / "o.svg", "-o", tmp_path / "o.folded", "-o", "-"]
    with spawn(build_target("heap_cycles")) as target:
        with pyattach(target.pid, "--heap", "-d", "3", "--mode", mode, *outputs) as run:
            out = run.finish()
        target.finish()
    for name in ("o.svg", "o-heap.svg"):
        assert (tmp_path / name).read_bytes().startswith(b"<?xml"), name
    cpu, heap = Folded(tmp_path / "o.folded"), Folded(tmp_path / "o-heap.folded")
    assert cpu.total > 50 and heap.total > 1000
    assert "by self: samples" in out and "allocated: allocated, freed or not" in out
    # What recording takes is told apart, not hidden in what called malloc.
    own = sum(n for stack, n in cpu.stacks.items() if any(f.startswith("pa_hook_") for f in stack))
    assert own and "recording the heap took" in out
    assert not any("truncated" in frame for stack in cpu.stacks for frame in stack[:1])


def test_reports_on_the_way(tmp_path: Path) -> None:
    with spawn(build_target("heap_cycles")) as target:
        with pyattach(target.pid, "--heap", "-o", tmp_path / "o.svg", folder=tmp_path) as run:
            run.wait_sampling(target.pid)
            run.tell(signal.SIGUSR1)
            run.wait_until("both are written", lambda: len(list(tmp_path.glob("*-snapshot*.svg"))) == 2)
            run.tell(signal.SIGINT)
            run.finish()
        target.finish()
    assert len(list(tmp_path.glob(f"{target.pid}-*-snapshot-heap.svg"))) == 1
    assert len(list(tmp_path.glob(f"{target.pid}-*-snapshot-heap.txt"))) == 1


def test_a_program_that_executes_another(tmp_path: Path) -> None:
    """The sampling goes on with that, the heap is of the first."""
    next_one = build_target("split")
    script = f"echo ready; until read -t 0; do for i in {{1..500}}; do x=$i$i; done; done; exec {next_one}"
    with spawn(["bash", "-c", script]) as target:
        with pyattach(target.pid, "--heap", "-o", tmp_path / "o.folded", "-o", "-") as run:
            run.wait_sampling(target.pid, timers=False)
            target.tell("go")
            run.wait_until("it was executed", lambda: str(next_one) in maps_text(target.pid))
            run.wait_sampling(target.pid, timers=False)
            run.tell(signal.SIGINT)
            out = run.finish()
        target.process.kill()
        target.finish(exit_code=None)
    assert "the heap was recorded up to there" in out
    assert any(
        frame.endswith("malloc") for stack in Folded(tmp_path / "o-heap.folded").stacks for frame in stack
    )
    assert "work_20" in Folded(tmp_path / "o.folded").inclusive()


def test_a_program_without_a_heap_that_can_be_recorded() -> None:
    with spawn(build_target("quiet", "-static")) as target:
        before = maps_text(target.pid)
        with pytest.raises(UnsupportedTarget, match="dynamic"):
            attach(
                target.pid, Options(), lambda: True, lambda _p: None, HeapBeside(target.pid, HeapOptions())
            )
        assert maps_text(target.pid) == before
        target.finish()


@pytest.mark.parametrize(
    ("words_", "said"),
    [
        (("--heap", "-s"), "for one process"),
        (("--leaks",), "add --heap"),
        (("--heap-sample", "512K"), "add --heap"),
        (("--heap-kind", "live"), "add --heap"),
        (("--heap", "-f", "folded", "-o", "-"), "can't both go to stdout"),
        (("--heap", "--leaks", "--heap-sample", "512K"), "leaks can't be told"),
    ],
)
def test_words_that_do_not_go_together(words_: tuple[str, ...], said: str) -> None:
    with pyattach(1, *words_) as run:
        run.finish(2)
    assert said in run.err


def test_names_of_files() -> None:
    names = {
        "o.svg": "o-heap.svg",
        "a/b.pb.gz": "a/b-heap.pb.gz",
        "-": "-",
        "x.speedscope.json": "x-heap.speedscope.json",
    }
    assert heap_outputs(list(names), None) == list(names.values())
    assert heap_outputs(["plain", "a.b/plain", "x.y"], "svg") == ["plain-heap", "a.b/plain-heap", "x-heap.y"]
    with pytest.raises(UsageError, match="stdout"):
        heap_outputs(["-"], "pprof")


def test_what_the_heap_leaves_behind_is_told_of(tmp_path: Path) -> None:
    with spawn(build_target("heap_linked", "-fno-plt", "-DTAKES")) as target:
        with pyattach(target.pid, "--heap", "-o", tmp_path / "o.svg") as run:
            run.wait_until(
                "both are in", lambda: len(set(re.findall(rf"{MARK}\w+", maps_text(target.pid)))) == 2
            )
            target.tell("hold")
            target.expect("done")
            run.tell(signal.SIGINT)
            run.finish(ExitCode.DETACH_INCOMPLETE)
        said = f"left behind in process {target.pid}: the hooks' code stays mapped, and passes on"
        assert said in run.err and "as before" not in run.err
        target.tell("on")
        target.expect("done")
        target.finish()
