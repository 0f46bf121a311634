"""What recording the heap costs, beside heaptrack and memray, on the same programs in the same rounds.

Prints for each program its time alone and how many times longer it takes under each tool (medians of the
rounds; of the program itself, but under memray, which is in it, of the whole command), for loops the
nanoseconds that are added to a pair of malloc and free, and pyattach's own memory as a share of the
program's peak RSS.  Tools that are not installed are left out; memray is looked for on the PATH, or named
with --memray.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import random
import re
import resource
import select
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from common import ROOT, compare, recording_heap

NATIVE = ROOT / "benchmarks" / "native"
JSON = """\
import json
for _ in range({}):
    rows = [{{"id": i, "name": f"row {{i}}", "values": [i * 0.5, i * 2, None], "tags": ["a", "b", str(i)]}}
            for i in range(20000)]
    again = json.loads(json.dumps(rows))
"""


@dataclasses.dataclass(frozen=True)
class Work:
    name: str
    argv: tuple[str, ...]
    pairs: int = 0
    """Pairs of malloc and free that each thread makes, where that is all it does."""
    stdin: str = ""
    python: bool = False


@dataclasses.dataclass(frozen=True)
class Tool:
    name: str
    prefix: tuple[str, ...]
    python_only: bool = False


def works(folder: Path, scale: float) -> list[Work]:
    storm, stl = folder / "heap_storm", folder / "heap_stl"
    subprocess.run(["cc", "-O2", "-pthread", NATIVE / "heap_storm.c", "-o", storm], check=True)
    subprocess.run(["c++", "-O2", "-std=c++17", NATIVE / "heap_stl.cc", "-o", stl], check=True)
    source = folder / "all.i"
    subprocess.run(["c++", "-E", "-std=c++17", NATIVE / "heap_stl.cc", "-o", source], check=True)
    cc1 = subprocess.run(["c++", "-print-prog-name=cc1plus"], capture_output=True, text=True, check=True)
    inserts = "".join(f"insert into t values ({i}, 'row number {i}', {i * 7 % 1000});\n" for i in range(1000))
    sql = "create table t (a integer primary key, b text, c integer); create index i on t (c);\n"
    sql += "".join(f"begin; delete from t;\n{inserts}commit;\n" for _ in range(max(1, int(80 * scale))))
    script = folder / "build_json.py"
    script.write_text(JSON.format(max(1, int(12 * scale))))

    def loops(name: str, threads: int, live: int, pairs: float) -> Work:
        count = int(pairs * scale)
        return Work(name, (str(storm), str(threads), str(live), str(count)), count)

    return [
        loops("storm, 1 thread", 1, 100_000, 15e6),
        loops("storm, 4 threads", 4, 100_000, 5e6),
        loops("tight loop, 1 thread", 1, 0, 150e6),
        loops("tight loop, 4 threads", 4, 0, 60e6),
        Work("sqlite3 inserts", ("sqlite3", ":memory:"), stdin=sql),
        Work(
            "cc1plus -O2", (cc1.stdout.strip(), "-quiet", "-O2", "-std=c++17", str(source), "-o", "/dev/null")
        ),
        Work("CPython building JSON", (sys.executable, str(script)), python=True),
        Work("C++ STL", (str(stl), str(max(1, int(8 * scale))))),
    ]


def tools(folder: Path, memray: str | None) -> list[Tool]:
    run = recording_heap(folder / "report.txt")
    out = [Tool("pyattach", (*run, "--")), Tool("sampled 512K", (*run, "--heap-sample", "512K", "--"))]
    if heaptrack := shutil.which("heaptrack"):
        out.append(Tool("heaptrack", (heaptrack, "--raw", "-o", str(folder / "heaptrack"))))
    if memray:
        arguments = (
            "run",
            "--native",
            "--trace-python-allocators",
            "-q",
            "-f",
            "-o",
            str(folder / "memray.bin"),
        )
        out.append(Tool("memray --native", (memray, *arguments), python_only=True))
    return out


def seconds(tool: Tool | None, work: Work) -> float:
    """How long the program itself runs: what it says itself, where it does, else from when it is seen (each
    millisecond) to its end.  What a tool does before and after is not in it."""
    argv = (
        (*tool.prefix, *work.argv[1:])
        if tool and tool.python_only
        else (*(tool.prefix if tool else ()), *work.argv)
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONMALLOC": "malloc", "DEBUGINFOD_URLS": ""}
    with tempfile.TemporaryFile("w+") as stdin, tempfile.TemporaryFile("w+") as stdout:
        stdin.write(work.stdin)
        stdin.seek(0)
        process = subprocess.Popen(
            argv, stdin=stdin, env=environment, stdout=stdout, stderr=subprocess.DEVNULL
        )
        inside = tool is None or tool.python_only
        pid = process.pid if inside else wait_for(process.pid, work.argv)
        begin = time.monotonic()
        ended = os.pidfd_open(pid)
        select.select([ended], [], [])
        took = time.monotonic() - begin
        os.close(ended)
        if process.wait():
            raise RuntimeError(f"{argv} ended with {process.returncode}")
        if not work.pairs:
            return took
        stdout.seek(0)
        said = re.search(r"([\d.]+) ns a pair", stdout.read())
        assert said
        return float(said[1]) * work.pairs / 1e9


def wait_for(tool: int, argv: tuple[str, ...]) -> int:
    """The process below ``tool`` that runs ``argv``."""
    words = b"\0".join(word.encode() for word in argv) + b"\0"
    while True:
        for pid in descendants(tool):
            with contextlib.suppress(OSError):
                if Path(f"/proc/{pid}/cmdline").read_bytes() == words:
                    return pid
        time.sleep(0.001)


def descendants(pid: int) -> Iterator[int]:
    with contextlib.suppress(OSError):
        for child in map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()):
            yield child
            yield from descendants(child)


def peak_rss(work: Work) -> int:
    """Bytes, of the program alone."""
    script = "import resource, subprocess, sys; subprocess.run(sys.argv[1:], stdout=-3); "
    script += "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024)"
    done = subprocess.run(
        [sys.executable, "-c", script, *work.argv], input=work.stdin, text=True, capture_output=True,
        check=True, env={**os.environ, "PYTHONMALLOC": "malloc"},
    )  # fmt: skip
    return int(done.stdout)


def own_memory(report: Path) -> float:
    found = re.search(r"own memory +([\d.]+) (\w+)", report.read_text())
    assert found
    return float(found[1]) * float(1024 ** ("B", "KiB", "MiB", "GiB").index(found[2]))


def measure(work: Work, chosen: list[Tool], rounds: int, folder: Path) -> None:
    fitting = [tool for tool in chosen if work.python or not tool.python_only]
    alone: list[float] = []
    under: dict[str, list[float]] = {tool.name: [] for tool in fitting}
    memory: dict[str, float] = {}
    for _ in range(rounds):
        # In any order: after a tool that keeps all processors busy a program may be slower for a while.
        for tool in random.sample([None, *fitting], len(fitting) + 1):
            if tool is None:
                alone.append(seconds(None, work))
                continue
            under[tool.name].append(seconds(tool, work))
            if tool.prefix[1:3] == ("-m", "pyattach"):
                memory[tool.name] = own_memory(folder / "report.txt")
    base, rss = statistics.median(alone), peak_rss(work)
    print(f"{work.name:<24} {base:7.2f} s  peak RSS {rss / 2**20:7.1f} MiB")
    slower = {name: statistics.median(times) / base for name, times in under.items()}
    peers = {name: times for name, times in slower.items() if name not in ("pyattach", "sampled 512K")}
    compare(f"heap recording: {work.name}", "times", slower["pyattach"], peers)
    for name, times in under.items():
        took = statistics.median(times)
        added = f"{(took - base) / work.pairs * 1e9:8.1f} ns a pair" if work.pairs else ""
        share = f"  own memory {100 * memory[name] / rss:5.1f}%" if name in memory else ""
        print(f"    {name:<20} {took / base:7.2f} times {added}{share}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--scale", type=float, default=1.0, help="of the programs' lengths")
    parser.add_argument("--memray", default=shutil.which("memray"))
    parser.add_argument("--only", default="", help="programs whose name has this in it")
    arguments = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        chosen = tools(folder, arguments.memray)
        for work in works(folder, arguments.scale):
            if arguments.only in work.name:
                measure(work, chosen, arguments.rounds, folder)


if __name__ == "__main__":
    main()
