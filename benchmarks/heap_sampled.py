"""Whether sampled totals of the heap lie around the exact ones as their stated errors say.

Runs one program, which allocates the same each time, once with all recorded and then many times sampled,
with other random numbers each time.  Prints for each total what it is; how far the estimates' mean is off;
their standard deviation beside the error that they state (the mean of it), as shares of the total; how many
are within one and two of their errors (68% and 95% if they are right); and the mean's distance from the exact
total in its own errors.

The exit code is 1 where a mean is more than 4 of its errors away, or an estimate more than 5 of its own.
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from common import ROOT, compiled, recording_heap, table

KINDS = ("allocated", "live", "peak")
UNITS = ("bytes", "blocks")
HEAD = ("", "exact", "mean off by", "deviation", "stated error", "within 1", "within 2", "or by")
ROW = re.compile(
    r"^(\w+) +([\d,]+) bytes (?:\(standard error ([\d,]+)\) )?in ([\d,]+) blocks(?: \(([\d,]+)\))?$", re.M
)
Totals = dict[tuple[str, str], tuple[float, float]]
"""By kind and unit: how much, and its error."""


def totals(argv: list[str], sample: str, report: Path) -> Totals:
    """What a run under pyattach says; ``sample`` empty: exactly."""
    options = ["--heap-sample", sample] if sample else []
    command = recording_heap(report, *options)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "DEBUGINFOD_URLS": ""}
    subprocess.run([*command, "--", *argv], env=environment, check=True, stderr=subprocess.DEVNULL)
    out: Totals = {}
    for kind, *words in ROW.findall(report.read_text()):
        size, size_error, blocks, blocks_error = (float(word.replace(",", "") or 0) for word in words)
        out[kind, "bytes"], out[kind, "blocks"] = (size, size_error), (blocks, blocks_error)
    return out


def row(name: str, exact: float, estimates: list[tuple[float, float]]) -> tuple[list[str], bool]:
    """A line of the table, and whether the estimates are right as far as can be seen."""
    off = [(value - exact) / error for value, error in estimates]
    mean = statistics.fmean(value for value, _ in estimates)
    deviation = statistics.stdev(value for value, _ in estimates)
    stated = statistics.fmean(error for _, error in estimates)
    mean_off = (mean - exact) / (stated / len(estimates) ** 0.5)
    within = [sum(abs(z) <= most for z in off) for most in (1, 2)]
    shares = (f"{mean / exact - 1:+.2%}", f"{deviation / exact:.2%}", f"{stated / exact:.2%}")
    cells = [name, f"{exact:,.0f}", *shares]
    cells += [f"{count} of {len(off)}" for count in within]
    return [*cells, f"{mean_off:+.2f} errors"], abs(mean_off) <= 4 and max(map(abs, off)) <= 5


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--sample", default="512K")
    parser.add_argument("--threads", type=int, default=4)
    parser.add_argument("--blocks", type=int, default=100_000, help="of each thread")
    parser.add_argument("--quick", action="store_true", help="five runs of a fifth of the blocks")
    arguments = parser.parse_args()
    runs, blocks = (5, arguments.blocks // 5) if arguments.quick else (arguments.runs, arguments.blocks)
    argv = [str(compiled("heap_kept")), str(arguments.threads), str(blocks)]
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.txt"
        exact = totals(argv, "", report)
        estimates = [totals(argv, arguments.sample, report) for _ in range(runs)]
    print(f"{' '.join(argv[1:])}: {runs} runs, one allocation in {arguments.sample} on average\n")
    rows = [
        row(f"{kind}, {unit}", exact[kind, unit][0], [run[kind, unit] for run in estimates])
        for kind in KINDS
        for unit in UNITS
    ]
    table(HEAD, [cells for cells, _ in rows])
    return 0 if all(right for _, right in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
