"""What would happen if pyattach attached to a process, found out without touching it."""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from ..errors import ExitCode, InjectionFailed, MalformedInput, NoSuchTarget, PyattachError
from ..inject.locks import survey
from ..symbols.elf import ElfImage
from ..symbols.files import proc_opener
from ..symbols.golang import is_go
from ..symbols.maps import Maps, parse_maps
from . import clock, permission, procfs, refusals

_ALLOCATORS = ("jemalloc", "tcmalloc", "mimalloc")
_ALLOCATOR_SYMBOLS = {b"mallocx": "jemalloc", b"tc_malloc": "tcmalloc", b"mi_malloc": "mimalloc"}
_DYNAMIC_LOADER = re.compile(r"/(ld-musl|ld-linux|ld)[^/]*\.so[^/]*$")
_SIGPROF = 27


@dataclasses.dataclass(frozen=True)
class Finding:
    """One thing that was looked at.  ``refusal``: what attaching ends with, unless ``option`` is given."""

    topic: str
    said: str
    refusal: PyattachError | None = None
    option: str = ""


@dataclasses.dataclass(frozen=True)
class Report:
    """All findings on a process, and what they come to."""

    pid: int
    findings: tuple[Finding, ...]

    @property
    def refusal(self) -> PyattachError | None:
        """The first reason for which attaching can't work, with any options; None: it will."""
        return next((f.refusal for f in self.findings if f.refusal is not None and not f.option), None)

    @property
    def options(self) -> list[str]:
        """What has to be given for it to work."""
        return [f.option for f in self.findings if f.option]

    @property
    def verdict(self) -> str:
        """ "will work", "will work with OPTION", or "can't, because REASON; do WAY OUT"."""
        if self.refusal is not None:
            ways = f"; do:\n  {self.refusal.way_out}" if self.refusal.way_out else ""
            return f"can't, because {self.refusal.what}{ways}"
        command = " ".join(["pyattach", str(self.pid), *self.options])
        return f"will work{' with' if self.options else ''}: {command}"

    @property
    def exit_code(self) -> int:
        """What an attach without further options would end with."""
        refusal = next((f.refusal for f in self.findings if f.refusal is not None), None)
        return int(ExitCode.OK if refusal is None else refusal.exit_code)


def examine(pid: int) -> Report:
    """Look at process ``pid`` from outside: no ptrace, nothing written, no signal.

    Raises NoSuchTarget.  Other refusals are findings.
    """
    if procfs.read_stat(pid) is None:
        raise refusals.no_such_process(pid)
    try:
        return Report(pid, tuple(_findings(pid)))
    except (FileNotFoundError, ProcessLookupError) as error:
        raise NoSuchTarget(f"process {pid} ended just now") from error


def _findings(pid: int) -> Iterator[Finding]:
    refused = False
    for topic, look in refusals.LOOKS:
        try:
            look(pid)
        except PyattachError as error:
            refused = True
            yield Finding(topic, error.what, error)
            if topic in ("process", "state", "permission"):
                return  # nothing more can be looked into
        else:
            yield Finding(topic, _SAID[topic](pid))
    yield _seccomp(pid)
    yield from _program(pid)
    yield Finding("threads", f"{len(procfs.thread_ids(pid)):,}")
    yield _open_files(pid)
    yield from _clocks(pid)
    if not refused:
        yield Finding("wall mode", _wall(pid))


def _state(pid: int) -> str:
    stat = procfs.read_stat(pid)
    return {"R": "running", "S": "sleeping", "D": "in an uninterruptible sleep"}.get(
        stat.state if stat else "", stat.state if stat else "gone"
    )


def _permitted(pid: int) -> str:
    status = procfs.read_status(pid)
    uid = (status.get("Uid", "?").split() or ["?"])[0]
    by = "you have CAP_SYS_PTRACE" if permission.has_capability() else "it is yours"
    words = [f"permitted ({by}; it runs as uid {uid})"]
    if scope := permission.yama_scope():
        words.append(f"kernel.yama.ptrace_scope is {scope}")
    if where := permission.other_user_namespace(pid):
        words.append(where)
    if status.get("NoNewPrivs") == "1":
        words.append("it has given up new privileges (no_new_privs), which changes nothing here")
    return ", ".join(words)


_SAID: dict[str, Callable[[int], str]] = {
    "process": procfs.command_line,
    "state": _state,
    "permission": _permitted,
    "tracer": lambda _pid: "none",
    "architecture": lambda _pid: "x86_64, 64-bit",
}


