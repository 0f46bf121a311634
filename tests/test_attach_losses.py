"""What fails once samples are there costs none of them: they are written, and what has failed is said."""

from __future__ import annotations

import errno
import os
import pty
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import Target, build_target
from support import spawn as start
from test_attach_refusals import NOBODY, READING_AS_NOBODY
from test_attach_run import (
    COMMAND,
    MARK,
    ROOT,
    Spawn,
    cpu_time_s,
    has_worked,
    maps_text,
    pyattach,
    status_of,
    wait_for,
)

from pyattach.attacher import following, heap_attach, procfs, session
from pyattach.attacher.contract import Options, Outcome
from pyattach.attacher.heap_attach import attach_heap
from pyattach.attacher.heap_session import HeapOptions, HeapSession
from pyattach.attacher.ring import RingReader
from pyattach.errors import ExitCode, InjectionFailed, PyattachError
from pyattach.render.profile import Meta, Profile
from pyattach.symbols.frame import Frame, FrameKind

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}


def check_detached(target: Target) -> None:
    assert MARK not in maps_text(target.pid)
    assert status_of(target.pid)["TracerPid"] == "0"


# Nobody hears or sees it any more.


@pytest.mark.parametrize(
    "words", [(), ("heap",), ("--heap",)], ids=lambda words: words[0] if words else "cpu"
)
def test_whoever_reads_what_is_said_has_gone(spawn: Spawn, tmp_path: Path, words: tuple[str, ...]) -> None:
    text = tmp_path / "o.txt"
    with spawn("heap_cycles") as target:
        ours, theirs = os.pipe()
        os.close(ours)
        command = [*COMMAND, *words, str(target.pid), "-d", "700ms", "-v", "-o", str(text)]
        done = subprocess.run(command, stderr=theirs, stdout=theirs, env=ENVIRONMENT, check=False)
        os.close(theirs)
        assert done.returncode == 0
        assert status_of(target.pid)["TracerPid"] == "0"
        target.finish()
    assert "storm" in text.read_text()


@pytest.mark.parametrize(
    "words", [(), ("--no-live",), ("heap",)], ids=lambda words: words[0] if words else "live"
)
def test_the_terminal_is_closed(spawn: Spawn, tmp_path: Path, words: tuple[str, ...]) -> None:
    text = tmp_path / "o.txt"
    with spawn("heap_cycles") as target:
        pid, terminal = pty.fork()
        if not pid:
            os.chdir(ROOT)
            os.environ["TERM"] = "xterm"
            os.execv(sys.executable, [*COMMAND, *words, str(target.pid), "-o", str(text)])
        wait_for("the stub is in", lambda: MARK in maps_text(target.pid))
        begin = cpu_time_s(target.pid)
        if "--no-live" not in words:
            seen = b""
            while b"storm" not in seen:
                seen += os.read(terminal, 4096)
        wait_for("it has worked", lambda: cpu_time_s(target.pid) > begin + 0.3)
        os.close(terminal)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        check_detached(target)
        target.finish()
    assert status == 0
    assert "storm" in text.read_text()


@pytest.mark.parametrize("words", [(), ("heap",)], ids=["cpu", "heap"])
def test_stdout_is_full(spawn: Spawn, tmp_path: Path, words: tuple[str, ...]) -> None:
    """The files beside it are written, whichever comes first."""
    before, after = tmp_path / "a.txt", tmp_path / "b.txt"
    with spawn("heap_cycles") as target, Path("/dev/full").open("w") as full:
        command = [*COMMAND, *words, str(target.pid), "-d", "700ms"]
        command += [word for output in (before, "-", after) for word in ("-o", str(output))]
        done = subprocess.run(
            command, stdout=full, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT, check=False
        )
        target.finish()
    assert done.returncode == ExitCode.ERROR, done.stderr
    assert "cannot write to stdout: No space left on device" in done.stderr
    assert "Traceback" not in done.stderr and "wrote" in done.stderr
    assert "storm" in before.read_text() and "storm" in after.read_text()


# Something fails in the midst of it.


ERRORS = pytest.mark.parametrize(
    "error", [OSError(errno.EIO, "it is broken"), PyattachError("it is broken")], ids=["OSError", "ours"]
)


