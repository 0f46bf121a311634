"""What the command line says of the heap, as options, and what is said at the end."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Sequence

from ..errors import PyattachError, UsageError
from ..render.names import printable
from .heap_report import report_lines, write_heap_outputs
from .heap_session import HeapOptions, HeapOutcome, HeapSession
from .heap_words import BEFORE, LEAKED
from .interim import interim_name


def heap_options(arguments: argparse.Namespace, options: HeapOptions) -> HeapOptions:
    """``options``, with what the command line says of the heap.  Raises UsageError."""
    leaks = arguments.leaks
    if arguments.heap_sample and (leaks or arguments.heap_kind == LEAKED):
        raise UsageError(
            "leaks can't be told where allocations are sampled: what leads to a block may not be known",
            "leave out --heap-sample",
        )
    if leaks is None:
        leaks = options.leaks or arguments.heap_kind == LEAKED
    elif not leaks and arguments.heap_kind == LEAKED:
        raise UsageError("leaked blocks can't be drawn with --no-leaks", "leave one of the two out")
    before = options.before and arguments.before
    if arguments.heap_kind == BEFORE and not before:
        raise UsageError(
            "what was there before is known only where a running process is attached to",
            "pyattach heap PID, without --no-before",
        )
    return dataclasses.replace(
        options,
        max_depth=max(1, min(arguments.heap_depth, 1024)),
        sample_bytes=arguments.heap_sample,
        leaks=leaks,
        before=before,
    )


def interim_reports(
    pid: int,
    wanted: Callable[[], bool],
    arguments: argparse.Namespace,
    say: Callable[[str], None],
    mark: str = "",
) -> Callable[[HeapSession], None]:
    """To be called at each look: writes a picture and a list of sites where a report is ``wanted``; ``mark``
    is put into their names."""

    def write(outcome: HeapOutcome) -> None:
        try:
            write_heap_outputs(
                outcome, [interim_name(pid, mark + suffix) for suffix in (".svg", ".txt")], arguments, say
            )
        except PyattachError as error:
            say(error.what)

    def look(session: HeapSession) -> None:
        if wanted():
            session.interim(write)

    return look


def report_heap(
    outcome: HeapOutcome, outputs: Sequence[str], arguments: argparse.Namespace, say: Callable[[str], None]
) -> None:
    """Write the files and say what there is to say.  Raises PyattachError."""
    written: list[str] = []
    try:
        write_heap_outputs(outcome, outputs, arguments, written.append)
    finally:
        if arguments.verbose:
            for line in report_lines(outcome, top=5):
                say(printable(line))
        totals = dict(outcome.meta.rows)
        say("; ".join([f"allocated {totals.get('allocated', 'nothing recorded')}", *written]))
        if outcome.warning:
            say(outcome.warning)
