"""All benchmarks in one run, pyattach beside its peers: ``make bench``, or ``make bench-quick`` in minutes.

Runs the scripts beside this one, one after the other, and writes ``benchmarks/RESULTS.md``: a table of
pyattach beside each peer, row by row, with what it would take where pyattach is not ahead; then what each
script has printed; and a chart of each row in ``benchmarks/results/``.  What can't be measured here (a peer
that is not installed, a machine without perf events) is left out by the script, which says so.

It takes more than an hour.  What each part has said is kept in ``build/bench``: ``--resume`` goes on with the
parts that are not there, or have failed; RESULTS.md says of each when and of which commit it was measured.

The exit code is 1 where a script has failed, or where a row is neither ahead nor explained.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from common import ROOT, ROWS_VARIABLE, machine

HERE = Path(__file__).resolve().parent
RESULTS, CHARTS, KEPT = HERE / "RESULTS.md", HERE / "results", ROOT / "build" / "bench"


@dataclasses.dataclass(frozen=True)
class Part:
    """A script, how it is called for the whole measurement, and for a look that takes a minute at most."""

    title: str
    script: str
    whole: tuple[str, ...] = ()
    quick: tuple[str, ...] = ("--quick",)


PARTS = (
    Part("From the command to the first sample", "latency.py"),
    Part("How long the target is held", "hold.py"),
    Part("Are targets hurt?", "hangs.py"),
    Part(
        "Slowdown of a program at work", "slowdown.py", ("--part", "programs", "--pairs", "5"),
        ("--part", "programs", "--quick", "--programs", "cpython", "--rates", "99"),
    ),
    Part(
        "What a tick costs", "slowdown.py", ("--part", "ticks", "--pairs", "10"),
        ("--part", "ticks", "--quick"),
    ),
    Part("Many threads", "many_threads.py", ("--rounds", "3")),
    Part("Rates and shares by clock", "clocks.py", ("--part", "rates"), ("--part", "rates", "--quick")),
    Part("Shares of threads", "threads.py", (), ("--quick",)),
    Part("Shares of functions", "accuracy.py"),
    Part("Complete stacks", "complete.py", ("--samples", "3000"), ("--quick", "sqlite3", "xz -9")),
    Part("A warm frame", "unwind_cost.py"),
    Part("pyattach's own CPU time", "own_cpu.py", (), ("--quick", "--targets", "1 busy thread")),
    Part("Names and lines", "symbols.py"),
    Part("Flame graphs", "render.py", (), ("--lines", "10000", "--frames", "10000")),
    Part(
        "Recording the heap", "heap_cost.py", ("--rounds", "3", "--scale", "0.5"),
        ("--rounds", "1", "--scale", "0.1", "--only", "tight"),
    ),
    Part("Sampled totals of the heap", "heap_sampled.py"),
)  # fmt: skip

EXPLAINED = {
    r"first sample": (
        "perf, py-spy and austin look from outside and bring no code into the process; most of our time is "
        "Python's start. It would take a compiled launcher."
    ),
    r"slowdown of .* at \d+ Hz": (
        "A tick of perf that signals a thread is dear on a virtual machine, a timer's comes with the "
        "kernel's own (`--clock timer`, at most CONFIG_HZ and in step with it, as gperftools). py-spy "
        "stops its target: that costs it time and no CPU time. It would take a cheaper event in the kernel."
    ),
    r"flame graph of .*": (
        "inferno is compiled, and keeps no profile in the picture. It would take a compiled renderer."
    ),
}
"""What it would take, for rows (regular expressions) in which a peer may be ahead."""


@dataclasses.dataclass(frozen=True)
class Ran:
    """What a script has printed, its exit code, and seconds; its rows for the table; when, and the commit."""

    said: str
    code: int
    took_s: float
    rows: list[dict[str, Any]]
    when: str
    commit: str

    def section(self, part: Part) -> str:
        failed = f", failed with {self.code}" if self.code else ""
        note = f"`{part.script}`, {self.took_s:.0f} s, {self.when}, {self.commit}{failed}"
        return f"## {part.title}\n\n{note}\n\n```text\n{self.said.strip()}\n```\n"


def ran(part: Part, quick: bool) -> Ran:
    """Run the part's script."""
    with tempfile.NamedTemporaryFile() as rows:
        when = time.strftime("%Y-%m-%d %H:%M")
        said, code, took_s = said_by(part, quick, Path(rows.name))
        lines = Path(rows.name).read_text().splitlines()
    return Ran(said, code, took_s, [json.loads(line) for line in lines], when, commit())


