"""The summary for the terminal: what was measured, then the heaviest functions by self and by total."""

from __future__ import annotations

from collections.abc import Iterator

from ..symbols.frame import Frame
from .facts import facts, share, why_empty
from .folded import thread_name
from .names import printable, shortened
from .profile import FunctionTotals, Profile, totals_of
from .renderer import RenderOptions, encoded

_NAME_LIMIT = 200
"""Characters of a function's name; a template instance may have tens of thousands."""


_BY_SELF = "by self: {} whose innermost frame it was"
_BY_TOTAL = "by total: {} with it anywhere on the stack"


def render(profile: Profile, options: RenderOptions) -> Iterator[bytes]:
    """Header and two tables; with ``threads``, two tables for each thread."""
    return encoded(line.rstrip() + "\n" for line in _lines(profile, options))


def summary_lines(profile: Profile, top: int = 10) -> Iterator[str]:
    """What was measured and the ``top`` heaviest functions by self and by total, without line ends."""
    wanted = ["rate", "duration", "CPU time", "samples", "dropped", "truncated stacks", "overhead"]
    wanted += ["each sample", "pyattach's CPU"]
    if profile.meta.mode != "cpu":
        wanted.append("mode")
    yield from _header([(label, value) for label, value in facts(profile.meta) if label in wanted])
    if not profile.total:
        yield from ("", *why_empty(profile))
    else:
        yield from _tables(totals_of(profile), top, profile.meta.unit)


def _lines(profile: Profile, options: RenderOptions) -> Iterator[str]:
    if options.title:
        yield from (printable(options.title), "")
    yield from _header(facts(profile.meta) + [("note", printable(note)) for note in profile.meta.notes])
    if not profile.total:
        yield from ("", *why_empty(profile))
    elif options.threads:
        for thread, stacks in profile.by_thread():
            totals = FunctionTotals()
            for stack, ticks in stacks.items():
                totals.add(stack, ticks)
            heading = f"thread {printable(thread_name(thread))}"
            yield from (
                "",
                f"{heading}: {totals.ticks:,} {profile.meta.unit}, {share(totals.ticks, profile.total)}",
            )
            yield from _tables(totals, options.top, profile.meta.unit)
    else:
        yield from _tables(totals_of(profile), options.top, profile.meta.unit)


def _header(rows: list[tuple[str, str]]) -> Iterator[str]:
    margin = max((len(label) for label, _ in rows), default=0)
    for label, value in rows:
        yield f"{label:<{margin}}  {value}"


def _tables(totals: FunctionTotals, top: int, unit: str) -> Iterator[str]:
    yield from _table(_BY_SELF, totals, top, unit, by_total=False)
    yield from _table(_BY_TOTAL, totals, top, unit, by_total=True)


def _table(title: str, totals: FunctionTotals, top: int, unit: str, *, by_total: bool) -> Iterator[str]:
    rows = totals.rows(top, by_total=by_total)
    if not by_total:
        rows = [row for row in rows if row.self_ticks]
    width = 10 if unit == "samples" else 16
    yield from ("", title.format(unit), f"{'self':>8} {'total':>8} {unit:>{width}}  function")
    for row in rows:
        ticks = row.total_ticks if by_total else row.self_ticks
        shares = f"{share(row.self_ticks, totals.ticks):>8} {share(row.total_ticks, totals.ticks):>8}"
        yield f"{shares} {ticks:>{width},}  {_label(row.frame)}"


def _label(frame: Frame) -> str:
    name = shortened(printable(frame.name), _NAME_LIMIT)
    module = shortened(printable(frame.module), _NAME_LIMIT)
    line = shortened(printable(frame.line), _NAME_LIMIT)
    return "  ".join(part for part in (name, f"[{module}]" if module else "", line) if part)
