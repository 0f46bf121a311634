"""pyattach from Python, on real processes."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support import build_target, spawn
from test_attach_run import (
    MARK,
    cpu_time_s,
    five_errors,
    maps_text,
    timers_text,
    wait_for,
    weights_in,
)

import pyattach
from pyattach.api import Attachment, Profile
from pyattach.errors import NoSuchTarget, PyattachError, TargetDied, UnsupportedTarget, UsageError
from pyattach.inject.image import preload_path

pytest_plugins = ["pytester"]


def works(pid: int, seconds: float) -> None:
    begin = cpu_time_s(pid)
    wait_for("it has worked", lambda: cpu_time_s(pid) >= begin + seconds)


def test_shares_of_a_program_that_runs(tmp_path: Path) -> None:
    with spawn("split") as target:
        with pyattach.attach(target.pid, hz=199) as session:
            assert MARK in maps_text(target.pid), "within the with it samples"
            with pytest.raises(PyattachError, match="goes on"):
                _ = session.profile
            works(target.pid, 2.0)
        assert MARK not in maps_text(target.pid) and not timers_text(target.pid)
        target.finish()
    profile = session.profile
    assert profile.residue == () and profile.meta.rate_asked_hz == 199
    shares = {row.frame.name: profile.share(row) for row in profile.top(10)}
    firefox = tmp_path / "o.firefox.json"
    profile.save(firefox)
    assert shares["work_70"] == pytest.approx(0.7, abs=five_errors(0.7, weights_in(firefox)))
    assert [thread.tid for thread in profile.threads] == [target.pid]
    assert sum(weight for _, _, weight in profile.samples()) == profile.total > 300
    folded = profile.fold()
    assert sum(folded.values()) == profile.total
    assert max(folded, key=folded.__getitem__).endswith(";work_70")
    by_total = {row.frame.name: profile.share(row, by_total=True) for row in profile.top(50, by_total=True)}
    assert by_total["main"] > 0.98

    for name in ("o.svg", "o.json", "o.folded", "o.pb.gz"):
        profile.save(tmp_path / name)
        again = pyattach.read(tmp_path / name)
        assert again.total == profile.total, name
    profile.save(tmp_path / "other", format="text")
    assert "work_70" in (tmp_path / "other").read_text()
    profile.diff(pyattach.read(tmp_path / "o.svg"), tmp_path / "diff.svg")
    assert (tmp_path / "diff.svg").read_bytes().startswith(b"<?xml")
    with pytest.raises(UsageError, match="no output format"):
        profile.save(tmp_path / "o.xyz")


def test_a_caller_that_ignores_its_children() -> None:
    with spawn("split") as target:
        with contextlib.ExitStack() as undo:
            before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
            try:
                session = undo.enter_context(pyattach.attach(target.pid))
            finally:
                signal.signal(signal.SIGCHLD, before)
            works(target.pid, 0.7)
        target.finish()
    assert session.profile.total > 0


def test_what_a_program_allocates() -> None:
    with spawn("heap_linked") as target:
        with pyattach.attach_heap(target.pid) as session:
            target.tell("go")
            target.expect("done")
        assert MARK not in maps_text(target.pid)
        target.finish()
    heap = session.profile
    assert heap.residue == ()
    assert heap.allocated_bytes("heap_linked") == 1009 * 101
    assert heap.live_blocks("heap_linked") == 1009 - 503
    assert heap.live_bytes("heap_linked") == (1009 - 503) * 101
    assert heap.live_bytes("libnone") == 0
    assert heap.kind("allocated", "blocks").total >= 1009
    with pytest.raises(UsageError, match="kind 'leaked'"):
        heap.kind("leaked")
    with pytest.raises(UsageError, match="not looked for"):
        heap.leaked_bytes()


def test_what_a_program_has_lost() -> None:
    with pytest.raises(UsageError, match="sampled"):
        pyattach.attach_heap(1, leaks=True, sample_bytes=1000)
    with spawn([str(build_target("leaks")), "wait"]) as target:
        with pyattach.attach_heap(target.pid, leaks=True) as session:
            target.tell("go")
            target.expect("done")
        target.tell("end")
        target.finish()
    heap = session.profile
    assert heap.leaked_bytes("leaks") == heap.kind("leaked").total == 5587
    assert heap.leaked_bytes("libnone") == 0 < heap.live_bytes()


def test_the_callers_work_disturbs_nothing() -> None:
    """While it holds the interpreter's lock for longer than the lease lasts."""
    with spawn("split") as target:
        with pyattach.attach(target.pid) as session:
            begin = cpu_time_s(target.pid)
            while cpu_time_s(target.pid) < begin + 2.0:
                sum(range(100_000_000))
        target.finish()
    assert session.profile.total == pytest.approx(99 * (session.profile.meta.cpu_time_s or 0), rel=0.1)
    assert not any("held up" in note for note in session.profile.meta.notes)


def test_threads_and_duration() -> None:
    with spawn("split") as target:
        with pytest.raises(UsageError, match="no thread"), pyattach.attach(target.pid, threads=["nobody-*"]):
            pass
        with pyattach.attach(target.pid, threads=["split*"], duration_s=0.3) as session:
            wait_for("its time is over", lambda: MARK not in maps_text(target.pid))
        target.finish()
    assert session.profile.meta.ended_by == "duration reached"


