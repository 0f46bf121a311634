"""The call tree of a profile with too many nodes to be kept, without ever making them all.

The stacks are gone through in order twice.  What two neighbours have in common tells where nodes begin and
end: below the last fork of a stack all nodes have the same ticks, so they are dealt with together, and the
work grows with the number of stacks, not of nodes.  First the nodes are counted by their ticks, which tells
from how many ticks on one is kept; then those are made.
"""

from __future__ import annotations

import array
import collections

from .profile import Profile, uncollected
from .tree import REST, Entry, Tree, begun, build, common_length, least_ticks, pruned


def build_bounded(profile: Profile, *, most_nodes: int, base: Profile | None = None) -> Tree:
    """As ``tree.build``; where there would be more than ``most_nodes`` nodes, without the smallest, each
    parent with one REST for those it lost."""
    if base is not None:  # two kinds of ticks: made, then pruned
        tree = build(profile, base=base)
        if len(tree) <= most_nodes:
            return tree
        return pruned(tree, least_ticks(tree, share=0, most_nodes=most_nodes))
    with uncollected():
        tree, entries = begun(profile, threads=False, reverse=False, base=None)
        runs = _Runs(entries)
        least = runs.least(most_nodes)
        _fill(tree, entries, runs, least)
        return tree.finish()


class _Runs:
    """Nodes of the same ticks one below the other, as columns: the entry that they begin with, the depth
    of their parent, the depth of the last of them, and their ticks."""

    def __init__(self, entries: list[Entry]) -> None:
        self.start, self.above = array.array("q"), array.array("q")
        self.last, self.ticks = array.array("q"), array.array("q")
        self.common = array.array("q")
        """Of each entry: how long a beginning it shares with the one before."""
        depths, sums, starts = [0], [0], [0]  # of the nodes that are open, where they fork
        before: tuple[int, ...] = ()
        for index, (path, _, ticks) in enumerate(entries):
            common = common_length(before, path)
            self.common.append(common)
            self._close(depths, sums, starts, common)
            if depths[-1] == len(path):
                sums[-1] += ticks
            else:
                depths.append(len(path))
                sums.append(ticks)
                starts.append(index)
            before = path
        self._close(depths, sums, starts, 0)

    def _close(self, depths: list[int], sums: list[int], starts: list[int], common: int) -> None:
        """What is deeper than ``common`` is complete."""
        while depths[-1] > common:
            depth, ticks, start = depths.pop(), sums.pop(), starts.pop()
            above = max(common, depths[-1])
            self.start.append(start)
            self.above.append(above)
            self.last.append(depth)
            self.ticks.append(ticks)
            if depths[-1] == above:
                sums[-1] += ticks
            else:
                depths.append(above)
                sums.append(ticks)
                starts.append(start)

    def least(self, most_nodes: int) -> int:
        """The fewest ticks of a node that is kept, so that there are ``most_nodes`` at most."""
        nodes: collections.Counter[int] = collections.Counter()
        for above, last, ticks in zip(self.above, self.last, self.ticks, strict=True):
            nodes[ticks] += last - above
        kept = 1  # the root
        for ticks in sorted(nodes, reverse=True):
            kept += nodes[ticks]
            if kept > most_nodes:
                return ticks + 1
        return 0

    def kept(self, least: int) -> list[tuple[int, int, int]]:
        """(start, above, last) of the runs with at least so many ticks, in preorder."""
        columns = zip(self.start, self.above, self.last, self.ticks, strict=True)
        return sorted((start, above, last) for start, above, last, ticks in columns if ticks >= least)


def _fill(tree: Tree, entries: list[Entry], runs: _Runs, least: int) -> None:
    opened = [tree.open(0, 0)]  # the kept nodes of the path at hand
    lost: list[tuple[int, dict[int, int]]] = [(0, {})]  # of each: children left out, their ticks by thread

    def close(length: int) -> None:
        while len(opened) > length:
            opened.pop()
            count, ticks_of = lost.pop()
            if count:
                rest = tree.open(REST, len(opened) + 1, count)
                tree.samples += [(rest, thread, ticks_of[thread]) for thread in sorted(ticks_of)]

    kept = iter(runs.kept(least))
    run = next(kept, None)
    for index, ((path, thread, ticks), common) in enumerate(zip(entries, runs.common, strict=True)):
        if common + 1 < len(opened):
            close(common + 1)
        while run is not None and run[0] == index:
            for frame in path[run[1] : run[2]]:
                opened.append(tree.open(frame, len(opened)))
                lost.append((0, {}))
            run = next(kept, None)
        depth = len(opened) - 1
        if depth == len(path):
            tree.samples.append((opened[-1], thread, ticks))
            continue
        count, ticks_of = lost[-1]
        ticks_of[thread] = ticks_of.get(thread, 0) + ticks
        if common <= depth:  # a child that the entry before was not below
            lost[-1] = (count + 1, ticks_of)
    close(0)
    tree.samples.sort()
