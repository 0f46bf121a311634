"""Keys as they are pressed, from a terminal that is put back as it was."""

from __future__ import annotations

import os
import re
import select
import termios
from types import TracebackType
from typing import Any

_NAMES = {
    "A": "up", "B": "down", "C": "right", "D": "left", "H": "home", "F": "end",
    "1~": "home", "4~": "end", "5~": "pageup", "6~": "pagedown", "7~": "home", "8~": "end",
}  # fmt: skip
_SEQUENCE = re.compile(r"\x1b(?:\[|O)([0-9;]*[~A-Za-z])|\x1b\[M...|.", re.DOTALL)
_SINGLE = {"\r": "enter", "\n": "enter", "\x7f": "backspace", "\b": "backspace", "\x1b": "escape"}


class TerminalKeys:
    """Within a ``with``, keys come one by one, unechoed.  Ctrl-C is a signal still, Ctrl-Z and Ctrl-\\ not:
    they would leave the screen as it is.  Where ``fd`` is no terminal, or not ours to read from now
    (background), there never is a key."""

    def __init__(self, fd: int = 0) -> None:
        self.fd = fd
        self._before: list[Any] | None = None

    def settings(self) -> tuple[list[Any], list[Any]] | None:
        """The terminal's settings as they are and as they will be; None where there never is a key."""
        try:
            if not (os.isatty(self.fd) and in_foreground(self.fd)):
                return None
            before = termios.tcgetattr(self.fd)
            return before, self._unbuffered(before)
        except (OSError, termios.error):
            return None

    def __enter__(self) -> TerminalKeys:
        settings = self.settings()
        if settings is not None:
            self._before, ours = settings
            try:
                termios.tcsetattr(self.fd, termios.TCSADRAIN, ours)
            except (OSError, termios.error):
                self._before = None
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._before is None:
            return
        try:
            termios.tcsetattr(self.fd, termios.TCSADRAIN, self._before)
        except (OSError, termios.error):
            return  # the terminal is gone
        finally:
            self._before = None

    def _unbuffered(self, before: list[Any]) -> list[Any]:
        mode = [*before[:6], list(before[6])]
        mode[3] &= ~(termios.ICANON | termios.ECHO)
        off = os.fpathconf(self.fd, "PC_VDISABLE").to_bytes(1, "little")
        for place, value in (
            (termios.VSUSP, off),
            (termios.VQUIT, off),
            (termios.VMIN, 1),
            (termios.VTIME, 0),
        ):
            mode[6][place] = value
        return mode

    def pressed(self) -> list[str]:
        """What was pressed since the last call: characters, or up, down, left, right, home, end, pageup,
        pagedown, enter, backspace, escape.  Never waits."""
        data = b""
        while self._before is not None and select.select([self.fd], [], [], 0)[0]:
            try:
                more = os.read(self.fd, 1024)
            except OSError:
                more = b""
            if not more:  # hung up
                break
            data += more
        return keys_in(data.decode("utf-8", "replace"))


def in_foreground(fd: int) -> bool:
    """Whether the terminal ``fd`` is this process group's to use now; also where there is no job control on
    it, since it is not our controlling terminal."""
    try:
        return os.tcgetpgrp(fd) == os.getpgrp()
    except OSError:
        return True


def keys_in(text: str) -> list[str]:
    """The keys that a terminal's bytes stand for; sequences that mean nothing here are left out."""
    keys = []
    for found in _SEQUENCE.finditer(text):
        if found[1]:
            keys.append(_NAMES.get(found[1], ""))
        elif len(found[0]) == 1:
            keys.append(_SINGLE.get(found[0], found[0] if found[0].isprintable() else ""))
    return [key for key in keys if key]
