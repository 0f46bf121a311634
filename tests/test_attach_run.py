"""The command in a subprocess, as a user runs it: how the other test_attach files start, watch and end
it, and its plainest run."""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import support

from pyattach.attacher.clock import why_no_events
from pyattach.attacher.contract import Options
from pyattach.attacher.sampling import Session
from pyattach.attacher.target import TargetProcess

ROOT = Path(__file__).resolve().parent.parent
COMMAND = [sys.executable, "-m", "pyattach"]
_IGNORE = "import os, signal as s, sys; s.signal(s.SIGCHLD, s.SIG_IGN); os.execv(sys.argv[1], sys.argv[1:])"
COMMAND_IGNORING_CHILDREN = [sys.executable, "-c", _IGNORE, *COMMAND]
"""With SIGCHLD ignored, as some leave it to what they start: nobody is told of a child's end then."""

DEADLINE_S = 30.0
MARK = "/memfd:pyattach-"

Spawn = Callable[..., contextlib.AbstractContextManager[support.Target]]


def wait_for(what: str, condition: Callable[[], object], deadline_s: float = DEADLINE_S) -> None:
    """Look until ``condition()`` holds; an error that names ``what`` was waited for if it never does."""
    end = time.monotonic() + deadline_s
    while not condition():
        if time.monotonic() > end:
            raise AssertionError(f"after {deadline_s} s still not: {what}")
        time.sleep(0.005)