def kept(part: Part, quick: bool, resume: bool) -> Ran:
    """What the part has said before, where that is to do; else what it says now."""
    path = KEPT / f"{'quick-' if quick else ''}{part.title.lower().replace(' ', '-').replace('?', '')}.json"
    if resume and path.exists():
        before = Ran(**json.loads(path.read_text()))
        if not before.code:
            print(f"\n== {part.title}: measured {before.when}", flush=True)
            return before
    result = ran(part, quick)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(dataclasses.asdict(result)))
    return result


def said_by(part: Part, quick: bool, rows: Path) -> tuple[str, int, float]:
    """What the script has printed, its exit code, and seconds."""
    words = [sys.executable, str(HERE / part.script), *(part.quick if quick else part.whole)]
    print(f"\n== {part.title}: {' '.join(words[1:])}", flush=True)
    begun = time.monotonic()
    said = []
    with subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment(rows), cwd=ROOT
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            said.append(line)
    return "".join(said), process.returncode, time.monotonic() - begun


def environment(rows: Path) -> dict[str, str]:
    """Peers that pip has installed are beside this Python."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return {
        **os.environ,
        "PATH": path,
        ROWS_VARIABLE: str(rows),
        "PYTHONPATH": str(ROOT),
        "PYTHONUNBUFFERED": "1",
    }


VERSIONS = {
    "perf": ("perf", "--version"),
    "py-spy": ("py-spy", "--version"),
    "austin": ("austin", "--version"),
    "memray": ("memray", "--version"),
    "heaptrack": ("heaptrack", "--version"),
    "gdb": ("gdb", "--version"),
    "go tool pprof": ("go", "version"),
}


def commit() -> str:
    words = ["git", "describe", "--always", "--dirty"]
    found = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    return f"commit {found.stdout.strip()}" if found.stdout.strip() else "not from a checkout"


def versions() -> Iterator[str]:
    path = environment(HERE)["PATH"]
    for name, words in VERSIONS.items():
        if found := shutil.which(words[0], path=path):
            done = subprocess.run([found, *words[1:]], capture_output=True, text=True, check=False)
            said = (done.stdout or done.stderr).strip().splitlines()[0]
            yield (
                f"{name}: {said.rpartition(': ')[2]}, so it does not run here"
                if done.returncode
                else f"{name}: {said}"
            )
        else:
            yield f"{name}: not installed"


def is_ahead(row: dict[str, Any], peer: float) -> bool:
    return bool(row["ours"] >= peer if row["more"] else row["ours"] <= peer)


def is_noise(row: dict[str, Any], peer: str) -> bool:
    """Whether the peer's figure and ours may be the same: where each lies was measured, and is told."""
    intervals = row.get("intervals", {})
    if peer not in intervals:
        return False
    (low, high), (its_low, its_high) = intervals["pyattach"], intervals[peer]
    return bool(low <= its_high and its_low <= high)


def explained(name: str) -> str:
    return next((text for pattern, text in EXPLAINED.items() if re.fullmatch(pattern, name)), "")


