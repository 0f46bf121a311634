"""How long is the target held?  The borrowed thread by pyattach's own figures, the others by a program
that reads the clock without a pause.

Held time is from the request to stop until the thread is back in its own code, so it includes what the
borrowed thread did for us.  Another thread is never stopped; what it sees is scheduling: pyattach and the
borrowed thread want a processor.  So beside it stand the same time without an attach, and with pyattach at
the same work on another process: no larger gap than that is what "not stopped" means.

gdb attaches, calls a function and detaches, as profilers do that bring in their code by gdb.  The last table
counts the system calls of blocked threads that reported EINTR.
"""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
import time

from common import arguments, compare, machine, running, spread, table

from pyattach.attacher.contract import Options
from pyattach.attacher.sampling import Session
from pyattach.attacher.session import attach as run_session
from pyattach.attacher.target import TargetProcess
from pyattach.errors import PyattachError, UnsupportedTarget

GOAL_US = 1000.0
CASES = [
    ("split, busy", ("split",)),
    ("quiet, blocked", ("quiet",)),
    ("threads, 3 blocked", ("threads", 0, 3)),
    ("threads, 2 busy 3 blocked", ("threads", 2, 3)),
]
STEPS = {"load": 0, "stop": -2, "unload": -1}
SAMPLED_S = 0.2


def held_us(pid: int, loader: str) -> list[float]:
    """One attach and detach: microseconds held at load, stop and unload.  Raises PyattachError."""
    with TargetProcess(pid) as target:
        session = Session(target, Options(loader=loader, duration_s=SAMPLED_S))
        try:
            session.load()
            try:
                session.sample(lambda: False, lambda _progress: None)
            finally:
                session.detach()
            return [ns / 1e3 for ns in session.stub.held_ns]
        finally:
            session.close()


def borrowed_thread(times: int) -> None:
    rows = []
    for title, words in CASES:
        for loader in ("auto", "dlopen", "map"):
            runs: list[list[float]] = []
            refused = 0
            with running(str(words[0]), *words[1:]) as process:
                for _ in range(times):
                    try:
                        runs.append(held_us(process.pid, loader))
                    except PyattachError as error:
                        refused += 1
                        if refused == 1:
                            print(f"{title}, {loader}: refused: {error.what}")
                        if not runs:
                            break
            # A thread that was armed by borrowing adds a hold between load and stop; where unloading was
            # not possible there is none for it.
            whole = [run for run in runs if len(run) >= len(STEPS)]
            for step, at in STEPS.items():
                values = [run[at] for run in whole]
                goal = "-" if not values else "met" if statistics.median(values) <= GOAL_US else "NOT MET"
                rows.append([title, loader, step, f"{len(whole)}", *spread(values), goal])
            if len(whole) < len(runs):
                print(f"{title}, {loader}: {len(runs) - len(whole)} of {len(runs)} runs did not unload")
    print("\nhow long the borrowed thread was held, as pyattach reports it\n")
    head = ["target", "loader", "step", "runs", "median us", "p90 us", "max us"]
    table([*head, f"median <= {GOAL_US:,.0f} us"], rows)
    for which, of in ("by default", ("auto",)), ("where the loader is chosen by hand", ("dlopen", "map")):
        verdicts = [row[-1] for row in rows if row[1] in of and row[-1] != "-"]
        print(f"\n{which}: goal met by {verdicts.count('met')} of {len(verdicts)} medians")


