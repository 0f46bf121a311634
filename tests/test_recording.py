"""A program that records itself (PYATTACH_OUT), and what is read of it later."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given
from hypothesis import strategies as st
from support import build_target, first_to_run, hostile, requires, skip_unless_ci
from test_attach_run import wait_for

from pyattach.attacher.recording import is_recording, read_recording
from pyattach.errors import MalformedInput
from pyattach.inject.image import preload_path
from pyattach.inject.layout import Control
from pyattach.render.profile import Profile, totals_of

BUSY = """
import os, sys, threading, time
def work(seconds):
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        sum(range(100))
thread = threading.Thread(target=work, args=(0.4,))
thread.start()
work(0.4)
thread.join()
print("result", sys.argv[1:], os.environ.get("PYATTACH_OUT"))
"""


def environment(out: Path | str, **more: str) -> dict[str, str]:
    return {**os.environ, "LD_PRELOAD": str(preload_path()), "PYATTACH_OUT": str(out), **more}


def recorded(out: Path, *words: object, **more: str) -> tuple[subprocess.CompletedProcess[str], Profile]:
    done = subprocess.run(
        list(map(str, words)), env=environment(out, **more), capture_output=True, text=True, check=False,
        stdin=subprocess.DEVNULL, timeout=60,
    )  # fmt: skip
    assert is_recording(out), done.stderr
    return done, read_recording(out)


def names_in(profile: Profile) -> set[str]:
    return {row.frame.name for row in totals_of(profile).rows(1000)}


def test_a_python_program(tmp_path: Path) -> None:
    done, profile = recorded(tmp_path / "o", "/usr/bin/python3", "-c", BUSY, "x", PYATTACH_HZ="199")
    assert (done.returncode, done.stdout, done.stderr) == (0, "result ['x'] None\n", "")
    meta = profile.meta
    assert meta.samples > 100 and meta.rate_asked_hz == pytest.approx(199, abs=0.1)
    assert meta.cpu_time_s is not None and meta.samples == pytest.approx(199 * meta.cpu_time_s, rel=0.2)
    assert meta.truncated <= 0.02 * meta.samples
    assert any("EvalFrame" in name for name in names_in(profile))
    assert meta.command.startswith("/usr/bin/python3 -c") and meta.ended_by == "the program ended"
    assert {thread.name for thread in profile.threads.values()} == {"python3"}
    assert len({tid for tid, _ in profile.weights}) == 2


def test_no_thread_goes_silent(tmp_path: Path) -> None:
    """A tick that comes into a handler (which looks at the mappings) is not the last of its thread."""
    for run in range(8):
        _, profile = recorded(tmp_path / f"{run}", "/usr/bin/python3", "-c", BUSY, PYATTACH_HZ="199")
        ticks = {tid: 0 for tid, _ in profile.weights}
        for (tid, _), weight in profile.weights.items():
            ticks[tid] += weight
        assert len(ticks) == 2 and min(ticks.values()) > 0.4 * 199 * 0.8, ticks


def test_a_program_that_is_killed(tmp_path: Path) -> None:
    out = tmp_path / "o"
    words, pipe = [build_target("recurse"), "200"], subprocess.PIPE
    with subprocess.Popen(words, env=environment(out), stdin=pipe, stdout=pipe) as program:
        wait_for("it has worked", lambda: is_recording(out) and _samples(out) > 50)
        running = read_recording(out)
        assert running.meta.ended_by == "the program still runs"
        program.kill()  # and nothing of it is lost
    profile = read_recording(out)
    assert profile.meta.samples >= running.meta.samples and profile.meta.ended_by == "the program ended"
    assert profile.meta.truncated <= 0.02 * profile.meta.samples
    assert any(len(stack) > 200 for _, stack in profile.weights)
    assert "main" in names_in(profile)


PTRACE_TRACEME, PTRACE_SYSCALL = 0, 24  # include/uapi/linux/ptrace.h


def moments_of(program: str, environment: dict[str, str]) -> Iterator[None]:
    """Run it; before and after each of its system calls, while it stands still."""
    ptrace = ctypes.CDLL(None, use_errno=True).ptrace
    ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
    pid = os.fork()
    if not pid:
        ptrace(PTRACE_TRACEME, 0, None, None)
        os.execve(program, [program], environment)
    try:
        while os.WIFSTOPPED(os.waitpid(pid, 0)[1]):
            yield
            assert ptrace(PTRACE_SYSCALL, pid, None, None) == 0
        pid = 0
    finally:
        if pid:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def test_a_file_that_is_a_recording_can_be_read_from_then_on(tmp_path: Path, may_trace: None) -> None:
    out, reads = tmp_path / "o", 0
    for _ in moments_of("/bin/true", environment(out)):
        if is_recording(out):
            assert read_recording(out).meta.rate_asked_hz == pytest.approx(99, abs=0.1)
            reads += 1
    assert reads > 3


def test_a_full_file_says_so(tmp_path: Path) -> None:
    out = tmp_path / "o"
    words, pipe = [build_target("recurse"), "400"], subprocess.PIPE
    env = environment(out, PYATTACH_MB="1", PYATTACH_HZ="1000")
    with subprocess.Popen(words, env=env, stdin=pipe, stdout=pipe) as program:
        wait_for("the file is full", lambda: is_recording(out) and read_recording(out).meta.dropped)
        program.kill()
    profile = read_recording(out)
    assert profile.total > 100
    assert any("PYATTACH_MB" in note for note in profile.meta.notes)


def _samples(path: Path) -> int:
    return read_recording(path).meta.samples


def test_the_programs_own_exit_and_output(tmp_path: Path) -> None:
    done, _ = recorded(tmp_path / "o", "sh", "-c", "echo out; echo err >&2; exit 7")
    assert (done.returncode, done.stdout, done.stderr) == (7, "out\n", "err\n")
    done, _ = recorded(tmp_path / "o", "sh", "-c", "kill -SEGV $$")
    assert done.returncode == -signal.SIGSEGV


def test_programs_that_it_starts(tmp_path: Path) -> None:
    """With one name for all only the first is recorded; with %p each."""
    script = (
        "/usr/bin/python3 -c 'import time\nwhile time.process_time() < .3: pass'; env | grep -c PYATTACH_OUT"
    )
    done, profile = recorded(tmp_path / "o", "sh", "-c", script)
    assert done.stdout == "0\n" and profile.meta.command.startswith("sh ")
    folder = tmp_path / "each"
    folder.mkdir()
    subprocess.run(["sh", "-c", script], env=environment(folder / "o.%p"), check=True, stdout=subprocess.PIPE)
    profiles = [read_recording(path) for path in folder.iterdir()]
    assert {p.meta.pid for p in profiles} == {int(path.suffix[1:]) for path in folder.iterdir()}
    assert any(p.meta.command.startswith("/usr/bin/python3") and p.meta.samples > 10 for p in profiles)


def test_a_child_without_exec_writes_nothing(tmp_path: Path) -> None:
    script = (
        "import os, time\nif os.fork():\n  os.wait()\nelse:\n"
        "  while time.process_time() < .5: pass\n  os.kill(os.getpid(), 27)\n  os._exit(0)"
    )
    done, profile = recorded(tmp_path / "o", "/usr/bin/python3", "-c", script)
    assert done.returncode == 0
    assert profile.meta.samples < 20


def test_a_library_that_comes_late(tmp_path: Path) -> None:
    library = build_target("lib_late", "-shared", "-fPIC")
    script = (
        "import ctypes, sys, time\n"
        "def busy(s):\n  end = time.process_time() + s\n  while time.process_time() < end: pass\n"
        "busy(.3)\nlate = ctypes.CDLL(sys.argv[1])\nwork = getattr(late, sys.argv[2])\n"
        "work.restype = work.argtypes = None\n"
        "end = time.process_time() + .5\n"
        "while time.process_time() < end: work(ctypes.c_uint64(1), ctypes.c_uint64(200000))"
    )
    symbols = subprocess.run(
        [requires("nm"), "-D", "--defined-only", library], capture_output=True, text=True
    )
    function = next(line.split()[2] for line in symbols.stdout.splitlines() if " T " in line)
    _, profile = recorded(tmp_path / "o", "/usr/bin/python3", "-c", script, library, function)
    assert function in names_in(profile), names_in(profile)


def test_only_some_threads(tmp_path: Path) -> None:
    _, main_only = recorded(tmp_path / "o", "/usr/bin/python3", "-c", BUSY, PYATTACH_THREADS="main")
    assert {tid for tid, _ in main_only.weights} == {main_only.meta.pid}
    _, none = recorded(tmp_path / "p", "/usr/bin/python3", "-c", BUSY, PYATTACH_THREADS="nobody,other*")
    assert not none.total
    _, named = recorded(tmp_path / "q", "/usr/bin/python3", "-c", BUSY, PYATTACH_THREADS="x,pyth*")
    assert len({tid for tid, _ in named.weights}) == 2


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"PYATTACH_HZ": "5"}, "PYATTACH_HZ is no number from 10 to 1000"),
        ({"PYATTACH_HZ": "99x"}, "PYATTACH_HZ"),
        ({"PYATTACH_MB": "0"}, "PYATTACH_MB is no number"),
        ({"PYATTACH_THREADS": "x" * 300}, "PYATTACH_THREADS is too long"),
    ],
)
def test_what_makes_no_sense_is_said(tmp_path: Path, more: dict[str, str], said: str) -> None:
    command = ["sh", "-c", "echo fine"]
    done = subprocess.run(
        command, env=environment(tmp_path / "o", **more), capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "fine\n")
    assert done.stderr.startswith("pyattach: nothing is sampled: ") and said in done.stderr
    assert not (tmp_path / "o").exists()


def test_a_file_that_can_t_be_made(tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "elsewhere")
    for out in (tmp_path / "none" / "o", link):
        done = subprocess.run(["true"], env=environment(out), capture_output=True, text=True, check=False)
        assert done.returncode == 0 and "can't be made" in done.stderr
    assert not (tmp_path / "elsewhere").exists()


def test_without_pyattach_out_the_library_does_nothing() -> None:
    env = {**os.environ, "LD_PRELOAD": str(preload_path())}
    done = subprocess.run(["env"], env=env, capture_output=True, text=True, check=True)
    assert "LD_PRELOAD" in done.stdout and not done.stderr


def test_a_static_program_just_runs(tmp_path: Path) -> None:
    words = [build_target("quiet", "-static")]
    done = subprocess.run(words, env=environment(tmp_path / "o"), input="", capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.endswith("done\n") and not done.stderr
    assert not (tmp_path / "o").exists()


def test_threads_that_come_and_go(tmp_path: Path) -> None:
    program = build_target("shortlived")
    words, env = [program, "40", "30000"], environment(tmp_path / "o")
    done = subprocess.run(
        words, env=env, input="go\n", capture_output=True, text=True, check=True, preexec_fn=first_to_run
    )
    used_ms = int(done.stdout.split("done ")[1].split()[0])
    profile = read_recording(tmp_path / "o")
    assert profile.meta.samples == pytest.approx(99 * used_ms / 1000, rel=0.35)
    assert "brief_work" in names_in(profile)


# Files that are not what they say.


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recording") / "o"
    recorded(path, "/usr/bin/python3", "-c", BUSY, PYATTACH_MB="1")
    return path


def test_no_recording(tmp_path: Path) -> None:
    assert not is_recording(tmp_path / "none")
    (tmp_path / "empty").write_bytes(b"")
    assert not is_recording(tmp_path / "empty")
    with pytest.raises(MalformedInput):
        read_recording(tmp_path / "empty")


@hostile(80, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_recordings(recording: Path, tmp_path: Path, data: st.DataObject) -> None:
    """Cut off or overwritten anywhere it counts: an error that says so, or a profile; in bounded time."""
    damaged = tmp_path / "damaged"
    subprocess.run(["cp", "--sparse=always", recording, damaged], check=True)
    with damaged.open("r+b") as file:
        control = Control.from_buffer_copy(file.read(ctypes.sizeof(Control)))
        places = [(0, ctypes.sizeof(Control)), (control.ring_offset, 4096), (control.log_offset, 4096)]
        for _ in range(data.draw(st.integers(1, 6))):
            start, size = data.draw(st.sampled_from(places))
            file.seek(start + data.draw(st.integers(0, size - 8)))
            file.write(data.draw(st.binary(min_size=8, max_size=8)))
        if data.draw(st.booleans()):
            file.truncate(data.draw(st.integers(0, recording.stat().st_size)))
    begin = time.monotonic()
    try:
        read_recording(damaged)
    except MalformedInput as error:
        assert str(damaged) in str(error)
    assert time.monotonic() - begin < 30


FILLS_THE_DISK = """
with open(sys.argv[1], "wb", buffering=0) as file:
    try:
        while True:
            file.write(bytes(4096))
    except OSError:
        pass
