"""Target programs for the tests: compiling them, starting them, and proving that nothing is left.

Tests get these through the fixtures of the same names in conftest.py.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import select
import shlex
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import pytest
from hypothesis import settings

SOURCES = Path(__file__).resolve().parent / "targets"
BUILD = SOURCES / "build"

READY_DEADLINE_S = 20.0
FINISH_DEADLINE_S = 30.0

COMMON_FLAGS = ("-O2", "-Wall", "-Wextra", "-Werror", "-fno-omit-frame-pointer", "-pthread")
COMPILERS = {
    ".c": ("CC", "cc", "-std=gnu11"),
    ".cc": ("CXX", "c++", "-std=gnu++17"),
    ".S": ("CC", "cc", "-g0"),
}

CASES = int(os.environ.get("PYATTACH_CASES", 0))
"""Cases of each property of hostile input, where that is more than usual: ``make stress`` asks for many."""

_Test = Callable[..., None]


def hostile(usual: int = 100, **options: Any) -> Callable[[_Test], _Test]:
    """Marks a property of input that nobody vouches for, with ``usual`` cases and hypothesis' ``options``."""

    def decorate(test: _Test) -> _Test:
        marked: _Test = pytest.mark.hostile(settings(max_examples=max(usual, CASES), **options)(test))
        return marked

    return decorate


def build_target(name: str, *flags: str) -> Path:
    """The program (or, with ``-shared``, library) made from ``tests/targets/<name>.{c,cc,S}``.

    Compiled with COMMON_FLAGS and then ``flags``; compiled again when its source, a header beside it,
    the flags or the compiler change.  Its base name is ``name``.  Skips the test (fails it under CI)
    where flags like ``-m32`` or ``-static`` find no libraries to link with.
    """
    source = next((path for suffix in COMPILERS if (path := SOURCES / f"{name}{suffix}").exists()), None)
    if source is None:
        raise FileNotFoundError(f"there is no {SOURCES}/{name}.c, .cc or .S")
    variable, default, standard = COMPILERS[source.suffix]
    command = [*(shlex.split(os.environ.get(variable, "")) or [default]), standard, *COMMON_FLAGS, *flags]
    requires(command[0])
    for flag in flags:
        if flag.startswith("-fuse-ld="):
            requires(f"ld.{flag.removeprefix('-fuse-ld=')}")
    inputs = [source, *sorted(SOURCES.glob("*.h"))]
    digest = hashlib.sha256(repr(command).encode())
    for path in inputs:
        digest.update(path.read_bytes())
    output = BUILD / digest.hexdigest()[:12] / (f"lib{name}.so" if "-shared" in flags else name)
    if not output.exists():
        _compile(command, source, output, optional=bool({"-m32", "-mx32", "-static"} & set(flags)))
    return output


def _compile(command: list[str], source: Path, output: Path, *, optional: bool) -> None:
    output.parent.mkdir(parents=True, exist_ok=True)
    # Linked under another name and then renamed: it is there whole, or not at all.
    with tempfile.TemporaryDirectory(dir=output.parent) as scratch:
        linked = Path(scratch) / output.name
        done = subprocess.run(
            [*command, str(source), "-o", str(linked), "-ldl", "-lm"],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            message = f"{shlex.join(command)} {source}\n{done.stderr}"
            if optional:
                skip_unless_ci(
                    f"{source.name} can't be compiled with {command[-1]} (apt-get install gcc-multilib)"
                )
            raise RuntimeError(message)
        linked.replace(output)


class Target:
    """A running program, with its stdin and stdout in our hands.  Made by ``spawn``."""

    def __init__(self, process: subprocess.Popen[bytes], errors: IO[bytes]) -> None:
        self.process = process
        self.pid = process.pid
        self.output = ""
        """What was read of its stdout so far, without the line that said it was ready."""
        self._pending = b""
        self._errors = errors

    @property
    def returncode(self) -> int | None:
        return self.process.poll()

    @property
    def errors(self) -> str:
        """All it wrote to stderr so far."""
        self._errors.seek(0)
        return self._errors.read().decode(errors="replace")

    def tell(self, line: str = "") -> None:
        """Write a line to its stdin."""
        assert self.process.stdin is not None
        self.process.stdin.write(line.encode() + b"\n")
        self.process.stdin.flush()

    def expect(self, start: str, deadline_s: float = READY_DEADLINE_S) -> str:
        """Read its stdout up to the line that starts with ``start``, and return that line."""
        end = time.monotonic() + deadline_s
        while True:
            line = self._read_line(end)
            if line is None:
                raise AssertionError(f"no line {start!r} from {self} within {deadline_s} s or before its end")
            if line.startswith(start):
                return line

    def finish(self, exit_code: int | None = 0, deadline_s: float = FINISH_DEADLINE_S) -> str:
        """Close its stdin, wait for its end, return all of ``output``.  None accepts any exit code.

        The exit code is that of subprocess: minus the signal's number where a signal ended it.
        """
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        end = time.monotonic() + deadline_s
        while self._read_line(end) is not None:
            pass
        try:
            code = self.process.wait(max(0.1, end - time.monotonic()))
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self} did not end within {deadline_s} s after its stdin") from None
        if exit_code is not None and code != exit_code:
            raise AssertionError(f"{self} ended with {code}, not {exit_code}:\n{self.output}{self.errors}")
        return self.output

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def __str__(self) -> str:
        return f"{shlex.join(map(str, self.process.args))} (pid {self.pid})"  # type: ignore[arg-type]

    def _read_line(self, end: float) -> str | None:
        """The next line, None when stdout has ended or time is up."""
        assert self.process.stdout is not None
        while b"\n" not in self._pending:
            readable, _, _ = select.select([self.process.stdout], [], [], max(0.0, end - time.monotonic()))
            chunk = os.read(self.process.stdout.fileno(), 65536) if readable else b""
            if not chunk:
                return None
            self._pending += chunk
        line, _, self._pending = self._pending.partition(b"\n")
        self.output += line.decode(errors="replace") + "\n"
        return line.decode(errors="replace")


