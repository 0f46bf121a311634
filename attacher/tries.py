"""Attaching to a process that executes another program just then, or has only begun: it is looked at anew."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from ..errors import InjectionFailed, NoPermission, PyattachError, TargetDied
from ..inject import fault
from ..inject.cave import NoRoom
from .target import TargetProcess

_FOR_S = 1.0
_T = TypeVar("_T")


@contextlib.contextmanager
def begun(
    pid: int, check: Callable[[int], None], begin: Callable[[TargetProcess, contextlib.ExitStack], _T]
) -> Iterator[_T]:
    """What ``begin`` makes of the process, once ``check`` has not refused it; what it has opened is closed
    with the stack it is given.  Where it fails another try may do, if that begins within a second."""
    deadline = time.monotonic() + _FOR_S
    while True:
        again = time.monotonic() < deadline
        with contextlib.ExitStack() as undo:
            target = undo.enter_context(TargetProcess(pid))
            check(pid)
            fault.reach("checked", pid)
            try:
                made = begin(target, undo)
            except (PyattachError, OSError) as error:
                _judge(target, error, again=again)
                continue
            yield made
            return


def _judge(target: TargetProcess, error: Exception, *, again: bool) -> None:
    """Returns where another try may do.  Raises what there is to be said of the error, else."""
    pid = target.pid
    if isinstance(error, (NoPermission, TargetDied)):
        raise error
    if isinstance(error, ProcessLookupError):
        if again and target.alive():  # the thread has ended, not the process
            return
        raise TargetDied(f"process {pid} ended while pyattach attached") from error
    moved = not target.memory_is_current()
    if again and (moved or isinstance(error, NoRoom)):
        return
    if moved:
        raise InjectionFailed(
            f"process {pid} executed another program each time that pyattach attached", "try again"
        ) from error
    if isinstance(error, PyattachError):
        raise error
    raise InjectionFailed(f"process {pid} can't be read: {error}", "try again") from error