class Gaps:
    """tests/targets/gap.c: the largest gap its spinning thread saw since ``reset``."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def reset(self) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write("reset\n")
        self._process.stdin.flush()
        if self._process.stdout.readline() != "reset\n":
            raise RuntimeError("gap did not answer")

    def largest_us(self) -> tuple[float, float]:
        """The largest, and the largest without what the scheduler gave to others.  Ends the program."""
        out, _ = self._process.communicate(timeout=30)
        said = json.loads(out)
        return said["largest_gap_ns"] / 1e3, said["largest_held_ns"] / 1e3


WITHOUT = "without"
KINDS = {
    WITHOUT: ("", False),
    "map, another process": ("map", True),
    "map": ("map", False),
    "dlopen, another process": ("dlopen", True),
    "dlopen": ("dlopen", False),
    "gdb": ("gdb", False),
}
"""How to load, and whether into a process beside the one that is looked at.  The other one's threads
sleep, as do those that may be borrowed in the one that is looked at."""


def gap_us(kind: str) -> tuple[float, float]:
    """The largest gaps over one session, or over as long without one."""
    loader, beside = KINDS[kind]
    with running("gap") as process, running("threads", 0, 2) as other:
        gaps = Gaps(process)
        gaps.reset()
        if kind == WITHOUT:
            time.sleep(SAMPLED_S + 0.15)
        else:
            attach_by(loader, other.pid if beside else process.pid)
        return gaps.largest_us()


def attach_by(loader: str, pid: int) -> None:
    """One attach and detach by pyattach, or by gdb.  Raises PyattachError."""
    if loader != "gdb":
        options = Options(loader=loader, duration_s=SAMPLED_S)
        run_session(pid, options, lambda: False, lambda _progress: None)
        return
    gdb = shutil.which("gdb")
    if gdb is None:
        raise UnsupportedTarget("gdb is not installed")
    call = ["-iex", "set debuginfod enabled off", "-ex", "call (int)getpid()", "-ex", "detach"]
    subprocess.run([gdb, "-nx", "-batch", "-p", str(pid), *call], capture_output=True, check=True)


def interruptions(times: int) -> None:
    rows = []
    for loader in ("map", "dlopen", "gdb"):
        for title, words in CASES[2:]:
            seen = 0
            with running(str(words[0]), *words[1:]) as process:
                try:
                    for _ in range(times):
                        attach_by(loader, process.pid)
                except PyattachError as error:
                    print(f"{title}, {loader}: refused: {error.what}")
                    continue
                out, _ = process.communicate(timeout=30)
                seen = int(out.split()[1])
            rows.append([title, loader, str(times), str(seen)])
    print("\nsystem calls of blocked threads (futex, nanosleep, epoll_wait, read) that reported EINTR\n")
    table(["target", "attach", "runs", "EINTR"], rows)


def other_threads(times: int) -> None:
    rows = []
    seen: dict[str, list[tuple[float, float]]] = {kind: [] for kind in KINDS}
    refused: dict[str, str] = {}
    for _ in range(times):
        for kind, values in seen.items():
            if kind in refused and not values:
                continue
            try:
                values.append(gap_us(kind))
            except PyattachError as error:
                refused.setdefault(kind, error.what)
    for kind, why in refused.items():
        print(f"gap, {kind}: refused: {why}")
    medians = {
        kind: statistics.median(all_us for all_us, _ in values) for kind, values in seen.items() if values
    }
    if "map" in medians:
        gdb = {name: medians[name] for name in ("gdb",) if name in medians}
        compare("gap that a thread sees while another attaches", "us", medians["map"], gdb)
    for kind, values in seen.items():
        for column, what in enumerate(("all", "held")):
            rows.append([kind, what, str(len(values)), *spread([gaps[column] for gaps in values])])
    print(
        "\nlargest gap seen by a spinning thread of the target over one attach, 0.2 s of samples and detach\n"
        "(the borrowed one sleeps), over as long with pyattach at work on another process, and without.\n"
        "held: without the time it was ready and the scheduler ran others\n"
    )
    table(["attach", "gap", "runs", "median us", "p90 us", "max us"], rows)


def main() -> None:
    chosen = arguments(__doc__.splitlines()[0])
    print(machine())
    borrowed_thread(3 if chosen.quick else 20)
    other_threads(3 if chosen.quick else 20)
    interruptions(3 if chosen.quick else 20)


if __name__ == "__main__":
    main()
