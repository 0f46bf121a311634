"""What the benchmarks share: programs to measure on, statistics, and the table they print.

Run alone it only describes the machine.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TARGETS = ROOT / "tests" / "targets"
BUILD = TARGETS / "build" / "benchmarks"
DEADLINE_S = 120

sys.path.insert(0, str(ROOT))


def parser_of(description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="a few runs only: to see that it works")
    return parser


def arguments(description: str) -> argparse.Namespace:
    return parser_of(description).parse_args()


def machine() -> str:
    """One line: processor, how many, kernel, Python, and the load there is already."""
    model = "unknown processor"
    with open("/proc/cpuinfo") as info:
        for line in info:
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
    load = os.getloadavg()[0]
    count = len(os.sched_getaffinity(0))
    versions = f"Linux {platform.release()}, Python {platform.python_version()}"
    return f"{model}, {count} CPUs, {versions}, load {load:.1f}"


def program(name: str) -> Path:
    """A program of tests/targets, compiled as the tests do."""
    output = BUILD / name
    source = TARGETS / f"{name}.c"
    newest = max(path.stat().st_mtime for path in (source, TARGETS / "target.h"))
    if not output.exists() or output.stat().st_mtime < newest:
        BUILD.mkdir(parents=True, exist_ok=True)
        compiler = shlex.split(os.environ.get("CC", "")) or ["cc"]
        flags = ["-std=gnu11", "-O2", "-fno-omit-frame-pointer", "-pthread"]
        subprocess.run([*compiler, *flags, str(source), "-o", str(output), "-ldl"], check=True)
    return output


def compiled(name: str, *, library: bool = False) -> Path:
    """A program of benchmarks/native that needs nothing else, or a library to be preloaded."""
    output, source = BUILD / name, Path(__file__).parent / "native" / f"{name}.c"
    if not output.exists() or output.stat().st_mtime < source.stat().st_mtime:
        BUILD.mkdir(parents=True, exist_ok=True)
        compiler = shlex.split(os.environ.get("CC", "")) or ["cc"]
        shared = ["-shared", "-fPIC"] if library else []
        subprocess.run([*compiler, "-std=gnu11", "-O2", *shared, str(source), "-o", str(output)], check=True)
    return output


@contextlib.contextmanager
def running(name: str, *words: object) -> Iterator[subprocess.Popen[str]]:
    """The program, once it has said "ready"; killed at the end."""
    argv = [str(program(name)), *map(str, words)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            if process.stdout.readline() != "ready\n":
                raise RuntimeError(f"{name} did not start")
            yield process
        finally:
            process.kill()


def percentile(values: Sequence[float], share: float) -> float:
    """The value that ``share`` of them do not exceed (nearest rank)."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, round(share * len(ordered) + 0.5) - 1))]


def spread(values: Sequence[float], digits: int = 0) -> list[str]:
    """Median, p90 and maximum, as cells of a table."""
    if not values:
        return ["-", "-", "-"]
    figures = (statistics.median(values), percentile(values, 0.9), max(values))
    return [f"{figure:,.{digits}f}" for figure in figures]


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print it; the first column to the left, the others to the right."""
    widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head))]
    for row in (head, ["-" * width for width in widths], *rows):
        cells = [
            row[0].ljust(widths[0]),
            *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True)),
        ]
        print("  ".join(cells).rstrip())


ROWS_VARIABLE = "PYATTACH_BENCH_ROWS"


def compare(
    row: str,
    unit: str,
    ours: float,
    peers: Mapping[str, float],
    *,
    more: bool = False,
    intervals: Mapping[str, tuple[float, float]] | None = None,
) -> None:
    """A row of what ``make bench`` shows at a glance: our figure beside the peers'; ``more``: more is better.
    ``intervals``: where a figure lies, of "pyattach" and of peers, if noise is to be told from a difference.

    Into the file that the environment names; without it nothing.
    """
    if peers and (path := os.environ.get(ROWS_VARIABLE)):
        line = {"row": row, "unit": unit, "ours": ours, "peers": dict(peers), "more": more}
        line["intervals"] = dict(intervals or {})
        with open(path, "a") as file:
            file.write(json.dumps(line) + "\n")


def recording_heap(report: Path, *options: str) -> list[str]:
    """The command that records the heap of what stands behind ``--``, and writes ``report``."""
    words = [sys.executable, "-m", "pyattach", "run", "-q", "--heap", "--no-leaks"]
    return [*words, *options, "-o", str(report)]


if __name__ == "__main__":
    print(machine())
