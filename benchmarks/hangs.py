"""Do targets live through being attached to?  Each way of getting in, on a malloc storm.

The storm (tests/targets/storm.c) is four threads that allocate and free without a pause and check what
they have: most moments are in the allocator, some with its lock held.  Each target, a new one each time, is
attached to once, at a random moment, let work on for a moment, let go where that is possible, and told to
end: it must end by itself, with the right output.  heaptrack stays in the target; where it is killed, as
people do, its hooks stay too.
"""

from __future__ import annotations

import collections
import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from common import ROOT, compare, machine, parser_of, table

sys.path.insert(0, str(ROOT / "tests"))

from storms import STORMS

ATTACH_S = 20.0
WORK_S = 0.2

How = Callable[[int, Path], str]
"""Attach to a process and let go; "" or what the profiler said of not having got in."""


def quiet(*words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(word) for word in words], capture_output=True, text=True, timeout=ATTACH_S, check=False
    )


def by_pyattach(*options: str) -> How:
    def attach(pid: int, folder: Path) -> str:
        words = (*options, "-p", pid, "-d", f"{WORK_S}s", "-o", folder / "o.folded")
        done = quiet(sys.executable, "-m", "pyattach", *words)
        return done.stderr.strip().splitlines()[0][:60] if done.returncode else ""

    return attach


def by_gdb_dlopen(pid: int, _folder: Path) -> str:
    """What injectors that go by gdb do: call dlopen wherever the thread is."""
    library = next(Path("/usr/lib").glob("*-linux-gnu/libz.so.1"))
    call = [
        "-iex",
        "set debuginfod enabled off",
        "-ex",
        f'call (void*)dlopen("{library}", 2)',
        "-ex",
        "detach",
    ]
    quiet("gdb", "-nx", "-batch", "-p", pid, *call)
    time.sleep(WORK_S)
    return ""


def by_heaptrack(pid: int, folder: Path) -> str:
    with subprocess.Popen(
        ["heaptrack", "--raw", "-o", str(folder / "heaptrack"), "-p", str(pid)],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    ) as process:  # fmt: skip
        time.sleep(1 + WORK_S)
        os.killpg(process.pid, signal.SIGTERM)  # it is a script, and has gdb and others running
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(ATTACH_S)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    return ""


WAYS: list[tuple[str, How, str]] = [
    ("pyattach", by_pyattach(), ""),
    ("pyattach heap", by_pyattach("heap"), ""),
    ("gdb, dlopen", by_gdb_dlopen, "gdb"),
    ("heaptrack -p", by_heaptrack, "heaptrack"),
]


def one(how: How) -> str:
    """What came of one target: "right", or how it ended, or why it was not attached to."""
    with tempfile.TemporaryDirectory() as folder, STORMS["malloc"]() as (pid, verdict):
        time.sleep(random.random() * 0.05)
        try:
            refused = how(pid, Path(folder))
        except subprocess.TimeoutExpired:
            refused = f"did not come back within {ATTACH_S:g} s"
        end = verdict()
    return end.split(",")[0] if end != "right" else f"refused: {refused}" if refused else "right"


def main() -> None:
    parser = parser_of(__doc__.splitlines()[0])
    parser.add_argument("--targets", type=int, default=30, help="for each way of getting in")
    chosen = parser.parse_args()
    targets = 2 if chosen.quick else chosen.targets
    print(machine())
    rows, hurt = [], {}
    for name, how, needs in WAYS:
        if needs and not shutil.which(needs):
            rows.append([name, "0", "-", "not installed"])
            continue
        ends = collections.Counter(one(how) for _ in range(targets))
        bad = targets - ends["right"] - sum(n for end, n in ends.items() if end.startswith("refused"))
        hurt[name] = 100 * bad / targets
        what = ", ".join(f"{n} {end}" for end, n in ends.most_common())
        rows.append([name, str(targets), str(bad), what])
        print(f"{name}: {what}", flush=True)
    print("\ntargets that were hurt (hung, crashed, wrong output) by being attached to once\n")
    table(["way", "targets", "hurt", "ends"], rows)
    compare(
        "targets hurt in a malloc storm", "%", hurt["pyattach"],
        {name: share for name, share in hurt.items() if not name.startswith("pyattach")},
    )  # fmt: skip


if __name__ == "__main__":
    os.environ.setdefault("PYTHONPATH", str(ROOT))
    main()
