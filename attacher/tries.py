"""Attaching to a process that executes another program just then, or has only begun: it is looked at anew."""

from __future__ import annotations

import time

from ..errors import InjectionFailed, NoPermission, PyattachError, TargetDied
from ..inject.cave import NoRoom
from .target import TargetProcess

_FOR_S = 1.0


class Tries:
    """Of attaching to one process, each with a ``TargetProcess`` of its own; one begins as another fails."""

    def __init__(self) -> None:
        self._deadline = time.monotonic() + _FOR_S
        self._began_in_time = True

    def failed(self, target: TargetProcess, error: Exception) -> None:
        """Returns where another try may do.  Raises what there is to be said of the error, else."""
        again, pid = self._began_in_time, target.pid
        self._began_in_time = time.monotonic() < self._deadline
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
