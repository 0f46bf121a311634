"""What does sampling cost the target?  With and without in turn, beside other profilers and an empty handler.

Two tables.  The first: a thread that does nothing but read the cycle counter, sixteen calls deep, keeps the
gaps, and tells those in which a signal was delivered from the kernel's own and the hypervisor's.  Such a gap
is all that a tick takes: the interrupt, the kernel's work, the signal's delivery, the handler; with timers,
which tick with the kernel's own tick, also what that takes anyway.  The floor is an EMPTY handler under the
same clock: no profiler that works in a signal handler can cost less.  "typical" is the mean of the middle
half.  "self-reported" is what pyattach says of itself, handler and delivery, as a share of CPU time, beside
the measured share (not with timers, whose ticks can't be told from the kernel's own).

The second: CPU time for a unit of work (xz: bytes compressed; redis: commands answered; CPython: rounds of
a loop) of one running process, in pairs of windows with and without the profiler, which goes first in turn.
The median of the pairs' ratios with its 95% interval (bootstrap); "none" is the noise of this machine: pairs
without and without.  The target has one processor for itself, all else the other, in all rows alike.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import mmap
import os
import random
import shutil
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from common import compiled, machine, parser_of, table
from profilers import CLOCKS, SETTLE_S, Profiler, Pyattach, Row, by_sigusr2, nothing, peers
from steady import OTHER_CPU, PROGRAMS, TARGET_CPU, Target, counting_file, started

from pyattach.attacher.clock import why_no_events

GOAL_PERCENT = 0.5
GOAL_TIMES = 1.3
SELF_WITHIN = 2.0


def window_ns(target: Target, seconds: float) -> float:
    """CPU time for one unit of work, ns."""
    units, cpu_s = target.units(), target.cpu_s()
    time.sleep(seconds)
    more_units, more_cpu_s = target.units(), target.cpu_s()
    return 1e9 * (more_cpu_s - cpu_s) / (more_units - units)


def pairs_of(target: Target, profiler: Profiler, pairs: int, seconds: float) -> list[float]:
    """For each pair, CPU time with the profiler as a ratio to that without."""
    ratios = []
    for index in range(pairs):
        seen = {}
        for sampled in (True, False) if index % 2 else (False, True):
            with (profiler if sampled else nothing)(target.pid):
                seen[sampled] = window_ns(target, seconds)
        ratios.append(seen[True] / seen[False])
    return ratios


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Where the median lies, at 95% (bootstrap, with a seed of its own)."""
    chance = random.Random(len(values))
    medians = sorted(statistics.median(chance.choices(values, k=len(values))) for _ in range(2000))
    return medians[49], medians[1949]


def rows_for(program: str, rates: Sequence[int], folder: Path) -> list[Row]:
    rows = [Row("none", 0, nothing)]
    for rate in rates:
        rows += [Row(f"pyattach, {clock}", rate, Pyattach(clock, rate)) for clock in CLOCKS]
        rows += peers(program, rate, folder)
    return rows


def programs_table(programs: Sequence[str], rates: Sequence[int], pairs: int, seconds: float) -> None:
    print(
        f"\nCPU time for the same work: with the profiler / without, {pairs} pairs of {seconds:g} s\n",
        flush=True,
    )
    lines = []
    with tempfile.TemporaryDirectory() as folder:
        for program in programs:
            for row in rows_for(program, rates, Path(folder)):
                lines.append(
                    [program, row.name, str(row.rate_hz or "-"), *cells(program, row, pairs, seconds)]
                )
    table(["program", "profiler", "Hz", "slower %", "95% interval", f"goal {GOAL_PERCENT:g}%"], lines)


