"""The terminal while a live view is on it: the alternate screen, keys one by one, and a guard that puts both
back where this process is killed."""

from __future__ import annotations

import contextlib
import io
import os
from types import TracebackType

from rich.console import Console, RenderableType
from rich.live import Live

from .streams import give_up
from .terminal_guard import TerminalGuard
from .terminal_keys import TerminalKeys


class AlternateScreen:
    """To be entered with ``with``, and to be drawn on.  ``keys``: where keys come from, none if None.  A
    terminal that goes away is no error: nothing is drawn any more."""

    def __init__(self, console: Console | None, keys: TerminalKeys | None) -> None:
        self._console, self._keys = console or Console(), keys
        if isinstance(out := self._console.file, io.TextIOWrapper):
            out.reconfigure(errors="replace")  # a terminal that has no such character is no reason to give up
        self._drawn_for = (0, 0)
        self._is_gone = False
        self._undo = contextlib.ExitStack()
        self._live = Live(
            console=self._console,
            screen=self._console.is_terminal,
            auto_refresh=False,
            redirect_stdout=False,
            redirect_stderr=False,
        )

    def __enter__(self) -> AlternateScreen:
        with contextlib.ExitStack() as undo:
            if (terminal := self._terminal()) >= 0:
                undo.enter_context(self._guard(terminal))
            if self._keys is not None:
                undo.enter_context(self._keys)
            undo.push(self._leave)
            self._live.start()
            self._undo = undo.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._undo.__exit__(kind, error, trace)

    @property
    def size(self) -> tuple[int, int]:
        """Columns and lines, as they are now."""
        return self._console.size

    @property
    def is_outdated(self) -> bool:
        """Whether the terminal has another size than what was drawn last was made for."""
        return self.size != self._drawn_for

    def draw(self, content: RenderableType, size: tuple[int, int]) -> None:
        """Show ``content``, which was made for a terminal of ``size``."""
        self._drawn_for = size
        if self._is_gone:
            return
        try:
            self._live.update(content, refresh=True)
        except (OSError, ValueError):  # ValueError: its stream is closed
            self._give_up()

    def _leave(self, *_exc: object) -> None:
        try:
            self._live.stop()
        except (OSError, ValueError):
            self._give_up()

    def _give_up(self) -> None:
        self._is_gone = True
        give_up(self._console.file)

    def pressed(self) -> list[str]:
        """The keys since the last call."""
        return self._keys.pressed() if self._keys is not None else []

    def _terminal(self) -> int:
        """Where the alternate screen is; -1: there is none."""
        try:
            fd = self._console.file.fileno()
        except OSError:  # it is written to memory
            return -1
        return fd if os.isatty(fd) else -1

    def _guard(self, terminal: int) -> TerminalGuard:
        settings = self._keys.settings() if self._keys is not None else None
        if self._keys is None or settings is None:
            return TerminalGuard(terminal)
        return TerminalGuard(terminal, self._keys.fd, *settings)
