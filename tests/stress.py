"""Storms, longer than the tests can wait: ``make stress``.

Six tables.  cycles: each storm is attached to and detached from many times at random moments (every 50th
time once more with dlopen, which is called only where it is safe: if there was no such place in three
seconds, that is counted), then sampled for a while at 1000 Hz; it must stay alive, finish with the right
output, and keep nothing of ours.  heap: the same with the heap profiler, and no word that leads to the
allocator may have changed.  kills: pyattach is killed (-9) at random instants of attaching, sampling and
detaching.  faults: the target ends, crashes, executes another program, forks or is stopped at every step of
a session.  naive: dlopen called wherever the main thread is met, as injectors do that look at nothing,
beside our dlopen on the same storm, a new target each time.  hostile: every property of input that nobody
vouches for (shared memory, maps, ELF files, recordings, profiles), with many random cases.

The exit code is 1 when anything went wrong outside of "naive".
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import dataclasses
import itertools
import os
import random
import re
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from pyattach.attacher.contract import Options  # noqa: E402
from pyattach.attacher.heap_words import ENTRY_MODES, NEVER  # noqa: E402
from pyattach.attacher.places import SafePlaces  # noqa: E402
from pyattach.attacher.session import attach  # noqa: E402
from pyattach.errors import PyattachError  # noqa: E402
from tests.storms import STORMS, NotHere, Verdict  # noqa: E402
from tests.stress_heap import heap_cycles  # noqa: E402

PARTS = ("cycles", "heap", "kills", "faults", "naive", "hostile")
MOVES = ("execs",)
"""Storms that end by themselves, and that may refuse: the program is another one by then."""
FORCED_EVERY = 50
NO_PLACE = "at no place where dlopen is safe"


@dataclasses.dataclass
class Result:
    """What came of one storm."""

    kind: str
    cycles: int = 0
    residues: int = 0
    by_dlopen: int = 0
    no_place: int = 0
    """So often dlopen was asked for, and safe nowhere."""
    samples: int = 0
    incomplete: int = 0
    refused: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    ends: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)

    @property
    def good(self) -> bool:
        refused = bool(self.refused) and self.kind not in MOVES
        return not self.residues and not refused and set(self.ends) == {"right"}

    def __str__(self) -> str:
        share = 100 * self.incomplete / self.samples if self.samples else 0.0
        ends = ", ".join(f"{n} {end}" if n > 1 else end for end, n in self.ends.items())
        refusals = "".join(f"; {n} x {what}" for what, n in self.refused.items())
        loads = f"{self.cycles:>7}{self.by_dlopen:>10}{self.no_place:>9}"
        seen = f"{self.residues:>10}{self.samples:>9}{share:>11.2f}%"
        return f"{self.kind:<10}{loads}{seen}  {ends}{refusals}"


COUNTS = f"{'cycles':>7}{'by dlopen':>10}{'no place':>9}{'residues':>10}{'samples':>9}{'incomplete':>12}"
HEAD = f"{'storm':<10}{COUNTS}  target's end; refusals"


def alive(pid: int) -> bool:
    """Whether the process runs."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    return False


def one_attach(pid: int, options: Options, result: Result) -> None:
    try:
        outcome = attach(pid, options, lambda: False, lambda _progress: None)
    except PyattachError as error:
        if result.kind in MOVES and not alive(pid):
            return  # it has come to its end
        if NO_PLACE in error.what:
            result.no_place += 1
            return
        what = re.sub(r"0x[0-9a-f]+", "ADDRESS", error.what.replace(str(pid), "PID"))
        result.refused[what] += 1
        result.cycles += result.kind in MOVES  # it was tried
        return
    result.cycles += 1
    result.residues += bool(outcome.residue)
    result.by_dlopen += any("by dlopen" in note for note in outcome.profile.meta.notes)
    for line in outcome.residue:
        print(f"  left behind: {line}", *outcome.profile.meta.notes, sep="\n    ")
    result.samples += outcome.profile.meta.samples
    result.incomplete += outcome.profile.meta.truncated


def storm(kind: str, cycles: int, seconds: float) -> Result:
    """So many cycles, on one target, or on one after the other where they end by themselves."""
    result, turn = Result(kind), itertools.count(1)
    while result.cycles < cycles:
        with STORMS[kind]() as (pid, verdict):
            while alive(pid) and result.cycles < cycles:
                options = Options(rate_hz=250, duration_s=random.random() * 0.05)
                one_attach(pid, options, result)
                if next(turn) % FORCED_EVERY == 0 and alive(pid):
                    one_attach(pid, options._replace(loader="dlopen"), result)
            if seconds and kind not in MOVES:
                one_attach(pid, Options(rate_hz=1000, duration_s=seconds), result)
            result.ends[verdict()] += 1
        if set(result.ends) != {"right"}:
            break
    return result


def cycles(kinds: list[str], count: int, seconds: float) -> bool:
    print(f"\ncycles of attaching and detaching, then {seconds:g} s at 1000 Hz\n{HEAD}")
    bad = False
    for kind in kinds:
        try:
            result = storm(kind, count, seconds)
        except NotHere as error:
            print(f"{kind:<10} left out: {error}")
            continue
        print(result, flush=True)
        bad = bad or not result.good
    return bad


# Kills.


