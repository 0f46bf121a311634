"""The call tree that a flame graph draws: flat, in preorder, children in order of name."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator

from ..symbols.frame import Frame, FrameKind
from .folded import NO_STACK, thread_name
from .lines import hottest_lines, with_line
from .profile import Profile, Stack, Thread, uncollected

ROOT = Frame("all", "", FrameKind.MARK)
REST = -1
"""Stands in the place of a frame's index: siblings too small to be kept one by one."""
BASE = -1
"""Stands in the place of a thread: the samples of the other profile that a diff compares with."""

EMPTY = Frame(NO_STACK, "", FrameKind.MARK)

Sample = tuple[int, int, int]
"""Node, thread (an index into ``Tree.tids``, or BASE) and ticks that ended there."""

Entry = tuple[tuple[int, ...], int, int]
"""Path (indices of frames, root first), thread and ticks."""


@dataclasses.dataclass(slots=True)
class Tree:
    """Nodes as parallel lists in preorder; node 0 is the root of everything.

    ``frame`` is an index into ``frames`` or REST, ``ticks`` counts the node with all below it, ``base``
    the same of the profile that is compared with, ``end`` is one past its last descendant, and ``count``
    is, for REST only, how many siblings it stands for.  The first ``bases`` of ``frames`` are no code: the
    root of everything and the threads.  ``samples`` is what the sums are made of, in order of nodes.
    """

    frames: list[Frame]
    bases: int
    tids: list[int]
    frame: list[int] = dataclasses.field(default_factory=list)
    ticks: list[int] = dataclasses.field(default_factory=list)
    base: list[int] = dataclasses.field(default_factory=list)
    depth: list[int] = dataclasses.field(default_factory=list)
    end: list[int] = dataclasses.field(default_factory=list)
    count: list[int] = dataclasses.field(default_factory=list)
    samples: list[Sample] = dataclasses.field(default_factory=list)

    def __len__(self) -> int:
        return len(self.frame)

    def children(self, node: int) -> Iterator[int]:
        """The nodes right below ``node``."""
        child = node + 1
        while child < self.end[node]:
            yield child
            child = self.end[child]

    def open(self, frame: int, depth: int, count: int = 0) -> int:
        """Append a node (its end and its sums are still to be set) and return its number."""
        self.frame.append(frame)
        self.depth.append(depth)
        self.count.append(count)
        return len(self.frame) - 1

    def finish(self) -> Tree:
        """Set ends and sums, once all nodes and samples are there."""
        size = len(self.frame)
        self.ticks, self.base, self.end = [0] * size, [0] * size, [0] * size
        for node, thread, ticks in self.samples:
            (self.base if thread == BASE else self.ticks)[node] += ticks
        ticks_of, base_of, end, depth = self.ticks, self.base, self.end, self.depth
        # Of each depth: the ticks, and the end, of the siblings that stand behind the node at hand.
        below, base_below, last = ([0] * (max(depth, default=0) + 2) for _ in range(3))
        for node in range(size - 1, -1, -1):
            level = depth[node]
            if below[level + 1]:
                ticks_of[node] += below[level + 1]
                below[level + 1] = 0
            if base_below[level + 1]:
                base_of[node] += base_below[level + 1]
                base_below[level + 1] = 0
            end[node] = last[level + 1] or node + 1
            last[level + 1] = 0
            last[level] = last[level] or end[node]
            below[level] += ticks_of[node]
            base_below[level] += base_of[node]
        return self


def build(
    profile: Profile, *, threads: bool = False, reverse: bool = False, base: Profile | None = None
) -> Tree:
    """The whole call tree of ``profile``, with a level of threads where ``threads`` is set.

    Two frames are the same function where name and module agree.  ``reverse``: leaves first.  ``base`` is
    the profile to compare with; its stacks are in the tree, too.
    """
    with uncollected():
        return _built(profile, threads, reverse, base)


def begun(profile: Profile, threads: bool, reverse: bool, base: Profile | None) -> tuple[Tree, list[Entry]]:
    """A tree without nodes, and what goes into it, in order."""
    names, tids = _Names(profile, base, threads), sorted({tid for tid, _ in profile.weights})
    thread_at = {tid: i for i, tid in enumerate(tids)}
    entries = [
        (names.path(tid, stack, reverse), thread_at[tid], ticks)
        for (tid, stack), ticks in profile.weights.items()
    ]
    for (_tid, stack), ticks in base.weights.items() if base else ():
        entries.append((names.path(None, stack, reverse), BASE, ticks))
    entries.sort()
    return Tree(names.frames, names.bases, tids), entries


