"""A thread that was asked to stop and has not yet is still seized: it is passed over, not seized again."""

from __future__ import annotations

import os
import subprocess

import pytest
from support import spawn
from test_attach_run import status_of, wait_for

from pyattach.attacher.hold import hold_any
from pyattach.attacher.permission import no_permission
from pyattach.attacher.ptrace import Tracee, any_stops_late, wait_for_late_stops
from pyattach.attacher.target import TargetProcess
from pyattach.errors import InjectionFailed


def test_it_is_passed_over(may_trace: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyattach.attacher.hold.SEARCH_DEADLINE_S", 0.05)
    with spawn("quiet") as target, TargetProcess(target.pid) as process:
        tracee = Tracee(target.pid).__enter__()
        never_stops = monkeypatch.context()
        with never_stops as patch:
            patch.setattr(Tracee, "_wait", lambda _self, _deadline: None)
            tracee.detach()  # it does not stop in time, as far as is seen
            assert any_stops_late()
            with pytest.raises(InjectionFailed), hold_any(process):
                pass
            assert process.wait_outside([target.pid], [(0, 1 << 47)], 0.05) == {target.pid}
        wait_for_late_stops()
        assert not any_stops_late()
        with hold_any(process) as held:
            assert held.tid == target.pid
            held.release()
        target.finish()


def test_a_stop_that_another_has_met(may_trace: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The target is a child of this process, whose Popen asks for its end: the stop is told to that."""
    with spawn("quiet") as target:
        tracee = Tracee(target.pid).__enter__()
        with monkeypatch.context() as patch:
            patch.setattr(Tracee, "_wait", lambda _self, _deadline: None)
            tracee.detach()
        wait_for("it has stopped", lambda: status_of(target.pid)["State"].startswith("t"))
        assert os.waitpid(target.pid, os.WNOHANG)[0] == target.pid
        wait_for_late_stops()
        assert not any_stops_late()
        assert status_of(target.pid)["TracerPid"] == "0"
        target.finish()


def test_a_thread_that_another_has_seized_meanwhile(may_trace: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A debugger, while pyattach waits for the borrowed one to get home: it was not seen outside, no more."""

    def refused(tracee: Tracee) -> None:
        raise no_permission(tracee.tid)

    with spawn("split") as target, TargetProcess(target.pid) as process:
        monkeypatch.setattr(Tracee, "_seize", refused)
        assert process.wait_outside([target.pid], [(0, 1)], 0.1) == {target.pid}
        monkeypatch.undo()
        assert process.wait_outside([target.pid], [(0, 1)], 20) == set()
        target.finish()


def test_a_thread_that_executes_another_program_is_outside(may_trace: None) -> None:
    """Its stack can't be read any more, where a signal's frame would say that it comes back."""
    with subprocess.Popen(
        ["sh", "-c", "echo begun; read line; exec cat"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        with TargetProcess(process.pid) as target:
            assert target.memory_is_current()
            process.stdin.write("\nand so on\n")
            process.stdin.flush()
            assert process.stdout.readline() == "and so on\n"  # that was cat
            assert not target.memory_is_current()
            assert target.wait_outside([process.pid], [(0, 1)], 20, handlers=True) == set()
        process.stdin.close()
        assert process.wait() == 0
