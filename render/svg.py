"""A flame graph as one SVG file: a picture by itself, and interactive where scripts may run.

Everything that came from the target is untrusted.  It gets into the file in two ways only: as XML text
through ``_xml``, and as JSON through ``_json``, where no ``<``, ``>`` or ``&`` is left, so that neither
the markup nor a script can be broken out of, in a file of its own as in an HTML page.
"""

from __future__ import annotations

import importlib.resources
import json
import textwrap
import zlib
from collections.abc import Iterator
from typing import Any
from xml.sax.saxutils import escape

from ..symbols.frame import Frame, FrameKind
from .facts import facts, seconds, short_command, why_empty
from .names import crop, printable, shortened
from .profile import Profile
from .renderer import RenderOptions
from .tree import REST, Tree, build, least_ticks, pruned

# The same figures stand in flamegraph.js.  The static picture has this width; a script fits it to the
# window.  CHAR is the advance of an 11 px fixed-width font (DejaVu Sans Mono, the widest: 0.602 em).
WIDTH, PAD, TOP, ROW, CHAR = 1200, 10, 88, 18, 6.63
LEAST_SHARE = 0.001
"""Of the view: a frame narrower than this is drawn as part of a block "(n smaller)"."""

_KEPT_SHARE = 0.0001
_KEPT_NODES = 50_000
_NAME_LIMIT = 1000

_LETTERS = {FrameKind.USER: "u", FrameKind.LIBRARY: "l", FrameKind.JIT: "j", FrameKind.UNKNOWN: "n"}
_VARIANTS = 5
_LEGEND = (
    ("u1", "the program"),
    ("l1", "system library"),
    ("j1", "generated code"),
    ("n1", "no symbol"),
    ("m", "remark, not code"),
    ("r", f"siblings under {LEAST_SHARE:.1%} of the view"),
)
_TRUTH = "The width of a frame is its share of the {}, not a span of time; siblings stand in order of name."
_KIND = {
    "cpu": "flame graph of CPU time",
    "wall": "flame graph of all threads' time, running and waiting",
    "heap": "flame graph of the heap",
}
_STATIC_HINT = "Open this file in a web browser to zoom and to search."


class SvgRenderer:
    """The flame graph, callers above callees."""

    name = "svg"
    suffixes = (".svg",)

    def render(self, profile: Profile, options: RenderOptions) -> Iterator[str]:
        """The file in pieces."""
        whole = build(profile, threads=options.threads)
        kept = pruned(whole, least_ticks(whole, share=_KEPT_SHARE, most_nodes=_KEPT_NODES))
        drawn = pruned(kept, least_ticks(kept, share=LEAST_SHARE, most_nodes=len(kept)))
        classes = [_class(frame, base=i < whole.bases) for i, frame in enumerate(whole.frames)]
        kind = _KIND.get(profile.meta.mode, _KIND["cpu"])
        title = printable(options.title) or f"{short_command(profile.meta)}: {kind}"
        foot = _foot(profile)
        top = _legend_top(drawn, profile)
        wrapped = _wrapped(foot)
        height = top + 44 + 17 * len(wrapped)
        yield from _head(title, profile, height)
        yield from _frames(drawn, classes) if profile.total else _empty(profile)
        yield from _legend(top, classes, drawn)
        for line, (index, text) in enumerate(wrapped):
            kind = "wrapped" if index else "wrapped truth"
            yield f'<text class="{kind}" x="{PAD}" y="{44 + 17 * line}">{_xml(text)}</text>\n'
        yield "</g>\n"
        data = {**_data(kept, classes, title, foot), "unit": profile.meta.unit}
        yield f'<metadata id="data">{_json(data)}</metadata>\n'
        yield f"<script><![CDATA[\n{_resource('flamegraph.js')}]]></script>\n</svg>\n"


def _head(title: str, profile: Profile, height: float) -> Iterator[str]:
    room = int((WIDTH - 2 * PAD) / 9.8)
    yield '<?xml version="1.0" encoding="UTF-8"?>\n'
    yield f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height:g}" '
    yield f'viewBox="0 0 {WIDTH} {height:g}">\n'
    yield f"<title>{_xml(shortened(title, 200))}</title>\n"
    yield f"<style><![CDATA[\n{_resource('flamegraph.css')}]]></style>\n"
    yield '<rect class="bg" width="100%" height="100%"/>\n'
    yield f'<text id="title" x="{PAD}" y="30">{_xml(crop(title, room))}</text>\n'
    yield f'<text id="subtitle" x="{PAD}" y="54">{_xml(_subtitle(profile))}</text>\n'
    yield f'<text id="details" x="{PAD}" y="78">{_STATIC_HINT if profile.total else ""}</text>\n'


def _subtitle(profile: Profile) -> str:
    meta = profile.meta
    parts = [f"pid {meta.pid}"] if meta.pid else []
    return " · ".join([*parts, f"{profile.total:,} {meta.kind or meta.unit} in {seconds(meta.duration_s)}"])


