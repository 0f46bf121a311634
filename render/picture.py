"""The static picture of a call tree as SVG elements: what is to be seen where no script runs."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape

from .facts import share
from .names import crop, printable, shortened
from .tree import REST, Tree

# ROW and CHAR stand in page_layout.js, too.  The static picture has this width; a script fits it to the
# window.  CHAR is the advance of an 11 px fixed-width font (DejaVu Sans Mono, the widest: 0.602 em).
WIDTH, PAD, ROW, CHAR = 1200, 10, 18, 6.63
LEAST_SHARE = 0.001
"""Of the view: a frame narrower than this is drawn as part of a block "(n smaller)"."""
DEEPEST = 80
"""Rows that are drawn; what is deeper is folded into one block with a mark."""

_TITLE_LIMIT = 100


def xml(text: str) -> str:
    """``text`` for any place in the file."""
    return escape(printable(text))


def rows_of(tree: Tree) -> int:
    """How many rows the picture of ``tree`` has."""
    return min(max(tree.depth), DEEPEST + 1) + 1


def frames(tree: Tree, classes: list[str], top: float, *, upward: bool) -> Iterator[str]:
    """A group of rows: rectangles with tooltips, and names where they fit.  ``tree`` is pruned to what is to
    be seen, ``classes`` are the nodes' colour classes; ``upward``: the root is at the bottom."""
    rows: list[list[str]] = [[] for _ in range(rows_of(tree))]
    names: list[list[str]] = [[] for _ in rows]
    scale = (WIDTH - 2 * PAD) / tree.ticks[0]
    left = [0] * (max(tree.depth) + 2)  # where the next node of each depth begins
    for node, ticks in enumerate(tree.ticks):
        depth = tree.depth[node]
        start, left[depth + 1] = left[depth], left[depth]
        left[depth] += ticks
        if not ticks or depth > DEEPEST + 1:
            continue
        rest = tree.frame[node] == REST
        kind = classes[node]
        name = f"({tree.count[node]:,} smaller)" if rest else tree.frames[tree.frame[node]].name
        if depth == DEEPEST + 1:
            kind, name = "r", "⋯ deeper"
        x, width = _px(PAD + start * scale), max(ticks * scale - 0.6, 0.6)
        room = int((width - 5) / CHAR)
        text = crop(printable(shortened(name, 1000)), room) if room >= 3 else ""
        title = f"{ticks:,} ({share(ticks, tree.ticks[0])})"
        line = "" if rest else tree.frames[tree.frame[node]].line
        if line and kind != "r":
            title += f", {shortened(printable(line), _TITLE_LIMIT)}"
        if text != name:
            title = f"{shortened(printable(name), _TITLE_LIMIT)}, {title}"
        rows[depth].append(
            f'<rect class="{kind}" x="{x}" width="{_px(width)}" height="{ROW - 1}">'
            f"<title>{xml(title)}</title></rect>"
        )
        if text:
            mark = f' class="on-{kind}"' if kind in ("r", "m") else ""
            names[depth].append(f'<text{mark} x="{x}">{xml(text)}</text>')
    yield '<g id="frames">\n'
    for depth, row in enumerate(rows):
        y = top + ROW * (len(rows) - 1 - depth if upward else depth)
        yield f'<g transform="translate(0 {y:g})">\n'
        yield "\n".join(row)
        if names[depth]:
            yield from ('\n<g transform="translate(3 12.5)">\n', "\n".join(names[depth]), "\n</g>")
        yield "\n</g>\n"
    yield "</g>\n"


def _px(length: float) -> str:
    return f"{length:.1f}".removesuffix(".0")
