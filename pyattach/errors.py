"""Every error pyattach raises on purpose: what happened, to whom, and what to try next.

Each leaf also inherits the standard exception that fits it, so that callers who know nothing of
pyattach can still catch it, and carries the exit code of the command line.  This module imports
nothing and may be imported from anywhere in the package.
"""

from __future__ import annotations

import enum


class ExitCode(enum.IntEnum):
    """What the ``pyattach`` command returns to the shell."""

    OK = 0
    ERROR = 1
    USAGE = 2
    PERMISSION = 3
    UNSUPPORTED = 4
    NO_SAMPLES = 5
    TARGET_DIED = 6
    DETACH_INCOMPLETE = 7


class ShellStatus(enum.IntEnum):
    """What ``pyattach run`` returns, as shells do, for a command that can't be run."""

    NOT_EXECUTABLE = 126
    NOT_FOUND = 127


class PyattachError(Exception):
    """Base of all errors pyattach raises on purpose.

    ``what`` says what happened and to whom; ``way_out`` what the user can try next (may be empty).
    """

    exit_code: enum.IntEnum = ExitCode.ERROR

    def __init__(self, what: str, way_out: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.way_out = way_out

    def __str__(self) -> str:
        return f"{self.what}\n  {self.way_out}" if self.way_out else self.what


class UsageError(PyattachError, ValueError):
    """The command line or an API argument makes no sense."""

    exit_code = ExitCode.USAGE


class NoPermission(PyattachError, PermissionError):
    """The kernel does not let this user look into or seize the target."""

    exit_code = ExitCode.PERMISSION


class NoSuchTarget(PyattachError, ProcessLookupError):
    """There is no process with that pid."""

    exit_code = ExitCode.ERROR


class UnsupportedTarget(PyattachError):
    """The target is of a kind pyattach can't profile (kernel thread, zombie, 32-bit, ...)."""

    exit_code = ExitCode.UNSUPPORTED


class CommandNotFound(PyattachError, FileNotFoundError):
    """There is no such command to run."""

    exit_code = ShellStatus.NOT_FOUND


class CommandNotExecutable(PyattachError, PermissionError):
    """The command is there, and the kernel does not run it."""

    exit_code = ShellStatus.NOT_EXECUTABLE


class AlreadyTraced(UnsupportedTarget):
    """Another tracer (gdb, strace, ...) holds the target."""


class InjectionFailed(PyattachError, RuntimeError):
    """The stub could not be brought into the target; the target goes on as it was."""


class TargetDied(PyattachError):
    """The target ended before anything could be sampled."""

    exit_code = ExitCode.TARGET_DIED


class MalformedInput(PyattachError, ValueError):
    """A file or memory of the target does not have the form its format demands."""