def _built(profile: Profile, threads: bool, reverse: bool, base: Profile | None) -> Tree:
    tree, entries = begun(profile, threads, reverse, base)
    frame, depth, samples = tree.frame, tree.depth, tree.samples
    opened = [tree.open(0, 0)]
    before: tuple[int, ...] = ()
    for path, thread, ticks in entries:
        if path != before:
            common = common_length(before, path)
            del opened[common + 1 :]
            first = len(frame)
            frame.extend(path[common:])
            depth.extend(range(common + 1, len(path) + 1))
            opened.extend(range(first, len(frame)))
            before = path
        samples.append((opened[-1], thread, ticks))
    tree.count = [0] * len(frame)
    return tree.finish()


def pruned(tree: Tree, least: int) -> Tree:
    """``tree`` without nodes of less than ``least`` ticks (of either profile, in a diff): each parent gets
    one REST for those it lost, with their samples."""
    out = Tree(tree.frames, tree.bases, tree.tids)
    lost: list[tuple[int, dict[int, int]]] = []  # for each open node: the children left out, their ticks
    sample, samples = 0, tree.samples

    def close(depth: int) -> None:
        while len(lost) > depth:
            count, ticks = lost.pop()
            if count:
                rest = out.open(REST, len(lost) + 1, count)
                out.samples += [(rest, thread, ticks[thread]) for thread in sorted(ticks)]

    node = 0
    while node < len(tree):
        close(tree.depth[node])
        if node and (tree.frame[node] == REST or max(tree.ticks[node], tree.base[node]) < least):
            count, ticks = lost[-1]
            lost[-1] = (count + (tree.count[node] or 1), ticks)
            node = tree.end[node]
            while sample < len(samples) and samples[sample][0] < node:
                _, thread, more = samples[sample]
                ticks[thread] = ticks.get(thread, 0) + more
                sample += 1
            continue
        kept = out.open(tree.frame[node], len(lost))
        lost.append((0, {}))
        while sample < len(samples) and samples[sample][0] == node:
            out.samples.append((kept, *samples[sample][1:]))
            sample += 1
        node += 1
    close(0)
    out.samples.sort()
    return out.finish()


def least_ticks(tree: Tree, *, share: float, most_nodes: int) -> int:
    """The bound for ``pruned`` that leaves out what is under ``share`` and keeps ``most_nodes`` at most."""
    least = max(1, math.ceil(tree.ticks[0] * share))
    if len(tree) > most_nodes:
        least = max(least, sorted(tree.ticks, reverse=True)[most_nodes] + 1)
    return least


def common_length(one: tuple[int, ...], other: tuple[int, ...]) -> int:
    """How many of the first items are the same."""
    length = 0
    for a, b in zip(one, other, strict=False):
        if a != b:
            break
        length += 1
    return length


class _Names:
    """Numbers for all frames, in order: root, threads, no stack at all, then code by name."""

    def __init__(self, profile: Profile, base: Profile | None, threads: bool) -> None:
        # Resolvers share one Frame among all stacks, and hashing a Frame costs more than all else here:
        # so each object is looked at once, by its id, which the profiles keep valid.
        objects: dict[int, Frame] = {}
        for _, stack in itertools.chain(profile.weights, base.weights if base else ()):
            if not objects.keys() >= set(map(id, stack)):
                objects.update(zip(map(id, stack), stack, strict=True))
        identities: dict[tuple[str, str], Frame] = {}
        for frame in sorted(objects.values(), key=lambda f: (f.name, f.module, f.kind.value)):
            identities.setdefault((frame.name, frame.module), frame)
        tids = sorted({tid for tid, _ in profile.weights}) if threads else []
        labels = {tid: thread_name(profile.threads.get(tid, Thread(tid, ""))) for tid in tids}
        tids.sort(key=lambda tid: (labels[tid], tid))
        first = [ROOT, *(Frame(labels[tid], "", FrameKind.MARK) for tid in tids), EMPTY]
        number = {identity: len(first) + i for i, identity in enumerate(identities)}
        has_lines = any(frame.line for frame in objects.values())
        lines = hottest_lines((s, ticks) for (_, s), ticks in profile.weights.items()) if has_lines else {}
        functions = [with_line(frame, lines) for frame in identities.values()]
        self.frames, self.bases = first + functions, 1 + len(tids)
        numbers = {key: number[frame.name, frame.module] for key, frame in objects.items()}
        self._number_of = numbers.__getitem__
        self._of_thread = {tid: (1 + i,) for i, tid in enumerate(tids)}

    def path(self, tid: int | None, stack: Stack, reverse: bool) -> tuple[int, ...]:
        path = tuple(map(self._number_of, map(id, stack))) or (self.bases,)
        if reverse:
            path = path[::-1]
        return self._of_thread[tid] + path if tid in self._of_thread else path
