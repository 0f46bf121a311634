"""What a process does with processes while it is sampled: it executes other programs, and forks."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

from support import build_target
from test_attach_run import MARK, Folded, Spawn, cpu_time_s, maps_text, pyattach, timers_text

BECOMES_ANOTHER = """\
import os, select, sys
print("ready", flush=True)
while not select.select([sys.stdin], [], [], 0)[0]:
    sum(range(1000))
os.execv(sys.argv[1], sys.argv[1:])
"""


def test_the_program_that_comes_after_is_followed(spawn: Spawn, tmp_path: Path) -> None:
    folded = tmp_path / "o.folded"
    split = build_target("split")
    with spawn([sys.executable, "-c", BECOMES_ANOTHER, split]) as target:
        with pyattach(target.pid, "-o", folded, "-o", "-") as run:
            run.wait_sampling(target.pid)
            target.tell()
            target.expect("ready")
            run.wait_sampling(target.pid, cpu_s=0.5)
            run.tell(signal.SIGINT)
            out = run.finish(0)
        assert MARK not in maps_text(target.pid) and not timers_text(target.pid)
        assert target.finish().splitlines()[-1].startswith("done ")
    seen = Folded(folded).inclusive()
    assert seen["work_70"] >= 20, "the second program"
    assert seen.total() and any("Py" in name for name in seen), "the first"
    assert "the target executed another program (1 times seen)" in out
    assert f"it went on as: {split}" in out
    assert "stopped by the user" in out


def test_the_duration_is_that_of_all_programs(spawn: Spawn, tmp_path: Path) -> None:
    with spawn([sys.executable, "-c", BECOMES_ANOTHER, build_target("split")]) as target:
        with pyattach(target.pid, "-d", "2", "-o", tmp_path / "o.svg", "-o", "-") as run:
            run.wait_sampling(target.pid)
            target.tell()
            out = run.finish(0)
        target.finish()
    assert "duration reached" in out


def test_a_program_that_cant_be_followed_ends_the_run(spawn: Spawn, tmp_path: Path) -> None:
    other = build_target("quiet", "-m32")
    with spawn([sys.executable, "-c", BECOMES_ANOTHER, other]) as target:
        with pyattach(target.pid, "-o", tmp_path / "o.svg", "-o", "-") as run:
            run.wait_sampling(target.pid)
            target.tell()
            out = run.finish(0)
        target.finish()
    assert "it could not be followed" in out and "32-bit" in out
    assert "replaced itself (exec)" in out


def test_execs_in_a_row_kill_nobody(spawn: Spawn, tmp_path: Path) -> None:
    """Whatever pyattach is at just then: sampling, injecting, leaving."""
    folded = tmp_path / "o.folded"
    with spawn("execs", 60, 20) as target:
        with pyattach(target.pid, "--hz", "997", "-o", folded) as run:
            run.wait_until("the stub is in", lambda: MARK in maps_text(target.pid))
            target.tell()
            target.expect("done")
            run.tell(signal.SIGINT)
            run.finish(0)
        assert MARK not in maps_text(target.pid) and not timers_text(target.pid)
        target.finish(0)
    assert Folded(folded).inclusive()["work_between"] > 0


def test_forks_in_a_row_hurt_neither_child_nor_parent(spawn: Spawn, tmp_path: Path) -> None:
    """A child has the handler, but no timer and nothing to write to."""
    folded = tmp_path / "o.folded"
    with spawn("execs", "-f", 500) as target:
        with pyattach(target.pid, "--hz", "997", "-o", folded) as run:
            run.wait_until("the stub is in", lambda: MARK in maps_text(target.pid))
            target.tell()
            target.expect("done")
            run.finish(None)
        target.finish(0)
    assert run.process.returncode == 0, run.err


def test_children_write_nothing_to_the_shared_memory(spawn: Spawn, tmp_path: Path) -> None:
    """The parent sleeps while its children work: hardly a sample."""
    script = """\
import os, sys, time
print("ready", flush=True)
sys.stdin.readline()
for _ in range(4):
    if not os.fork():
        end = time.process_time() + 0.3
        while time.process_time() < end:
            sum(range(1000))
        os.kill(os.getpid(), 27)
        os._exit(0)
print([os.waitstatus_to_exitcode(os.wait()[1]) for _ in range(4)], flush=True)
sys.stdin.read()
"""
    folded = tmp_path / "o.folded"
    with spawn([sys.executable, "-c", script]) as target:
        with pyattach(target.pid, "--hz", "250", "-o", folded) as run:
            run.wait_until("the stub is in", lambda: MARK in maps_text(target.pid))
            begin = cpu_time_s(target.pid)
            target.tell()
            assert target.expect("[") == "[0, 0, 0, 0]"
            own_s = cpu_time_s(target.pid) - begin
            run.tell(signal.SIGINT)
            run.finish(None)
        target.finish()
    assert Folded(folded).total <= 250 * (own_s + 0.05)
