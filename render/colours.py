"""Colours: a class for the kind of code, and a shade that a name always has."""

from __future__ import annotations

import math
import zlib

from ..symbols.frame import Frame
from .tree import REST, Tree

KINDS = {
    "user": ("u", "the program"),
    "library": ("l", "system library"),
    "kernel": ("k", "kernel"),
    "interpreter": ("i", "interpreter"),
    "jit": ("j", "generated code"),
    "unknown": ("n", "no symbol"),
}
"""By a frame's kind: the letter of its classes in still.css, and what the legend says."""

DIFF_LEGEND = (
    ("more2", "larger share"),
    ("more0", "a little larger"),
    ("less2", "smaller share"),
    ("less0", "a little smaller"),
    ("new", "new"),
    ("same", "same, or within the noise of sampling"),
)
_SHADES = 5


def classes_of(tree: Tree) -> list[str]:
    """The class of each node, ``r`` for siblings taken together."""
    classes = frame_classes(tree)
    return ["r" if frame == REST else classes[frame] for frame in tree.frame]


def frame_classes(tree: Tree) -> list[str]:
    """The class of each of the tree's frames: a letter for the kind, a digit that differs from name to name
    and never changes; ``b`` for what is no code, ``m`` for remarks."""
    return ["b" if i < tree.bases else _class_of(frame) for i, frame in enumerate(tree.frames)]


def _class_of(frame: Frame) -> str:
    if frame.kind.value not in KINDS:
        return "m"
    shade = zlib.crc32(frame.name.encode("utf-8", "replace")) % _SHADES
    return f"{KINDS[frame.kind.value][0]}{shade}"


def diff_classes_of(tree: Tree, periods: tuple[float, float] = (1.0, 1.0)) -> list[str]:
    """The class of each node by how its share has changed: ``new``, ``same`` where sampling alone may be why
    (less than two standard errors), or ``more`` and ``less`` with a step.  ``periods``: how many of them a
    tick stood for, now and before."""
    return [
        "r" if frame == REST else "b" if frame < tree.bases else _changed(tree, node, periods)
        for node, frame in enumerate(tree.frame)
    ]


def _changed(tree: Tree, node: int, periods: tuple[float, float]) -> str:  # as diffClass in page_layout.js
    whole, before = max(1, tree.ticks[0]), max(1, tree.base[0])
    now, was = tree.ticks[node] / whole, tree.base[node] / before
    both = (tree.ticks[node] + tree.base[node]) / (whole + before)
    noise = math.sqrt(both * (1 - both) * (periods[0] / whole + periods[1] / before))
    if now == was or abs(now - was) <= 2 * noise:
        return "same"
    if not was:
        return "new"
    ratio = abs(now - was) / max(now, was)
    return ("more" if now > was else "less") + ("0" if ratio < 0.1 else "1" if ratio < 0.33 else "2")


def legend(used: set[str], least: str) -> list[tuple[str, str]]:
    """Class and label of what occurs: ``used`` are the first letters of the classes in the picture."""
    rows = [(f"{letter}1", label) for letter, label in KINDS.values() if letter in used]
    if "m" in used:
        rows.append(("m", "remark, not code"))
    if "r" in used:
        rows.append(("r", f"siblings under {least} of the view"))
    return rows
