"""Which live blocks the program has lost: nothing in it leads to them any more.

As LeakSanitizer does, but from outside: every aligned word of the program's registers, stacks and data that
is an address inside of a block leads to it, and so on from block to block.  What is reached is a cache, or
will be freed yet; what is not can never be freed.  The program runs meanwhile, and may just then hold an
address nowhere but where we have already looked; so it is looked again, until twice in a row the same blocks
are not reached.
"""

from __future__ import annotations

import array
import collections
import contextlib
import dataclasses
import itertools
import time
from collections.abc import Iterator

from ..errors import NoPermission, PyattachError
from ..inject.arch import x86_64 as arch
from ..inject.borrow import MEMFD_PREFIX
from ..inject.scan import Reachability
from ..symbols.maps import Mapping, Maps
from . import procfs
from .heap_glibc import GlibcHeap, merged
from .heap_tables import HeapTables
from .pages import present
from .registers import registers_asleep, registers_running
from .target import TargetProcess

_MOST_ROUNDS = 6
_MOST_S = 30.0
"""So long a program waits for it at its exit, at most about."""
_BETWEEN_S = 0.02
_RED_ZONE = 128
_MOST_TLS = 1 << 20
_MOST_THREADS = 1024
_OURS = f"/memfd:{MEMFD_PREFIX.decode()}"


@dataclasses.dataclass(frozen=True)
class Leaks:
    """What was lost when it was looked for.  ``blocks``: how many of each site."""

    blocks: dict[int, int]
    bytes_read: int = 0
    took_s: float = 0.0
    notes: tuple[str, ...] = ()


def find_leaks(target: TargetProcess, tables: HeapTables) -> Leaks:
    """Look for them now.  Threads are stopped one at a time, for the moment it takes to read their registers.
    Raises OSError where the target's memory can't be read, PyattachError where there is too much of it."""
    begin = time.monotonic()
    notes: dict[str, None] = {}
    lost: dict[int, int] = {}
    read = 0
    for number in range(_MOST_ROUNDS):
        if number:
            target.pause(_BETWEEN_S)
        look = _Look(target, tables, begin + _MOST_S)
        found = look.lost()
        read += look.bytes_read
        notes.update(dict.fromkeys(look.notes))
        if number:
            found = {address: site for address, site in found.items() if lost.get(address) == site}
        agreed = number > 0 and len(found) == len(lost)
        lost = found
        if agreed or not lost:
            break
    else:
        notes["blocks came and went while leaks were looked for: some of them may be in use"] = None
    return Leaks(dict(collections.Counter(lost.values())), read, time.monotonic() - begin, tuple(notes))


@dataclasses.dataclass(frozen=True)
class _Thread:
    sp: int
    words: tuple[int, ...]


