"""What can't be attached to: one clear reason on stderr, a way out, an exit code of its own, no harm."""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import Target, build_target, requires, skip_unless_ci, spawn
from test_attach_run import (
    COMMAND,
    MARK,
    Pyattach,
    Spawn,
    attach,
    maps_text,
    proc_text,
    pyattach,
    status_of,
    timers_text,
    wait_for,
)

from pyattach.errors import ExitCode, PyattachError
from pyattach.inject import image

PF_KTHREAD = 0x00200000  # include/linux/sched.h
NOBODY = 65534


def check_refusal(run: Pyattach, code: ExitCode, reason: str, way_out: str = "") -> None:
    """One line with the reason, then what to do; no traceback, nothing on stdout, no file."""
    assert run.process.returncode == code, run.err
    assert run.out == ""
    first, *others = run.err.splitlines()
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", run.err), repr(run.err)
    assert re.match(rf"pyattach: .*{reason}", first), run.err
    assert all(line.startswith("  ") for line in others), run.err
    assert re.search(way_out, "\n".join(others)), run.err


def refused(
    pid: int, output: Path, *arguments: object, command: list[str] | None = None, foreseen: bool = True
) -> Pyattach:
    """An attach that must not work; ``foreseen``: the doctor says the same of it before."""
    with pyattach("doctor", pid, command=command) as doctor:
        doctor.finish(None)
    with pyattach(pid, "-d", "200ms", "-o", output, *arguments, command=command) as run:
        run.finish(None)
    assert not output.exists()
    if foreseen and "--allow-seccomp" not in arguments:
        check_foreseen(run, doctor)
    return run


def check_foreseen(run: Pyattach, doctor: Pyattach) -> None:
    """The doctor's exit code, cause and way out are those of the attach."""
    assert doctor.process.returncode == run.process.returncode, doctor.out + doctor.err
    said = doctor.out + doctor.err
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", said), repr(said)
    cause, *ways = run.err.splitlines()
    assert cause.removeprefix("pyattach: ") in said, said
    if "will work with --allow" not in said and "will work with:" not in said:
        for way in ways:
            assert way.strip() in said, said
    assert "Traceback" not in said
    if doctor.out:
        assert re.search(
            r"^(can't, because .+|will work with: pyattach \d+ --allow-seccomp)", doctor.out, re.M
        )


def check_unharmed(target: Target) -> None:
    assert MARK not in maps_text(target.pid)
    assert not timers_text(target.pid)
    assert target.finish().endswith("done\n")


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "o.svg"


def test_no_such_process(output: Path) -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    check_refusal(refused(gone.pid, output), ExitCode.ERROR, f"no process {gone.pid}", "ps -e|pgrep")


@pytest.mark.parametrize("word", ["0", "-1", "x", "1.5", "", "99999999999999999999"])
def test_no_pid(word: str) -> None:
    with pyattach(f"--pid={word}") as run:
        run.finish(None)
    assert run.process.returncode in (ExitCode.USAGE, ExitCode.ERROR)
    assert run.err.startswith("pyattach: ") and len(run.err.splitlines()) <= 2


# Modules first, for what is not readable to others, then rights away for good.
AS_NOBODY = f"""\
import importlib, os, pkgutil, sys
import pyattach
for module in pkgutil.walk_packages(pyattach.__path__, "pyattach."):  # nobody may not be able to read them
    if not module.name.endswith(("__main__", "_plugin")) and "._" not in module.name:
        importlib.import_module(module.name)
from pyattach.attacher import main as command
os.setgroups([])
os.setresgid({NOBODY}, {NOBODY}, {NOBODY})
os.setresuid({NOBODY}, {NOBODY}, {NOBODY})
sys.exit(command.main())
"""


# The same, who may read all files, which gives no rights over processes: pyattach's own may be in a folder
# of root's.
READING_AS_NOBODY = AS_NOBODY.replace(
    "sys.exit(",
    """\
import ctypes
libc, reading = ctypes.CDLL(None, use_errno=True), 1 << 2  # CAP_DAC_READ_SEARCH
header, rights = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)(reading, reading)
assert libc.capset(header, rights) == 0, os.strerror(ctypes.get_errno())
sys.exit(""",
).replace(
    "os.setgroups", "import ctypes; ctypes.CDLL(None).prctl(8, 1, 0, 0, 0)  # PR_SET_KEEPCAPS\nos.setgroups"
)


def test_an_installation_that_may_not_be_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "_loader.bin").mkdir()
    monkeypatch.setattr(image, "_HERE", tmp_path)
    with pytest.raises(PyattachError, match=r"pyattach's own can't be read: .*_loader\.bin: Is a directory"):
        image._artifact("_loader.bin")


