"""What a session left that was killed: found by its name in the target's maps, and taken out.

A killed pyattach leaves, by the moment: nothing; the bootstrap's bytes in the padding behind some code; the
stub, which falls silent within a second.  Whoever attaches next removes them first, so that it finds the
target as it was, and puts it back so.
"""

from __future__ import annotations

import collections
import ctypes
import os
import re
import time
from collections.abc import Callable
from typing import NamedTuple

from ..errors import InjectionFailed, PyattachError
from ..inject.arch import x86_64 as arch
from ..inject.borrow import MEMFD_PREFIX, bootstraps_in
from ..inject.image import boot_code, heap_image, stub_image
from ..inject.layout import BOOT_DATA_SIZE, MAGIC, VERSION, Control
from ..inject.loader import MappedStub
from ..inject.locks import survey
from ..symbols.maps import Mapping, Maps
from ..symbols.resolver import proc_opener
from . import procfs
from .leaving import call_stop, unload
from .places import SafePlaces
from .shared import LEASE_NS
from .target import TargetProcess

_NAME = re.compile(rf"/memfd:({MEMFD_PREFIX.decode()}[0-9a-f]{{16}}) \(deleted\)")
_LEASE_S = LEASE_NS / 1e9 + 0.1
_INSIDE_S = 2.0
_LOOK_S = 0.01
_CONTROL_SIZE = ctypes.sizeof(Control)


class StaleStub(NamedTuple):
    """A stub that is mapped: the name of its file, where its image and its shared memory begin."""

    name: str
    base: int
    shared_address: int


def stubs_in(maps: Maps) -> list[StaleStub]:
    """Those of which image and shared memory are there.  A forked child has the image alone: it stays."""
    pieces: dict[str, list[Mapping]] = collections.defaultdict(list)
    for mapping in maps:
        if found := _NAME.fullmatch(mapping.path):
            pieces[found[1]].append(mapping)
    out = []
    for name, mappings in pieces.items():
        base = next((m.start for m in mappings if not m.shared and m.offset == 0), None)
        region = next((m.start for m in mappings if m.shared and m.writable), None)
        if base is not None and region is not None:
            out.append(StaleStub(name, base, region))
    return out


def clear(target: TargetProcess) -> list[str]:
    """Take out what killed sessions have left in ``target``: what is to be said about it.

    What a living pyattach has there is left alone.  Raises ProcessLookupError when the target is gone.
    """
    notes = []
    if caves := [at for at in bootstraps_in(target) if _restore(target, at)]:
        notes.append(f"{len(caves)} bootstraps of a pyattach that was killed were taken out")
    for stub in stubs_in(target.maps()):
        try:
            notes += _take_out(target, stub)
        except ProcessLookupError:
            raise
        except (PyattachError, OSError) as error:
            what = getattr(error, "what", error)
            notes.append(f"the stub of a pyattach that was killed could not be taken out: {what}")
    return notes


# The bootstrap.


def _restore(target: TargetProcess, at: int) -> bool:
    """Put the zeros back unless somebody may still come there; whether it was done.

    A pyattach that lives holds the thread by ptrace from before it writes until the thread is in there; so
    a thread that nobody traces and that is seen outside, with the mail page gone, has been there.
    """
    size = BOOT_DATA_SIZE + len(boot_code())
    mail = arch.boot_mail(target.read(at, BOOT_DATA_SIZE))
    tids = target.threads()
    if any(procfs.read_status(target.pid, tid).get("TracerPid", "0") != "0" for tid in tids):
        return False
    for _ in range(2):
        if target.wait_outside(tids, [(at, at + size)], _INSIDE_S, handlers=True) or target.maps().find(mail):
            return False
    target.write(at, b"\0" * size)
    return True


# The stub.


def sign(control: Control) -> None:
    """Say in it that it is this process's."""
    stat = procfs.read_stat(os.getpid())
    control.owner_pid, control.owner_namespace = os.getpid(), _namespace("self", "pid")
    control.owner_start = stat.start_time if stat is not None else 0


def _owner(control: Control) -> int | None:
    """The pid of the pyattach it belongs to; 0 where that has ended, None where nobody here can tell."""
    if control.owner_namespace != _namespace("self", "pid"):
        return None
    stat = procfs.read_stat(control.owner_pid)
    lives = stat is not None and stat.start_time == control.owner_start and stat.state not in "ZX"
    return int(control.owner_pid) if lives else 0


def _take_out(target: TargetProcess, found: StaleStub) -> list[str]:
    """Stop and unload it, unless the pyattach it belongs to lives; what came of it.  Nothing is to be said
    of our own, of the heap's where CPU time is sampled too."""

    def control() -> Control:
        return Control.from_buffer_copy(target.read(found.shared_address, _CONTROL_SIZE))

    head = control()
    if (head.magic, head.version, head.control_size) != (MAGIC, VERSION, _CONTROL_SIZE):
        raise InjectionFailed("it was made by another version")
    owner = _owner(head)
    if owner == os.getpid():
        return []
    if owner or (owner is None and not _lease_is_over(lambda: int(control().lease_until_ns), target.pid)):
        return [f"another pyattach (pid {owner or head.owner_pid}) is attached, too"]
    image = heap_image() if head.heap_offset else stub_image()
    start, code = image.code
    if target.read(found.base + start, len(code)) != code:
        raise InjectionFailed("it was made by another version")
    if head.heap_offset:
        from . import heap_stale

        hooks = MappedStub(target, image, None, found.base, 0, [])
        heap_stale.take_out(target, hooks, found.shared_address, head)
        return ["the hooks of a heap profiler that was killed were taken out"]
    zones, calls = survey(target.maps(), proc_opener(target.pid), target.read)
    stub = MappedStub(target, image, calls, found.base, int(head.handle), [], found.shared_address)
    if stub.by_dlopen and calls is None:
        raise InjectionFailed("the target's dlclose is not found")
    call_stop(target, stub)
    _wait_until(lambda: not control().inside, _INSIDE_S)
    unload(target, stub, control(), SafePlaces(target, zones, strict=False))
    return ["the stub of a pyattach that was killed was taken out"]


def _lease_is_over(lease: Callable[[], int], pid: int) -> bool:
    """Whether nobody renews it any more."""
    first_ns = lease()
    same_clock = _namespace("self", "time") == _namespace(str(pid), "time") != 0

    def renewed_or_over() -> bool:
        now_ns = lease()
        return now_ns != first_ns or (same_clock and time.monotonic_ns() > now_ns)

    _wait_until(renewed_or_over, _LEASE_S)
    return lease() == first_ns


def _namespace(process: str, kind: str) -> int:
    """The number of a process's namespace; 0 where it can't be seen."""
    try:
        return os.stat(f"/proc/{process}/ns/{kind}").st_ino & 0xFFFFFFFF  # noqa: PTH116
    except OSError:
        return 0


def _wait_until(condition: Callable[[], bool], deadline_s: float) -> bool:
    deadline = time.monotonic() + deadline_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(_LOOK_S)
    return True
