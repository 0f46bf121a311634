"""What takes time and is done when the target has been left: debug files from servers, lines and inlined
calls."""

from __future__ import annotations

import posixpath
import time
from collections.abc import Callable, Iterator

from ..errors import MalformedInput
from .cache import Cache
from .debuginfod import Debuginfod
from .lines import LineReader, missing_parts
from .name_options import LINES_S, SERVERS_S, NameOptions
from .resolver import Resolver

_NAMED = 4


def complete(
    resolver: Resolver, options: NameOptions, cache: Cache, say: Callable[[str], None]
) -> Iterator[str]:
    """Find out the rest, and tell the resolver; yields notes on what could not be had."""
    if options.servers:
        yield from _ask_servers(resolver, options, cache, say)
    if options.lines:
        yield from _read_lines(resolver, options, cache)
    yield from resolver.left_out()
    if stripped := resolver.nameless_files():
        names = [posixpath.basename(file.image.path) for file in stripped]
        more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
        yield (
            f"stripped of the names of functions: {', '.join(names[:_NAMED])}{more} "
            "(install their debug symbols, or set DEBUGINFOD_URLS)"
        )


def _ask_servers(
    resolver: Resolver, options: NameOptions, cache: Cache, say: Callable[[str], None]
) -> Iterator[str]:
    wanted = dict.fromkeys(resolver.nameless_files())
    if options.lines:
        wanted.update(dict.fromkeys(f for f in resolver.places_by_file() if f.with_lines is None))
    client = Debuginfod(list(options.servers), cache, time.monotonic() + SERVERS_S, say)
    for file in wanted:
        if not file.image.build_id:
            continue
        found = client.fetch(file.image.build_id, posixpath.basename(file.image.path))
        if found is None:
            continue
        try:
            file.use_debug(found)
        except MalformedInput as error:
            yield str(error)
            continue
        resolver.renamed(file)
    yield from client.failures


def _read_lines(resolver: Resolver, options: NameOptions, cache: Cache) -> Iterator[str]:
    reader = LineReader(cache if options.cache else None, time.monotonic() + LINES_S, inlines=options.inlines)
    for file, places in resolver.places_by_file(without_lines=True).items():
        image = file.with_lines
        if image is None:
            continue
        found = reader.read(image, [place.vaddr or 0 for place in places])
        if found is None:
            yield f"{image.path}: {reader.error}"
            continue
        resolver.use_lines(file, places, found)
        try:
            missing = missing_parts(image)
        except MalformedInput as error:
            yield str(error)
            continue
        if missing:
            yield f"{image.path}: {missing}"
