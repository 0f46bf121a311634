"""Do threads get the shares that they have?  Two with equal work, eight with different work, and a thousand
that live for 5 ms each: how much of the CPU time is in the profile, by clock and rate.

Beside each the same program under setitimer(ITIMER_PROF), which one signal for the whole process serves: how
often it met each thread is counted by a preloaded handler (native/itimer.c).  The truth is the CPU time that
the kernel says each thread has used.
"""

from __future__ import annotations

import dataclasses
import os
import shlex
import statistics
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from common import DEADLINE_S, arguments, machine, program, running, table
from told import sampled

from pyattach.attacher.clock import why_no_events
from pyattach.render.profile import Profile

CLOCKS = [("timer", 99.0), ("timer", 199.0), ("perf", 99.0), ("perf", 997.0)]
WITHIN_POINTS = 2.0
LOST_PERCENT = 2.0
BRIEF_THREADS, BRIEF_US = 1000, 5000
EIGHT = (2, 4, 7, 10, 13, 17, 21, 26)

Counts = dict[str, float]
"""Samples by the thread's name."""


@dataclasses.dataclass(frozen=True)
class Run:
    """What one run has seen and what the target said at its end."""

    counts: Counts
    said: list[int]
    expected: float
    """Periods of the CPU time that was used."""

    @property
    def missing_percent(self) -> float:
        return 100 * (1 - sum(self.counts.values()) / self.expected)


def by_pyattach(name: str, words: Sequence[object], clock: str, rate_hz: float) -> Run:
    """The target begins at the first progress; the session ends when it says that it is done."""
    with running(name, *words) as process:
        profile, said = sampled(process, clock, rate_hz)
    return Run(by_name(profile), said, rate_hz * (profile.meta.cpu_time_s or 0.0))


def by_name(profile: Profile) -> Counts:
    counts: Counts = {}
    for thread, stacks in profile.by_thread():
        counts[thread.name] = counts.get(thread.name, 0) + sum(stacks.values())
    return counts


def by_itimer(name: str, words: Sequence[object], rate_hz: float, library: Path) -> Run:
    """The same under setitimer."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "counts")
        extra = {"LD_PRELOAD": str(library), "ITIMER_US": str(round(1e6 / rate_hz)), "ITIMER_OUT": str(out)}
        argv = [str(program(name)), *map(str, words)]
        text = subprocess.run(
            argv,
            input="\n",
            env=os.environ | extra,
            capture_output=True,
            text=True,
            check=True,
            timeout=DEADLINE_S,
        ).stdout
        counts: Counts = {}
        for row in out.read_text().splitlines():
            count, _, thread = row.partition(" ")
            counts[thread] = counts.get(thread, 0) + int(count)
    said = [int(word) for word in text.splitlines()[-1].split()[1:]]
    used_s = said[0] / 1e3 if name == "shortlived" else sum(said) / 1e6
    return Run(counts, said, rate_hz * used_s)


def build_itimer(folder: Path) -> Path:
    output = folder / "itimer.so"
    compiler = shlex.split(os.environ.get("CC", "")) or ["cc"]
    source = Path(__file__).parent / "native" / "itimer.c"
    subprocess.run([*compiler, "-O2", "-shared", "-fPIC", str(source), "-o", str(output)], check=True)
    return output


def off_points(run: Run) -> float:
    """How far the share of the worst thread is from what it has used, in points of the whole."""
    whole = sum(run.said)
    true = {f"worker-{index}": used / whole for index, used in enumerate(run.said)}
    return max(abs(share - 100 * true[name]) for name, share in shares(run.counts, true).items())


def shares(counts: Counts, true: Mapping[str, float]) -> Counts:
    whole = sum(counts.get(name, 0) for name in true) or 1.0
    return {name: 100 * counts.get(name, 0) / whole for name in true}


def cases(scale: float) -> list[tuple[str, str, list[object], Callable[[Run], float], float]]:
    """What is run: title, target, its arguments, the figure that is asked for, its goal."""
    two = [round(3000 * scale)] * 2
    eight = [round(60 * scale * share) for share in EIGHT]
    brief = round(BRIEF_THREADS * scale)
    return [
        ("two equal, together", "workers", [0, *two], off_points, WITHIN_POINTS),
        ("two equal, 333 ms apart", "workers", [333, *two], off_points, WITHIN_POINTS),
        ("eight, upwards", "workers", [0, *eight], off_points, WITHIN_POINTS),
        ("eight, downwards, 50 ms apart", "workers", [50, *eight[::-1]], off_points, WITHIN_POINTS),
        (f"{brief} of 5 ms, one by one", "shortlived", [brief, BRIEF_US, 1], missing, LOST_PERCENT),
        (f"{brief} of 5 ms, four at once", "shortlived", [brief, BRIEF_US, 4], missing, LOST_PERCENT),
        (f"{brief} of 5 ms, after 2 s", "shortlived", [brief, BRIEF_US, 2, 2000], missing, LOST_PERCENT),
    ]


def missing(run: Run) -> float:
    """Percent of the brief threads' CPU time; the main thread's own is left out on both sides."""
    main = run.counts.get("shortlived", 0)
    return 100 * (1 - (sum(run.counts.values()) - main) / (run.expected - main))


def main() -> None:
    chosen = arguments(__doc__.splitlines()[0])
    print(machine())
    runs, scale = (2, 0.3) if chosen.quick else (5, 1.0)
    if why := why_no_events(os.getpid()):
        print(f"without perf: {why}")
        CLOCKS[:] = [row for row in CLOCKS if row[0] != "perf"]
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        library = build_itimer(Path(folder))
        for title, name, words, figure, goal in cases(scale):
            for clock, rate_hz in [*CLOCKS, ("setitimer", 99.0)]:
                done = [
                    by_itimer(name, words, rate_hz, library)
                    if clock == "setitimer"
                    else by_pyattach(name, words, clock, rate_hz)
                    for _ in range(runs)
                ]
                seen = [figure(run) for run in done]
                worst = max(seen, key=abs)
                verdict = "-" if clock == "setitimer" else "met" if abs(worst) <= goal else "NOT MET"
                cells = [f"{statistics.median(seen):.2f}", f"{worst:.2f}"]
                lost = f"{statistics.median(run.missing_percent for run in done):+.2f}"
                rows.append([title, clock, f"{rate_hz:g}", *cells, lost, f"{goal:g}", verdict])
    print(
        f"\n{runs} runs each.  Threads with work: points that the worst share is off; brief threads: percent"
    )
    print("of their CPU time that is not in the profile (less than none: it says more than there was)\n")
    table(["threads", "clock", "Hz", "median", "worst", "all missing %", "goal", "by the worst"], rows)


if __name__ == "__main__":
    main()
