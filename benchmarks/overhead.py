"""What does sampling cost?  Fixed work with and without pyattach at 99 Hz, in alternating pairs.

The work is ``xz -9 -T1`` on the same data (CPU-bound, no threads) and a Python loop.  Compared is the
CPU time that the program used, which other load on the machine disturbs less than the time it took; both
are printed.  pyattach runs as a process of its own, as users run it.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import DEADLINE_S, ROOT, arguments, machine, percentile, spread, table

RATE_HZ = 99
GOAL_PERCENT = 1.0
LOOP = "t = 0\nfor n in range({count}):\n    t = (t * 31 + n) % 1000003\n"


def cpu_and_wall_s(argv: list[str], rate_hz: int | None, output: Path) -> tuple[float, float]:
    """Run ``argv`` to its end, sampled or not; its CPU time and how long it took, seconds."""
    begin = time.monotonic()
    child = subprocess.Popen(argv, stdout=subprocess.DEVNULL)
    profiler = None
    if rate_hz is not None:
        command = [
            sys.executable,
            "-m",
            "pyattach",
            str(child.pid),
            "-q",
            "--hz",
            str(rate_hz),
            "-o",
            str(output),
        ]
        profiler = subprocess.Popen(command, cwd=ROOT)
    _, status, usage = os.wait4(child.pid, 0)
    took_s = time.monotonic() - begin
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode != 0:
        raise RuntimeError(f"{argv[0]} ended with {child.returncode}")
    if profiler is not None and (code := profiler.wait(DEADLINE_S)) != 0:
        raise RuntimeError(f"pyattach ended with {code}")
    return usage.ru_utime + usage.ru_stime, took_s


def samples_in(folded: Path) -> int:
    return sum(int(line.rpartition(" ")[2]) for line in folded.read_text().splitlines())


def ratios(argv: list[str], pairs: int, output: Path) -> tuple[list[float], list[float], list[float]]:
    """CPU time and wall time with pyattach as a ratio to those without, and CPU time of two runs without
    as a ratio of each other: what this machine calls equal."""
    cpu, wall, noise = [], [], []
    for index in range(pairs):
        # Which goes first takes turns: none gets the warmer machine.
        order = ["sampled", "plain", "again"]
        order = order[index % 3 :] + order[: index % 3]
        seen = {kind: cpu_and_wall_s(argv, RATE_HZ if kind == "sampled" else None, output) for kind in order}
        cpu.append(seen["sampled"][0] / seen["plain"][0])
        wall.append(seen["sampled"][1] / seen["plain"][1])
        noise.append(seen["again"][0] / seen["plain"][0])
    return cpu, wall, noise


def row_of(values: list[float]) -> list[str]:
    return [str(len(values)), *spread(values, 4)]


def verdict(values: list[float], noise: list[float]) -> str:
    """No verdict where two equal runs differ by more than the goal in more than one of ten pairs."""
    if 100 * (percentile([abs(ratio - 1) for ratio in noise], 0.9)) > GOAL_PERCENT:
        return "unclear: noise"
    return "met" if 100 * (statistics.median(values) - 1) <= GOAL_PERCENT else "NOT MET"


def main() -> None:
    chosen = arguments(__doc__.splitlines()[0])
    print(machine())
    pairs, size = (3, 20_000) if chosen.quick else (12, 100_000)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder, "data")
        data.write_bytes(b"".join(hashlib.sha256(b"%d" % n).hexdigest().encode() for n in range(size)))
        work = {"python loop": [sys.executable, "-c", LOOP.format(count=size * 300)]}
        if xz := shutil.which("xz"):
            work["xz -9"] = [xz, "-9", "-T1", "--stdout", str(data)]
        output = Path(folder, "o.folded")
        for name, argv in work.items():
            cpu, wall, noise = ratios(argv, pairs, output)
            samples = f"{samples_in(output):,}"
            rows.append([name, "CPU, sampled/plain", samples, *row_of(cpu), verdict(cpu, noise)])
            rows.append([name, "CPU, plain/plain", "-", *row_of(noise), "-"])
            rows.append([name, "time, sampled/plain", samples, *row_of(wall), "-"])
    print(f"\nratios at {RATE_HZ} Hz; 1.01 is one percent more; plain/plain is the noise of this machine\n")
    head = ["work", "ratio", "samples", "pairs", "median", "p90", "max", f"goal {GOAL_PERCENT:g}%"]
    table(head, rows)


if __name__ == "__main__":
    main()
