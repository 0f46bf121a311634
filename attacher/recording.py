"""What a program has recorded of itself (PYATTACH_OUT, ``inject/stub/preload/record.c``), read as a profile.

The file is the shared memory with a log behind it.  The program may still run, have been killed in the middle
of a write, or have written what it likes: nothing is believed.
"""

from __future__ import annotations

import bisect
import ctypes
import dataclasses
import os
import stat
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from .. import __version__
from ..errors import MalformedInput
from ..inject.layout import MAGIC, VERSION, Control, Log, LogEntry, LogKind, Slot, Unwind
from ..inject.region import RegionPlan
from ..render.profile import Meta, Profile, Thread
from ..render.reading import read_profile
from ..symbols.cache import Cache, cache_folder
from ..symbols.files import file_opener, own_path_opener
from ..symbols.maps import Maps, parse_maps
from ..symbols.resolver import Resolver
from .procfs import printable_command
from .ring import RawSample, RingReader
from .samples import SampleStore

_MOST_SLOTS = 1 << 16
_MOST_LOG = 64 << 20  # bytes; the program makes 8 MB
_MOST_MAPS = 4096
_NAME = struct.Struct("=I16s")
_CHUNK_WORDS = 1 << 20
"""Of the ring, so much is looked at in one go."""


def read_any(path: str | Path) -> Profile:
    """A profile that was written, or what a program has recorded of itself.  Raises PyattachError."""
    return read_recording(path) if is_recording(path) else read_profile(path)


