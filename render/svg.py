"""A flame graph as one SVG file: a picture by itself, and interactive where scripts may run.

Everything that came from the target is untrusted.  It gets into the file in two ways only: as XML text
through ``xml``, and in the compressed profile, which is base64, so that neither the markup nor a script
can be broken out of, in a file of its own as in an HTML page.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from typing import Any

from .colours import DIFF_LEGEND, classes_of, diff_classes_of, frame_classes, legend
from .document import document_of, used_frames
from .facts import facts, seconds, short_command, why_empty
from .large_tree import build_bounded
from .names import crop, printable, shortened
from .packing import gzip_base64, json_bytes, packed
from .page import page_script, still_style
from .picture import LEAST_SHARE, PAD, ROW, WIDTH, frames, rows_of, xml
from .profile import Meta, Profile
from .renderer import RenderOptions, encoded
from .tree import REST, Tree, build, least_ticks, pruned

_KEPT_NODES = 300_000
_TOP = 88
_TRUTH = "The width of a frame is its share of the {}, not a span of time; siblings stand in order of name."
_KIND = {
    "cpu": "flame graph of CPU time",
    "wall": "flame graph of all threads' time, running and waiting",
    "heap": "flame graph of the heap",
}
_STATIC_HINT = "Open this file in a web browser to zoom and to search."


def render(profile: Profile, options: RenderOptions) -> Iterator[bytes]:
    """The flame graph."""
    return encoded(svg(profile, options))


def svg(profile: Profile, options: RenderOptions, base: Profile | None = None) -> Iterator[str]:
    """The flame graph of ``profile`` in pieces; with ``base``, coloured by what has changed since that."""
    kept = build_bounded(profile, base=base, most_nodes=_KEPT_NODES)
    looked_at = kept
    if options.threads or options.reverse:
        looked_at = build(
            profile, threads=options.threads and base is None, reverse=options.reverse, base=base
        )
    drawn = pruned(looked_at, least_ticks(looked_at, share=LEAST_SHARE, most_nodes=len(looked_at)))
    classes = (
        diff_classes_of(drawn, (_periods(profile.meta), _periods(base.meta))) if base else classes_of(drawn)
    )
    page = _page(profile, options, kept, base)
    seen = {kind[0] for kind in classes if not base or kind == "r"}
    page["legend"] = [*(DIFF_LEGEND if base else ()), *legend(seen, f"{LEAST_SHARE:.1%}")]
    height = ROW * rows_of(drawn) if profile.total else 24 * len(why_empty(profile))
    foot = list(_foot(page, _TOP + height + 10))
    yield from _head(page, _TOP + height + 22 + 17 * len(foot))
    yield from frames(drawn, classes, _TOP, upward=not options.inverted) if profile.total else _empty(profile)
    yield from ('<g id="still-foot">\n', *foot, "</g>\n")
    document = packed(document_of(profile, kept, base.meta if base else None))
    stored = gzip_base64(json_bytes({"profile": document, "picture": page}))
    yield f'<metadata id="profile">{stored}</metadata>\n'
    yield f"<script><![CDATA[\n{page_script()}\n]]></script>\n</svg>\n"


def _page(profile: Profile, options: RenderOptions, kept: Tree, base: Profile | None) -> dict[str, Any]:
    meta = profile.meta
    kind = _KIND.get(meta.mode, "flame graph")
    title = printable(options.title) or f"{short_command(meta)}: {kind}{', compared' if base else ''}"
    classes = frame_classes(kept)
    rows = [[label, shortened(value, 500)] for label, value in facts(meta)]
    notes = [shortened(printable(note), 500) for note in meta.notes]
    if base:
        rows += _base_facts(base.meta)
        unit = base.meta.unit
        notes += [f"Compared with {base.total:,} {unit}; shares of each profile are compared, not {unit}."]
    if REST in kept.frame:
        notes.append(f"Only the {_KEPT_NODES:,} heaviest frames are in this file; the others are in blocks.")
    return {
        "title": title,
        "subtitle": _subtitle(profile),
        "colours": [classes[index] for index in used_frames(kept)],
        "truth": _TRUTH.format(meta.unit) if profile.total else "",
        "facts": rows,
        "notes": notes,
        "inverted": options.inverted,
        "reverse": options.reverse,
        "threads": options.threads and base is None,
        "diff": base is not None,
    }


def _periods(meta: Meta) -> float:
    """How many periods a tick stood for: so many samples are one, as far as chance goes."""
    return max(1.0, meta.samples / meta.ticks) if meta.mode == "cpu" and meta.ticks else 1.0


def _base_facts(meta: Meta) -> list[list[str]]:
    wanted = ("command", "pid", "mode", "rate", "duration", "samples", "dropped", "truncated stacks")
    return [[f"before: {label}", shortened(value, 500)] for label, value in facts(meta) if label in wanted]


def _subtitle(profile: Profile) -> str:
    meta = profile.meta
    parts = [f"pid {meta.pid}"] if meta.pid else []
    during = f" in {seconds(meta.duration_s)}" if meta.duration_s else ""
    return " · ".join([*parts, f"{profile.total:,} {meta.kind or meta.unit}{during}"])


def _head(page: dict[str, Any], height: float) -> Iterator[str]:
    room = int((WIDTH - 2 * PAD) / 9.8)
    yield '<?xml version="1.0" encoding="UTF-8"?>\n'
    yield f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height:g}" '
    yield f'viewBox="0 0 {WIDTH} {height:g}">\n'
    yield f"<title>{xml(shortened(page['title'], 200))}</title>\n"
    yield f"<style><![CDATA[\n{still_style()}]]></style>\n"
    yield '<rect class="bg" width="100%" height="100%"/>\n<g id="still-head">\n'
    yield f'<text class="title" x="{PAD}" y="30">{xml(crop(page["title"], room))}</text>\n'
    yield f'<text class="dim" x="{PAD}" y="52">{xml(page["subtitle"])}</text>\n'
    yield f'<text x="{PAD}" y="76">{_STATIC_HINT if page["truth"] else ""}</text>\n</g>\n'


def _empty(profile: Profile) -> Iterator[str]:
    yield '<g id="frames">\n'
    for line, text in enumerate(why_empty(profile)):
        yield f'<text class="why" x="{PAD}" y="{_TOP + 24 * line + 10}">{xml(shortened(text, 150))}</text>\n'
    yield "</g>\n"


def _foot(page: dict[str, Any], top: float) -> Iterator[str]:
    """Legend, then all that was measured, then remarks."""
    x = float(PAD)
    for kind, label in page["legend"]:
        yield f'<rect class="{kind}" x="{x:g}" y="{top:g}" width="13" height="13"/>'
        yield f'<text class="dim" x="{x + 19:g}" y="{top + 11:g}">{xml(label)}</text>\n'
        x += 44 + 6.6 * len(label)
    values = dict(page["facts"])
    command = [f"command: {values.pop('command')}"] if "command" in values else []
    others = " · ".join(f"{label}: {value}" for label, value in values.items())
    columns, y = int((WIDTH - 2 * PAD) / 6.6), top + 40
    for paragraph in (page["truth"], *command, others, *page["notes"]):
        for line in textwrap.wrap(paragraph, columns, break_on_hyphens=False):
            yield f'<text class="dim" x="{PAD}" y="{y:g}">{xml(line)}</text>\n'
            y += 17