def test_not_permitted(output: Path) -> None:
    if os.geteuid() != 0:
        run = refused(1, output)
        check_refusal(run, ExitCode.PERMISSION, "not permitted", "as root")
        return
    with spawn("quiet") as target, tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o777)
        run = refused(target.pid, Path(folder, "o.svg"), command=[sys.executable, "-c", AS_NOBODY])
        check_refusal(run, ExitCode.PERMISSION, f"not permitted to look into process {target.pid}", "as root")
        assert f"belongs to uid 0, you are uid {NOBODY}" in run.err
        check_unharmed(target)


def test_a_folder_that_may_not_be_looked_into(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        skip_unless_ci("needs root, to become another user")
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    with spawn("quiet") as target:
        command = [sys.executable, "-c", AS_NOBODY]
        run = refused(target.pid, closed / "o.svg", command=command, foreseen=False)
        check_refusal(run, ExitCode.USAGE, re.escape(str(closed)))
        check_unharmed(target)


def test_own_pid(output: Path) -> None:
    script = f'exec "$@" $$ -d 1 -o {output}'
    with pyattach(command=["sh", "-c", script, "sh", *COMMAND]) as run:
        run.finish(None)
    check_refusal(run, ExitCode.UNSUPPORTED, "pyattach's own pid", "another process")


def test_kernel_thread(output: Path) -> None:
    def is_kernel_thread(pid: int) -> bool:
        fields = proc_text(pid, "stat").rpartition(")")[2].split()
        return bool(fields) and bool(int(fields[6]) & PF_KTHREAD)

    pids = sorted(int(name) for name in os.listdir("/proc") if name.isdigit())
    found = next((pid for pid in pids if is_kernel_thread(pid)), None)
    if found is None:
        pytest.skip("no kernel thread is to be seen here (a container)")
    check_refusal(refused(found, output), ExitCode.UNSUPPORTED, f"{found} .* is a kernel thread", "perf top")


def test_zombie(output: Path) -> None:
    child = subprocess.Popen(["true"])
    try:
        wait_for("it is a zombie", lambda: status_of(child.pid)["State"].startswith("Z"))
        run = refused(child.pid, output)
    finally:
        child.wait()
    check_refusal(run, ExitCode.UNSUPPORTED, f"{child.pid} .*zombie", "nothing left")


def test_thread_id(spawn: Spawn, output: Path) -> None:
    with spawn("threads", 1, 1) as target:
        tid = max(int(name) for name in os.listdir(f"/proc/{target.pid}/task"))
        assert tid != target.pid
        run = refused(tid, output)
        check_refusal(
            run, ExitCode.UNSUPPORTED, f"{tid} is a thread of process {target.pid}", f"pyattach {target.pid}"
        )
        check_unharmed(target)


def test_32_bit_program(output: Path, may_trace: None) -> None:
    with spawn([build_target("quiet", "-m32")]) as target:
        check_refusal(refused(target.pid, output), ExitCode.UNSUPPORTED, "32-bit program", "perf record")
        check_unharmed(target)


def test_stopped_process(spawn: Spawn, output: Path) -> None:
    with spawn("quiet") as target:
        target.process.send_signal(signal.SIGSTOP)
        wait_for("it is stopped", lambda: status_of(target.pid)["State"].startswith("T"))
        run = refused(target.pid, output)
        check_refusal(run, ExitCode.UNSUPPORTED, f"{target.pid} .*stopped", f"kill -CONT {target.pid}")
        assert status_of(target.pid)["State"].startswith("T")  # and it stays so
        target.process.send_signal(signal.SIGCONT)
        check_unharmed(target)


# Its command line, which the refusal shows, holds line ends and an escape sequence.
TRACER = """\
import ctypes, os, sys
ptrace = ctypes.CDLL(None, use_errno=True).ptrace
ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
assert ptrace(0x4206, int(sys.argv[1]), None, None) == 0  # PTRACE_SEIZE; ends with this process
print("ready", flush=True)
sys.stdin.read()  # \x1b[2J
"""


def test_traced_by_another(spawn: Spawn, output: Path) -> None:
    with spawn("quiet") as target:
        with spawn([sys.executable, "-c", TRACER], target.pid) as tracer:
            run = refused(target.pid, output)
            check_refusal(
                run, ExitCode.UNSUPPORTED, f"{target.pid} is already traced by pid {tracer.pid}", "detach"
            )
            assert status_of(target.pid)["TracerPid"] == str(tracer.pid)
            tracer.finish()
        check_unharmed(target)


def test_one_thread_traced_by_another(spawn: Spawn, output: Path) -> None:
    with spawn("threads", 0, 2) as target:
        tid = max(int(name) for name in os.listdir(f"/proc/{target.pid}/task"))
        with spawn([sys.executable, "-c", TRACER], tid) as tracer:
            check_refusal(refused(target.pid, output), ExitCode.UNSUPPORTED, f"traced by pid {tracer.pid}")
            tracer.finish()
        check_unharmed(target)


# A filter that lets all pass, and one that answers memfd_create (319) with EPERM as a container's may.
SECCOMP = """\
#include <errno.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <stdio.h>
#include <sys/prctl.h>
#include <unistd.h>

int main(int argc, char **argv) {
    struct sock_filter filter[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, 319, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, argc > 1 ? SECCOMP_RET_ERRNO | EPERM : SECCOMP_RET_ALLOW),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = {sizeof filter / sizeof *filter, filter};
    char c;
    prctl(PR_SET_PTRACER, PR_SET_PTRACER_ANY, 0, 0, 0);
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program))
        return 77;
    puts("ready");
    fflush(stdout);
    while (read(0, &c, 1) > 0) {
    }
    puts("done");
    return argv[0] == NULL;
}
"""


@pytest.fixture(scope="module")
def seccomp_program(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("seccomp")
    (folder / "filtered.c").write_text(SECCOMP)
    compiler = os.environ.get("CC", "").split() or [requires("cc")]
    subprocess.run([*compiler, "-O2", folder / "filtered.c", "-o", folder / "filtered"], check=True)
    yield folder / "filtered"
    shutil.rmtree(folder)


def test_seccomp_filter(spawn: Spawn, seccomp_program: Path, output: Path) -> None:
    with spawn([seccomp_program]) as target:
        run = refused(target.pid, output)
        check_refusal(run, ExitCode.UNSUPPORTED, "seccomp filter", "--allow-seccomp")
        check_unharmed(target)


def test_seccomp_filter_of_a_thread(spawn: Spawn, output: Path) -> None:
    """The main thread has none, but any may be borrowed, and all have ticks."""
    with spawn("sandboxed") as target:
        run = refused(target.pid, output)
        check_refusal(run, ExitCode.UNSUPPORTED, "seccomp filter", "--allow-seccomp")
        check_unharmed(target)


def test_seccomp_filter_that_the_user_allows(spawn: Spawn, seccomp_program: Path, output: Path) -> None:
    with spawn([seccomp_program]) as target:
        attach(target.pid, "--allow-seccomp", "-d", "200ms", "-o", output, exit_code=ExitCode.NO_SAMPLES)
        check_unharmed(target)


@pytest.mark.parametrize("loader", ["dlopen", "map"])
def test_seccomp_filter_that_forbids_memfds(
    spawn: Spawn, seccomp_program: Path, output: Path, loader: str
) -> None:
    with spawn([seccomp_program], "strict") as target:
        run = refused(target.pid, output, "--allow-seccomp", "--loader", loader)
        check_refusal(run, ExitCode.ERROR, "memfd_create.*not permitted|memfd_create")
        check_unharmed(target)


def test_static_program_has_no_dlopen(spawn: Spawn, output: Path) -> None:
    with spawn([build_target("quiet", "-static")]) as target:
        run = refused(target.pid, output, "--loader", "dlopen", foreseen=False)
        check_refusal(run, ExitCode.ERROR, "no dlopen", "--loader map")
        attach(target.pid, "-d", "200ms", "-o", output, exit_code=ExitCode.NO_SAMPLES)
        check_unharmed(target)


def test_no_open_file_is_left(spawn: Spawn, output: Path) -> None:
    """memfd_create needs a free number: the target's limit is said to be the reason."""
    libc = ctypes.CDLL(None, use_errno=True)
    with spawn("quiet") as target:
        limit = (ctypes.c_uint64 * 2)(3, 3)
        nofile = 7  # RLIMIT_NOFILE, asm-generic/resource.h
        if libc.prlimit(target.pid, nofile, ctypes.byref(limit), None) != 0:
            skip_unless_ci("prlimit is not permitted here")
        run = refused(target.pid, output, foreseen=False)
        check_refusal(run, ExitCode.ERROR, "memfd_create.*Too many open", "limit")
        with pyattach("doctor", target.pid) as doctor:
            doctor.finish(ExitCode.ERROR)
        assert re.search(r"can't, because .*no number left.*\n +raise its limit", doctor.out), doctor.out
        check_unharmed(target)