def is_recording(path: str | os.PathLike[str]) -> bool:
    """Whether the file begins as such a file does."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # noqa: PTH116 - of a pipe, what is read here is gone
            return False
        with open(path, "rb") as file:
            return file.read(8) == MAGIC.to_bytes(8, "little")
    except OSError:
        return False


def read_recording(path: str | os.PathLike[str]) -> Profile:
    """The profile in the file at ``path``; without samples where there are none yet.

    Names are those of the files as they are now, where they still are the ones that were mapped.  Raises
    MalformedInput where it is no such file, OSError where it can't be read.
    """
    with open(path, "rb") as file:
        return _Recording(file, os.fspath(path)).profile()


@dataclasses.dataclass
class _Log:
    """What stands in the log."""

    head: Log
    maps: list[tuple[int, Maps]]
    names: dict[int, Thread]
    command: str = ""
    exe: str = ""


class _Recording:
    def __init__(self, file: BinaryIO, path: str) -> None:
        self._file, self._path = file, path
        self._size = os.fstat(file.fileno()).st_size
        self._control = Control.from_buffer_copy(self._read(0, ctypes.sizeof(Control)))
        self._plan = self._checked_plan()
        self._log = self._read_log()

    def _malformed(self, what: str) -> MalformedInput:
        return MalformedInput(f"{self._path}: {what}", "take the file that PYATTACH_OUT named")

    def _read(self, offset: int, size: int) -> bytes:
        data = os.pread(self._file.fileno(), size, offset)
        if len(data) != size:
            raise self._malformed(f"it ends before byte {offset + size:,}")
        return data

    def _checked_plan(self) -> RegionPlan:
        c = self._control
        if c.magic != MAGIC:
            raise self._malformed("it is no recording of pyattach")
        if c.version != VERSION or c.control_size != ctypes.sizeof(Control):
            raise self._malformed("it was written by another version of pyattach: read it with that one")
        if not (0 < c.slot_count <= _MOST_SLOTS and 0 < c.max_depth <= 4096 and c.period_ns):
            raise self._malformed("its sizes make no sense")
        try:
            plan = RegionPlan(
                period_ns=c.period_ns,
                slot_count=c.slot_count,
                max_depth=c.max_depth,
                ring_words=c.ring_words,
                signal=c.signal,
                unwind=Unwind.AUTO,
            )
        except ValueError as error:
            raise self._malformed("its sizes make no sense") from error
        parts = (plan.slots_offset, plan.ring_offset, plan.size, plan.size)
        if parts != (c.slots_offset, c.ring_offset, c.region_size, c.log_offset) or not c.ring_words:
            raise self._malformed("it is divided otherwise than it should be, or it is of `pyattach run`")
        if not ctypes.sizeof(Log) <= c.log_size <= _MOST_LOG or c.log_offset + c.log_size > self._size:
            raise self._malformed("its log is cut off")
        return plan

    # The log.

    def _read_log(self) -> _Log:
        head = Log.from_buffer_copy(self._read(self._control.log_offset, ctypes.sizeof(Log)))
        log = _Log(head, [], {})
        for clock_ns, kind, data in self._entries(head):
            if kind == LogKind.MAPS and len(log.maps) < _MOST_MAPS:
                try:
                    log.maps.append((clock_ns, Maps(parse_maps(data))))
                except MalformedInput as error:
                    raise self._malformed("the mappings in its log can't be read") from error
            elif kind == LogKind.NAME and len(data) == _NAME.size:
                tid, name = _NAME.unpack(data)
                log.names[tid] = Thread(tid, name.split(b"\0")[0].decode(errors="replace"))
            elif kind == LogKind.COMMAND:
                log.command = printable_command(data)
            elif kind == LogKind.EXE:
                log.exe = data.decode(errors="surrogateescape").removesuffix(" (deleted)")
        return log

    def _entries(self, head: Log) -> Iterator[tuple[int, int, bytes]]:
        at = self._control.log_offset + ctypes.sizeof(Log)
        end = min(at + head.used, self._control.log_offset + self._control.log_size)
        while at + ctypes.sizeof(LogEntry) <= end:
            entry = LogEntry.from_buffer_copy(self._read(at, ctypes.sizeof(LogEntry)))
            at += ctypes.sizeof(LogEntry)
            if at + entry.size > end:
                return
            yield entry.clock_ns, entry.kind, self._read(at, entry.size)
            at += (entry.size + 7) // 8 * 8

    # The samples.

    def _samples(self) -> Iterator[list[RawSample]]:
        """All records, in pieces: nobody has read from the ring, so it begins with the first one."""
        reader = RingReader(self._plan, self._read)
        head = min(int(self._control.head), self._plan.ring_words)
        while reader.tail < head:
            before = reader.tail
            yield reader.drain_to(min(head, reader.tail + _CHUNK_WORDS))
            if reader.tail == before:
                return

    def profile(self) -> Profile:
        """Each sample named with the mappings of its time."""
        moments = [clock_ns for clock_ns, _ in self._log.maps]
        resolver = Resolver(
            Maps([]), file_opener, exe_path=self._log.exe, path_openers=[own_path_opener],
            cache=Cache(cache_folder()),
        )  # fmt: skip
        store = SampleStore(resolver)
        first_ns = last_ns = ticks = 0
        shown = -1
        with resolver:
            for samples in self._samples():
                for sample in samples:
                    index = self._look_for(sample, moments)
                    if index != shown and index >= 0:
                        store.place()  # with the mappings of their time
                        resolver.update(self._log.maps[index][1])
                        shown = index
                    store.add([(sample.tid, sample.end, sample.weight, sample.frames)])
                    first_ns, last_ns = first_ns or sample.clock_ns, sample.clock_ns
                    ticks += 1
            store.update_totals()
            weights = store.weights()
            meta = dataclasses.replace(self._meta(store, ticks), unresolved=store.unresolved())
        duration_s = max(0, last_ns - int(self._control.init_clock_ns)) / 1e9 if ticks else 0.0
        return Profile(dataclasses.replace(meta, duration_s=duration_s), self._log.names, weights)

    def _look_for(self, sample: RawSample, moments: list[int]) -> int:
        """Which look at the mappings the sample is named with: the last one before it, unless it has code
        that was only seen at the next.  -1 where there is none."""
        index = max(0, bisect.bisect_right(moments, sample.clock_ns) - 1) if moments else -1
        if not 0 <= index < len(moments) - 1:
            return index
        now, later = self._log.maps[index][1], self._log.maps[index + 1][1]
        new = any(now.find(frame) is None and later.find(frame) is not None for frame in sample.frames)
        return index + 1 if new else index

    def _meta(self, store: SampleStore, ticks: int) -> Meta:
        control, head = self._control, self._log.head
        size = ctypes.sizeof(Slot)
        data = self._read(self._plan.slots_offset, size * self._plan.slot_count)
        slots = (Slot * self._plan.slot_count).from_buffer_copy(data)
        cpu_s = head.cpu_ns / 1e9 if head.cpu_ns else None
        return Meta(
            command=self._log.command,
            pid=control.preload_pid,
            rate_asked_hz=1e9 / control.period_ns,
            rate_reached_hz=ticks / cpu_s if cpu_s else None,
            started_at_unix_s=head.began_ns / 1e9 or None,
            cpu_time_s=cpu_s,
            samples=store.samples,
            ticks=ticks,
            dropped=sum(int(slot.dropped) for slot in slots),
            truncated=store.truncated,
            truncated_by=store.truncated_by(),
            ended_by=self._ended_by(),
            version=__version__,
            clock="timer",
            notes=tuple(self._notes(slots)),
        )

    def _ended_by(self) -> str:
        """Whether the process of that number has mapped this very file."""
        inode = os.fstat(self._file.fileno()).st_ino
        try:
            mappings = parse_maps(Path(f"/proc/{self._control.preload_pid}/maps").read_bytes())
        except OSError:
            return "the program ended"
        still = any(m.inode == inode and m.shared for m in mappings)
        return "the program still runs" if still else "the program ended"

    def _notes(self, slots: ctypes.Array[Slot]) -> Iterator[str]:
        yield "the program recorded itself (PYATTACH_OUT)"
        if any(int(slot.dropped) for slot in slots):
            yield "the file or the disk was full: what came later is missing; PYATTACH_MB gives more room"
        if self._log.head.lost:
            yield f"the log was full: {self._log.head.lost:,} changes of mappings or names are missing"
        if not self._log.maps:
            yield "no mappings were recorded: there are no names"
