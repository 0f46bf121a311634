"""Looks lines up, in a process of its own: what is read is the target's, the reading is native code, and it
maps files, which kills whoever does it when they are truncated meanwhile.

Run as a script.  On stdin a JSON line for each file: ``{"fd": N, "index": N, "addresses": [...]}``, addresses
counted from where the file's first segment is to be loaded, ``index`` a file that holds (or, where it is
empty, is to hold) the index made from it.  On stdout a line for each: a list for each address of [function,
path, line], innermost first, or ``{"error": why}``.
"""

from __future__ import annotations

import json
import os
import resource
import sys

_MEMORY_BYTES = 6 << 30  # of address space, the mapped files included
_CPU_SECONDS = 120
_FILE_BYTES = 1 << 30  # of the index, and of the answers


def _index_of(request: dict[str, int]):  # type: ignore[no-untyped-def]
    from symbolic.debuginfo import Archive
    from symbolic.symcache import SymCache

    index = request["index"]
    if os.fstat(index).st_size:
        kept = SymCache.open(f"/proc/self/fd/{index}")
        if kept.is_latest_version:
            return kept
        os.ftruncate(index, 0)
    objects = list(Archive.open(f"/proc/self/fd/{request['fd']}").iter_objects())
    made = objects[0].make_symcache()
    with open(index, "wb", closefd=False) as file:
        made.dump_into(file)
    return made


def _answer(request: dict[str, int], addresses: list[int]) -> object:
    try:
        index = _index_of(request)
        return [
            [[where.symbol, where.full_path or "", where.line] for where in index.lookup(address)]
            for address in addresses
        ]
    except Exception as error:  # noqa: BLE001 - whatever the native code finds; it is told
        return {"error": f"{type(error).__name__}: {error}"[:300]}


def main() -> None:
    """Answer until stdin ends."""
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_FSIZE, (_FILE_BYTES, _FILE_BYTES))
    resource.setrlimit(resource.RLIMIT_CPU, (_CPU_SECONDS, _CPU_SECONDS))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for line in sys.stdin.buffer:
        request = json.loads(line)
        answer = json.dumps(_answer(request, request["addresses"]), separators=(",", ":"))
        sys.stdout.write(answer + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
