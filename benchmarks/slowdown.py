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
without and without.  "time" is the same of the time that passed, "us/tick" the median for each tick that the
rate asks for (timers tick at the kernel's HZ at most).  The floor is there again, preloaded (native/floor.c).
The target has one processor for itself, all else the other, in all rows alike.

The third has the same work and goals for perf events alone, without the noise: one session all along,
whose events are switched off and on, in windows of a fifth of a second, so that hundreds of pairs lie close
together.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import random
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from common import compare, machine, parser_of, table
from floor import EmptyHandler, floors
from profilers import CLOCKS, SETTLE_S, Profiler, Pyattach, Row, Switched, by_sigusr2, nothing, peers
from spinning import Gaps, Spinner, spinning
from steady import NEEDS, OTHER_CPU, PROGRAMS, TARGET_CPU, Target

from pyattach.attacher.clock import why_no_events

GOAL_PERCENT = 0.5
GOAL_TIMES = 1.3
SELF_WITHIN = 2.0
SWITCHED_S = 0.2
SWITCHED_PAIRS = 15
"""For each pair of the other table."""


def window_s(target: Target, seconds: float) -> tuple[float, float]:
    """CPU time and time for one unit of work, seconds."""
    units, cpu_s, at = target.units(), target.cpu_s(), time.monotonic()
    time.sleep(seconds)
    more_units, more_cpu_s, then = target.units(), target.cpu_s(), time.monotonic()
    return (more_cpu_s - cpu_s) / (more_units - units), (then - at) / (more_units - units)


def pairs_of(target: Target, profiler: Profiler, pairs: int, seconds: float) -> list[tuple[float, float]]:
    """For each pair, CPU time and time with the profiler as ratios to those without."""
    ratios = []
    for index in range(pairs):
        seen = {}
        for sampled in (True, False) if index % 2 else (False, True):
            with (profiler if sampled else nothing)(target.pid):
                seen[sampled] = window_s(target, seconds)
        cpu, wall = (a / b for a, b in zip(seen[True], seen[False], strict=True))
        ratios.append((cpu, wall))
    return ratios


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Where the median lies, at 95% (bootstrap, with a seed of its own)."""
    chance = random.Random(len(values))
    medians = sorted(statistics.median(chance.choices(values, k=len(values))) for _ in range(2000))
    return medians[49], medians[1949]


def rows_for(program: str, rates: Sequence[int], folder: Path) -> list[Row]:
    rows = [Row("none", 0, nothing)]
    for rate in rates:
        rows += floors(rate)
        rows += [Row(f"pyattach, {clock}", rate, Pyattach(clock, rate)) for clock in CLOCKS]
        rows += peers(program, rate, folder)
    return rows


@dataclasses.dataclass
class Slowdown:
    """What a row's pairs say, in percent: the median, its interval, and of the time that passed."""

    percent: float
    low: float
    high: float
    wall: float

    @classmethod
    def of(cls, ratios: Sequence[tuple[float, float]]) -> Slowdown:
        cpu, wall = zip(*ratios, strict=True)
        low, high = interval(cpu)
        return cls(*(100 * (v - 1) for v in (statistics.median(cpu), low, high, statistics.median(wall))))


def programs_table(
    programs: Sequence[str], rates: Sequence[int], chosen: str, pairs: int, seconds: float
) -> None:
    print(
        f"\nCPU time for the same work: with the profiler / without, {pairs} pairs of {seconds:g} s\n",
        flush=True,
    )
    lines = []
    with tempfile.TemporaryDirectory() as folder:
        for program in programs:
            seen: dict[tuple[str, int], Slowdown] = {}
            for row in rows_for(program, rates, Path(folder)):
                if any(word in row.name for word in chosen.split(",")):
                    lines.append(
                        [
                            program,
                            row.name,
                            str(row.rate_hz or "-"),
                            *cells(program, row, seen, pairs, seconds),
                        ]
                    )
            at_a_glance(program, rates, seen)
    head = [
        "program",
        "profiler",
        "Hz",
        "slower %",
        "95% interval",
        "time %",
        "us/tick",
        "goal",
        "self-reported %",
    ]
    table([*head, f"goal x{SELF_WITHIN:g}"], lines)


def at_a_glance(program: str, rates: Sequence[int], seen: Mapping[tuple[str, int], Slowdown]) -> None:
    """Of pyattach the clock that it chooses by itself."""
    ours = "pyattach, perf" if "perf" in CLOCKS else "pyattach, timer"
    for rate in rates:
        there = {name: found for (name, at), found in seen.items() if at == rate}
        if ours not in there:
            continue
        shown = {"pyattach" if name == ours else name: found for name, found in there.items()}
        peers = {n: f.percent for n, f in shown.items() if not n.startswith(("pyattach", "empty", "none"))}
        intervals = {name: (shown[name].low, shown[name].high) for name in ("pyattach", *peers)}
        row = f"slowdown of {program} at {rate} Hz"
        compare(row, "%", there[ours].percent, peers, intervals=intervals)


def switched_table(programs: Sequence[str], rates: Sequence[int], pairs: int) -> None:
    print(
        f"\nthe same, one session, events switched on and off: {pairs} pairs of {SWITCHED_S:g} s\n",
        flush=True,
    )
    lines = []
    for program in programs:
        with PROGRAMS[program]({}) as target:
            for rate in (0, *rates):
                lines.append([program, *switched_line(target, rate, pairs)])
    head = ["program", "profiler", "Hz", "slower %", "95% interval", "us/tick", "goal", "self-reported %"]
    table([*head, f"goal x{SELF_WITHIN:g}"], lines)


def switched_line(target: Target, rate: int, pairs: int) -> list[str]:
    """``rate`` 0: without a session, for the noise."""
    profiler = Switched(rate) if rate else None
    with profiler(target.pid) if profiler else contextlib.nullcontext():
        ratios = []
        for index in range(pairs):
            seen = {}
            for sampled in (True, False) if index % 2 else (False, True):
                if profiler:
                    profiler.switch(on=sampled)
                seen[sampled] = window_s(target, SWITCHED_S)[0]
            ratios.append((seen[True] / seen[False], 1.0))
    found = Slowdown.of(ratios)
    figures = [f"{found.percent:+.2f}", f"{found.low:+.2f} to {found.high:+.2f}"]
    if profiler is None:
        return ["none", "-", *figures, *["-"] * 4]
    goal = goal_of(found, None, rate) if rate < 200 else "-"
    per_tick = f"{found.percent * 1e4 / rate:.1f}"
    return ["pyattach, perf", str(rate), *figures, per_tick, goal, *self_reported(found, profiler)]


def cells(
    program: str, row: Row, seen: dict[tuple[str, int], Slowdown], pairs: int, seconds: float
) -> list[str]:
    """The row's measurement, also added to ``seen``."""
    if why := row.missing or ("" if shutil.which(NEEDS[program]) else "no such program"):
        return [why, *["-"] * 6]
    assert row.profiler is not None
    ours = row.name == "none" or isinstance(row.profiler, Pyattach | EmptyHandler)
    with PROGRAMS[program](row.environment) as target:
        found = Slowdown.of(pairs_of(target, row.profiler, pairs if ours else max(1, pairs // 2), seconds))
    seen[row.name, row.rate_hz] = found
    per_tick = f"{found.percent * 1e4 / row.rate_hz:.1f}" if row.rate_hz else "-"
    figures = [
        f"{found.percent:+.2f}",
        f"{found.low:+.2f} to {found.high:+.2f}",
        f"{found.wall:+.2f}",
        per_tick,
    ]
    if not isinstance(row.profiler, Pyattach):
        return [*figures, "-", "-", "-"]
    floor = seen.get((f"empty handler, {row.profiler.clock}", row.rate_hz))
    return [*figures, goal_of(found, floor, row.rate_hz), *self_reported(found, row.profiler)]


def goal_of(found: Slowdown, floor: Slowdown | None, rate_hz: int) -> str:
    """Slow rates have a limit, fast ones a floor, where that is out of the noise."""
    if rate_hz < 200:
        verdict = "met" if found.high <= GOAL_PERCENT else "NOT MET" if found.low > GOAL_PERCENT else "noise"
        return f"< {GOAL_PERCENT:g}%: {verdict}"
    if floor is None or floor.low <= 0:
        return "no floor above the noise"
    times = found.percent / floor.percent
    return f"{times:.2f} floors, <= {GOAL_TIMES:g}: {'met' if times <= GOAL_TIMES else 'NOT MET'}"


def self_reported(found: Slowdown, profiler: Pyattach | Switched) -> list[str]:
    if not profiler.shares:
        return ["-", "-"]
    said = 100 * statistics.median(profiler.shares)
    if found.low <= 0:
        return [f"{said:.3f}", "noise"]
    agrees = 1 / SELF_WITHIN <= said / found.percent <= SELF_WITHIN
    return [f"{said:.3f}", "met" if agrees else "NOT MET"]


# The spinning thread.


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
    parser.add_argument("--part", choices=["ticks", "programs", "switched"], help="only this table")
    parser.add_argument("--programs", default=",".join(PROGRAMS), help="of these, separated by commas")
    parser.add_argument(
        "--rows", default="", metavar="WORD,WORD", help="only profilers with one of these in the name"
    )
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
    programs = chosen.programs.split(",")
    if chosen.part in (None, "ticks"):
        ticks_table(rates, pairs, seconds)
    if chosen.part in (None, "programs"):
        programs_table(programs, rates, chosen.rows, pairs, seconds)
    if chosen.part in (None, "switched") and "perf" in CLOCKS:
        switched_table(programs, rates, pairs * SWITCHED_PAIRS)


if __name__ == "__main__":
    main()
