"""The profile as a document: what is stored inside a picture, and what ``-f json`` writes.

A JSON object, all stacks in it exactly:

    format   "pyattach-profile"         version  1
    meta     the fields of ``Meta``     base     in a diff: ``Meta`` of the profile compared with
    threads  [[tid, name], ...]         modules  [name, ...]
    frames   [[name, index into modules, kind], ...]; the first is the root of everything.  A fourth, where
             it is known: "path:line", of its lines the one with the most samples
    nodes    {frame: [...], up: [...]}  the tree of calls in preorder: for each node the index of its frame
             (-1: siblings too small to be kept one by one), and how many levels its parent is above the
             node before it
    samples  {thread: [...], node: [...], ticks: [...]}  indices; of nodes, the differences.  Thread -1 is
             the profile compared with
    rest     {node: how many siblings it stands for}

A picture holds it as ``packing.packed`` makes it.
"""

from __future__ import annotations

import dataclasses
import itertools
import typing
from collections.abc import Callable
from typing import Any

from ..errors import MalformedInput
from ..symbols.frame import Frame, FrameKind
from .folded import NO_STACK
from .names import printable, shortened
from .packing import unpacked
from .profile import Meta, Profile, Stack, Thread
from .tree import BASE, REST, Tree

FORMAT, VERSION = "pyattach-profile", 1
_NAME_LIMIT = 20_000
_MOST_NUMBER, _LEAST_NUMBER = 1 << 63, 1e-12
_MOST_REFERENCES = 200_000_000  # a small file may hold a deep tree


def document_of(profile: Profile, tree: Tree, base: Meta | None = None) -> dict[str, Any]:
    """The document of ``profile``; ``tree`` is its tree, without a level of threads."""
    used = {frame: i for i, frame in enumerate(sorted(set(tree.frame) - {REST}))}
    modules: dict[str, int] = {}
    frames = []
    for index in used:
        frame = tree.frames[index]
        module = modules.setdefault(_shown(frame.module), len(modules))
        line = [_shown(frame.line)] if frame.line else []
        frames.append([_shown(frame.name) or "[unnamed]", module, frame.kind.value, *line])
    names = [profile.threads.get(tid, Thread(tid, "")).name for tid in tree.tids]
    depths = [0, *tree.depth]
    nodes = [node for node, _, _ in tree.samples]
    document = {
        "format": FORMAT,
        "version": VERSION,
        "meta": dataclasses.asdict(profile.meta),
        "threads": [[tid, _shown(name)] for tid, name in zip(tree.tids, names, strict=True)],
        "modules": list(modules),
        "frames": frames,
        "nodes": {
            "frame": [used.get(frame, REST) for frame in tree.frame],
            "up": [before + 1 - depth for before, depth in zip(depths, tree.depth, strict=False)],
        },
        "samples": {
            "thread": [thread for _, thread, _ in tree.samples],
            "node": [node - before for before, node in zip([0, *nodes], nodes, strict=False)],
            "ticks": [ticks for _, _, ticks in tree.samples],
        },
        "rest": {str(node): count for node, count in enumerate(tree.count) if count},
    }
    if base is not None:
        document["base"] = dataclasses.asdict(base)
    return document


def used_frames(tree: Tree) -> list[int]:
    """The indices into ``tree.frames`` that the document's frames stand for."""
    return sorted(set(tree.frame) - {REST})


def profile_of(document: object) -> Profile:
    """The profile that a document holds (of a diff: the later one).  Raises MalformedInput."""
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise MalformedInput("no profile of pyattach is in it")
    if document.get("version") != VERSION:
        raise MalformedInput(
            f"its version is {document.get('version')!r}, not {VERSION}", "take a newer pyattach"
        )
    try:
        return _profile_of(unpacked(document))
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise MalformedInput(f"the profile in it is damaged: {error!r}") from error


