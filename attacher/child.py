"""A program that pyattach has started: its parent knows when it ends, and how."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from ..errors import CommandNotExecutable, CommandNotFound
from ..inject.preload import PreloadedStub
from ..symbols.maps import Maps
from . import procfs
from .program import Program
from .ptrace import status_taken
from .target import TargetProcess

_PROC_ENVIRON = Path("/proc/self/environ")
"""As it was when this process began; a forked one shows its parent's."""


def start(program: Program, stub: PreloadedStub, restore_signals: Callable[[], None]) -> ChildProcess:
    """Start the program, with ``stub`` preloaded unless that is refused; comes back when it is executed.

    ``restore_signals`` is called in the new process.  Raises CommandNotFound, CommandNotExecutable.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    told, tell = os.pipe()  # closed by execve: its end says that the program is there
    pid = os.fork()
    if not pid:
        _become(program, stub, restore_signals, tell)
    os.close(tell)
    with open(told, "rb") as pipe:
        error = int(pipe.read() or b"0")
    if error:
        os.waitpid(pid, 0)
        kind = CommandNotFound if error == errno.ENOENT else CommandNotExecutable
        raise kind(f"{program.path}: {os.strerror(error)}")
    return ChildProcess(pid, stub)


def _become(
    program: Program, stub: PreloadedStub, restore_signals: Callable[[], None], tell: int
) -> NoReturn:
    """The rest of the forked process: nothing may return from here into what was forked."""
    try:
        restore_signals()
        for number in (signal.SIGPIPE, signal.SIGXFSZ):  # which Python ignores
            signal.signal(number, signal.SIG_DFL)
        environment = _environment()
        if not program.refusal:
            environment = stub.environment(environment)
            stub.enter()
        _execute(program, environment)
    except OSError as error:
        os.write(tell, str(error.errno or errno.EIO).encode())
    finally:
        os._exit(127)


def _environment() -> dict[bytes, bytes]:
    """The user's.  Python adds LC_CTYPE where the locale is C (PEP 538)."""
    environment = dict(os.environb)
    if not any(entry.startswith(b"LC_CTYPE=") for entry in _PROC_ENVIRON.read_bytes().split(b"\0")):
        environment.pop(b"LC_CTYPE", None)
    return environment


def _execute(program: Program, environment: dict[bytes, bytes]) -> None:
    try:
        os.execve(program.path, program.argv, environment)
    except OSError as error:
        if error.errno != errno.ENOEXEC:
            raise
    # A script without a first line that says whose: the shell's (man execvp).
    os.execve("/bin/sh", ("/bin/sh", program.path, *program.argv[1:]), environment)


def _seccomp(pid: int) -> tuple[str | None, ...]:
    """Mode and number of filters (man proc_pid_status)."""
    status = procfs.read_status(pid)
    return status.get("Seccomp"), status.get("Seccomp_filters")


class ChildProcess(TargetProcess):
    """The started program.  It is not waited for before ``wait``, so what /proc tells of its end stays."""

    def __init__(self, pid: int, stub: PreloadedStub) -> None:
        stat = procfs.read_stat(pid)
        self.pid = pid
        self.start_time = stat.start_time if stat else 0
        self.command = procfs.command_line(pid)
        self.replaced = False
        self._file = os.fstat(stub.memfd).st_ino
        self._maps = Maps()
        self._cpu_before_s = 0.0
        self._seccomp = _seccomp(os.getpid())
        self._status: int | None = None
        self._memory = self._pidfd = -1
        with contextlib.suppress(OSError):
            self._memory = os.open(f"/proc/{pid}/mem", os.O_RDONLY | os.O_CLOEXEC)
        with contextlib.suppress(OSError):  # Linux 5.3
            self._pidfd = os.pidfd_open(pid)

    def __exit__(self, *_exc: object) -> None:
        for number in (self._memory, self._pidfd):
            if number >= 0:
                os.close(number)

    def begin(self) -> None:
        """From here on it is sampled: CPU time counts from now."""
        self._cpu_before_s = (procfs.thread_cpu_ns(self.pid, self.pid) or 0) / 1e9

    def alive(self) -> bool:
        """Whether it runs; its other threads may outlive the first one."""
        if self._status is not None or status_taken(self.pid) is not None:
            return False
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None

    def filtered(self) -> bool:
        """Whether it is under a seccomp filter of its own, beyond what it has from pyattach."""
        return self._seccomp != _seccomp(self.pid) and self.alive()

    def maps(self) -> Maps:
        """The mappings as they are now, or as they last were: before its end, or before it replaced
        itself by another program, which ``replaced`` tells then."""
        try:
            found = super().maps()
        except PermissionError:  # it has made itself unreadable (man prctl, PR_SET_DUMPABLE)
            return self._maps
        if any(m.is_memfd and m.inode == self._file for m in found):
            self._maps = found
        elif len(found) and len(self._maps):
            self.replaced = True
        return self._maps

    def pause(self, seconds: float) -> None:
        """Wait for its end, but not longer than ``seconds``."""
        if self._pidfd < 0 or not self.alive():
            time.sleep(min(seconds, 0.01))
            return
        poll = select.poll()
        poll.register(self._pidfd, select.POLLIN)
        poll.poll(seconds * 1000)

    def cpu_s_at_end(self) -> float | None:
        stat = None if self.replaced or self.alive() else procfs.read_stat(self.pid)
        return stat.cpu_s - self._cpu_before_s if stat else None

    def children_cpu_s(self) -> float:
        """CPU time of the programs it has started and waited for, seconds."""
        stat = procfs.read_stat(self.pid)
        return stat.children_cpu_s if stat else 0.0

    def wait(self) -> int:
        """Its exit status as shells show it: 128 and the signal's number where one has ended it."""
        if self._status is None:
            taken = status_taken(self.pid)
            code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1] if taken is None else taken)
            self._status = code if code >= 0 else 128 - code
        return self._status

    def hand_on(self, number: int) -> None:
        """Send it a signal that has come here."""
        if self._status is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(self.pid, number)
