"""What does a sample cost its thread where the process has 160 of them?  Beside one thread, and py-spy.

First table: native/gaps.c, one thread that reads the cycle counter while the others sleep; the gaps in which
a signal was delivered (see slowdown.py), and what pyattach says its handler took of each.

Second: CPython, one thread that reads the clock in a loop while the others wait for a lock.  Of the gaps it
sees, as many of the largest as there were samples; without a profiler these are the kernel's ticks and the
hypervisor's.  "lost" is all time in gaps of more than 5 us, less what is lost without a profiler, for one
sample of those that the rate asks for.  py-spy stops all threads for each sample, so its pause grows with
their number.  The target has one processor for itself, all else the other.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator

from common import compare, machine, parser_of, percentile, table
from profilers import CLOCKS, Command, Profiler, Pyattach, nothing, py_spy
from spinning import Gaps, spinning
from steady import OTHER_CPU, TARGET_CPU, started

from pyattach.attacher.clock import why_no_events

RATE_HZ = 99
THREADS = (1, 160)
STAYS = 1.2
"""What stays what it is may be so many times as long in a measurement."""

PYTHON = """
import json, sys, threading, time
for _ in range(int(sys.argv[1]) - 1):
    threading.Thread(target=threading.Event().wait, daemon=True).start()
def spin(seconds):
    now, gaps = time.perf_counter_ns, []
    last = now()
    end = last + seconds * 10**9
    while last < end:
        at = now()
        if at - last > 5000:
            gaps.append(at - last)
            at = now()
        last = at
    return gaps
print("ready", flush=True)
for line in sys.stdin:
    print(json.dumps(spin(float(line))), flush=True)
"""


@contextlib.contextmanager
def cpython(threads: int) -> Iterator[subprocess.Popen[str]]:
    argv = [sys.executable, "-c", PYTHON, str(threads)]
    with started(argv, {}, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process


def gaps_of(process: subprocess.Popen[str], seconds: float) -> list[float]:
    """Microseconds, those of more than 5."""
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(f"{seconds}\n")
    process.stdin.flush()
    return [ns / 1e3 for ns in json.loads(process.stdout.readline())]


@dataclasses.dataclass
class Seen:
    """What a profiler was seen to do, in all rounds."""

    gaps_us: list[float] = dataclasses.field(default_factory=list)
    seconds: float = 0.0

    @property
    def largest_us(self) -> list[float]:
        """One for each sample that was asked for."""
        return sorted(self.gaps_us)[-max(1, round(RATE_HZ * self.seconds)) :] or [0.0]

    @property
    def lost_share(self) -> float:
        return sum(self.gaps_us) / 1e6 / self.seconds


def verdict(one: float, many: float) -> str:
    return f"{many / one:.2f} times: {'met' if many <= STAYS * one else 'NOT MET'}"


def native_table(rounds: int, seconds: float) -> None:
    """Threads and clocks in turn."""
    seen: dict[tuple[str, int], Gaps] = {}
    profilers = {(clock, threads): Pyattach(clock, RATE_HZ) for clock in CLOCKS for threads in THREADS}
    for _ in range(rounds):
        for (clock, threads), profiler in profilers.items():
            with spinning({}, threads) as spinner, profiler(spinner.pid):
                _, ticks = spinner.gaps(seconds)
            before = seen.get((clock, threads))
            seen[clock, threads] = ticks if before is None else before + ticks
    rows = []
    for (clock, threads), ticks in seen.items():
        handlers = [
            m.handler_ns_per_sample for m in profilers[clock, threads].metas if m.handler_ns_per_sample
        ]
        handler = f"{statistics.median(handlers) / 1e3:.1f}" if handlers else "-"
        us = [f"{value:.1f}" for value in (ticks.quantile_us(0.5), ticks.quantile_us(0.99), ticks.typical_us)]
        goal = "-" if threads == 1 else verdict(seen[clock, 1].typical_us, ticks.typical_us)
        rows.append([f"pyattach, {clock}", str(threads), str(ticks.count), *us, handler, goal])
    print(
        f"\nwhat a tick takes from a thread that spins, {RATE_HZ} Hz, {rounds} rounds of {seconds:g} s, us\n"
    )
    table(["profiler", "threads", "ticks", "p50", "p99", "typical", "handler", "goal: as for one"], rows)


def cpython_table(rounds: int, seconds: float) -> None:
    profilers: dict[str, Profiler] = {"none": nothing}
    profilers |= {f"pyattach, {clock}": Pyattach(clock, RATE_HZ) for clock in CLOCKS}
    if spy := py_spy():
        words = [spy, "record", "-r", str(RATE_HZ), "-d", "3600", "-p", "{pid}", "-f", "raw", "-o", "{out}"]
        profilers["py-spy"] = Command(words)
    else:
        print("\npy-spy is missing: pip install py-spy")
    rows = []
    for threads in THREADS:
        seen = {name: Seen() for name in profilers}
        lost_by: dict[str, float] = {}
        for _ in range(rounds):
            for name, profiler in profilers.items():
                with cpython(threads) as process, profiler(process.pid):
                    seen[name].gaps_us += gaps_of(process, seconds)
                    seen[name].seconds += seconds
        for name, found in seen.items():
            lost_us = (found.lost_share - seen["none"].lost_share) * 1e6 / RATE_HZ
            largest = found.largest_us
            us = [f"{v:,.0f}" for v in (statistics.median(largest), percentile(largest, 0.99))]
            lost_by[name] = lost_us
            lost = "-" if name == "none" else f"{lost_us:,.0f}"
            rows.append([name, str(threads), *us, lost, f"{100 * found.lost_share:.2f}"])
        ours = next((lost_by[f"pyattach, {clock}"] for clock in ("perf", "timer") if clock in CLOCKS), None)
        if ours is not None:
            peers = {name: lost_by[name] for name in ("py-spy",) if name in lost_by}
            compare(f"time lost for a sample, CPython with {threads} threads", "us", ours, peers)
    print(f"\nCPython: the largest gaps, one a sample, {RATE_HZ} Hz, {rounds} rounds of {seconds:g} s, us\n")
    table(["profiler", "threads", "p50", "p99", "lost for a sample", "% of time in gaps"], rows)


def main() -> None:
    parser = parser_of(__doc__.splitlines()[0])
    parser.add_argument("--part", choices=["native", "cpython"], help="only this table")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each round")
    chosen = parser.parse_args()
    print(machine())
    if why := why_no_events(os.getpid()):
        print(f"without perf events: {why}")
        del CLOCKS["perf"]
    os.sched_setaffinity(0, {OTHER_CPU})
    print(f"the target on processor {TARGET_CPU}, all else on {OTHER_CPU}")
    rounds, seconds = (1, 1.0) if chosen.quick else (chosen.rounds, chosen.seconds)
    if chosen.part != "cpython":
        native_table(rounds, seconds)
    if chosen.part != "native":
        cpython_table(rounds, seconds)


if __name__ == "__main__":
    main()