class _Look:
    """One look at everything."""

    def __init__(self, target: TargetProcess, tables: HeapTables, until: float) -> None:
        self._target, self._tables, self._until = target, tables, until
        self.notes: list[str] = []
        self.bytes_read = 0

    def lost(self) -> dict[int, int]:
        """Blocks that are not reached: address and site."""
        maps = self._target.maps()
        heap = GlibcHeap(self._target, maps)
        free = list(heap.free())
        self._tables.update()
        blocks = self._tables.live(glibc=bool(heap.stretches))
        if not len(blocks):
            return {}
        self._judge(heap, free, blocks.begins[len(blocks) // 2])
        threads = self._threads()
        reach = Reachability(
            self._target.memory_fd, blocks, list(merged([*free, *_below(self._target, maps, threads)]))
        )
        for thread in threads:
            reach.words(thread.words)
        for mapping in _roots(maps):
            with contextlib.suppress(OSError):  # it has gone meanwhile
                for start, size in present(self._target.pid, mapping.start, mapping.end):
                    reach.memory(start, start + size)
                    self._check_time()
        while reach.goes_on():
            self._check_time()
        reached = reach.reached()
        self.bytes_read = reach.bytes_read
        lost = reached.translate(bytes([1, 0]) + bytes(254))
        return dict(itertools.compress(zip(blocks.begins, blocks.sites, strict=True), lost))

    def _check_time(self) -> None:
        if time.monotonic() > self._until:
            raise PyattachError(
                f"it has so much memory that {_MOST_S:.0f} s are not enough", "see what is live instead"
            )

    def _judge(self, heap: GlibcHeap, free: list[tuple[int, int]], block: int) -> None:
        if not free or not heap.holds(block):
            self.notes.append(
                "the allocator is not glibc's: what it has free may still hold addresses, so that "
                "leaks may be missed"
            )
        elif heap.unknown_bytes:
            self.notes.append(
                f"{heap.unknown_bytes:,} bytes of the heap were not understood: leaks may be missed"
            )

    def _threads(self) -> list[_Thread]:
        out, unseen = [], 0
        tids = self._target.threads()
        for tid in tids[:_MOST_THREADS]:
            with contextlib.suppress(ProcessLookupError, FileNotFoundError):
                thread, whole = self._thread(tid)
                unseen += not whole
                out.append(thread)
        unseen += len(tids[_MOST_THREADS:])
        if unseen:
            self.notes.append(
                f"registers of {unseen} threads were not looked at: blocks that only those lead to "
                "count as leaked"
            )
        return out

    def _thread(self, tid: int) -> tuple[_Thread, bool]:
        """And whether all of its registers are known."""
        blocked = procfs.read_blocked(self._target.pid, tid)
        try:
            if blocked is None:
                registers = registers_running(tid)
            else:
                # In other calls a stop would end it with EINTR.
                registers = registers_asleep(self._target, tid) if blocked.syscall in arch.GOES_ON else None
        except NoPermission:
            registers = None
        if registers is not None:
            return _Thread(registers["rsp"], tuple(registers.values())), True
        blocked = blocked or procfs.read_blocked(self._target.pid, tid)
        return _Thread(blocked.sp if blocked else 0, ()), False


def _roots(maps: Maps) -> Iterator[Mapping]:
    """Mappings that may hold addresses of blocks: data, stacks, anonymous memory also where it is shared; no
    files that are shared, and none of pyattach's own."""
    for mapping in maps:
        anonymous = not mapping.inode or mapping.is_memfd or mapping.path.startswith(("/dev/zero", "/SYSV"))
        if not mapping.readable or mapping.path.startswith(("[v", _OURS)):
            continue
        if mapping.path.startswith("/dev/") and not mapping.path.startswith(("/dev/zero", "/dev/shm")):
            continue
        if anonymous or (mapping.writable and not mapping.shared):
            yield mapping


def _below(target: TargetProcess, maps: Maps, threads: list[_Thread]) -> Iterator[tuple[int, int]]:
    """Stacks below their stack pointers, and stacks of threads that have ended, which the C library keeps: a
    stack is known by the guard below it, or by its name."""
    previous: Mapping | None = None
    for mapping in maps:
        guarded = previous is not None and previous.end == mapping.start and previous.permissions[:3] == "---"
        previous = mapping
        if mapping.path != "[stack]" and not (guarded and mapping.writable and not mapping.inode):
            continue
        pointers = [t.sp for t in threads if mapping.start <= t.sp < mapping.end]
        if pointers:
            yield mapping.start, max(mapping.start, (min(pointers) - _RED_ZONE) & ~7)
        elif guarded:
            with contextlib.suppress(OSError):
                yield mapping.start, _thread_block(target, mapping)


def _thread_block(target: TargetProcess, mapping: Mapping) -> int:
    """Where the C library's own data of a thread begins at the end of its stack (``struct pthread``: its
    first and its third word are its own address); the mapping's begin where there is none."""
    start = max(mapping.start, mapping.end - _MOST_TLS)
    words = array.array("Q")
    words.frombytes(target.read(start, mapping.end - start))
    for i in range((len(words) - 3) // 8 * 8, -1, -8):
        address = start + 8 * i
        if words[i] == address and words[i + 2] == address:
            return address
    return mapping.start
