"""Puts a terminal back where pyattach can't do it any more: killed by a signal that can't be caught."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import termios
import time
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn

_LEAVE = b"\x1b[?1049l\x1b[?25h"  # the alternate screen; the cursor is shown
_PATIENCE_S = 60
"""How long a terminal that takes nothing (after Ctrl-S) is waited for."""


class TerminalGuard:
    """Within a ``with``, a small process waits for the end of this one.  Where that comes first, it puts the
    settings of the terminal ``settings_of`` back from ``ours`` to ``before`` (as ``termios.tcgetattr`` has
    them), if nobody has changed them since, and leaves the alternate screen of the terminal ``screen``.

    It is out of this process's group, so that what is sent to that (Ctrl-C, SIGKILL) does not reach it, and
    has nothing of this process's open but the terminal.  The target has nothing to do with it.
    """

    def __init__(self, screen: int, settings_of: int = -1, before: Any = None, ours: Any = None) -> None:
        self._screen, self._settings_of = screen, settings_of
        self._before, self._ours = before, ours
        self._pid = 0
        self._tell = -1

    def __enter__(self) -> TerminalGuard:
        told, self._tell = os.pipe()
        alive = _pidfd()
        try:
            self._pid = os.fork()
            if not self._pid:
                self._guard(told, alive)
        finally:
            os.close(told)
            if alive >= 0:
                os.close(alive)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(BrokenPipeError):  # somebody has ended it
            os.write(self._tell, b"\n")
        os.close(self._tell)
        os.waitpid(self._pid, 0)

    def _guard(self, told: int, alive: int) -> NoReturn:
        """The process's whole life; nothing that a copy of this one would do at its end is done."""
        try:
            os.setpgid(0, 0)
            # SIGTTOU: the terminal may be changed and written to from the background.
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGTTOU):
                signal.signal(number, signal.SIG_IGN)
            _close_all_but({told, alive, self._screen, self._settings_of})
            if not _released(told, alive):
                self._put_back()
        finally:
            os._exit(0)

    def _put_back(self) -> None:
        with contextlib.suppress(OSError, termios.error):  # the terminal is gone
            # A shell may have set its own meanwhile.
            if self._settings_of >= 0 and termios.tcgetattr(self._settings_of) == self._ours:
                termios.tcsetattr(self._settings_of, termios.TCSANOW, self._before)
        with contextlib.suppress(OSError):
            # Opened anew: writing must not wait, as it would after Ctrl-S; that of others may.
            flags = os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY
            _write_all(os.open(os.ttyname(self._screen), flags), _LEAVE)


def _write_all(terminal: int, data: bytes) -> None:
    """To a terminal that may have no room, and is refused while another process writes to it: a shell does as
    it learns of the same end.  Gives up after ``_PATIENCE_S``.  Raises OSError where the terminal is gone."""
    room = select.poll()
    room.register(terminal, select.POLLOUT)
    until = time.monotonic() + _PATIENCE_S
    while data and time.monotonic() < until:
        try:
            data = data[os.write(terminal, data) :]
        except BlockingIOError:
            room.poll(1000)
            time.sleep(0.005)  # where there is room, but somebody writes


def _pidfd() -> int:
    """Of this process; -1 on kernels before 5.3.  Then the guard has only the pipe to wait for, whose other
    end is open until forks of this process have ended too."""
    try:
        return os.pidfd_open(os.getpid())
    except OSError:
        return -1


def _released(told: int, alive: int) -> bool:
    """Wait; whether the guard is needed no more, else that process has ended."""
    os.set_blocking(told, False)
    ends = select.poll()
    for fd in (told, alive):
        if fd >= 0:
            ends.register(fd, select.POLLIN)
    ends.poll()
    try:
        return bool(os.read(told, 1))
    except BlockingIOError:  # others have its other end
        return False


def _close_all_but(kept: set[int]) -> None:
    for path in list(Path("/proc/self/fd").iterdir()):
        if int(path.name) not in kept:
            with contextlib.suppress(OSError):  # the folder's own
                os.close(int(path.name))