def test_one_thread_by_name() -> None:
    with spawn("split") as target:
        with pytest.raises(UsageError, match="no thread"), pyattach.attach(target.pid, threads="nobody-*"):
            pass
        target.finish()


def test_a_session_twice() -> None:
    with spawn("split") as target:
        session = pyattach.attach(target.pid)
        profiles = []
        for _ in range(2):
            with session:
                works(target.pid, 0.3)
            profiles.append(session.profile)
        target.finish()
    assert profiles[0] is not profiles[1] and profiles[1].total > 0


def test_a_fork_of_the_caller_does_not_keep_it_running() -> None:
    """It has the other end of the pipe, too."""
    with spawn("split") as target:
        with pyattach.attach(target.pid) as session:
            child = os.fork()
            if not child:
                signal.pause()
                os._exit(0)
            try:
                works(target.pid, 0.1)
                assert session.stop().total >= 0
            finally:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
        assert MARK not in maps_text(target.pid)
        target.finish()


def test_what_a_program_has_recorded_of_itself(tmp_path: Path) -> None:
    path = tmp_path / "profile"
    environment = {**os.environ, "LD_PRELOAD": str(preload_path()), "PYATTACH_OUT": str(path)}
    subprocess.run([build_target("split"), "0.3"], env=environment, capture_output=True, check=True)
    assert "work_70" in {row.frame.name for row in pyattach.read(path).top(3)}


def test_the_end_of_the_process_ends_it() -> None:
    with spawn("split") as target:
        with pyattach.attach(target.pid) as session:
            works(target.pid, 0.3)
            target.process.kill()
            target.process.wait()
        assert session.profile.total > 0 and session.profile.meta.ended_by == "the target ended"


def test_errors_are_those_of_the_command() -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    with pytest.raises(NoSuchTarget) as caught, pyattach.attach(gone.pid):
        pass
    assert caught.value.way_out
    with spawn(build_target("quiet", "-m32")) as target:
        with pytest.raises(UnsupportedTarget, match="32-bit"), pyattach.attach_heap(target.pid):
            pass
        target.finish()
    for options in ({"hz": 1}, {"hz": float("nan")}, {"mode": "both"}):
        with pytest.raises(UsageError):
            pyattach.attach(os.getpid(), **options)  # type: ignore[arg-type]


def test_an_error_of_the_caller_comes_through_and_the_target_is_let_go() -> None:
    with spawn("split") as target:
        with pytest.raises(ZeroDivisionError), pyattach.attach(target.pid):
            works(target.pid, 0.1)
            raise ZeroDivisionError
        assert MARK not in maps_text(target.pid)
        target.finish()


def test_the_process_that_profiles_is_killed() -> None:
    with spawn("split") as target:
        with pytest.raises(PyattachError, match="ended with -9"), pyattach.attach(target.pid) as session:
            kill_profiler(session)
        with pyattach.attach(target.pid, duration_s=0.2) as session:
            pass
        assert session.profile.residue == () and MARK not in maps_text(target.pid)
        target.finish()


def kill_profiler(session: Attachment[Profile]) -> None:
    assert session._process is not None
    session._process.send_signal(signal.SIGKILL)


FIXTURES = """
import subprocess
pytest_plugins = ["pyattach.pytest_plugin"]

def test_heap(heap_of):
    with subprocess.Popen([{program!r}], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        process.stdout.readline()
        with heap_of(process.pid) as session:
            process.stdin.write("go\\n")
            process.stdin.flush()
            process.stdout.readline()
        process.stdin.close()
    assert session.profile.live_blocks(module="heap_linked") == 506
    assert session.profile.live_bytes(module="heap_linked") == 0

def test_cpu(profile_of):
    with subprocess.Popen([{busy!r}], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        with profile_of(process.pid, duration_s=0.3) as session:
            pass
        process.kill()
    assert session.profile.residue == ()

def test_inside(profile_of):
    with subprocess.Popen([{busy!r}], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            with profile_of(process.pid):
                assert "inside" == ""
        finally:
            process.kill()
"""


def test_fixtures_for_native_services(pytester: pytest.Pytester) -> None:
    programs = {"program": str(build_target("heap_linked")), "busy": str(build_target("split"))}
    pytester.makepyfile(FIXTURES.format(**programs))
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider")
    result.assert_outcomes(passed=1, failed=2)
    result.stdout.fnmatch_lines(
        ["E * assert 51106 == 0", "* Captured pyattach call *", "<HeapProfile of process *.svg"]
    )
    result.stdout.fnmatch_lines(
        ["E * 'inside' == ''", "* Captured pyattach call *", "<Profile of process *.svg"]
    )


def test_nothing_of_it_is_imported_by_the_command() -> None:
    code = "import sys, pyattach.attacher.cli; print('pyattach.api' in sys.modules)"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout == "False\n"
    assert isinstance(TargetDied("x"), PyattachError)
    with pytest.raises(AttributeError):
        _ = pyattach.nothing  # type: ignore[attr-defined]
