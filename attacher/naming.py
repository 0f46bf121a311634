"""How code of a target gets its names: what the command line says of it, and a resolver for a target."""

from __future__ import annotations

import argparse

from ..errors import UsageError
from ..symbols import lines
from ..symbols.cache import Cache, cache_folder
from ..symbols.completing import NameOptions
from ..symbols.debuginfod import urls
from ..symbols.files import path_openers
from ..symbols.jitfiles import JitNames
from ..symbols.resolver import Resolver, proc_opener
from .target import TargetProcess


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
    if arguments.lines and not lines.available():
        raise UsageError("--lines needs the package symbolic", lines.MISSING)
    return NameOptions(
        full_names=arguments.full_names,
        lines=arguments.lines,
        inlines=not arguments.no_inlines,
        servers=tuple(urls()),
        cache=not arguments.no_cache,
    )


def make_cache(options: NameOptions) -> Cache:
    """The cache on disk; one that holds nothing where none is wanted."""
    return Cache(cache_folder() if options.cache else None)


def make_resolver(
    target: TargetProcess, options: NameOptions | None = None, cache: Cache | None = None
) -> Resolver:
    """With the mappings as they are now."""
    options = options or NameOptions()
    return Resolver(
        target.maps(),
        proc_opener(target.pid),
        exe_path=target.exe_path(),
        path_openers=path_openers(target.pid),
        cache=make_cache(options) if cache is None else cache,
        jit=JitNames(target.pid),
        full_names=options.full_names,
    )
