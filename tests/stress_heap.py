"""Storms under the heap profiler: attached to and detached from at random moments, many times.

Every word that leads to the allocator must be as before, with the protection of its page, and nothing may be
left; where a thread may hold the address of a hook still, the code stays and passes on, and the report says
so: that is counted by itself.
"""

from __future__ import annotations

import collections
import dataclasses
import random
import re
import time
from collections.abc import Callable

from heap_support import words

from pyattach.attacher.heap_attach import attach_heap
from pyattach.attacher.heap_session import HeapOptions
from pyattach.attacher.heap_words import NEVER
from pyattach.errors import PyattachError
from tests.storms import STORMS, NotHere

MOVES = ("execs",)
COUNTS = f"{'cycles':>7}{'stays':>7}{'residues':>10}{'words':>7}{'allocations':>13}"
HEAD = f"{'storm':<10}{COUNTS}  target's end; refusals"
_STAYS = "stays mapped"


@dataclasses.dataclass
class HeapResult:
    """What came of one storm.  ``stays``: the hooks' code stayed, and passed on.  ``words``: cycles after
    which a word or its page's protection was another."""

    kind: str
    cycles: int = 0
    stays: int = 0
    residues: int = 0
    words: int = 0
    allocations: int = 0
    refused: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    ends: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)

    @property
    def good(self) -> bool:
        refused = bool(self.refused) and self.kind not in MOVES
        return not self.residues and not self.words and not refused and set(self.ends) == {"right"}

    def __str__(self) -> str:
        ends = ", ".join(f"{n} {end}" if n > 1 else end for end, n in self.ends.items())
        refusals = "".join(f"; {n} x {what}" for what, n in self.refused.items())
        counts = f"{self.cycles:>7}{self.stays:>7}{self.residues:>10}{self.words:>7}{self.allocations:>13,}"
        return f"{self.kind:<10}{counts}  {ends}{refusals}"


def _words(pid: int) -> dict[int, tuple[int, str]]:
    try:
        return words(pid)
    except (OSError, PyattachError):
        return {}


def one_cycle(pid: int, result: HeapResult, entries: str) -> None:
    """Attach, record for up to 50 ms, detach; every tenth time with a look for leaks."""
    before = _words(pid)
    leaks = result.cycles % 10 == 0
    options = HeapOptions(duration_s=random.random() * 0.05, leaks=leaks, entries=entries)
    result.cycles += 1
    try:
        outcome = attach_heap(pid, options, lambda: False)
    except (OSError, PyattachError) as error:
        what = re.sub(r"0x[0-9a-f]+", "ADDRESS", str(error).splitlines()[0].replace(str(pid), "PID"))
        result.refused[re.sub(r"\d+", "N", what)] += 1
        return
    if outcome.result is not None:
        result.allocations += round(outcome.result.amount("allocated").blocks)
    stays = any(_STAYS in line for line in outcome.residue)
    result.stays += stays
    if outcome.residue and not stays:
        result.residues += 1
        print(f"  left behind: {outcome.residue}", *outcome.meta.notes, sep="\n    ")
    after = _words(pid)
    # A slot that was not bound yet may have been by now; libraries come and go.
    changed = [a for a, word in before.items() if a in after and after[a][1] != word[1]]
    changed += [a for a, (value, _) in after.items() if _is_ours(pid, value) and not stays]
    result.words += bool(changed)


def _is_ours(pid: int, address: int) -> bool:
    try:
        with open(f"/proc/{pid}/maps") as maps:
            for line in maps:
                low, high = (int(word, 16) for word in line.split()[0].split("-"))
                if low <= address < high:
                    return "pyattach" in line
    except OSError:
        return False
    return bool(address)


def heap_storm(kind: str, cycles: int, alive: Callable[[int], bool], entries: str = NEVER) -> HeapResult:
    """So many cycles, on one target, or on one after the other where they end by themselves."""
    result = HeapResult(kind)
    while result.cycles < cycles:
        with STORMS[kind]() as (pid, verdict):
            time.sleep(0.05)
            while alive(pid) and result.cycles < cycles:
                one_cycle(pid, result, entries)
            result.ends[verdict()] += 1
        if set(result.ends) != {"right"}:
            break
    return result


def heap_cycles(kinds: list[str], count: int, alive: Callable[[int], bool], entries: str) -> bool:
    """Print a line for each storm; whether anything was wrong."""
    print(f"\ncycles of attaching to the heap and detaching, entries: {entries}\n{HEAD}")
    bad = False
    for kind in kinds:
        try:
            result = heap_storm(kind, count, alive, entries)
        except NotHere as error:
            print(f"{kind:<10} left out: {error}")
            continue
        print(result, flush=True)
        bad = bad or not result.good
    return bad