def cells(program: str, row: Row, pairs: int, seconds: float) -> list[str]:
    if row.missing or (
        not shutil.which({"cpython": sys.executable}.get(program, f"{program}-server"))
        and (not shutil.which(program))
    ):
        return [row.missing or "no such program", "-", "-"]
    assert row.profiler is not None
    with PROGRAMS[program](row.environment) as target:
        ours = row.name == "none" or isinstance(row.profiler, Pyattach)
        ratios = pairs_of(target, row.profiler, pairs if ours else max(1, pairs // 2), seconds)
    median = 100 * (statistics.median(ratios) - 1)
    low, high = (100 * (value - 1) for value in interval(ratios))
    verdict = "-"
    if row.name.startswith("pyattach") and row.rate_hz < 200:
        verdict = "met" if high <= GOAL_PERCENT else "NOT MET" if low > GOAL_PERCENT else "within noise"
    return [f"{median:+.2f}", f"{low:+.2f} to {high:+.2f}", verdict]


# The spinning thread.

BINS, PER_US = 8192, 16
"""native/gaps.c's histograms: so many bins, so many for a microsecond."""


@dataclasses.dataclass
class Gaps:
    """A histogram of gaps over some time, ``cycles`` at ``hz``."""

    bins: list[int]
    cycles: int
    hz: int

    def __add__(self, other: Gaps) -> Gaps:
        bins = [a + b for a, b in zip(self.bins, other.bins, strict=True)]
        return Gaps(bins, self.cycles + other.cycles, self.hz)

    @property
    def count(self) -> int:
        return sum(self.bins[:-1])

    @property
    def per_second(self) -> float:
        return self.count * self.hz / self.cycles

    @property
    def share(self) -> float:
        """Of all time, what typical gaps take."""
        return self.per_second * self.typical_us / 1e6

    @property
    def typical_us(self) -> float:
        """The mean of the middle half."""
        low, high = self.count / 4, 3 * self.count / 4
        total = seen = 0.0
        for index, n in enumerate(self.bins[:-1]):
            inside = max(0.0, min(seen + n, high) - max(seen, low))
            total += (index + 0.5) / PER_US * inside
            seen += n
        return total / (high - low) if high else 0.0

    def quantile_us(self, share: float) -> float:
        seen = itertools.accumulate(self.bins[:-1])
        return next((i for i, n in enumerate(seen) if n >= share * self.count), 0) / PER_US


@dataclasses.dataclass
class Spinner:
    """native/gaps.c at work."""

    pid: int
    shared: mmap.mmap

    def ask(self, clock: str | None, rate_hz: int) -> None:
        struct.pack_into("=QQ", self.shared, 16, CLOCKS.get(clock or "", 0), rate_hz)

    def gaps(self, seconds: float) -> tuple[Gaps, Gaps]:
        """Over so many seconds: those without and those with a signal."""
        before, counted = self._read()
        time.sleep(seconds)
        after, more = self._read()
        bins = [b - a for a, b in zip(counted, more, strict=True)]
        hz = struct.unpack_from("=Q", self.shared, 8)[0]
        return Gaps(bins[:BINS], after - before, hz), Gaps(bins[BINS:], after - before, hz)

    def _read(self) -> tuple[int, tuple[int, ...]]:
        return struct.unpack_from("=Q", self.shared)[0], struct.unpack_from(f"={2 * BINS}Q", self.shared, 64)


@contextlib.contextmanager
def spinning(environment: dict[str, str], threads: int = 1) -> Iterator[Spinner]:
    with counting_file(64 + 16 * BINS) as (path, shared):
        argv = [str(compiled("gaps")), str(path), "16", str(threads)]
        with started(argv, environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
            process.stdout.readline()
            yield Spinner(process.pid, shared)


@dataclasses.dataclass
class Floor:
    """An empty handler, under the clock of that name."""

    spinner: Spinner
    clock: str
    rate_hz: int

    @contextlib.contextmanager
    def __call__(self, _pid: int) -> Iterator[None]:
        self.spinner.ask(self.clock, self.rate_hz)
        time.sleep(SETTLE_S)
        try:
            yield
        finally:
            self.spinner.ask(None, 0)
            time.sleep(SETTLE_S)


def ticks_table(rates: Sequence[int], rounds: int, seconds: float) -> None:
    print(f"\nwhat a tick takes from a thread that spins, {rounds} rounds of {seconds:g} s\n", flush=True)
    lines = []
    with spinning({}) as spinner:
        for rate in rates:
            lines += ticks_at(spinner, rate, rounds, seconds)
    with tempfile.TemporaryDirectory() as folder:
        lines += [gperftools_ticks(rate, rounds * seconds, Path(folder)) for rate in rates]
    head = ["profiler", "Hz", "ticks/s", "us p50", "p99", "typical", "% of time", "times the floor"]
    table([*head, f"goal {GOAL_TIMES:g}", "self-reported %", f"goal x{SELF_WITHIN:g}"], lines)


def ticks_at(spinner: Spinner, rate: int, rounds: int, seconds: float) -> list[list[str]]:
    cases: dict[str, Profiler] = {"none": nothing}
    for clock in CLOCKS:
        cases[f"empty handler, {clock}"] = Floor(spinner, clock, rate)
        cases[f"pyattach, {clock}"] = Pyattach(clock, rate)
    seen: dict[str, tuple[Gaps, Gaps]] = {}
    for _ in range(rounds):
        for name in random.sample(sorted(cases), len(cases)):
            with cases[name](spinner.pid):
                quiet, ticks = spinner.gaps(seconds)
            before = seen.get(name)
            seen[name] = (quiet, ticks) if before is None else (before[0] + quiet, before[1] + ticks)
    lines = []
    for name, profiler in cases.items():
        if name != "none":
            clock = name.rpartition(", ")[2]
            floor = seen[f"empty handler, {clock}"][1]
            lines.append(tick_line(name, rate, seen[name][1], floor, profiler))
    return lines


def tick_line(name: str, rate: int, ticks: Gaps, floor: Gaps, profiler: Profiler) -> list[str]:
    line = [name, f"{rate}", *figures(ticks, with_kernels=name.endswith("timer"))]
    if not isinstance(profiler, Pyattach):
        return [*line, *["-"] * 4]
    times = ticks.typical_us / floor.typical_us
    line += [f"{times:.2f}", ("met" if times <= GOAL_TIMES else "NOT MET") if rate > 200 else "-"]
    if not profiler.shares:
        return [*line, "-", "-"]
    said = statistics.median(profiler.shares)
    share = ticks.share
    agrees = 1 / SELF_WITHIN <= said / share <= SELF_WITHIN
    verdict = "-" if name.endswith("timer") else "met" if agrees else "NOT MET"
    return [*line, f"{100 * said:.3f}", verdict]


def figures(ticks: Gaps, *, with_kernels: bool) -> list[str]:
    words = [f"{us:.1f}" for us in (ticks.quantile_us(0.5), ticks.quantile_us(0.99), ticks.typical_us)]
    return [f"{ticks.per_second:.0f}", *words, "-" if with_kernels else f"{100 * ticks.share:.3f}"]


def gperftools_ticks(rate: int, seconds: float, folder: Path) -> list[str]:
    row = next(row for row in peers("gaps", rate, folder) if row.name == "gperftools")
    if row.missing:
        return [row.name, f"{rate}", row.missing, *["-"] * 8]
    with spinning(row.environment) as spinner, by_sigusr2(spinner.pid):
        _, ticks = spinner.gaps(seconds)
    return [row.name, f"{rate}", *figures(ticks, with_kernels=True), *["-"] * 4]


def main() -> None:
    parser = parser_of(__doc__.splitlines()[0])
    parser.add_argument("--part", choices=["ticks", "programs"], help="only this table")
    parser.add_argument("--programs", default=",".join(PROGRAMS), help="of these, separated by commas")
    parser.add_argument("--rates", default="99,997", help="Hz, separated by commas")
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each window")
    chosen = parser.parse_args()
    print(machine())
    if why := why_no_events(os.getpid()):
        print(f"without perf events: {why}")
        del CLOCKS["perf"]
    os.sched_setaffinity(0, {OTHER_CPU})
    print(f"the target on processor {TARGET_CPU}, all else on {OTHER_CPU}")
    rates = [int(word) for word in chosen.rates.split(",")]
    pairs, seconds = (3, 0.3) if chosen.quick else (chosen.pairs, chosen.seconds)
    if chosen.part != "programs":
        ticks_table(rates, pairs, seconds)
    if chosen.part != "ticks":
        programs_table(chosen.programs.split(","), rates, pairs, seconds)


if __name__ == "__main__":
    main()
