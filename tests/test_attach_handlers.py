"""Signals that come while a thread is borrowed, and handlers that take their time."""

from __future__ import annotations

import os
import signal

import pytest
from support import build_target
from test_attach_run import Spawn, loaded, wait_for

from pyattach.attacher import stale
from pyattach.attacher.contract import Options
from pyattach.attacher.sampling import Session
from pyattach.attacher.target import TargetProcess
from pyattach.errors import InjectionFailed
from pyattach.inject import borrow, fault


class Sender:
    """Sends SIGUSR1 to the target at a step of each borrowing: what came is handled as soon as the thread
    lets signals in."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
        self.sent, self._step, self._reach = 0, step, fault.reach
        monkeypatch.setattr(fault, "reach", self._reached)

    def _reached(self, step: str, pid: int) -> None:
        if step == self._step:
            self.sent += 1
            os.kill(pid, signal.SIGUSR1)
        self._reach(step, pid)


@pytest.mark.parametrize("step", ["written", "mailed"])
@pytest.mark.parametrize("stack", [[], ["own"]])
@pytest.mark.parametrize("takes_ms", ["1", "30", "300"])
@pytest.mark.parametrize("how", ["busy", "asleep"])
def test_a_handler_that_returns_to_the_bootstrap(
    spawn: Spawn, monkeypatch: pytest.MonkeyPatch, how: str, takes_ms: str, stack: list[str], step: str
) -> None:
    """It is called at the bootstrap's first or last instructions: they must be there when it returns."""
    program = [str(build_target("handlers")), how, takes_ms, *stack]
    with spawn(program) as target, TargetProcess(target.pid) as process:
        sender = Sender(monkeypatch, step)
        with loaded(process, Options(rate_hz=99)):
            pass
        assert sender.sent >= 3  # load, stop and unload
        assert target.finish() == f"done {sender.sent}\n"


def test_a_handler_that_takes_too_long(spawn: Spawn, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bootstrap stays, so that the thread gets through; it is taken out once nobody comes back."""
    program = [str(build_target("handlers")), "asleep", "2000"]
    with spawn(program) as target:
        with TargetProcess(target.pid) as process, monkeypatch.context() as patched:
            patched.setattr(borrow, "DEADLINE_S", 0.3)
            sender = Sender(patched, "mailed")
            session = Session(process, Options(rate_hz=99))
            with pytest.raises(InjectionFailed, match="has not left the bootstrap") as raised:
                session.load()
            assert "signal's handler" in raised.value.way_out
            session.close()
            assert len(borrow.bootstraps_in(process)) == 1
            (at,) = borrow.bootstraps_in(process)
            patched.setattr(stale, "_INSIDE_S", 0.05)
            assert not stale._restore(process, at), "its handler still runs"
            wait_for("the handler has returned", lambda: stale._restore(process, at))
            assert borrow.bootstraps_in(process) == []
        assert target.finish() == f"done {sender.sent}\n"
