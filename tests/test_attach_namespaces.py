"""A target in a container's namespaces, attached to from outside: other pids, a root that is read-only."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from support import Target, build_target, requires, skip_unless_ci
from test_attach_run import CLOCKS, MARK, Folded, Spawn, attach, maps_text, proc_text, pyattach, timers_text

SET_UP = """
set -e
mount --make-rprivate /
mount -t tmpfs none "$1"
mkdir "$1/bin" "$1/proc"
cp "$2" "$1/bin/program"
for folder in lib lib64 usr; do
    [ -e "/$folder" ] || continue
    mkdir "$1/$folder"
    mount --rbind "/$folder" "$1/$folder"
done
mount -t proc proc "$1/proc"
mount -o remount,ro "$1"
exec chroot "$1" /bin/program
"""


def in_container(program: Path, root: Path) -> list[str]:
    """The command that runs ``program`` as pid 1 of a pid namespace, with a root that it can't write to."""
    unshare, shell = requires("unshare"), "/bin/sh"
    probe = [unshare, "--mount", "--pid", "--fork", "true"]
    if os.geteuid() or subprocess.run(probe, capture_output=True).returncode:
        skip_unless_ci("needs root, to make namespaces")
    return [unshare, "--mount", "--pid", "--fork", shell, "-c", SET_UP, "sh", str(root), str(program)]


def child_of(target: Target) -> int:
    """The pid here of the process that unshare has forked."""
    return int(proc_text(target.pid, f"task/{target.pid}/children").split()[0])


@pytest.mark.parametrize("linking", ["dynamic", "static"])
@pytest.mark.parametrize("clock", CLOCKS)
def test_from_outside(spawn: Spawn, tmp_path: Path, clock: str, linking: str) -> None:
    program = build_target("split", *(["-static"] if linking == "static" else []))
    root, folded = tmp_path / "root", tmp_path / "o.folded"
    root.mkdir()
    with spawn(in_container(program, root)) as target:
        pid = child_of(target)
        assert proc_text(pid, "status").split("NSpid:")[1].split("\n")[0].split()[-1] == "1"
        run = attach(pid, "-d", "1s", "--clock", clock, "-o", folded)
        assert "detached: mappings, open files, signal handling and timers are as before" in run.err
        assert MARK not in maps_text(pid) and not timers_text(pid)
        assert target.finish().startswith("done ")
    inclusive = Folded(folded).inclusive()
    assert sum(inclusive[f"work_{n}"] for n in (70, 20, 10)) > 0.9 * Folded(folded).total


def with_another_clock(offset_s: int, program: Path, *arguments: object) -> list[str]:
    """The command that runs ``program`` where CLOCK_MONOTONIC is ``offset_s`` more than here."""
    words = [requires("unshare"), "--time", "--monotonic", str(offset_s), "--fork", "--kill-child"]
    probe = subprocess.run([*words, "cat", "/proc/self/timens_offsets"], capture_output=True, text=True)
    if probe.returncode or str(offset_s) not in probe.stdout.split():
        skip_unless_ci("needs root and a kernel that has time namespaces")
    return [*words, str(program), *map(str, arguments)]


@pytest.mark.parametrize("sign", [1, -1])
def test_another_time_namespace(spawn: Spawn, tmp_path: Path, sign: int) -> None:
    """Samples have our times: by those it is told which mappings held when they were taken."""
    folded, firefox = tmp_path / "o.folded", tmp_path / "o.firefox.json"
    one = build_target("lib_late", "-shared", "-fPIC", "-DINNER=first_inner")
    other = build_target("lib_late", "-shared", "-fPIC", "-DINNER=other_inner")
    offset_s = sign * max(2, int(time.monotonic()) // 2)
    begin = time.monotonic()
    with spawn(with_another_clock(offset_s, build_target("dlopener"), one, other)) as target:
        pid = child_of(target)
        with pyattach(pid, "--hz", "199", "-o", folded, "-o", firefox) as run:
            run.wait_sampling(pid, cpu_s=0.2)
            for said in ("opened", "closed", "opened", "closed"):
                target.tell()
                target.expect(said)
                run.wait_sampling(pid, cpu_s=0.2)
            run.tell(signal.SIGINT)
            run.finish(0)
        target.finish()
    passed_ms = 1e3 * (time.monotonic() - begin)
    (thread,) = json.loads(firefox.read_text())["threads"]
    assert 500 < thread["samples"]["time"][-1] < passed_ms
    profile = Folded(folded)
    nameless = sum(ticks for name, ticks in profile.leaves().items() if name.startswith("0x"))
    assert nameless < 0.1 * profile.total
    assert profile.inclusive()["first_inner"] > 10 and profile.inclusive()["other_inner"] > 10