def _frames(tree: Tree, classes: list[str]) -> Iterator[str]:
    """Rectangles, and names where they fit; ``left`` holds where the next node of each depth begins."""
    yield '<g id="frames">\n'
    scale = (WIDTH - 2 * PAD) / tree.ticks[0]
    left = [0] * (max(tree.depth) + 2)
    for node, ticks in enumerate(tree.ticks):
        depth = tree.depth[node]
        start, left[depth + 1] = left[depth], left[depth]
        left[depth] += ticks
        x, y, width = PAD + start * scale, TOP + ROW * depth, max(ticks * scale - 0.6, 0.6)
        rest = tree.frame[node] == REST
        kind = "r" if rest else classes[tree.frame[node]]
        yield f'<rect class="{kind}" x="{x:.2f}" y="{y}" width="{width:.2f}" height="{ROW - 1}"/>'
        room = int((width - 5) / CHAR)
        name = f"({tree.count[node]:,} smaller)" if rest else tree.frames[tree.frame[node]].name
        if room >= 3 and (text := crop(_shown(name), room)):
            yield f'<text x="{x + 3:.2f}" y="{y + 12.5}">{_xml(text)}</text>'
        yield "\n"
    yield "</g>\n"


def _empty(profile: Profile) -> Iterator[str]:
    yield '<g id="frames">\n'
    for line, text in enumerate(why_empty(profile)):
        yield f'<text class="why" x="{PAD}" y="{TOP + 24 * line + 20}">{_xml(shortened(text, 150))}</text>\n'
    yield "</g>\n"


def _legend_top(drawn: Tree, profile: Profile) -> int:
    if not profile.total:
        return TOP + 24 * len(why_empty(profile)) + 8
    return TOP + ROW * (max(drawn.depth) + 1) + 8


def _legend(top: int, classes: list[str], drawn: Tree) -> Iterator[str]:
    """Opens the group of the footer, which the caller closes; only kinds that occur are explained."""
    kinds = {"r" if frame == REST else classes[frame][0] for frame in drawn.frame[1:]}
    yield f'<g id="foot" transform="translate(0 {top})">\n'
    x = PAD
    for kind, label in _LEGEND:
        if kind[0] in kinds:
            width = 44 + round(6.2 * len(label))
            yield f'<g class="key" data-width="{width}" transform="translate({x} 0)">'
            yield f'<rect class="{kind}" y="2" width="14" height="14"/>'
            yield f'<text x="20" y="13">{label}</text></g>\n'
            x += width


def _foot(profile: Profile) -> list[str]:
    """Paragraphs: how to read the picture, then all that was measured, then remarks."""
    rows = facts(profile.meta)
    command = [f"{label}: {shortened(value, 500)}" for label, value in rows if label == "command"]
    others = " · ".join(f"{label}: {value}" for label, value in rows if label != "command")
    notes = [shortened(printable(note), 500) for note in profile.meta.notes]
    return [*([_TRUTH.format(profile.meta.unit)] if profile.total else []), *command, others, *notes]


def _wrapped(paragraphs: list[str]) -> list[tuple[int, str]]:
    columns = int((WIDTH - 2 * PAD) / 6.4)
    return [
        (index, line)
        for index, paragraph in enumerate(paragraphs)
        for line in textwrap.wrap(paragraph, columns, break_on_hyphens=False) or [""]
    ]


def _class(frame: Frame, *, base: bool) -> str:
    """Colour class: a letter for the kind, a digit that differs from name to name and never changes."""
    if base:
        return "b"
    letter = _LETTERS.get(frame.kind)
    if letter is None:
        return "m"
    return f"{letter}{zlib.crc32(frame.name.encode('utf-8', 'replace')) % _VARIANTS}"


def _data(tree: Tree, classes: list[str], title: str, foot: list[str]) -> dict[str, Any]:
    """What the script draws from: see decode() there for the form of the nodes."""
    used = {frame: i for i, frame in enumerate(sorted(set(tree.frame) - {REST}))}
    modules: dict[str, int] = {}
    frames = []
    for index in used:
        frame = tree.frames[index]
        module = modules.setdefault(_shown(frame.module), len(modules))
        frames.append((_shown(frame.name) or "[unnamed]", module, classes[index]))
    nodes: list[int] = []
    for node, index in enumerate(tree.frame):
        rest = index == REST
        third = tree.count[node] if rest else sum(1 for _ in tree.children(node))
        nodes += (REST if rest else used[index], tree.ticks[node], third)
    return {"title": title, "foot": foot, "modules": list(modules), "frames": frames, "nodes": nodes}


def _shown(name: str) -> str:
    return shortened(printable(name), _NAME_LIMIT)


def _xml(text: str) -> str:
    return escape(printable(text), {'"': "&quot;", "'": "&#39;"})


def _json(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _resource(name: str) -> str:
    return importlib.resources.files(__package__).joinpath(name).read_text(encoding="utf-8")
