"""Reading /proc/PID: each file decoded in one place, all of it untrusted text."""

from __future__ import annotations

import os
import re
import time
from pathlib import Path
from typing import NamedTuple

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_PAGE = 4096  # no file here gives more to one read
_MOST_COMMAND = 1 << 16
"""Bytes of a command line that are read: a process may name any part of its memory as that (man 2 prctl,
PR_SET_MM), and be a thousand times longer."""


class Stat(NamedTuple):
    """The fields of /proc/PID/stat that are needed (man proc_pid_stat); times in seconds of CPU time,
    ``start_time`` in clock ticks since boot."""

    name: str
    state: str
    parent: int
    flags: int
    start_time: int
    cpu_s: float
    children_cpu_s: float = 0.0
    """Of children that have ended and were waited for, and of theirs."""


def read_file(path: str) -> bytes:
    """All of a file below /proc.  Such are read many times a second, for each thread: this takes a third to
    a half of the time that ``Path.read_bytes`` does.  Raises OSError."""
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        parts = []
        while part := os.read(file, _PAGE):
            parts.append(part)
    finally:
        os.close(file)
    return b"".join(parts)


def parse_stat(text: bytes) -> Stat:
    """Decode a stat line.  The name may hold blanks and parentheses: it ends at the last ``)``."""
    name = text[text.index(b"(") + 1 : text.rindex(b")")]
    fields = text[text.rindex(b")") + 2 :].split()
    return Stat(
        name=_shown(name.decode(errors="replace")),
        state=fields[0].decode(),
        parent=int(fields[1]),
        flags=int(fields[6]),
        start_time=int(fields[19]),
        cpu_s=(int(fields[11]) + int(fields[12])) / _TICKS_PER_S,
        children_cpu_s=(int(fields[13]) + int(fields[14])) / _TICKS_PER_S,
    )


def _shown(text: str) -> str:
    """Text of the target without control characters: it may end up on a terminal."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def read_stat(pid: int, tid: int | None = None) -> Stat | None:
    """Stat of a process, or of one of its threads; None when it is gone."""
    path = f"/proc/{pid}/stat" if tid is None else f"/proc/{pid}/task/{tid}/stat"
    try:
        return parse_stat(read_file(path))
    except (FileNotFoundError, ProcessLookupError):
        return None


def read_status(pid: int, tid: int | None = None) -> dict[str, str]:
    """/proc/PID/status as a dict of its lines; empty when the process is gone."""
    path = f"/proc/{pid}/status" if tid is None else f"/proc/{pid}/task/{tid}/status"
    try:
        lines = Path(path).read_text(errors="replace").splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return {}
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


def rss_bytes(pid: int, field: str = "VmRSS") -> int:
    """Memory of the process now, or at most so far ("VmHWM"); 0 where that is not known."""
    found = re.fullmatch(r"(\d+) kB", read_status(pid).get(field, ""))
    return int(found[1]) * 1024 if found else 0


def thread_ids(pid: int) -> list[int]:
    """The threads that exist now; empty when the process is gone."""
    try:
        return sorted(int(name) for name in os.listdir(f"/proc/{pid}/task"))  # noqa: PTH208
    except (FileNotFoundError, ProcessLookupError):
        return []


def sign_of_threads(pid: int) -> tuple[int, int] | None:
    """Two numbers of which one changes when a thread of the process comes or goes: how many it has (the links
    of /proc/PID/task) and the number that the machine gave last (/proc/loadavg).  None when it is gone."""
    try:
        return os.stat(f"/proc/{pid}/task").st_nlink, int(read_file("/proc/loadavg").split()[4])  # noqa: PTH116
    except (FileNotFoundError, ProcessLookupError):
        return None


class Blocked(NamedTuple):
    """Where a thread sleeps in the kernel: the system call's number (-1: it is in none), and its stack
    pointer and instruction pointer in user space."""

    syscall: int
    sp: int
    ip: int


def read_blocked(pid: int, tid: int) -> Blocked | None:
    """/proc/PID/task/TID/syscall: None while the thread runs.  Raises ProcessLookupError once gone."""
    try:
        text = read_file(f"/proc/{pid}/task/{tid}/syscall")
    except (FileNotFoundError, ProcessLookupError) as error:
        raise ProcessLookupError(f"thread {tid} is gone") from error
    return parse_blocked(text)


def parse_blocked(text: bytes) -> Blocked | None:
    """Decode a line of /proc/PID/task/TID/syscall (man proc_pid_syscall); None while the thread runs."""
    fields = text.split()
    if fields[0] == b"running":
        return None
    return Blocked(int(fields[0]), int(fields[-2], 16), int(fields[-1], 16))


def thread_cpu_ns(pid: int, tid: int) -> int | None:
    """CPU time of a thread, ns (/proc/.../schedstat, its first field); None when gone or not kept."""
    try:
        return int(read_file(f"/proc/{pid}/task/{tid}/schedstat").split()[0])
    except (FileNotFoundError, ProcessLookupError, IndexError, ValueError):
        return None


def process_cpu_ns(pid: int) -> int | None:
    """CPU time of all threads of a process, those that have ended too, ns; None when it is gone."""
    try:
        # Its clock's number as the kernel makes it (man clock_getcpuclockid): CPUCLOCK_SCHED, 2.
        return time.clock_gettime_ns(~pid << 3 | 2)
    except OSError:
        return None


def runnable() -> int:
    """How many threads of the machine run or could, this one with them (/proc/loadavg); 0 if not told."""
    try:
        return int(Path("/proc/loadavg").read_text().split()[3].partition("/")[0])
    except (OSError, IndexError, ValueError):
        return 0


def command_line(pid: int) -> str:
    """The command line, arguments joined by blanks, or its begin; ``[name]`` when there is none."""
    try:
        with Path(f"/proc/{pid}/cmdline").open("rb") as file:
            raw = file.read(_MOST_COMMAND)
    except (FileNotFoundError, ProcessLookupError):
        raw = b""
    stat = read_stat(pid)
    return printable_command(raw) or (f"[{stat.name}]" if stat else "")


def printable_command(raw: bytes) -> str:
    """What /proc/PID/cmdline holds, arguments joined by blanks; "" where it is empty."""
    return " ".join(_shown(part.decode(errors="replace")) for part in raw.rstrip(b"\0").split(b"\0"))