def at_a_glance(rows: list[dict[str, Any]]) -> tuple[list[str], list[str]]:
    """The lines of the table, and the rows that are neither ahead nor explained."""
    lines = ["| | unit | pyattach | peers | |", "|---|---|---:|---|---|"]
    open_rows = []
    for row in rows:
        peers = sorted(row["peers"].items(), key=lambda item: item[1], reverse=row["more"])
        same = [name for name, _ in peers if is_noise(row, name)]
        behind = [name for name, value in peers if not is_ahead(row, value) and name not in same]
        shown = ", ".join(f"{name} {value:,.3g}" for name, value in peers)
        verdict = f"behind {', '.join(behind)}: {explained(row['row'])} " if behind else ""
        if same:
            verdict += f"no difference to {', '.join(same)} above the noise"
        elif not behind:
            verdict = "ahead"
        if behind and not explained(row["row"]):
            open_rows.append(row["row"])
        lines.append(f"| {row['row']} | {row['unit']} | {row['ours']:,.3g} | {shown} | {verdict} |")
    return lines, open_rows


def chart(row: dict[str, Any], folder: Path) -> Path:
    """A bar for each, as SVG."""
    import pygal

    bars = pygal.HorizontalBar(
        show_legend=False, height=90 + 34 * (1 + len(row["peers"])), width=760, print_values=True,
        title=f"{row['row']}, {row['unit']} ({'more' if row['more'] else 'less'} is better)",
    )  # fmt: skip
    names = ["pyattach", *row["peers"]]
    bars.x_labels = names[::-1]
    values = [row["ours"], *row["peers"].values()]
    colours = ["#e07b39", *["#8aa4b8"] * len(row["peers"])]
    bars.add("", [{"value": v, "color": c} for v, c in zip(values[::-1], colours[::-1], strict=True)])
    path = folder / (re.sub(r"[^a-z0-9]+", "-", row["row"].lower()).strip("-") + ".svg")
    bars.render_to_file(str(path))
    return path


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a few runs only: to see that it works")
    parser.add_argument("--only", default="", metavar="WORD", help="parts with this in the title or script")
    parser.add_argument("--resume", action="store_true", help="go on where a run was interrupted")
    parser.add_argument("-o", "--output", type=Path, default=RESULTS, help="default: benchmarks/RESULTS.md")
    chosen = parser.parse_args()
    head = [machine(), *versions()]
    print(*head, sep="\n")
    wanted = [part for part in PARTS if chosen.only in part.title or chosen.only in part.script]
    results: dict[Part, Ran] = {}
    open_rows: list[str] = []
    for part in wanted:
        results[part] = kept(part, chosen.quick, chosen.resume)
        open_rows = write(chosen.output, head, results, missing=wanted[len(results) :], quick=chosen.quick)
    failed = [part.title for part, result in results.items() if result.code]
    for title in failed:
        print(f"failed: {title}")
    for name in open_rows:
        print(f"behind, and not explained: {name}")
    return int(bool(failed or open_rows))


def write(
    output: Path, head: list[str], results: dict[Part, Ran], *, missing: list[Part], quick: bool
) -> list[str]:
    """RESULTS.md, and in the end a chart of each row; returns the rows that are neither ahead nor explained.

    Written after each part: a run that is interrupted leaves what it has."""
    rows = [row for result in results.values() for row in result.rows]
    lines, open_rows = at_a_glance(rows)
    how = "a quick run: figures of a few rounds only" if quick else "a whole run"
    if missing:
        how += f"; not measured yet: {', '.join(part.title for part in missing)}"
    text = [
        "# pyattach beside its peers", "", f"Written by `make bench` ({how}).", "",
        *(f"- {line}" for line in head), "", "## At a glance", "", *lines, "",
        *(result.section(part) for part, result in results.items()),
    ]  # fmt: skip
    output.write_text("\n".join(text))
    if not missing:
        CHARTS.mkdir(exist_ok=True)
        for row in rows:
            chart(row, CHARTS)
        print(f"\nwrote {output} and {len(rows)} charts in {CHARTS}", *lines, sep="\n")
    return open_rows


if __name__ == "__main__":
    sys.exit(main())
