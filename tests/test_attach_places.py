"""Where dlopen is called and where not: the main thread's whole stack is looked at before."""

from __future__ import annotations

import pytest
from support import build_target
from test_attach_run import MARK, Spawn, attach, maps_text, timers_text

from pyattach.attacher import procfs
from pyattach.attacher.contract import Options
from pyattach.attacher.sampling import Session
from pyattach.attacher.target import TargetProcess
from pyattach.errors import ExitCode
from pyattach.inject.locks import LockZones

SAFE = ["plain", "deep", "stale"]
UNSAFE = ["signal", "own-malloc"]


def note(err: str) -> str:
    return next(line for line in err.splitlines() if "loaded by" in line)


def program(place: str) -> list[str]:
    return [str(build_target("places", *(["-DOWN_MALLOC"] if place == "own-malloc" else []))), place]


@pytest.mark.parametrize("place", [*SAFE, *UNSAFE])
def test_dlopen_only_where_no_frame_says_no(spawn: Spawn, place: str) -> None:
    """Words of the stack that only look like frames are no reason, a hundred pages of it none either."""
    with spawn(program(place)) as target:
        loader = "dlopen" if place in SAFE else "auto"
        words = ("-v", "--loader", loader, "-d", "100ms", "-o", "-")
        run = attach(target.pid, *words, exit_code=ExitCode.NO_SAMPLES)
        assert note(run.err).endswith("us")
        assert ("by dlopen" if place in SAFE else "by direct mapping") in note(run.err)
        assert target.finish() == "done\n"


@pytest.mark.parametrize(("running", "by_dlopen"), [(1, True), (10_000, False)])
def test_dlopen_only_with_a_processor_to_spare(
    spawn: Spawn, monkeypatch: pytest.MonkeyPatch, running: int, by_dlopen: bool
) -> None:
    """The main thread sleeps; where all processors are busy it would wait for one at each step."""
    monkeypatch.setattr(procfs, "runnable", lambda: running)
    with spawn(program("plain")) as target:
        with TargetProcess(target.pid) as process:
            session = Session(process, Options(duration_s=0.1))
            session.load()
            session.detach()
            session.close()
        assert session.stub.by_dlopen == by_dlopen
        assert MARK not in maps_text(target.pid) and not timers_text(target.pid)
        assert target.finish() == "done\n"


@pytest.mark.parametrize("place", UNSAFE)
def test_dlopen_is_not_forced_either(spawn: Spawn, place: str) -> None:
    with spawn(program(place)) as target:
        run = attach(target.pid, "--loader", "dlopen", "-d", "100ms", "-o", "-", exit_code=ExitCode.ERROR)
        assert "at no place where dlopen is safe" in run.err and "--loader map" in run.err
        assert MARK not in maps_text(target.pid) and not timers_text(target.pid)
        assert target.finish() == "done\n"


def test_a_return_address_belongs_to_the_call_before_it() -> None:
    zones = LockZones([(0x1000, 0x2000)])
    assert zones.on_stack([0x1000]) == 0x1000  # an instruction pointer
    assert zones.on_stack([0x5000, 0x1000]) is None  # behind a call that never returns, the last before
    assert zones.on_stack([0x5000, 0x2000]) == 0x2000
    assert zones.on_stack([0x2000, 0x5000]) is None
    assert zones.on_stack([]) is None
