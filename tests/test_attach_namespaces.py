"""A target in a container's namespaces, attached to from outside: other pids, a root that is read-only."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from support import Target, build_target, requires, skip_unless_ci
from test_attach_run import CLOCKS, MARK, Folded, Spawn, attach, maps_text, proc_text, timers_text

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
