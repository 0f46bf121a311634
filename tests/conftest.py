"""Fixtures for all tests; what they do is in support.py."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import pytest
import support

INJECT = Path(__file__).resolve().parent.parent / "inject"

LEFTOVER_DEADLINE_S = 5.0

PR_SET_CHILD_SUBREAPER = 36  # include/uapi/linux/prctl.h
PTRACE_DETACH = 17  # include/uapi/linux/ptrace.h
PTRACE_SEIZE = 0x4206
PTRACE_INTERRUPT = 0x4207


# Time decides no test; the same cases each time, unless many are asked for.
hypothesis.settings.register_profile("house", deadline=None, derandomize=not support.CASES)
hypothesis.settings.load_profile("house")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "hostile: a property of input that nobody vouches for")
    _rebuild_stale_stub()
    # A grandchild whose parent died becomes our child then, and no_process_left finds it.
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    # nohup, and a shell's background jobs, start us with these ignored; tests send them to what they start.
    for number, handler in ((signal.SIGHUP, signal.SIG_DFL), (signal.SIGINT, signal.default_int_handler)):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, handler)


def pytest_report_header() -> str:
    return f"ptrace: {_why_ptrace_is_refused() or 'permitted'}"


def _rebuild_stale_stub() -> None:
    spec = importlib.util.spec_from_file_location("build_stub", INJECT / "build_stub.py")
    assert spec is not None and spec.loader is not None
    build_stub = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(build_stub)
    try:
        if build_stub.is_stale(INJECT / "stub", INJECT):
            build_stub.build(INJECT / "stub", INJECT)
    except build_stub.BuildError as error:
        raise pytest.UsageError(f"the stub could not be compiled: {error}") from error


def _why_ptrace_is_refused() -> str:
    """Empty if this process may trace its children; otherwise the reason and the way out.

    Tries it on a child: Yama, seccomp and containers each have a say.
    """
    ptrace = ctypes.CDLL(None, use_errno=True).ptrace
    ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
    ptrace.restype = ctypes.c_long
    with subprocess.Popen(["sleep", "60"]) as child:
        try:
            if ptrace(PTRACE_SEIZE, child.pid, None, None) == 0:
                # Only a stopped tracee can be detached from.
                ptrace(PTRACE_INTERRUPT, child.pid, None, None)
                os.waitpid(child.pid, 0)
                ptrace(PTRACE_DETACH, child.pid, None, None)
                return ""
            reason = os.strerror(ctypes.get_errno())
        finally:
            child.kill()
    setting = Path("/proc/sys/kernel/yama/ptrace_scope")
    scope = setting.read_text().strip() if setting.exists() else "absent"
    return (
        f"refused ({reason}); kernel.yama.ptrace_scope is {scope}: run as root, or give CAP_SYS_PTRACE"
        " (docker run --cap-add=SYS_PTRACE), or sysctl kernel.yama.ptrace_scope=1"
    )


@pytest.fixture(scope="session")
def may_trace() -> None:
    """For tests that attach: skips them where ptrace is refused (fails them under CI)."""
    reason = _why_ptrace_is_refused()
    if reason:
        support.skip_unless_ci(f"ptrace: {reason}")


@pytest.fixture
def spawn(may_trace: None) -> Callable[..., object]:
    """``with spawn("split", 5) as target:`` see support.spawn and support.Target."""
    return support.spawn


@pytest.fixture(scope="session")
def build_target() -> Callable[..., Path]:
    """``build_target("quiet", "-static")``: see support.build_target."""
    return support.build_target


@pytest.fixture(scope="session")
def requires() -> Callable[[str], str]:
    """``redis = requires("redis-server")``: see support.requires."""
    return support.requires


@pytest.fixture(autouse=True)
def no_process_left() -> Iterator[None]:
    """After every test: no process of its making is left, and none of ours is stopped or traced.

    Children of fixtures with a wider scope are there before the test and may stay.
    """
    before = support.children()
    yield
    end = time.monotonic() + LEFTOVER_DEADLINE_S
    while (left := support.children().keys() - before.keys()) and time.monotonic() < end:
        time.sleep(0.02)  # a process that was told to end may still be at it
    described = [f"{pid}: {support.command_of(pid)}" for pid in sorted(left)]
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert not described, f"processes were left running: {described}"
    held = [state for pid in support.children() for state in support.thread_states(pid) if state.is_held]
    assert not held, f"processes were left held: {held}"
