"""Why the kernel does not let one process look into another, and what would make it.

The kernel only says EPERM.  Its rules (ptrace(2), "Ptrace access mode checking"; yama's in
Documentation/admin-guide/LSM/Yama.rst) are gone through here with what /proc tells to everybody.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from ..errors import NoPermission
from ..render.names import printable
from . import procfs

_CAP_SYS_PTRACE = 19  # linux/capability.h
_CONTAINER = (
    "in a container: give it the capability (docker run --cap-add SYS_PTRACE; in Kubernetes "
    "securityContext.capabilities.add, or an ephemeral container with it), or attach from the host"
)
_ROOT = "run pyattach as root (sudo)"


class Cause(NamedTuple):
    """One of the kernel's rules that forbids it, and what to do about it."""

    what: str
    way_out: str


def no_permission(pid: int) -> NoPermission:
    """The error to raise where process ``pid`` may not be attached to, with all that is known of it."""
    lines = []
    for cause in causes(pid):
        lines += [cause.what + ":", *(f"  {way}" for way in cause.way_out.split("\n"))]
    return NoPermission(f"not permitted to look into process {pid}", "\n  ".join(lines))


def causes(pid: int) -> list[Cause]:
    """What forbids attaching to process ``pid``, the likeliest first; never empty.

    To be asked where attaching is known to be forbidden: some rules can't be seen from outside.
    """
    ours, theirs = procfs.read_status(os.getpid()), procfs.read_status(pid)
    if (tracer := theirs.get("TracerPid", "0")) != "0":
        return [Cause(f"it is traced by pid {tracer}, and a thread has one tracer", "detach that one first")]
    may_all = has_capability()
    found = [] if may_all else list(_without_the_capability(pid, ours, theirs))
    scope = yama_scope()
    if scope == 3:
        found.append(
            Cause(
                "kernel.yama.ptrace_scope is 3, which forbids attaching to anybody until the next boot",
                "start the program with it: pyattach run -- COMMAND",
            )
        )
    if may_all and (where := other_user_namespace(pid)):
        found.append(Cause(where, "attach from that namespace, or as root of the host"))
    if ours.get("Seccomp", "0") != "0":
        found.append(
            Cause(
                "pyattach itself runs under a seccomp filter, which may forbid ptrace",
                "docker run --cap-add SYS_PTRACE or --security-opt seccomp=unconfined, or go by the host",
            )
        )
    if confined := _confined(pid):
        found.append(Cause(confined, "attach from outside of that confinement, or change its profile"))
    return found or [
        Cause("the reason can't be seen from here (a security module, or a container's filter)", _CONTAINER)
    ]


def has_capability() -> bool:
    """Whether this process has CAP_SYS_PTRACE, in its own user namespace."""
    return bool(_capabilities(procfs.read_status(os.getpid()), "CapEff") >> _CAP_SYS_PTRACE & 1)


def _without_the_capability(pid: int, ours: dict[str, str], theirs: dict[str, str]) -> Iterator[Cause]:
    """Rules that CAP_SYS_PTRACE overrides."""
    me = os.geteuid()
    uids = theirs.get("Uid", "").split()
    gids = theirs.get("Gid", "").split()
    if not me:
        yield Cause("you are root, but without the capability CAP_SYS_PTRACE", _CONTAINER)
    elif any(uid != str(me) for uid in uids):
        yield Cause(f"pid {pid} belongs to uid {(uids or ['?'])[0]}, you are uid {me}", _ROOT)
    elif any(gid != str(os.getegid()) for gid in gids[:3]):
        yield Cause(f"pid {pid} runs with gid {gids[0]}, you with gid {os.getegid()}", _ROOT)
    elif not is_dumpable(pid, me):
        yield Cause(
            "the process is not dumpable (PR_SET_DUMPABLE 0, a set-uid program, or one that may not be read)",
            _ROOT,
        )
    elif _capabilities(theirs, "CapPrm") & ~_capabilities(ours, "CapPrm"):
        yield Cause("the process has capabilities that you have not", _ROOT)
    scope = yama_scope()
    if scope in (1, 2):
        whom = "your descendants only" if scope == 1 else "those with CAP_SYS_PTRACE only"
        yield Cause(
            f"kernel.yama.ptrace_scope is {scope}: {whom}",
            f"{_ROOT}, or sudo sysctl kernel.yama.ptrace_scope=0\n"
            "or start the program with it: pyattach run -- COMMAND",
        )


def _capabilities(status: dict[str, str], field: str) -> int:
    try:
        return int(status.get(field, "0"), 16)
    except ValueError:
        return 0


def yama_scope() -> int:
    """kernel.yama.ptrace_scope; 0 where there is no yama."""
    try:
        return int(Path("/proc/sys/kernel/yama/ptrace_scope").read_text())
    except (OSError, ValueError):
        return 0


def is_dumpable(pid: int, uid: int) -> bool:
    """Whether the files in /proc/PID belong to ``uid``, who the process runs as: the kernel gives those of a
    process that is not dumpable to root.  True where nothing can be said."""
    try:
        return not uid or Path(f"/proc/{pid}/auxv").stat().st_uid == uid
    except OSError:
        return True


def other_user_namespace(pid: int) -> str:
    """What is to be said of the process's user namespace; "" where it is our own."""
    with contextlib.suppress(OSError):
        theirs, ours = os.readlink(f"/proc/{pid}/ns/user"), os.readlink("/proc/self/ns/user")
        return f"the process lives in another user namespace ({theirs})" if theirs != ours else ""
    return "the process may live in another user namespace, where your capabilities do not count"


def _confined(pid: int) -> str:
    """AppArmor's and SELinux's word, where it can be read and is not the same for both."""
    with contextlib.suppress(OSError):
        theirs = Path(f"/proc/{pid}/attr/current").read_bytes().strip(b"\0\n")
        ours = Path("/proc/self/attr/current").read_bytes().strip(b"\0\n")
        if theirs and theirs != ours:
            return f"a security module confines it: {printable(theirs.decode(errors='replace'))}"
    return ""
