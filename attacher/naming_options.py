"""How code of a target gets its names: what the command line says of it."""

from __future__ import annotations

import argparse

from ..errors import UsageError
from ..symbols.name_options import NameOptions


def add_name_options(p: argparse.ArgumentParser) -> None:
    """How code is named."""
    p.add_argument("--full-names", action="store_true", help="C++ names with template arguments, parameters")
    p.add_argument(
        "--lines", action="store_true", help="line numbers and inlined functions, from debug information"
    )
    p.add_argument("--no-inlines", action="store_true", help="with --lines: without inlined functions")
    p.add_argument("--no-cache", action="store_true", help="keep nothing in ~/.cache/pyattach, nor read it")


def name_options(arguments: argparse.Namespace) -> NameOptions:
    """What was chosen there.  Raises UsageError where lines are asked for and can't be read."""
    from ..symbols.debuginfod import urls

    if arguments.lines:
        from ..symbols import lines

        if not lines.available():
            raise UsageError("--lines needs the package symbolic", lines.MISSING)
    return NameOptions(
        full_names=arguments.full_names,
        lines=arguments.lines,
        inlines=not arguments.no_inlines,
        servers=tuple(urls()),
        cache=not arguments.no_cache,
    )
