"""The command line's words for the heap, and what is said at the end."""

from __future__ import annotations

import argparse
import dataclasses
import re
from collections.abc import Callable, Sequence

from ..errors import PyattachError, UsageError
from ..render.names import printable
from .heap_profile import BEFORE, KINDS, LEAKED, UNITS
from .heap_report import report_lines, write_heap_outputs
from .heap_session import HeapOptions, HeapOutcome, HeapSession
from .interim import interim_name

_DEPTH = 64
_POWERS = {"": 0, "K": 10, "M": 20, "G": 30}


def byte_count(text: str) -> int:
    """``512K``, ``1M``, ``4096``: bytes.  Raises ArgumentTypeError."""
    found = re.fullmatch(r"(\d{1,9})([KMG]?)(?:i?B)?", text.strip(), re.IGNORECASE)
    size = int(found[1]) << _POWERS[found[2].upper()] if found else 0
    if not 1 <= size <= 1 << 40:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of bytes: say 512K or 1M")
    return size


def add_heap_options(p: argparse.ArgumentParser, kind: str, unit: str) -> None:
    """What is recorded and drawn; ``kind`` and ``unit`` are the options' names."""
    p.add_argument(
        kind, dest="heap_kind", choices=list(KINDS), default="peak",
        help="drawn: all that was allocated, live at the end, live at the peak (default), temporary, leaked, "
        "or what was there before the attach",
    )  # fmt: skip
    p.add_argument(
        "--leaks", action=argparse.BooleanOptionalAction, default=None,
        help="at the end, tell lost blocks from those that are still in use",
    )  # fmt: skip
    p.add_argument(
        unit, dest="heap_unit", choices=UNITS, default="bytes", help="in bytes (default) or in blocks"
    )
    p.add_argument(
        "--heap-sample", type=byte_count, default=0, metavar="BYTES",
        help="512K: record one allocation in so many bytes on average (default: all)",
    )  # fmt: skip
    p.add_argument(
        "--heap-depth", type=int, default=_DEPTH, metavar="N",
        help=f"frames of a stack of the heap at most (default {_DEPTH})",
    )  # fmt: skip


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
    pid: int, wanted: Callable[[], bool], arguments: argparse.Namespace, say: Callable[[str], None]
) -> Callable[[HeapSession], None]:
    """To be called at each look: writes a picture and a list of sites where a report is ``wanted``."""

    def write(outcome: HeapOutcome) -> None:
        try:
            write_heap_outputs(
                outcome, [interim_name(pid, suffix) for suffix in (".svg", ".txt")], arguments, say
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
