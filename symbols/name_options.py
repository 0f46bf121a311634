"""How code is named: what can be chosen."""

from __future__ import annotations

from typing import NamedTuple


class NameOptions(NamedTuple):
    """``full_names``: C++ with template arguments and parameters.  ``lines``: with line numbers and, unless
    ``inlines`` is unset, inlined calls.  ``servers``: of debuginfod, to be asked for debug files.  ``cache``:
    whether anything is kept on disk."""

    full_names: bool = False
    lines: bool = False
    inlines: bool = True
    servers: tuple[str, ...] = ()
    cache: bool = True