def _profile_of(document: dict[str, Any]) -> Profile:
    modules = [str(module) for module in document["modules"]]
    frames = [
        Frame(str(name), modules[module], FrameKind(kind), *map(str, line[:1]))
        for name, module, kind, *line in document["frames"]
    ]
    threads = [Thread(_whole(tid), str(name)) for tid, name in document["threads"]]
    columns = document["samples"]
    nodes = list(itertools.accumulate(columns["node"]))
    stacks = _stacks(document["nodes"], document["rest"], frames, set(nodes))
    weights: dict[tuple[int, Stack], int] = {}
    for node, thread, ticks in zip(nodes, columns["thread"], columns["ticks"], strict=True):
        if thread != BASE:
            key = (threads[thread].tid, stacks[node])
            weights[key] = weights.get(key, 0) + _at_least_0(_whole(ticks))
    return Profile(_meta_of(document["meta"]), {thread.tid: thread for thread in threads}, weights)


def _stacks(
    nodes: dict[str, Any], rest: dict[str, Any], frames: list[Frame], wanted: set[int]
) -> dict[int, Stack]:
    """The stacks of the ``wanted`` nodes."""
    stacks: dict[int, Stack] = {}
    path: list[Frame] = []
    room = _MOST_REFERENCES
    for node, (index, up) in enumerate(zip(nodes["frame"], nodes["up"], strict=True)):
        if up < 0 or (node and up >= len(path)) or (not node and up != 1):
            raise ValueError("a node without a parent")
        if node:
            del path[len(path) - up :]
        if index == REST:
            count = _whole(rest.get(str(node), 1))
            path.append(Frame(f"({count:,} smaller)", "", FrameKind.MARK))
        else:
            path.append(frames[_at_least_0(index)])
        if node in wanted:
            room -= len(path)
            if room < 0:
                raise ValueError("more than memory holds")
            stack = tuple(path[1:])
            stacks[node] = () if len(stack) == 1 and stack[0].name == NO_STACK else stack
    return stacks


def _meta_of(fields: dict[str, Any]) -> Meta:
    """Only values of the right type and size are taken over: the file may be anybody's."""
    kinds = typing.get_type_hints(Meta)
    taken: dict[str, Any] = {}
    for field in dataclasses.fields(Meta):
        value = fields.get(field.name)
        if isinstance(value, list) and field.name in _TUPLES:
            taken[field.name] = _TUPLES[field.name](value)
        elif type(value) in _plain_types(kinds[field.name]) and _is_measurable(value):
            taken[field.name] = value
    return Meta(**taken)


def _pair_of_ns(values: list[Any]) -> tuple[float, float] | None:
    median_ns, most_ns = map(float, values)
    return (median_ns, most_ns) if _is_measurable(median_ns) and _is_measurable(most_ns) else None


_TUPLES: dict[str, Callable[[list[Any]], object]] = {
    "notes": lambda values: tuple(map(str, values)),
    "rows": lambda values: tuple((str(label), str(value)) for label, value in values),
    "truncated_by": lambda values: tuple((str(why), _whole(count)) for why, count in values),
    "handler_percentiles_ns": _pair_of_ns,
}
"""The fields of ``Meta`` that JSON has as lists."""


def _is_measurable(value: object) -> bool:
    """Whether it is no number, or one that can be calculated with: 1e400 and NaN are allowed in JSON."""
    if not isinstance(value, (int, float)):
        return True
    return value == 0 or _LEAST_NUMBER < abs(value) < _MOST_NUMBER


def _plain_types(kind: Any) -> tuple[Any, ...]:
    """The types that a value of ``kind`` may have in a document: an int will do for a float."""
    kinds = typing.get_args(kind) or (kind,)
    return (*kinds, int) if float in kinds else kinds


def _whole(number: Any) -> int:
    whole = int(number)
    if abs(whole) >= _MOST_NUMBER:
        raise ValueError("a number that is too large")
    return whole


def _at_least_0(index: int) -> int:
    if index < 0:
        raise ValueError("a number below zero")
    return index


def _shown(name: str) -> str:
    return shortened(printable(name), _NAME_LIMIT)
