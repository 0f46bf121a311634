"""What can't be profiled, and why: each refusal with its reason and the way out."""

from __future__ import annotations

import os
from collections.abc import Callable

from ..errors import AlreadyTraced, NoSuchTarget, UnsupportedTarget
from . import procfs
from .permission import no_permission

_PF_KTHREAD = 0x00200000


def check(pid: int) -> int:
    """Refuse what can't be profiled, with the reason and the way out; the process's start time else.

    Raises NoSuchTarget, NoPermission, AlreadyTraced, UnsupportedTarget.
    """
    stat = procfs.read_stat(pid)
    if stat is None:
        raise no_such_process(pid)
    for _, look in LOOKS:
        look(pid)
    return stat.start_time


def no_such_process(pid: int) -> NoSuchTarget:
    """The error to raise where there is no process ``pid``."""
    return NoSuchTarget(f"there is no process {pid}", "see `ps -e` or `pgrep -a NAME` for the pids there are")


def _check_process(pid: int) -> None:
    if pid == os.getpid():
        raise UnsupportedTarget("that is pyattach's own pid", "attach to another process")
    tgid = procfs.read_status(pid).get("Tgid", str(pid))
    if tgid != str(pid):
        raise UnsupportedTarget(f"{pid} is a thread of process {tgid}", f"attach to that: pyattach {tgid}")


def _check_state(pid: int) -> None:
    stat = procfs.read_stat(pid)
    if stat is None:
        raise NoSuchTarget(f"process {pid} ended just now")
    if stat.flags & _PF_KTHREAD:
        raise UnsupportedTarget(
            f"{pid} [{stat.name}] is a kernel thread: it has no user-space code",
            "use `perf top` for the kernel",
        )
    if stat.state in "ZX":
        raise UnsupportedTarget(
            f"process {pid} ({stat.name}) is a zombie: it has ended and waits for its parent {stat.parent}",
            "there is nothing left to profile",
        )
    if stat.state == "T":
        raise UnsupportedTarget(
            f"process {pid} ({stat.name}) is stopped (job control, SIGSTOP)",
            f"let it go on first: kill -CONT {pid}",
        )


def _check_permission(pid: int) -> None:
    """/proc/PID/mem asks for the same right as attaching, and is there for every process."""
    try:
        os.close(os.open(f"/proc/{pid}/mem", os.O_RDONLY | os.O_CLOEXEC))
        os.readlink(f"/proc/{pid}/exe")
    except PermissionError as error:
        raise no_permission(pid) from error
    except (FileNotFoundError, ProcessLookupError) as error:
        raise NoSuchTarget(f"process {pid} ended just now") from error


def _check_tracer(pid: int) -> None:
    for tid in procfs.thread_ids(pid) or [pid]:
        tracer = procfs.read_status(pid, tid).get("TracerPid", "0")
        if tracer != "0":
            raise AlreadyTraced(
                f"process {pid} is already traced by pid {tracer} ({procfs.command_line(int(tracer))})",
                "a process can have one tracer: detach that one first",
            )


def _check_bits(pid: int) -> None:
    """Word 4 of an ELF file is its class; e_machine lies at 18 (man elf)."""
    try:
        with open(f"/proc/{pid}/exe", "rb") as exe:
            head = exe.read(20)
    except OSError as error:
        raise UnsupportedTarget(f"process {pid}: its executable can't be read: {error.strerror}") from error
    if head[:4] != b"\x7fELF":
        raise UnsupportedTarget(f"process {pid}: its executable is no ELF file")
    machine = int.from_bytes(head[18:20], "little")
    if head[4] != 2:
        raise UnsupportedTarget(
            f"process {pid} is a 32-bit program: pyattach profiles 64-bit x86 programs only",
            "use `perf record -g -p PID` for this one",
        )
    if machine != 62:
        raise UnsupportedTarget(f"process {pid} is built for machine {machine}, not x86_64")


def check_seccomp(pid: int) -> None:
    """Refuse a target under seccomp: what its filter does about our system calls can't be seen from
    outside, and it may kill.  Each thread has a filter of its own, or none.  Raises UnsupportedTarget."""
    threads = (procfs.read_status(pid, tid) for tid in procfs.thread_ids(pid))
    if any(status.get("Seccomp", "0") != "0" for status in threads):
        raise UnsupportedTarget(
            f"process {pid} runs under a seccomp filter, which may kill it for system calls that sampling "
            "needs (memfd_create, timer_create)",
            "where its filter answers with an error instead (Docker's and systemd's do): --allow-seccomp",
        )


LOOKS: tuple[tuple[str, Callable[[int], None]], ...] = (
    ("process", _check_process),
    ("state", _check_state),
    ("permission", _check_permission),
    ("tracer", _check_tracer),
    ("architecture", _check_bits),
)
"""What is looked at, in this order, and the function that raises the refusal."""
