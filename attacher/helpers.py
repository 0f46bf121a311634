"""A process of pyattach's own for each further session.

Not a thread: while a target's thread is held every moment counts, and another thread that reads symbols
would keep the interpreter's lock for milliseconds.  ptrace belongs to the one thread that seized, and so
has each of these processes its own.
"""

from __future__ import annotations

import os
import pickle
import select
import signal
import time
import traceback
from collections.abc import Callable
from typing import NoReturn

from ..errors import PyattachError
from . import following, ptrace
from .contract import Options, Outcome


class Helper:
    """Samples process ``pid`` from a fork of this process until ``stop_fd`` reads as ended: because it
    is told to stop, or because pyattach died.  ``stop_end`` is the other end, which it must not keep."""

    def __init__(self, pid: int, options: Options, stop_fd: int, stop_end: int) -> None:
        """Raises OSError where there may be no more processes or files."""
        self._result_fd = os.memfd_create("outcome")
        try:
            self._process = os.fork()
        except OSError:
            os.close(self._result_fd)
            raise
        if not self._process:
            _run(lambda: _sample(pid, options, stop_fd, stop_end, self._result_fd))
        self.outcome: Outcome | None = None
        self.error = ""
        """Why there is no outcome; "" before the end."""

    def ended(self) -> bool:
        """Whether it has ended by now; ``outcome`` or ``error`` is set then."""
        if not self._process:
            return True
        process, status = os.waitpid(self._process, os.WNOHANG)
        if not process:
            return False
        self._process = 0
        self._take_result(status)
        return True

    def wait(self, deadline: float) -> None:
        """Wait for its end until ``deadline`` (time.monotonic()), then end it: the stub in the target
        falls silent by itself."""
        while not self.ended():
            if time.monotonic() > deadline:
                os.kill(self._process, signal.SIGKILL)
                deadline += 1.0
            time.sleep(0.005)

    def _take_result(self, status: int) -> None:
        with open(self._result_fd, "rb") as file:
            file.seek(0)
            data = file.read()
        if status or not data:  # one that was killed may have written a part
            self.error = f"pyattach's process for it ended with status {status:#x}"
            return
        result = pickle.loads(data)
        if isinstance(result, Outcome):
            self.outcome = result
        else:
            self.error = str(result)


def _run(work: Callable[[], None]) -> NoReturn:
    """Do ``work`` and nothing else that this process would do at its end: it is a copy of another."""
    status = 1
    try:
        work()
        status = 0
    except BaseException:
        traceback.print_exc()
        raise
    finally:
        os._exit(status)


def _sample(pid: int, options: Options, stop_fd: int, stop_end: int, result_fd: int) -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # the one it was forked from decides
    os.close(stop_end)
    ptrace.forget_late_stops()

    def should_stop() -> bool:
        return bool(select.select([stop_fd], [], [], 0)[0])

    result: Outcome | str
    try:
        result = following.attach(pid, options, should_stop, lambda _progress: None)
    except PyattachError as error:
        result = error.what
    except OSError as error:  # before there was a session that could end with what it has
        result = str(error)
    with open(result_fd, "wb", closefd=False) as file:
        pickle.dump(result, file)
