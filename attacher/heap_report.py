"""What the user gets of a heap session: files, and the sites that matter in words."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Iterator, Sequence

from ..errors import PyattachError
from ..render.facts import facts, share
from ..render.formats import renderer_for
from ..render.names import printable, shortened
from ..render.profile import Profile, Stack
from ..render.renderer import RenderOptions, encoded
from .heap_profile import KINDS, HeapResult
from .heap_session import HeapOutcome
from .heap_words import BEFORE
from .outputs import write

_CALLERS = 3
_NAME = 80


def write_heap_outputs(
    outcome: HeapOutcome, outputs: Sequence[str], arguments: argparse.Namespace, say: Callable[[str], None]
) -> None:
    """Write every file; one that fails does not keep the others from being written.  Raises PyattachError."""
    drawn: Profile | None = None
    options = RenderOptions(inverted=arguments.inverted, reverse=arguments.reverse)
    failed: list[PyattachError] = []
    for output in outputs:
        wanted = getattr(arguments, "format", None) or ("text" if output == "-" else None)
        try:
            if renderer_for(wanted or output).name == "text":
                write(output, encoded(line + "\n" for line in report_lines(outcome)))
            else:
                drawn = drawn or _profile(outcome, arguments.heap_kind, arguments.heap_unit)
                write(output, renderer_for(wanted or output).render(drawn, options))
            if output != "-":
                say(f"wrote {output}")
        except PyattachError as error:
            failed.append(error)
    if failed:
        raise failed[0]


def _profile(outcome: HeapOutcome, kind: str, unit: str) -> Profile:
    if outcome.result is None:
        return Profile(outcome.meta, {}, {})
    return outcome.result.profile(outcome.meta, kind, unit)


def report_lines(outcome: HeapOutcome, top: int = 20) -> Iterator[str]:
    """What was recorded, and for each kind the ``top`` sites by bytes."""
    rows = facts(outcome.meta) + [("note", printable(note)) for note in outcome.meta.notes]
    margin = max(len(label) for label, _ in rows)
    yield from (f"{label:<{margin}}  {value}" for label, value in rows)
    if outcome.result is None:
        return
    for kind in outcome.result.kinds:
        what = (
            "type, then size; no stack: allocated before attach"
            if kind == BEFORE
            else "site, and its callers"
        )
        yield from ("", f"{kind}: {KINDS[kind][0]}", f"{'bytes':>16} {'':>7} {'blocks':>12}  {what}")
        yield from _before(outcome.result, top) if kind == BEFORE else _sites(outcome.result, kind, top)


def _sites(result: HeapResult, kind: str, top: int) -> Iterator[str]:
    order = result.places(kind)
    total = sum(size for _, size, _ in order)
    rows = [(_named(result.frames(place, 1 + _CALLERS)), blocks, size) for place, size, blocks in order[:top]]
    yield from _rows(rows, total)
    if len(order) > top:
        rest = sum(size for _, size, _ in order[top:])
        yield f"{rest:>16,.0f} {share(rest, total):>7} {'':>12}  {len(order) - top:,} other sites"


def _before(result: HeapResult, top: int) -> Iterator[str]:
    """Types, then sizes."""
    old = result.before
    assert old is not None
    types = [(printable(kind) or "[no type known]", blocks, size) for kind, blocks, size in old.by_type()]
    yield from _rows(types[:top], old.size)
    if len(types) > top:
        rest = sum(size for _, _, size in types[top:])
        yield f"{rest:>16,.0f} {share(rest, old.size):>7} {'':>12}  {len(types) - top:,} other types"
    yield ""
    yield from _rows([(f"up to {upto:,} bytes", n, size) for upto, n, size in old.by_size()], old.size)


def _rows(rows: Iterable[tuple[str, float, float]], total: float) -> Iterator[str]:
    """What it is, blocks, bytes."""
    for what, blocks, size in rows:
        yield f"{size:>16,.0f} {share(size, total):>7} {blocks:>12,.0f}  {what}"


def _named(stack: Stack) -> str:
    return " < ".join(shortened(printable(frame.name), _NAME) for frame in reversed(stack))
