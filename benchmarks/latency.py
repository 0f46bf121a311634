"""How long until the first sample?  From the command's start to the first sample that is of use.

Of pyattach by the time that its first sample bears (``-f firefox``); of perf by its first event's, on
the same clock. Of the others, which tell no absolute times, by what each shows at its soonest: py-spy's
``dump`` is one sample, from start to end; austin writes each sample as it comes; heaptrack says when it
is in; memray's file begins to grow; gdb, as those use it, has called one function and let go. All but
austin and py-spy get into a native process or look at it from the kernel; those two read CPython's
memory.

The target is a busy CPython, the same for all; for pyattach a native program and one that sleeps, too.
Runs are in turns. "imported" is the time that the command's own start takes, without a target
(``--version``).
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import select
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from common import compare, machine, parser_of, running, spread, table
from profilers import py_spy

LIMIT_S = 20.0
"""What takes longer hangs."""

GOAL_MS = 250.0
GOAL_OF_INJECTORS = 0.5

PYTHON_LOOP = """
import sys, threading
def work():
    while True: sum(i * i for i in range(1000))
threading.Thread(target=work, daemon=True).start()
print("ready", flush=True)
sys.stdin.read()
"""

Measure = Callable[[int, Path], float]
"""The process, a folder for files: seconds until the first sample."""


def by_pyattach(*options: str) -> Measure:
    def measure(pid: int, folder: Path) -> float:
        output = folder / "pyattach.firefox.json"
        words = [sys.executable, "-m", "pyattach", str(pid), "-d", "300ms", "--no-live", *options]
        begun = time.time()
        subprocess.run([*words, "-o", output], check=True, capture_output=True, timeout=LIMIT_S)
        document = json.loads(output.read_text())
        first_ms = min(min(t["samples"]["time"]) for t in document["threads"] if t["samples"]["time"])
        return float(document["meta"]["startTime"] + first_ms) / 1e3 - begun

    return measure


def start_only(_pid: int, _folder: Path) -> float:
    begun = time.monotonic()
    subprocess.run(
        [sys.executable, "-m", "pyattach", "--version"], check=True, capture_output=True, timeout=LIMIT_S
    )
    return time.monotonic() - begun


def by_perf(pid: int, folder: Path) -> float:
    data = folder / "perf.data"
    words = [
        "perf",
        "record",
        "-q",
        "-F",
        "99",
        "-g",
        "-k",
        "CLOCK_MONOTONIC",
        "-p",
        str(pid),
        "-o",
        str(data),
    ]
    begun = time.clock_gettime(time.CLOCK_MONOTONIC)
    subprocess.run([*words, "--", "sleep", "0.3"], check=True, capture_output=True, timeout=LIMIT_S)
    script = ["perf", "script", "-i", str(data), "-F", "time", "--ns", "-G"]
    times = subprocess.run(script, check=True, capture_output=True, text=True, timeout=LIMIT_S).stdout.split()
    return float(times[0].rstrip(":")) - begun


def by_py_spy_dump(pid: int, _folder: Path) -> float:
    begun = time.monotonic()
    subprocess.run(
        [py_spy() or "", "dump", "--pid", str(pid)], check=True, capture_output=True, timeout=LIMIT_S
    )
    return time.monotonic() - begun


def by_austin(pid: int, _folder: Path) -> float:
    begun = time.monotonic()
    words = ["stdbuf", "-oL", "austin", "-i", "10ms", "-p", str(pid)]  # else it writes by the 4 KB
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        try:
            assert process.stdout is not None
            for line in process.stdout:  # it ends with the target at the latest
                if line.strip() and not line.startswith(b"#"):
                    return time.monotonic() - begun
        finally:
            process.terminate()
    raise RuntimeError("austin has written no sample")


def by_gdb(pid: int, _folder: Path) -> float:
    call = ["-iex", "set debuginfod enabled off", "-ex", "call (int)getpid()", "-ex", "detach"]
    begun = time.monotonic()
    subprocess.run(
        ["gdb", "-nx", "-batch", "-p", str(pid), *call], capture_output=True, check=True, timeout=LIMIT_S
    )
    return time.monotonic() - begun


def by_heaptrack(pid: int, folder: Path) -> float:
    """It injects itself by gdb, and lives on in the target: for targets that are killed after."""
    begun = time.monotonic()
    words = ["heaptrack", "--raw", "-o", str(folder / "heaptrack"), "-p", str(pid)]
    with subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    ) as process:
        assert process.stdout is not None
        try:
            while select.select([process.stdout], [], [], LIMIT_S)[0]:
                line = process.stdout.readline()
                if "injection finished" in line:
                    return time.monotonic() - begun
                if not line:
                    break
        finally:
            os.killpg(process.pid, signal.SIGKILL)  # it is a script, and has others running
    raise RuntimeError("heaptrack did not say that it is in")


def by_memray(pid: int, folder: Path) -> float:
    """``memray attach -o``: until its file is there."""
    output = folder / f"memray-{time.monotonic_ns()}.bin"
    begun = time.monotonic()
    subprocess.run(
        ["memray", "attach", "-o", str(output), str(pid)], check=True, capture_output=True, timeout=LIMIT_S
    )
    while not (output.exists() and output.stat().st_size):
        if time.monotonic() > begun + LIMIT_S:
            raise RuntimeError("memray has written nothing")
        time.sleep(0.005)
    return time.monotonic() - begun


@contextlib.contextmanager
def python_loop() -> Iterator[int]:
    words = [sys.executable, "-c", PYTHON_LOOP]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            process.stdout.readline()
            yield process.pid
        finally:
            process.kill()


@contextlib.contextmanager
def native(*words: object) -> Iterator[int]:
    with running(*map(str, words)) as process:
        yield process.pid


Case = tuple[str, str, Callable[[], contextlib.AbstractContextManager[int]], Measure, str]
"""Profiler, target, how to start that, how to measure, and what must be installed."""

INJECTORS = ("gdb", "heaptrack -p", "memray attach")

CASES: list[Case] = [
    ("start alone", "-", lambda: contextlib.nullcontext(0), start_only, ""),
    ("pyattach", "CPython", python_loop, by_pyattach(), ""),
    ("pyattach", "native, busy", lambda: native("split"), by_pyattach(), ""),
    ("pyattach, timers", "native, busy", lambda: native("split"), by_pyattach("--clock", "timer"), ""),
    ("pyattach, wall", "native, asleep", lambda: native("quiet"), by_pyattach("--mode", "wall"), ""),
    ("perf record", "CPython", python_loop, by_perf, "perf"),
    ("py-spy dump", "CPython", python_loop, by_py_spy_dump, "py-spy"),
    ("austin", "CPython", python_loop, by_austin, "austin"),
    ("gdb", "CPython", python_loop, by_gdb, "gdb"),
    ("heaptrack -p", "CPython", python_loop, by_heaptrack, "heaptrack"),
    ("memray attach", "CPython", python_loop, by_memray, "memray"),
]


def installed(command: str) -> bool:
    return not command or bool(py_spy() if command == "py-spy" else shutil.which(command))


def main() -> None:
    parser = parser_of(__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=15)
    chosen = parser.parse_args()
    runs = 2 if chosen.quick else chosen.runs
    print(machine())
    seen: dict[int, list[float]] = {at: [] for at in range(len(CASES))}
    why: dict[int, str] = {}
    for _ in range(runs):
        for at in random.sample(range(len(CASES)), len(CASES)):
            name, _, target, measure, needs = CASES[at]
            if not installed(needs):
                why[at] = "not installed"
            if at in why and not seen[at]:
                continue  # nor will it be otherwise the next time
            with tempfile.TemporaryDirectory() as folder, target() as pid:
                try:
                    seen[at].append(1e3 * measure(pid, Path(folder)))
                except subprocess.TimeoutExpired:
                    why[at] = f"hung for {LIMIT_S:g} s"
                except (subprocess.CalledProcessError, RuntimeError, OSError) as error:
                    why[at] = f"failed: {error}"[:60]
    medians = {at: statistics.median(values) for at, values in seen.items() if values}
    injectors = [ms for at, ms in medians.items() if CASES[at][0] in INJECTORS]
    rows = []
    for at, (name, target_name, _, _, _) in enumerate(CASES):
        if at not in medians:
            rows.append([name, target_name, "0", "-", "-", "-", why.get(at, "")])
            continue
        goal = "-"
        if name.startswith("pyattach"):
            limit = min([GOAL_MS, *(GOAL_OF_INJECTORS * ms for ms in injectors)])
            goal = f"< {limit:.0f}: {'met' if medians[at] < limit else 'NOT MET'}"
        rows.append([name, target_name, f"{len(seen[at])}", *spread(seen[at]), goal])
    said = {CASES[at][0]: ms for at, ms in medians.items()}
    if "pyattach" in said:
        on_python = next(ms for at, ms in medians.items() if CASES[at][:2] == ("pyattach", "CPython"))
        peers = {name: ms for name, ms in said.items() if not name.startswith(("pyattach", "start"))}
        compare("first sample", "ms", on_python, peers)
    print("\nfrom the command's start to the first sample\n")
    table(["profiler", "target", "runs", "median ms", "p90 ms", "max ms", "goal"], rows)


if __name__ == "__main__":
    os.environ.setdefault("PYTHONPATH", str(Path(__file__).resolve().parent.parent))
    main()
