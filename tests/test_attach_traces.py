"""Nothing is left in the target that was not there before, and nobody holds it while it is sampled."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import re
import signal
from pathlib import Path

import pytest
from support import Target, thread_states
from test_attach_run import (
    MARK,
    Folded,
    Spawn,
    attach,
    maps_text,
    pyattach,
    status_of,
    thread_ids,
    timers_text,
)

LOADERS = ("dlopen", "map")
SIGNAL_FIELDS = ("SigBlk", "SigIgn", "SigCgt", "SigPnd", "ShdPnd")


@dataclasses.dataclass(frozen=True)
class Traces:
    """All that can be seen of a process from outside.  ``code``: what every mapping holds that the
    process can't write itself.  ``signals``: of each thread."""

    maps: list[str]
    code: dict[str, str]
    fds: dict[int, str]
    signals: dict[int, dict[str, str]]
    timers: str
    tracers: dict[int, int]
    seccomp: str
    personality: str


def traces_of(pid: int) -> Traces:
    maps = maps_text(pid).splitlines()
    return Traces(
        maps=maps,
        code=code_of(pid, maps),
        fds=open_files(pid),
        signals={t: {f: status_of(pid, t)[f] for f in SIGNAL_FIELDS} for t in thread_ids(pid)},
        timers=timers_text(pid),
        tracers={state.tid: state.tracer for state in thread_states(pid)},
        seccomp=status_of(pid)["Seccomp"],
        personality=Path(f"/proc/{pid}/personality").read_text(),
    )


def open_files(pid: int) -> dict[int, str]:
    found = {}
    for number in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):
            found[int(number)] = os.readlink(f"/proc/{pid}/fd/{number}")
    return found


def code_of(pid: int, maps: list[str]) -> dict[str, str]:
    """Hashes by mapping of what lies in the read-only and executable ones of files."""
    out = {}
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        for line in maps:
            span, protection, *_, path = line.split(maxsplit=5)
            if protection[0] != "r" or protection[1] == "w" or not path.startswith("/"):
                continue
            start, end = (int(word, 16) for word in span.split("-"))
            memory.seek(start)
            out[line] = hashlib.sha256(memory.read(end - start)).hexdigest()
    return out


def but_heap(traces: Traces) -> Traces:
    """The loader of the target keeps its records of a library on the heap, which then may grow; it
    does not shrink again when they are freed.  All else must be equal."""
    return dataclasses.replace(traces, maps=[line for line in traces.maps if not line.endswith("[heap]")])


def compare(before: Traces, after: Traces, loader: str) -> None:
    if loader == "dlopen":
        before, after = but_heap(before), but_heap(after)
    for field in dataclasses.fields(Traces):
        assert getattr(after, field.name) == getattr(before, field.name), field.name


def check_while_sampled(target: Target) -> None:
    """Nobody traces any thread, and the stub is there under its name."""
    assert not [state for state in thread_states(target.pid) if state.is_held]
    assert status_of(target.pid)["TracerPid"] == "0"
    stub = [line for line in maps_text(target.pid).splitlines() if MARK in line]
    assert all(re.search(r" /memfd:pyattach-[0-9a-f]{16} \(deleted\)$", line) for line in stub)
    protections = {line.split()[1] for line in stub}
    assert any("x" in p for p in protections), stub
    assert not any("w" in p and "x" in p for p in protections), stub


def fds_of_ours(pid: int) -> list[str]:
    return [link for link in open_files(pid).values() if "pyattach" in link]


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize("program", [["quiet"], ["threads", 2, 3]], ids=lambda program: program[0])
def test_nothing_remains(spawn: Spawn, tmp_path: Path, program: list[object], loader: str) -> None:
    busy = program[0] == "threads"
    if busy and loader == "dlopen":
        # With threads that run, no place is safe for dlopen: blocked ones only.
        program = ["threads", 0, 3]
        busy = False
    with spawn(*program) as target:
        before = traces_of(target.pid)
        with pyattach(target.pid, "--loader", loader, "-o", tmp_path / "o.svg", "-o", "-") as run:
            run.wait_sampling(target.pid, cpu_s=0.3 if busy else 0)
            # The mapping is there a moment before the file behind it is closed.
            run.wait_until("no file of ours is open", lambda: not fds_of_ours(target.pid))
            check_while_sampled(target)
            during = traces_of(target.pid)
            assert during.maps != before.maps and during.timers != before.timers
            run.tell(signal.SIGINT)
            out = run.finish(0 if busy else 5)
        assert ("loaded by dlopen" if loader == "dlopen" else "loaded by direct mapping") in out
        compare(before, traces_of(target.pid), loader)
        assert target.finish().endswith("done\n")


def test_blocked_calls_are_not_interrupted(spawn: Spawn, tmp_path: Path) -> None:
    """futex and nanosleep go on by themselves; epoll_wait would report EINTR, so another is borrowed."""
    with spawn("threads", 0, 3) as target:
        for loader in LOADERS:
            attach(target.pid, "--loader", loader, "-d", "300ms", "-o", tmp_path / "o.svg", exit_code=5)
        assert target.finish() == "eintr 0\ndone\n"


@pytest.mark.parametrize("loader", LOADERS)
def test_five_times_in_a_row(spawn: Spawn, tmp_path: Path, loader: str) -> None:
    with spawn("quiet") as target:
        attach(target.pid, "--loader", loader, "-d", "100ms", "-o", tmp_path / "o.svg", exit_code=5)
        # From here on also the heap has what the loader needs.
        before = traces_of(target.pid)
        for _ in range(5):
            attach(target.pid, "--loader", loader, "-d", "100ms", "-o", tmp_path / "o.svg", exit_code=5)
            compare(before, traces_of(target.pid), "map")
        assert target.finish() == "done\n"


def test_five_times_on_a_busy_program(spawn: Spawn, tmp_path: Path) -> None:
    folded = tmp_path / "o.folded"
    with spawn("threads", 2, 3) as target:
        before = traces_of(target.pid)
        for _ in range(5):
            attach(target.pid, "-d", "300ms", "-o", folded)
            assert Folded(folded).leaves()["busy_work"] > 0
            compare(before, traces_of(target.pid), "map")
        assert target.finish().endswith("done\n")


@pytest.mark.parametrize("loader", LOADERS)
def test_a_program_with_its_own_sigprof(spawn: Spawn, tmp_path: Path, loader: str) -> None:
    folded = tmp_path / "o.folded"
    with spawn("sigprof") as target:
        before = traces_of(target.pid)
        attach(target.pid, "--hz", "99", "--loader", loader, "-d", "1", "-o", folded)
        after = traces_of(target.pid)
        output = dict(line.split(" ", 1) for line in target.finish().splitlines())
    assert Folded(folded).leaves()["work_between_signals"] > 0
    assert output["foreign"] == "0" and output["handler"] == "mine", output
    raised, handled = int(output["raised"]), int(output["handled"])
    # One of its own is lost only where a tick was pending at the same instant.
    assert 0.9 * raised < handled <= raised, output
    for fields in (*before.signals.values(), *after.signals.values()):
        fields["SigPnd"] = fields["ShdPnd"] = ""  # it raises some all the time
    compare(before, after, loader)
