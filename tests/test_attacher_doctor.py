"""What the doctor says of programs that can be attached to, and the reasons behind a missing permission."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from support import build_target, requires, spawn
from test_attach_run import MARK, Spawn, maps_text, proc_text, pyattach, status_of

from pyattach.attacher import doctor, permission, procfs
from pyattach.errors import ExitCode, NoPermission, NoSuchTarget


def said(pid: int) -> dict[str, str]:
    return {finding.topic: finding.said for finding in doctor.examine(pid).findings}


def test_a_program_that_can_be_attached_to(spawn: Spawn) -> None:
    with spawn("threads", 1, 2) as target:
        before = proc_text(target.pid, "maps"), os.listdir(f"/proc/{target.pid}/fd")
        with pyattach("doctor", target.pid, "--json") as run:
            run.finish(0)
        report = json.loads(run.out)
        assert report["verdict"] == f"will work: pyattach {target.pid}"
        assert report["exit_code"] == 0 and report["pid"] == target.pid
        topics = {finding["topic"]: finding["said"] for finding in report["findings"]}
        assert topics["linkage"].startswith("dynamic, glibc")
        assert topics["tracer"] == "none" and topics["seccomp"] == "no filter"
        assert topics["allocator"] == "libc's" and topics["threads"] == "4"
        assert topics["SIGPROF"] == "free" and "dlopen" in topics["loader"]
        assert not any(finding["refused"] for finding in report["findings"])
        # Nothing was touched.
        assert before == (proc_text(target.pid, "maps"), os.listdir(f"/proc/{target.pid}/fd"))
        assert MARK not in maps_text(target.pid)
        target.finish()


def test_a_static_program(spawn: Spawn) -> None:
    with spawn([build_target("quiet", "-static")]) as target:
        found = said(target.pid)
        assert (
            found["linkage"].startswith("static")
            and "mapped directly (there is no dlopen)" in found["loader"]
        )
        target.finish()


def test_a_stripped_program(spawn: Spawn, tmp_path: Path) -> None:
    stripped = tmp_path / "stripped"
    shutil.copy(build_target("quiet"), stripped)
    subprocess.run([requires("strip"), stripped], check=True)
    with spawn([stripped]) as target:
        assert "stripped" in said(target.pid)["symbols"]
        target.finish()
    with spawn("quiet") as target:
        assert "functions in the executable" in said(target.pid)["symbols"]
        target.finish()


def test_a_program_that_uses_sigprof(spawn: Spawn) -> None:
    with spawn("sigprof") as target:
        assert "the target uses it itself" in said(target.pid)["SIGPROF"]
        target.finish()


def test_a_process_that_is_gone() -> None:
    child = subprocess.Popen(["true"])
    child.wait()
    with pytest.raises(NoSuchTarget, match=f"no process {child.pid}"):
        doctor.examine(child.pid)


@pytest.mark.parametrize("words", [[], ["x"], ["1", "-p", "2"]])
def test_usage(words: list[str]) -> None:
    with pyattach("doctor", *words) as run:
        run.finish(ExitCode.USAGE)
    assert run.err.startswith("pyattach: ")


# Why the kernel says no: its rules, with statuses as /proc shows them.

NOBODY = {"Uid": "65534\t65534\t65534\t65534", "Gid": "65534 65534 65534 65534", "CapEff": "0", "CapPrm": "0"}


@pytest.fixture
def rules(monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """Statuses of ours and theirs, yama's scope, dumpable: all by hand, equal users without rights."""
    world: dict[str, object] = {"ours": dict(NOBODY), "theirs": dict(NOBODY), "scope": 0, "dumpable": True}

    def status(pid: int) -> dict[str, str]:
        found = world["ours"] if pid == os.getpid() else world["theirs"]
        assert isinstance(found, dict)
        return found

    monkeypatch.setattr(procfs, "read_status", status)
    monkeypatch.setattr(os, "geteuid", lambda: world.get("euid", 65534))
    monkeypatch.setattr(os, "getegid", lambda: 65534)
    monkeypatch.setattr(permission, "yama_scope", lambda: world["scope"])
    monkeypatch.setattr(permission, "is_dumpable", lambda _pid, _uid: world["dumpable"])
    monkeypatch.setattr(permission, "other_user_namespace", lambda _pid: world.get("namespace", ""))
    monkeypatch.setattr(permission, "_confined", lambda _pid: world.get("confined", ""))
    return world


CAUSES = [
    ({"theirs": {**NOBODY, "Uid": "0 0 0 0"}}, "belongs to uid 0, you are uid 65534", "as root"),
    ({"theirs": {**NOBODY, "Gid": "7 7 7 7"}}, "runs with gid 7, you with gid 65534", "as root"),
    ({"dumpable": False}, "not dumpable", "as root"),
    ({"theirs": {**NOBODY, "CapPrm": "80"}}, "capabilities that you have not", "as root"),
    ({"scope": 1}, "ptrace_scope is 1: your descendants only", "sysctl kernel.yama.ptrace_scope=0"),
    ({"scope": 2}, "ptrace_scope is 2: those with CAP_SYS_PTRACE only", "pyattach run"),
    ({"scope": 3}, "ptrace_scope is 3", "pyattach run"),
    ({"euid": 0}, "root, but without the capability CAP_SYS_PTRACE", "--cap-add SYS_PTRACE"),
    (
        {"ours": {**NOBODY, "CapEff": "80000"}, "namespace": "the process lives in another user namespace"},
        "another user namespace", "root of the host",
    ),
    ({"ours": {**NOBODY, "Seccomp": "2"}}, "runs under a seccomp filter", "seccomp=unconfined"),
    ({"confined": "a security module confines it: x"}, "security module confines it: x", "profile"),
    ({"theirs": {**NOBODY, "TracerPid": "77"}}, "traced by pid 77", "detach that one"),
    ({}, "can't be seen from here", "attach from the host"),
]  # fmt: skip


@pytest.mark.parametrize(("world", "cause", "way_out"), CAUSES)
def test_causes(rules: dict[str, object], world: dict[str, object], cause: str, way_out: str) -> None:
    rules.update(world)
    first = permission.causes(1)[0]
    assert cause in first.what and way_out in first.way_out
    error = permission.no_permission(1)
    assert isinstance(error, NoPermission)
    assert cause in error.way_out and way_out in error.way_out


def test_the_capability_overrides_users(rules: dict[str, object]) -> None:
    rules.update(ours={**NOBODY, "CapEff": "80000"}, theirs={**NOBODY, "Uid": "0 0 0 0"}, scope=1)
    assert [cause.what for cause in permission.causes(1)] == [
        "the reason can't be seen from here (a security module, or a container's filter)"
    ]


def test_a_process_that_is_not_dumpable() -> None:
    """As the kernel shows it: another user's process whose files belong to root."""
    with spawn("quiet") as target:
        uid = int(status_of(target.pid)["Uid"].split()[0])
        assert permission.is_dumpable(target.pid, uid)
        assert permission.is_dumpable(target.pid, 4242) is False
        target.finish()