def _seccomp(pid: int) -> Finding:
    try:
        refusals.check_seccomp(pid)
    except PyattachError as error:
        return Finding("seccomp", error.what, error, option="--allow-seccomp")
    return Finding("seccomp", "no filter")


# The program.


def _program(pid: int) -> Iterator[Finding]:
    try:
        maps = Maps(parse_maps(Path(f"/proc/{pid}/maps").read_bytes()))
        with ElfImage(open(f"/proc/{pid}/exe", "rb"), f"/proc/{pid}/exe") as image:
            yield Finding("linkage", _linkage(image, maps))
            yield Finding("loader", _way_in(pid, maps))
            yield Finding("allocator", _allocator(image, maps))
            yield Finding("symbols", _symbols(image))
    except (MalformedInput, OSError) as error:
        yield Finding("program", f"its executable can't be read: {error}")


def _linkage(image: ElfImage, maps: Maps) -> str:
    words = ["Go"] if is_go(image) else []
    if image.interpreter is None:
        words.append("static")
    else:
        words.append("dynamic, " + ("musl" if "musl" in image.interpreter else "glibc"))
    words.append("position-independent" if image.is_position_independent else "at a fixed address")
    loaders = {m.file_path for m in maps.executable() if _DYNAMIC_LOADER.search(m.file_path)}
    if image.interpreter is not None and not loaders:
        words.append("its dynamic linker is not mapped")
    return ", ".join(words)


def _way_in(pid: int, maps: Maps) -> str:
    def read(address: int, size: int) -> bytes:
        with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
            memory.seek(address)
            return memory.read(size) or b""

    _, calls = survey(maps, proc_opener(pid), read)
    if calls is None:
        return "the stub is mapped directly (there is no dlopen)"
    return "dlopen at a moment where that is safe and a processor is free, else the stub is mapped directly"


def _allocator(image: ElfImage, maps: Maps) -> str:
    for name in _ALLOCATORS:
        if any(f"lib{name}" in m.file_path.rpartition("/")[2] for m in maps.executable()):
            return f"{name}, a library of its own"
    for symbol, name in _ALLOCATOR_SYMBOLS.items():
        if image.dynamic_symbol(symbol) is not None or image.function_symbols().named((symbol,)):
            return f"{name}, linked into the program"
    if is_go(image):
        return "Go's own"
    return "libc's" if image.interpreter is not None else "linked into the program"


def _symbols(image: ElfImage) -> str:
    count = len(image.function_symbols())
    if image.has_section(b".symtab"):
        return f"{count:,} functions in the executable"
    return f"the executable is stripped: {count:,} exported functions have names, others show as addresses"


# What the stub needs.


def _open_files(pid: int) -> Finding:
    """memfd_create needs a number for a moment."""
    used = len(list(Path(f"/proc/{pid}/fd").iterdir()))
    limits = Path(f"/proc/{pid}/limits").read_text()
    found = re.search(r"^Max open files +(\d+)", limits, re.MULTILINE)
    said = f"{used:,} of {int(found[1]):,}" if found else f"{used:,}"
    if found is None or used < int(found[1]):
        return Finding("open files", said)
    error = InjectionFailed(
        f"process {pid} has no number left for another open file (it has {used:,})",
        f"raise its limit by one: prlimit --pid {pid} --nofile={used + 1}:",
    )
    return Finding("open files", error.what, error)


def _clocks(pid: int) -> Iterator[Finding]:
    why = clock.why_no_events(pid)
    yield Finding("perf events", why or "permitted")
    hz = clock.kernel_hz()
    timers = f"tick at most {hz:.0f} times a second on this kernel"
    yield Finding(
        "timers", timers if not why else f"{timers}; above that each sample stands for several periods"
    )
    yield Finding("SIGPROF", _sigprof(pid))


def _sigprof(pid: int) -> str:
    status = procfs.read_status(pid)
    caught = int(status.get("SigCgt", "0"), 16) >> (_SIGPROF - 1) & 1
    ignored = int(status.get("SigIgn", "0"), 16) >> (_SIGPROF - 1) & 1
    timers = 0
    with contextlib.suppress(OSError):
        text = Path(f"/proc/{pid}/timers").read_text(errors="replace")
        timers = len(re.findall(rf"^signal: {_SIGPROF}/", text, re.MULTILINE))
    if caught or timers:
        return "the target uses it itself, and keeps it: its own profile stays right"
    return "ignored by the target" if ignored else "free"


def _wall(pid: int) -> str:
    from .wall import check_wall

    try:
        check_wall(pid)
    except PyattachError as error:
        return error.what
    return "possible: it can be seen where threads wait"
