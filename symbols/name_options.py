"""How code is named: what can be chosen."""

from __future__ import annotations

from typing import NamedTuple

SERVERS_S, LINES_S = 30.0, 60.0
"""How long servers may be asked for debug files, and lines be read."""

SUMMING_S = 20.0
"""How long the debug files of one program may be summed up, to see whether they are its own."""

_LAST_STEP_S = 10.0
LONGEST_S = SUMMING_S + SERVERS_S + LINES_S + _LAST_STEP_S
"""When all of this is over: what was begun last may end a little after its deadline."""


class NameOptions(NamedTuple):
    """``full_names``: C++ with template arguments and parameters.  ``lines``: with line numbers and, unless
    ``inlines`` is unset, inlined calls.  ``servers``: of debuginfod, to be asked for debug files.  ``cache``:
    whether anything is kept on disk."""

    full_names: bool = False
    lines: bool = False
    inlines: bool = True
    servers: tuple[str, ...] = ()
    cache: bool = True
