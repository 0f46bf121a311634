"""How code of a target gets its names: a resolver for it, and a cache."""

from __future__ import annotations

from ..symbols.cache import Cache, cache_folder
from ..symbols.files import path_openers
from ..symbols.jitfiles import JitNames
from ..symbols.name_options import NameOptions
from ..symbols.resolver import Resolver, proc_opener
from .target import TargetProcess


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
