"""What sampling does to a process that executes itself, or forks, as fast as it can: does it get through,
and how much longer does it take?"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator

import common

from pyattach.attacher.clock import why_no_events

RATE_HZ = 997
CLOCKS = ["timer", "perf"]


@contextlib.contextmanager
def sampled(pid: int, clock: str) -> Iterator[list[str]]:
    """pyattach at work on ``pid`` under a clock; afterwards the list holds what it said of execs."""
    command = [sys.executable, "-m", "pyattach", str(pid), "--hz", str(RATE_HZ)]
    command += ["--clock", clock, "--no-live", "-o", "-"]
    said: list[str] = []
    with subprocess.Popen(
        command, cwd=common.ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as run:
        deadline = time.monotonic() + common.DEADLINE_S
        while "/memfd:pyattach-" not in (text := maps(pid)):
            if time.monotonic() > deadline or not text:
                raise RuntimeError("pyattach did not attach")
            time.sleep(0.01)
        try:
            yield said
        finally:
            run.terminate()
            out, _ = run.communicate(timeout=common.DEADLINE_S)
            said += [line.strip() for line in out.splitlines() if "times seen" in line]
            said.append(f"exit code {run.returncode}")


def maps(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/maps") as file:
            return file.read()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def took_s(process: subprocess.Popen[str]) -> float:
    """Tell it to begin; the seconds until it says that all is done.  Raises RuntimeError when it dies."""
    assert process.stdin is not None and process.stdout is not None
    begin = time.monotonic()
    process.stdin.write("\n")
    process.stdin.flush()
    line = process.stdout.readline()
    if line != "done\n":
        raise RuntimeError(f"it said {line!r} and ended with {process.wait()}")
    return time.monotonic() - begin


def measure(name: str, *words: object) -> None:
    with common.running("execs", *words) as process:
        alone_s = took_s(process)
    for clock in CLOCKS:
        with common.running("execs", *words) as process, sampled(process.pid, clock) as said:
            with_s = took_s(process)
        times = f"alone {alone_s:6.2f} s  sampled {with_s:6.2f} s"
        print(f"{name:>14}  {clock:5}  {times}  none died  {'; '.join(said)}", flush=True)


def main() -> None:
    quick = common.arguments(__doc__ or "").quick
    print(common.machine())
    if why := why_no_events(os.getpid()):
        print(f"without perf: {why}")
        CLOCKS.remove("perf")
    execs, forks = (60, 1000) if quick else (500, 10_000)
    measure(f"{execs} execs", execs, 2)
    measure(f"{execs} execs slow", execs, 50)
    measure(f"{forks} forks", "-f", forks)


if __name__ == "__main__":
    main()
