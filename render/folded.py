"""Folded stacks, ``root;child;leaf N``, as flamegraph.pl and its many relatives read them."""

from __future__ import annotations

import collections
import re
from collections.abc import Iterator

from ..symbols.frame import Frame
from .names import printable
from .profile import Profile, Thread
from .renderer import RenderOptions, encoded

NO_STACK = "[no stack]"
"""Stands for a stack that holds no frame at all."""

# flamegraph.pl takes a second number at the end of a line for a differential profile, so that a leaf
# named "worker 2" would lose its samples.
_NUMBER_AT_END = re.compile(r"\s+(\d+(?:\.\d*)?)$")


def folded_name(name: str) -> str:
    """``name`` as one element of a folded stack: no ``;``, no line end, no control character, not empty."""
    return printable(name).replace(";", ":").strip() or "[unnamed]"


def thread_name(thread: Thread) -> str:
    """``name-tid``, or the bare tid where the name is not known."""
    return f"{thread.name}-{thread.tid}" if thread.name else str(thread.tid)


def render(profile: Profile, options: RenderOptions) -> Iterator[bytes]:
    """One line for each distinct stack, sorted, its ticks at the end."""
    return encoded(_lines(profile, options))


def _lines(profile: Profile, options: RenderOptions) -> Iterator[str]:
    lines = folded_stacks(profile, options)
    for line in sorted(lines):
        yield f"{line} {lines[line]}\n"


def folded_stacks(profile: Profile, options: RenderOptions) -> dict[str, int]:
    """Ticks by folded stack."""
    lines: collections.Counter[str] = collections.Counter()
    names: dict[str, str] = {}
    for (tid, stack), ticks in profile.weights.items():
        root = thread_name(profile.threads.get(tid, Thread(tid, ""))) if options.threads else ""
        lines[_line(root, stack, names, options.lines)] += ticks
    return lines


def _line(root: str, stack: tuple[Frame, ...], names: dict[str, str], lines: bool) -> str:
    parts = [f"{f.name} ({f.line})" if lines and f.line else f.name for f in stack] or [NO_STACK]
    if root:
        parts.insert(0, root)
    for part in parts:
        if part not in names:
            names[part] = folded_name(part)
    return _NUMBER_AT_END.sub(r"_\1", ";".join([names[part] for part in parts]))