def kills(kinds: list[str], count: int) -> bool:
    """kill -9 at any instant, then the next run must work and leave nothing."""
    import faulted
    from test_attach_faults import check_clean, check_nothing_held

    print("\nkill -9 of pyattach at random instants")
    print(f"{'storm':<10}{'kills':>7}{'next run failed':>17}  target's end")
    bad = False
    for kind in kinds:
        failed: collections.Counter[str] = collections.Counter()
        with STORMS[kind]() as (pid, verdict):
            for _ in range(count):
                child, said = faulted.begin(pid, "", "-d", "200ms", "-o", "-")
                time.sleep(random.random() * 0.8)
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child, signal.SIGKILL)
                faulted.finish(child, said)
                try:
                    check_nothing_held(pid)
                    run = faulted.run(pid, "", "-d", "50ms", "-o", "-")
                    assert run.status in (0, 5), run.said
                    check_clean(pid)
                except AssertionError as error:
                    at = traceback.extract_tb(error.__traceback__)[-1]
                    failed[f"{at.line}: {str(error)[:300]}"] += 1
            end = verdict()
        print(f"{kind:<10}{count:>7}{failed.total():>17}  {end}", flush=True)
        for what, number in failed.items():
            print(f"  {number} x {what}")
        bad = bad or bool(failed) or end != "right"
    return bad


# Faults.


def faults() -> bool:
    """Every step with everything that can happen to the target there."""
    from support import spawn
    from test_attach_faults import ENDS, hurt

    from pyattach.inject import fault

    print("\nwhat happens to the target at every step of a session")
    bad = False
    for name in ENDS:
        wrong = []
        for step in fault.STEPS:
            try:
                with spawn("ends") as target:
                    hurt(target, step, name)
            except AssertionError as error:
                wrong.append(
                    f"{step}: {traceback.extract_tb(error.__traceback__)[-1].line}: {str(error)[:300]}"
                )
        print(f"{name:<10}{len(fault.STEPS):>5} steps, {len(wrong)} wrong", *wrong, sep="\n  ", flush=True)
        bad = bad or bool(wrong)
    return bad


# Naive.


@contextlib.contextmanager
def unlooked_at() -> Iterator[None]:
    """Every place is safe."""
    before = {name: getattr(SafePlaces, name) for name in ("promising", "others_quiet", "is_safe")}
    for name in before:
        setattr(SafePlaces, name, lambda *_words: True)
    try:
        yield
    finally:
        for name, method in before.items():
            setattr(SafePlaces, name, method)


def one_dlopen(pid: int, verdict: Verdict) -> str:
    """What came of a target that dlopen was called in."""
    options = Options(rate_hz=99, duration_s=0.02, loader="dlopen")
    said = "attached"
    try:
        attach(pid, options, lambda: False, lambda _progress: None)
    except PyattachError as error:
        said = "no safe place was found" if "no place" in error.what else f"failed: {error.what[:60]}"
    end = verdict()
    return said if end == "right" else f"target {end.split(',')[0]}"


def naive(count: int) -> None:
    print(f"\ndlopen in {count} targets each, by looking at the stack and without")
    for kind in ("malloc", "dlopen", "mixed"):
        for looking in (True, False):
            came: collections.Counter[str] = collections.Counter()
            with contextlib.nullcontext() if looking else unlooked_at():
                for _ in range(count):
                    with STORMS[kind]() as (pid, verdict):
                        time.sleep(random.random() * 0.02)
                        came[one_dlopen(pid, verdict).replace(str(pid), "PID")] += 1
            what = ", ".join(f"{n} {end}" for end, n in came.most_common())
            print(f"{kind:<10}{'looking' if looking else 'naive':<9}{what}", flush=True)


# Hostile input.


def hostile(cases: int) -> bool:
    print(f"\nproperties of hostile input, {cases} random cases of each", flush=True)
    words = [
        "-m",
        "pytest",
        "-q",
        "-m",
        "hostile",
        "--timeout",
        "0",
        "-p",
        "no:cacheprovider",
        str(ROOT / "tests"),
    ]
    run = subprocess.run(
        [sys.executable, *words], cwd=ROOT, env={**os.environ, "PYATTACH_CASES": str(cases)},
        stdout=subprocess.PIPE, text=True, check=False,
    )  # fmt: skip
    print(run.stdout if run.returncode else run.stdout.strip().splitlines()[-1], flush=True)
    return run.returncode != 0


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--part", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--cycles", type=int, default=1000, help="attach/detach cycles of each storm")
    parser.add_argument("--entries", choices=ENTRY_MODES, default=NEVER, help="for heap, as pyattach's own")
    parser.add_argument("--seconds", type=float, default=60.0, help="sampling at 1000 Hz after them")
    parser.add_argument("--kills", type=int, default=125, help="kills in each of four storms")
    parser.add_argument("--naive", type=int, default=30, help="targets for each way of calling dlopen")
    parser.add_argument("--cases", type=int, default=10_000, help="random cases of each property of input")
    parser.add_argument(
        "kinds", nargs="*", metavar="STORM", help=f"for cycles and heap: of {', '.join(STORMS)}"
    )
    arguments = parser.parse_args()
    if unknown := set(arguments.kinds) - set(STORMS):
        parser.error(f"no such storm: {', '.join(unknown)}")
    print(f"kernel {os.uname().release}, {os.cpu_count()} processors")
    bad = False
    if "cycles" in arguments.part:
        bad = cycles(arguments.kinds or list(STORMS), arguments.cycles, arguments.seconds) or bad
    if "heap" in arguments.part:
        kinds = arguments.kinds or list(STORMS)
        bad = heap_cycles(kinds, arguments.cycles, alive, arguments.entries) or bad
    if "kills" in arguments.part:
        bad = (
            kills([k for k in ("malloc", "threads", "blocked", "python") if k in STORMS], arguments.kills)
            or bad
        )
    if "faults" in arguments.part:
        bad = faults() or bad
    if "naive" in arguments.part:
        naive(arguments.naive)
    if "hostile" in arguments.part:
        bad = hostile(arguments.cases) or bad
    return int(bad)


if __name__ == "__main__":
    sys.exit(main())
