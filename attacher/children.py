"""Which processes a process has started, as /proc tells it."""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path

from . import procfs

_SYS_KCMP = 312  # x86_64
_KCMP_VM = 1  # linux/kcmp.h


def descendants(pids: Iterable[int], but: int = 0) -> list[tuple[int, int]]:
    """Children of ``pids``, their children, and so on, each with its parent, in order of pid; zombies
    too, but not process ``but`` and what that has started."""
    todo = list(pids)
    children_of = _chooser()
    found: dict[int, int] = {}
    seen = {*todo, but}
    while todo:
        parent = todo.pop()
        for child in children_of(parent):
            if child not in seen:
                seen.add(child)
                found[child] = parent
                todo.append(child)
    return sorted(found.items())


def share_memory(pid: int, other: int) -> bool:
    """Whether two processes have one memory: a child between vfork and execve has its parent's.
    False where one of them is gone, or may not be looked into."""
    answer = ctypes.CDLL(None).syscall(_SYS_KCMP, pid, other, _KCMP_VM, 0, 0)
    if answer >= 0:
        return bool(answer == 0)
    # A kernel without kcmp.  Memory of a sampled parent that fork does not copy tells them apart.
    try:
        return Path(f"/proc/{pid}/maps").read_bytes() == Path(f"/proc/{other}/maps").read_bytes() != b""
    except OSError:  # gone, or not ours to look into: one with more rights has executed a program already
        return False


def _chooser() -> Callable[[int], list[int]]:
    """How to find the children of a process: /proc/.../children is optional (CONFIG_PROC_CHILDREN)."""
    if Path(f"/proc/self/task/{os.getpid()}/children").exists():
        return _listed
    by_parent: defaultdict[int, list[int]] = defaultdict(list)
    for name in os.listdir("/proc"):  # noqa: PTH208
        if name.isdecimal() and (stat := procfs.read_stat(int(name))) is not None:
            by_parent[stat.parent].append(int(name))
    return lambda pid: by_parent[pid]


def _listed(pid: int) -> list[int]:
    found: list[int] = []
    for tid in procfs.thread_ids(pid):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            found += map(int, Path(f"/proc/{pid}/task/{tid}/children").read_text().split())
    return found
