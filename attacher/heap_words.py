"""The command line's words for the heap: all that is needed to read it, and to show its help."""

from __future__ import annotations

import argparse
import re

LEAKED, BEFORE = "leaked", "before"
KIND_NAMES = ("allocated", "live", "peak", "temporary", LEAKED, BEFORE)
"""What can be asked of a heap; ``heap_profile.KINDS`` says what they are."""

AUTO, NEVER, ALWAYS = "auto", "never", "always"
ENTRY_MODES = (AUTO, NEVER, ALWAYS)
"""Whether the allocator's own code is changed, where calls go through no slot."""

UNITS = ("bytes", "blocks")
DRAWN = "peak"
"""The kind of profile that a picture shows."""

_DEPTH = 64
_POWERS = {"": 0, "K": 10, "M": 20, "G": 30}


def byte_count(text: str) -> int:
    """``512K``, ``1M``, ``4096``: bytes.  Raises ArgumentTypeError."""
    found = re.fullmatch(r"(\d{1,9})([KMG]?)(?:i?B)?", text.strip(), re.IGNORECASE)
    size = int(found[1]) << _POWERS[found[2].upper()] if found else 0
    if not 1 <= size <= 1 << 40:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of bytes: say 512K or 1M")
    return size


def add_entries_option(p: argparse.ArgumentParser) -> None:
    """How calls are reached, where a running process is attached to."""
    p.add_argument(
        "--entries", choices=ENTRY_MODES, default=NEVER,
        help="reach calls by addresses taken before, and in static programs, at the allocator's own first "
        "instructions, which are changed for it: where there are such calls (auto), never (default), always",
    )  # fmt: skip


def add_heap_options(p: argparse.ArgumentParser, kind: str, unit: str) -> None:
    """What is recorded and drawn; ``kind`` and ``unit`` are the options' names."""
    p.add_argument(
        kind, dest="heap_kind", choices=KIND_NAMES, default=DRAWN,
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
