"""Which files a process's runtime writes for profilers, opened so that nobody else's is believed."""

from __future__ import annotations

import os
import posixpath
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from .jit import MOST_BYTES, GrowingFile, JitDump, JitSymbol, JitSymbols, PerfMap
from .maps import Maps

_MOST_DUMPS = 4
_MOST_TURNS = 64  # of 8 MB
_CLOCK_SET_LATE_NS = 60_000_000_000  # a clock that is set right soon after the start


class JitNames:
    """Names of the generated code of process ``pid``.  ``refresh`` reads what is new."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self.symbols = JitSymbols()
        number, self._uid = _number_inside(pid), _owner(pid)
        self._oldest_ns = _started_ns(pid) - _CLOCK_SET_LATE_NS
        self._outlived: set[str] = set()
        paths = [f"{folder}/perf-{number}.map" for folder in _temporary_folders(pid)]
        self._files: list[PerfMap | JitDump] = [
            PerfMap(GrowingFile(lambda path=path: self._open_map(path)), self.symbols)  # type: ignore[misc]
            for path in paths
        ]
        self._dumps: set[str] = set()

    def refresh(self, maps: Maps, most_turns: int = _MOST_TURNS) -> bool:
        """Read on in all files; whether there was anything new.  Of each
        ``most_turns`` pieces of 8 MB at most.  A jitdump is found by the page of it that the
        runtime maps to mark it."""
        for mapping in maps.executable():
            name = posixpath.basename(mapping.path)
            new = mapping.path not in self._dumps and len(self._dumps) < _MOST_DUMPS
            if new and name.startswith("jit-") and name.endswith(".dump") and mapping.is_file:
                path = mapping.path
                self._dumps.add(path)
                self._files.append(JitDump(GrowingFile(lambda path=path: self._open(path)), self.symbols))  # type: ignore[misc]
        anything = False
        for file in self._files:
            turns = 0
            while turns < most_turns and file.refresh():
                turns += 1
            anything = anything or turns > 0
        return anything

    def find(self, address: int) -> JitSymbol | None:
        """The function at ``address``, as far as is known by now."""
        return self.symbols.find(address) if len(self.symbols) else None

    def left_out(self) -> Iterator[str]:
        """What was not taken from the files, in words."""
        if bad := sum(file.bad_lines for file in self._files):
            yield f"generated code: {bad:,} lines of its compiler's files made no sense, or were too many"
        for path in sorted(self._outlived):
            yield f"generated code: {path} is older than the process, an earlier one's: it was left out"
        if any(file.file.full for file in self._files):
            yield f"generated code: only the first {MOST_BYTES >> 20} MB of its compiler's file were read"

    def _open_map(self, path: str) -> BinaryIO | None:
        """A perf map has a process's number in its name only: in a container, where numbers come again and
        /tmp stays, it may be an earlier one's."""
        file = self._open(path)
        self._outlived.discard(path)
        if file is None or os.fstat(file.fileno()).st_mtime_ns >= self._oldest_ns:
            return file
        file.close()
        self._outlived.add(path)
        return None

    def _open(self, path: str) -> BinaryIO | None:
        """The file at ``path`` as the process sees it, if it is a regular file of its user and nobody else
        may write to it: its temporary folder is everybody's."""
        try:
            handle = os.open(f"/proc/{self._pid}/root{path}", os.O_PATH | os.O_CLOEXEC | os.O_NOFOLLOW)
        except (OSError, ValueError):
            return None
        try:
            found = os.fstat(handle)
            ours = found.st_uid in (self._uid, 0) and not found.st_mode & stat.S_IWOTH
            return open(f"/proc/self/fd/{handle}", "rb") if stat.S_ISREG(found.st_mode) and ours else None
        except OSError:
            return None
        finally:
            os.close(handle)


def _number_inside(pid: int) -> int:
    """The process's pid in its own namespace: the last of NSpid (proc_pid_status(5))."""
    try:
        for line in Path(f"/proc/{pid}/status").read_bytes().splitlines():
            if line.startswith(b"NSpid:"):
                return int(line.split()[-1])
    except (OSError, ValueError):
        return pid
    return pid


def _started_ns(pid: int) -> int:
    """When the process began, by the clock that files bear (CLOCK_REALTIME); 0 where that can't be known."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        begun_s = int(fields[19]) / os.sysconf("SC_CLK_TCK")  # proc(5): starttime
        ago = time.clock_gettime(time.CLOCK_BOOTTIME) - begun_s
    except (OSError, ValueError, IndexError):
        return 0
    return time.time_ns() - int(ago * 1e9)


def _owner(pid: int) -> int:
    try:
        for line in Path(f"/proc/{pid}/status").read_bytes().splitlines():
            if line.startswith(b"Uid:"):
                return int(line.split()[2])  # real, effective, saved, of the file system
    except (OSError, ValueError, IndexError):
        return -1
    return -1


def _temporary_folders(pid: int) -> list[str]:
    """/tmp, which perf knows and nearly all runtimes use; .NET takes TMPDIR."""
    folders = ["/tmp"]
    try:
        environment = Path(f"/proc/{pid}/environ").read_bytes()[: 1 << 20].split(b"\0")
    except OSError:
        return folders
    for word in environment:
        if word.startswith(b"TMPDIR=/"):
            folder = os.fsdecode(word[7:]).rstrip("/")
            if folder and folder not in folders and ".." not in folder.split("/"):
                folders.append(folder)
    return folders