@contextlib.contextmanager
def spawn(
    program: str | Path | Sequence[str | Path],
    *arguments: object,
    ready: str | None = "ready",
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> Iterator[Target]:
    """Run a target until the end of the ``with``, and prove that nobody holds it any more.

    ``program`` is the name of a source in ``tests/targets`` (compiled first), a path, a command on
    the PATH, or a whole argv.  Comes back once a line starting with ``ready`` has been read (None:
    at once).  ``env`` is added to the environment.  At the end the target is killed if it still runs;
    where the test has passed so far, it must by then be neither stopped nor traced.
    """
    argv = [str(word) for word in ([program] if isinstance(program, (str, Path)) else program)]
    argv += [str(word) for word in arguments]
    if isinstance(program, str) and any((SOURCES / f"{program}{suffix}").exists() for suffix in COMPILERS):
        argv[0] = str(build_target(program))
    environment = {**os.environ, **env} if env is not None else None
    with contextlib.ExitStack() as undo:
        errors = undo.enter_context(tempfile.TemporaryFile())
        process = undo.enter_context(
            subprocess.Popen(
                argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, env=environment, cwd=cwd
            )
        )
        undo.callback(process.kill)  # by pid, and nothing happens once it was waited for
        target = Target(process, errors)
        if ready is not None:
            try:
                target.expect(ready)
            except AssertionError as error:
                raise AssertionError(f"{error}\n{target.output}{target.errors}") from None
            target.output = ""
        yield target
        held = [state for state in thread_states(process.pid) if state.is_held]
        assert not held, f"{target} was left held: {held}"


class ThreadState:
    """What /proc says of one thread: ``letter`` of its state and the pid of its tracer (0: none)."""

    def __init__(self, tid: int, letter: str, tracer: int) -> None:
        self.tid, self.letter, self.tracer = tid, letter, tracer

    @property
    def is_held(self) -> bool:
        return self.tracer != 0 or self.letter in "tT"

    def __repr__(self) -> str:
        return f"thread {self.tid}: state {self.letter}, tracer {self.tracer or 'none'}"


def first_to_run() -> None:
    """From here on before all others that want a processor, where this is permitted.  The kernel looks at CPU
    timers at its own ticks, and threads that have to share a processor may be gone at most of them."""
    with contextlib.suppress(PermissionError):
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))


def thread_states(pid: int) -> list[ThreadState]:
    """One for each thread of ``pid``; threads that vanish while we look are left out."""
    states = []
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for tid in os.listdir(f"/proc/{pid}/task"):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                with open(f"/proc/{pid}/task/{tid}/status", encoding="utf-8", errors="replace") as status:
                    fields = dict(line.split(":", 1) for line in status if ":" in line)
                states.append(ThreadState(int(tid), fields["State"].split()[0], int(fields["TracerPid"])))
    return states


def children() -> dict[int, str]:
    """Our child processes, pid to state letter; zombies are collected on the way and left out."""
    found = {}
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            with open(f"/proc/{entry}/stat", encoding="utf-8", errors="replace") as stat:
                # The name in parentheses may itself hold parentheses and blanks.
                letter, parent = stat.read().rpartition(")")[2].split()[:2]
            if int(parent) != os.getpid():
                continue
            if letter == "Z":
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(int(entry), os.WNOHANG)
            else:
                found[int(entry)] = letter
    return found


def command_of(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    return "?"


def requires(program: str) -> str:
    """The path of a program on the PATH; skips the test where there is none, fails it under CI."""
    path = shutil.which(program)
    if path is None:
        skip_unless_ci(f"needs {program}, which is not installed (tests/install-programs test)")
    assert path is not None
    return path


def skip_unless_ci(reason: str) -> None:
    """A test that can't run is no success where everything was to be installed."""
    if os.environ.get("CI"):
        pytest.fail(f"under CI nothing is skipped: {reason}", pytrace=False)
    pytest.skip(reason)