"""


def test_a_disk_that_fills_up(tmp_path: Path) -> None:
    """A store into a page of the file that the disk has no room for would end the program."""
    disk, program, out = tmp_path / "disk", tmp_path / "program.py", tmp_path / "o"
    disk.mkdir()
    imports, rest = BUSY.split("\n", 2)[1:]
    program.write_text(f"{imports}\n{FILLS_THE_DISK}\n{rest}")
    in_namespace = [requires("unshare"), "--user", "--map-root-user", "--mount"]
    if subprocess.run([*in_namespace, "true"], capture_output=True, check=False).returncode:
        skip_unless_ci("user namespaces can't be made here")
    script = f"""
    mount -t tmpfs -o size=4m none {disk} || exit 99
    export PYATTACH_HZ=199
    LD_PRELOAD={preload_path()} PYATTACH_OUT={disk}/o /usr/bin/python3 {program} {disk}/full
    code=$?
    cp {disk}/o {out}
    exit $code
    """
    command = [*in_namespace, "sh", "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0 and done.stdout.startswith("result"), done
    assert read_recording(out).meta.samples > 0


def test_no_room_at_all(tmp_path: Path) -> None:
    """The kernel ends a program that makes a file larger than it may be."""
    limit = 1 << 20
    done = subprocess.run(
        ["/usr/bin/python3", "-c", BUSY],
        env=environment(tmp_path / "o"), capture_output=True, text=True, check=False, timeout=60,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )  # fmt: skip
    assert done.returncode == 0 and done.stdout.startswith("result"), done
    assert "the file of PYATTACH_OUT can't be made" in done.stderr


def test_the_path_is_told() -> None:
    command = [sys.executable, "-m", "pyattach", "run", "--print-preload"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert Path(done.stdout.rstrip("\n")).samefile(preload_path())
