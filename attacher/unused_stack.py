"""What threads do not use of their stacks: words that stand there were left behind, and nobody reads them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from ..inject.arch import x86_64 as arch
from ..symbols.maps import Mapping, Maps
from . import procfs
from .registers import registers_asleep, registers_running
from .target import Range, TargetProcess

_RED_ZONE = 128
_ABOVE_DESCRIPTOR = 1 << 16
"""Bytes at the upper end of a thread's stack that the C library has for its own descriptor, at most."""


def unused_stacks(target: TargetProcess, maps: Maps) -> Iterator[Range]:
    """Below the stack pointer (and its red zone), of each thread whose stack is known to be one.  Threads
    that run are stopped for a moment, those that sleep where that does not end their system call."""
    for tid in target.threads():
        with contextlib.suppress(ProcessLookupError, FileNotFoundError):
            unused = _unused(target, tid, maps)
            if unused is not None:
                yield unused


def _unused(target: TargetProcess, tid: int, maps: Maps) -> Range | None:
    blocked = procfs.read_blocked(target.pid, tid)
    registers = None
    if blocked is None:
        registers = registers_running(tid)
    elif tid != target.pid and blocked.syscall in arch.GOES_ON:
        registers = registers_asleep(target, tid)
    if registers is None and blocked is None:
        return None
    sp = registers["rsp"] if registers else blocked.sp if blocked else 0
    mapping = maps.find(sp)
    if mapping is None:
        return None
    known = tid == target.pid and mapping.path == "[stack]"
    if not known and not (registers and _is_made(registers, mapping, maps)):
        return None
    return mapping.start, max(mapping.start, sp - _RED_ZONE)


def _is_made(registers: dict[str, int], mapping: Mapping, maps: Maps) -> bool:
    """Whether this is a stack as C libraries make them: pages below that nobody can read, and at the upper
    end the thread's descriptor.  In one that a program gives there may be anything else beside it."""
    below = maps.find(mapping.start - 1)
    guarded = below is not None and not below.readable and not below.writable and not below.is_file
    descriptor = registers["fs_base"]
    return guarded and registers["rsp"] < descriptor < mapping.end <= descriptor + _ABOVE_DESCRIPTOR
