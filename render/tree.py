"""The call tree that a flame graph draws: flat, in preorder, children in order of name."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator

from ..symbols.frame import Frame, FrameKind
from .folded import NO_STACK, thread_name
from .profile import Profile, Thread

ROOT = Frame("all", "", FrameKind.MARK)
REST = -1
"""Stands in the place of a frame's index: siblings too small to be kept one by one."""

_EMPTY = Frame(NO_STACK, "", FrameKind.MARK)


@dataclasses.dataclass(slots=True)
class Tree:
    """Nodes as parallel lists in preorder; node 0 is the root of everything.

    ``frame`` is an index into ``frames`` or REST, ``ticks`` counts the node with all below it, ``end``
    is one past its last descendant, and ``count`` is, for REST only, how many siblings it stands for.
    The first ``bases`` of ``frames`` are no code: the root of everything and the threads.
    """

    frames: list[Frame]
    bases: int
    frame: list[int] = dataclasses.field(default_factory=list)
    ticks: list[int] = dataclasses.field(default_factory=list)
    depth: list[int] = dataclasses.field(default_factory=list)
    end: list[int] = dataclasses.field(default_factory=list)
    count: list[int] = dataclasses.field(default_factory=list)

    def __len__(self) -> int:
        return len(self.frame)

    def children(self, node: int) -> Iterator[int]:
        """The nodes right below ``node``."""
        child = node + 1
        while child < self.end[node]:
            yield child
            child = self.end[child]

    def open(self, frame: int, ticks: int, depth: int, count: int = 0) -> int:
        """Append a node (its end is still to be set) and return its number."""
        self.frame.append(frame)
        self.ticks.append(ticks)
        self.depth.append(depth)
        self.count.append(count)
        self.end.append(len(self.frame))
        return len(self.frame) - 1

    def close(self, opened: list[int], depth: int) -> None:
        """Take the nodes at ``depth`` and deeper off ``opened``: nothing more comes below them."""
        for node in opened[depth:]:
            self.end[node] = len(self.frame)
        del opened[depth:]


def build(profile: Profile, *, threads: bool = False) -> Tree:
    """The whole call tree of ``profile``, with a level of threads where ``threads`` is set.

    Two frames are the same function where name and module agree.
    """
    frames, bases, stacks = _indexed(profile, threads)
    tree = Tree(frames, bases)
    opened = [tree.open(0, 0, 0)]
    before: tuple[int, ...] = ()
    for stack in sorted(stacks):
        common = _common(before, stack)
        tree.close(opened, 1 + common)
        for frame in stack[common:]:
            opened.append(tree.open(frame, 0, len(opened)))
        for node in opened:
            tree.ticks[node] += stacks[stack]
        before = stack
    tree.close(opened, 0)
    return tree


def pruned(tree: Tree, least: int) -> Tree:
    """``tree`` without nodes of less than ``least`` ticks: each parent gets one REST for those it lost."""
    out = Tree(tree.frames, tree.bases)
    opened: list[int] = []
    lost: list[list[int]] = []  # for each open node: ticks and number of the children left out

    def close(depth: int) -> None:
        while len(opened) > depth:
            ticks, count = lost.pop()
            if count:
                out.open(REST, ticks, len(opened), count)
            out.close(opened, len(opened) - 1)

    node = 0
    while node < len(tree):
        close(tree.depth[node])
        if node and (tree.frame[node] == REST or tree.ticks[node] < least):
            lost[-1][0] += tree.ticks[node]
            lost[-1][1] += tree.count[node] or 1
            node = tree.end[node]
            continue
        opened.append(out.open(tree.frame[node], tree.ticks[node], len(opened)))
        lost.append([0, 0])
        node += 1
    close(0)
    return out


def least_ticks(tree: Tree, *, share: float, most_nodes: int) -> int:
    """The bound for ``pruned`` that leaves out what is under ``share`` and keeps ``most_nodes`` at most."""
    least = max(1, math.ceil(tree.ticks[0] * share))
    if len(tree) > most_nodes:
        least = max(least, sorted(tree.ticks, reverse=True)[most_nodes] + 1)
    return least


def _common(one: tuple[int, ...], other: tuple[int, ...]) -> int:
    length = 0
    for a, b in zip(one, other, strict=False):
        if a != b:
            break
        length += 1
    return length


def _indexed(profile: Profile, threads: bool) -> tuple[list[Frame], int, dict[tuple[int, ...], int]]:
    """All frames in order (root, threads, then code by name), how many are no code, ticks by stack."""
    # Resolvers share one Frame among all stacks, and hashing a Frame costs more than all else here:
    # so each object is looked at once, by its id, which the profile keeps valid.
    objects = {id(f): f for f in itertools.chain.from_iterable(stack for _, stack in profile.weights)}
    by_identity: dict[tuple[str, str], Frame] = {}
    for frame in sorted(objects.values(), key=lambda f: (f.name, f.module, f.kind.value)):
        by_identity.setdefault((frame.name, frame.module), frame)
    tids = sorted({tid for tid, _ in profile.weights}) if threads else []
    labels = {tid: thread_name(profile.threads.get(tid, Thread(tid, ""))) for tid in tids}
    tids.sort(key=lambda tid: (labels[tid], tid))
    base = [ROOT, *(Frame(labels[tid], "", FrameKind.MARK) for tid in tids), _EMPTY]
    number = {identity: len(base) + i for i, identity in enumerate(by_identity)}
    by_object = {key: number[frame.name, frame.module] for key, frame in objects.items()}
    of_thread = {tid: (1 + i,) for i, tid in enumerate(tids)}
    stacks: dict[tuple[int, ...], int] = {}
    for (tid, stack), ticks in profile.weights.items():
        path = tuple([by_object[id(frame)] for frame in stack]) or (len(base) - 1,)
        path = of_thread.get(tid, ()) + path
        stacks[path] = stacks.get(path, 0) + ticks
    return base + list(by_identity.values()), 1 + len(tids), stacks