@ERRORS
def test_sampling_fails(spawn: Spawn, error: Exception) -> None:
    with spawn("split") as target:
        worked = has_worked(target.pid, 0.3)

        def looked() -> bool:
            if worked():
                raise error
            return False

        outcome = session.attach(target.pid, Options(), looked, lambda _progress: None)
        check_detached(target)
        target.finish()
    meta = outcome.profile.meta
    assert outcome.profile.total > 0 and meta.duration_s > 0.1
    assert outcome.exit_code == ExitCode.ERROR
    assert "sampling failed" in outcome.failure and "it is broken" in outcome.failure
    assert meta.ended_by == outcome.failure and outcome.failure in meta.notes
    assert outcome.verified and not outcome.residue


@ERRORS
def test_comparing_fails(spawn: Spawn, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fails(_self: object) -> None:
        raise error

    monkeypatch.setattr("pyattach.attacher.stay.Injected.verify", fails)
    with spawn("split") as target:
        outcome = session.attach(target.pid, Options(), has_worked(target.pid, 0.3), lambda _progress: None)
        check_detached(target)
        target.finish()
    assert outcome.profile.total > 0
    assert outcome.profile.meta.ended_by == "stopped by the user"
    assert "comparing the target with before failed" in outcome.failure
    assert outcome.failure in outcome.profile.meta.notes and outcome.exit_code == ExitCode.ERROR


def test_the_last_samples_cant_be_read(spawn: Spawn, monkeypatch: pytest.MonkeyPatch) -> None:
    drain = RingReader.drain

    def fails(self: RingReader, *, final: bool = False) -> object:
        if final:
            raise OSError(errno.EIO, "it is broken")
        return drain(self)

    monkeypatch.setattr(RingReader, "drain", fails)
    with spawn("split") as target:
        outcome = session.attach(target.pid, Options(), has_worked(target.pid, 0.5), lambda _progress: None)
        target.finish()
    assert outcome.profile.total > 0
    assert "reading the last samples failed" in outcome.failure
    assert outcome.residue and outcome.exit_code == ExitCode.DETACH_INCOMPLETE


@ERRORS
def test_recording_fails(error: Exception) -> None:
    with start([str(build_target("heap_cycles"))]) as target:
        worked = has_worked(target.pid, 0.3)

        def look(_session: HeapSession) -> None:
            if worked():
                raise error

        outcome = attach_heap(target.pid, HeapOptions(), lambda: False, look)
        check_detached(target)
        target.finish()
    assert outcome.result is not None and outcome.result.amount("allocated").blocks > 0
    assert "recording failed" in outcome.failure and outcome.failure in outcome.meta.notes
    assert outcome.meta.ended_by == outcome.failure and not outcome.residue


@pytest.mark.parametrize("where", ["comparing", "leaving"])
def test_the_target_of_a_heap_ends_while_it_is_left(monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    snapshot, calls = heap_attach.snapshot, []

    def end() -> None:
        target.process.kill()
        target.process.wait()

    def second_ends(*arguments: object) -> object:
        calls.append(1)
        if len(calls) == 2:
            end()
        return snapshot(*arguments)  # type: ignore[arg-type]

    def stop_ends(*_arguments: object) -> None:
        end()
        raise OSError(errno.EIO, "memory can't be reached")

    if where == "comparing":
        monkeypatch.setattr(heap_attach, "snapshot", second_ends)
    else:
        monkeypatch.setattr(heap_attach, "call_stop", stop_ends)
    with start([str(build_target("heap_cycles"))]) as target:
        outcome = attach_heap(target.pid, HeapOptions(), has_worked(target.pid, 0.3))
        assert target.process.poll() is not None
    assert outcome.result is not None and outcome.result.amount("allocated").blocks > 0
    assert not outcome.residue and not outcome.failure


def test_a_view_of_the_shared_memory_does_not_hide_what_failed(
    spawn: Spawn, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The frames of an exception may hold one."""

    def fails(self: session.Session) -> None:
        view = memoryview(self.stub.region)
        raise InjectionFailed(f"it is broken, with {view.nbytes} bytes in sight")

    monkeypatch.setattr(session.Session, "sample", lambda self, *_arguments: fails(self))
    with spawn("split") as target:
        with pytest.raises(InjectionFailed, match="it is broken"):
            session.attach(target.pid, Options(), lambda: True, lambda _progress: None)
        check_detached(target)
        target.finish()


# What may be looked into at first, and then no more.


UNREADABLE = f"""\
import ctypes, os, select, sys
setuid = sys.argv[1:]
os.setgroups([])
os.setresgid({NOBODY}, {NOBODY}, {NOBODY})
os.setresuid({NOBODY}, {NOBODY}, {NOBODY})
prctl = ctypes.CDLL(None).prctl
prctl(4, 1, 0, 0, 0)  # PR_SET_DUMPABLE
print("ready", flush=True)
while not select.select([sys.stdin], [], [], 0)[0]:
    [bytes(1000) for _ in range(1000)]
sys.stdin.readline()
if setuid:
    os.execv(setuid[0], setuid)
prctl(4, 0, 0, 0, 0)
print("unreadable", flush=True)
while not select.select([sys.stdin], [], [], 0)[0]:
    [bytes(1000) for _ in range(1000)]
"""
needs_root = pytest.mark.skipif(
    os.geteuid() != 0 and not os.environ.get("CI"), reason="needs root, to become another user"
)


@pytest.fixture
def open_folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o777)
        yield Path(folder)


@needs_root
@pytest.mark.parametrize("words", [(), ("heap",)], ids=["cpu", "heap"])
def test_the_target_becomes_unreadable(spawn: Spawn, open_folder: Path, words: tuple[str, ...]) -> None:
    text = open_folder / "o.txt"
    command = [sys.executable, "-c", READING_AS_NOBODY]
    with spawn([sys.executable, "-c", UNREADABLE]) as target:
        with pyattach(*words, target.pid, "--no-live", "-o", text, command=command) as run:
            run.wait_until("the stub is in", lambda: MARK in maps_text(target.pid))
            begin = cpu_time_s(target.pid)
            run.wait_until("it has worked", lambda: cpu_time_s(target.pid) > begin + 0.3)
            target.tell()
            target.expect("unreadable")
            begin = cpu_time_s(target.pid)
            run.wait_until("it has worked again", lambda: cpu_time_s(target.pid) > begin + 0.3)
            run.process.terminate()
            run.finish(ExitCode.DETACH_INCOMPLETE)
        target.finish()
    assert "Permission denied" in run.err and "comparing the target with before failed" in run.err
    assert "left behind" in run.err and "stopped by the user" in text.read_text()


@needs_root
@pytest.mark.parametrize("words", [(), ("heap",)], ids=["cpu", "heap"])
def test_the_target_executes_a_setuid_program(
    spawn: Spawn, open_folder: Path, words: tuple[str, ...]
) -> None:
    text, copy = open_folder / "o.txt", open_folder / "setuid"
    copy.write_bytes(build_target("exiter").read_bytes())
    copy.chmod(0o4755)
    command = [sys.executable, "-c", READING_AS_NOBODY]
    with (
        spawn([sys.executable, "-c", UNREADABLE, copy]) as target,
        pyattach(*words, target.pid, "--no-live", "-o", text, command=command) as run,
    ):
        run.wait_until("the stub is in", lambda: MARK in maps_text(target.pid))
        begin = cpu_time_s(target.pid)
        run.wait_until("it has worked", lambda: cpu_time_s(target.pid) > begin + 0.3)
        target.tell()
        target.expect("ready")
        target.tell("0")
        target.finish()
        run.finish(0)
    assert "python" in text.read_text() and "Permission denied" not in run.err


def test_memory_of_a_process_with_more_rights() -> None:
    """A program that sudo or ping has become: pyattach goes on without it."""
    code = "import os, sys; from pyattach.attacher.children import share_memory\n"
    if os.geteuid() == 0:
        code += f"os.setresgid(*[{NOBODY}] * 3); os.setresuid(*[{NOBODY}] * 3)\n"
    code += "sys.exit(share_memory(os.getpid(), 1))"
    done = subprocess.run([sys.executable, "-c", code], env=ENVIRONMENT, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")


def test_what_fails_at_the_next_program_leaves_the_samples_of_those_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fails(*_arguments: object, **_named: object) -> None:
        raise OSError(errno.EMFILE, "no more files")

    monkeypatch.setattr(session, "attach", fails)
    stat = procfs.read_stat(os.getpid())
    assert stat is not None
    stacks = {(1, (Frame("work", "program", FrameKind.USER),)): 5}
    first = Outcome(Profile(Meta(command="program", pid=os.getpid()), {}, stacks), (), True, replaced=True)
    shown = following.Shown(lambda _progress: None)
    outcome = following.go_on(os.getpid(), stat.start_time, first, Options(), lambda: False, shown)
    assert outcome.profile.total == 5
    assert any("it could not be followed" in n and "no more files" in n for n in outcome.profile.meta.notes)