class Pyattach:
    """A run of ``python -m pyattach``, in the background.  Made by ``pyattach``."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.pid = process.pid
        self.out = self.err = ""

    def wait_until(self, what: str, condition: Callable[[], object]) -> None:
        """As ``wait_for``, and fails at once when pyattach has ended before."""

        def holds() -> bool:
            if condition():
                return True
            if self.process.poll() is not None:
                self.out, self.err = self.process.communicate()
                raise AssertionError(
                    f"pyattach ended with {self.process.returncode} before {what}:\n{self.err}"
                )
            return False

        wait_for(what, holds)

    def wait_sampling(self, pid: int, cpu_s: float = 0.3, *, timers: bool = True) -> None:
        """Until the stub is in ``pid`` (and has its ``timers``, if it makes any) and its threads have used
        ``cpu_s`` seconds of CPU time since: the clocks that tick are clocks of CPU time."""
        self.wait_until("the stub is in", lambda: MARK in maps_text(pid) and (not timers or timers_text(pid)))
        begin = cpu_time_s(pid)
        self.wait_until("the target has worked", lambda: cpu_time_s(pid) >= begin + cpu_s)

    def wait_said(self, part: str) -> str:
        """The first line on stderr from here on with ``part`` in it."""
        assert self.process.stderr is not None
        for line in self.process.stderr:
            if part in line:
                return line
        raise AssertionError(f"pyattach ended without saying {part!r}")

    def tell(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def finish(self, exit_code: int | None = 0) -> str:
        """Wait for its end, check the exit code (None: any), return its stdout."""
        try:
            self.out, self.err = self.process.communicate(timeout=DEADLINE_S)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"pyattach did not end within {DEADLINE_S} s") from None
        code = self.process.returncode
        if exit_code is not None:
            assert code == exit_code, f"pyattach ended with {code}, not {exit_code}:\n{self.out}{self.err}"
        assert "Traceback" not in self.err, self.err
        return self.out


needs_perf = pytest.mark.skipif(
    bool(_why := why_no_events(os.getpid())) and not os.environ.get("CI"), reason=f"perf: {_why}"
)
CLOCKS = ["timer", pytest.param("perf", marks=needs_perf)]
TICK = signal.SIGURG
"""What ticks, where the target leaves it free."""


@contextlib.contextmanager
def pyattach(*arguments: object, command: list[str] | None = None, folder: Path = ROOT) -> Iterator[Pyattach]:
    """Start ``pyattach ARGUMENTS`` in ``folder``; waited for before the ``with`` ends, or it dies."""
    argv = [*(COMMAND if command is None else command), *map(str, arguments)]
    with subprocess.Popen(
        argv,
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200"},
    ) as process:
        try:
            yield Pyattach(process)
        finally:
            process.kill()


def attach(pid: int, *arguments: object, exit_code: int | None = 0) -> Pyattach:
    """One whole run of ``pyattach PID ARGUMENTS``, ended."""
    with pyattach(pid, *arguments) as run:
        run.finish(exit_code)
    return run


# What /proc says of a target; "" or 0 once it is gone.


def proc_text(pid: int, name: str) -> str:
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/{name}").read_text(errors="replace")
    return ""


def maps_text(pid: int) -> str:
    return proc_text(pid, "maps")


def timers_text(pid: int) -> str:
    return proc_text(pid, "timers")


def status_of(pid: int, tid: int | None = None) -> dict[str, str]:
    text = proc_text(pid, "status" if tid is None else f"task/{tid}/status")
    return {key: value.strip() for key, _, value in (line.partition(":") for line in text.splitlines())}


def cpu_time_s(pid: int) -> float:
    """CPU time of the process, with that of threads that have ended; in steps of 10 ms."""
    fields = proc_text(pid, "stat").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK") if fields else 0.0


def has_worked(pid: int, cpu_s: float) -> Callable[[], bool]:
    """Whether the process has used so much CPU time since this was asked first.  How much it had used by
    then, while it was attached to, is up to the machine."""
    enough_s = 0.0

    def worked() -> bool:
        nonlocal enough_s
        now = cpu_time_s(pid)
        enough_s = enough_s or now + cpu_s
        return now >= enough_s

    return worked


@contextlib.contextmanager
def loaded(process: TargetProcess, options: Options) -> Iterator[Session]:
    """A session that samples; it has to leave the target as it was."""
    session = Session(process, options)
    session.load()
    try:
        yield session
        session.detach()
        verified = session.verify()
        assert verified is not None and verified.left == ()
    finally:
        session.close()


def thread_ids(pid: int) -> list[int]:
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return sorted(int(name) for name in os.listdir(f"/proc/{pid}/task"))
    return []


def child_of(pid: int) -> int:
    """The pid of its first child; 0 while there is none."""
    return int((proc_text(pid, f"task/{pid}/children").split() or ["0"])[0])


# What pyattach wrote.


class Folded:
    """A folded file: ticks by stack (root first), and sums over them."""

    def __init__(self, path: Path) -> None:
        self.stacks: Counter[tuple[str, ...]] = Counter()
        for line in path.read_text().splitlines():
            stack, _, ticks = line.rpartition(" ")
            self.stacks[tuple(stack.split(";"))] += int(ticks)
        self.total = sum(self.stacks.values())

    def leaves(self) -> Counter[str]:
        out: Counter[str] = Counter()
        for stack, ticks in self.stacks.items():
            out[stack[-1]] += ticks
        return out

    def inclusive(self) -> Counter[str]:
        """Ticks of all stacks that a function is on."""
        out: Counter[str] = Counter()
        for stack, ticks in self.stacks.items():
            for name in set(stack):
                out[name] += ticks
        return out

    def top(self) -> str:
        return max(self.leaves().items(), key=lambda item: item[1])[0]


def weights_in(firefox: Path) -> list[int]:
    """How many periods each sample stands for, of a file of that format."""
    threads = json.loads(firefox.read_text())["threads"]
    return [weight for thread in threads for weight in thread["samples"]["weight"]]


def five_errors(share: float, weights: list[int]) -> float:
    """Five standard errors of a share of such samples: out of bounds in one run of a million.  How many there
    are in a second of real time, and how many come late and stand for several, is up to the machine."""
    return 5 * math.sqrt(share * (1 - share) * sum(weight**2 for weight in weights)) / sum(weights)


def reported_samples(text: str) -> int:
    """The figure behind "samples" in a summary."""
    found = re.search(r"^samples\s+([\d,]+)$", text, re.MULTILINE)
    assert found, f"no line of samples in:\n{text}"
    return int(found[1].replace(",", ""))


def modules_by_self(text: str) -> Counter[str]:
    """Samples by module, from the table "by self" of a summary."""
    out: Counter[str] = Counter()
    table = text.partition("by self:")[2].partition("by total:")[0]
    for ticks, module in re.findall(r"% +([\d,]+)  .*?(?:\[([^\]]+)\])?$", table, re.MULTILINE):
        out[module] += int(ticks.replace(",", ""))
    assert out, f"no table by self in:\n{text}"
    return out


def check_svg(path: Path) -> None:
    assert ElementTree.parse(path).getroot().tag == "{http://www.w3.org/2000/svg}svg"


# The plainest runs.


def test_a_run_writes_what_it_was_asked_for(spawn: Spawn, tmp_path: Path) -> None:
    svg, folded = tmp_path / "o.svg", tmp_path / "o.folded"
    with spawn("split") as target:
        run = attach(target.pid, "-d", "1", "-o", svg, "-o", folded, "-o", "-")
        assert target.finish().startswith("done ")
    check_svg(svg)
    assert Folded(folded).total == reported_samples(run.out) > 0
    assert "work_70" in run.out
    assert "detached: mappings, open files, signal handling and timers are as before" in run.err


def test_quiet_says_nothing(spawn: Spawn, tmp_path: Path) -> None:
    with spawn("split") as target:
        run = attach(target.pid, "-q", "-d", "300ms", "-o", tmp_path / "o.svg")
        target.finish()
    assert (run.out, run.err) == ("", "")
    check_svg(tmp_path / "o.svg")


def test_split_by_threads(spawn: Spawn, tmp_path: Path) -> None:
    folded = tmp_path / "o.folded"
    with spawn("threads", 2, 1) as target:
        attach(target.pid, "-d", "1", "--threads", "-o", folded)
        tids = thread_ids(target.pid)
        target.finish()
    busy = {stack[0] for stack in Folded(folded).stacks if stack[-1] == "busy_work"}
    assert len(busy) == 2
    assert busy <= {f"busy-{n}-{tid}" for n in (0, 1) for tid in tids}


def test_only_the_chosen_threads_are_sampled(spawn: Spawn, tmp_path: Path) -> None:
    folded = tmp_path / "o.folded"
    with spawn("threads", 3, 1) as target:
        run = attach(target.pid, "-v", "-d", "1", "-t", "--thread", "busy-[01]", "-o", folded)
        target.finish()
    names = {stack[0].rpartition("-")[0] for stack in Folded(folded).stacks}
    assert names == {"busy-0", "busy-1"}
    assert "3 threads were left out by --thread: busy-2, futex-0, threads" in run.err


def test_no_thread_of_that_name_is_said_before_attaching(spawn: Spawn, tmp_path: Path) -> None:
    with spawn("threads", 1, 1) as target:
        before = maps_text(target.pid)
        run = attach(target.pid, "--thread", "worker-*", "-o", tmp_path / "o.svg", exit_code=2)
        assert maps_text(target.pid) == before
        target.finish()
    assert "called worker-*" in run.err and "busy-0, futex-0, threads" in run.err


def test_a_target_that_does_nothing_has_no_samples(spawn: Spawn, tmp_path: Path) -> None:
    with spawn("quiet") as target:
        run = attach(target.pid, "-d", "300ms", "-o", tmp_path / "o.svg", exit_code=5)
        assert target.finish() == "done\n"
    assert "no samples" in run.err
    check_svg(tmp_path / "o.svg")


@pytest.mark.parametrize("output", ["o.pdf", "missing/o.svg"])
def test_outputs_are_checked_before_attaching(spawn: Spawn, tmp_path: Path, output: str) -> None:
    with spawn("quiet") as target:
        run = attach(target.pid, "-d", "300ms", "-o", tmp_path / output, exit_code=2)
        assert MARK not in maps_text(target.pid)
        target.finish()
    assert output in run.err


def test_what_was_compared_is_printed_in_full(spawn: Spawn, tmp_path: Path) -> None:
    with spawn("split") as target:
        run = attach(
            target.pid, "-d", "100ms", "--verify", "json", "-o", tmp_path / "o.folded", exit_code=None
        )
        inside = maps_text(target.pid).split()
        both = attach(target.pid, "-d", "100ms", "--verify", "json", "-o", "-", exit_code=None)
        target.finish()
    found = json.loads(run.out)
    assert found["complete"] and found["left"] == []
    (seen,) = found["targets"]
    assert seen["pid"] == target.pid and seen["after"] == seen["before"] and not seen["changed"]
    addresses = {word for word in inside if re.match(r"[0-9a-f]{4,}-[0-9a-f]+$", word)}
    assert addresses and addresses <= set(seen["before"]["mappings"])
    assert '"complete": true' in both.err and '"complete"' not in both.out
