"""pyattach from Python: profiles of running processes, and of files that hold one.

    with pyattach.attach(pid, hz=99) as session:
        ...                                   # make the process work
    profile = session.profile
    for row in profile.top(10):
        print(f"{profile.share(row):6.1%} {row.frame.name}")
    profile.save("out.svg")

Each attachment is a process of its own (``attacher/remote.py``): what the caller does meanwhile does not
disturb it.  All errors are PyattachError; they say what happened and what to try.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Generic, TypeVar

from .attacher.choosing import ThreadChoice
from .attacher.contract import Options
from .attacher.remote import STARTED, Answer, Request
from .errors import PyattachError, UsageError
from .render import profile as recorded
from .render.compare import diff_svg
from .render.folded import folded_stacks
from .render.formats import renderer_for, write_atomically
from .render.profile import FunctionRow, Meta, Stack, Thread, totals_of
from .render.renderer import RenderOptions
from .symbols.name_options import NameOptions

__all__ = ["Attachment", "HeapProfile", "Profile", "attach", "attach_heap", "read"]


class Profile:
    """Samples by thread and stack.  Weights are periods of CPU time (mode "cpu"), of real time ("wall"),
    or bytes or blocks ("heap"); stacks are tuples of Frame, the root first.  Names come from the target and
    are untrusted."""

    def __init__(self, of: recorded.Profile, residue: Sequence[str] = ()) -> None:
        self._of = of
        self.residue = tuple(residue)
        """What could not be taken out of the target again; empty where it is as it was."""

    @property
    def meta(self) -> Meta:
        """What was measured, and how well: rate, duration in seconds, samples, dropped, overhead, notes."""
        return self._of.meta

    @property
    def total(self) -> int:
        """All weights."""
        return self._of.total

    @property
    def threads(self) -> list[Thread]:
        """Those with samples, the busiest first."""
        return [thread for thread, _ in self._of.by_thread()]

    def samples(self) -> Iterator[tuple[Thread, Stack, int]]:
        """Thread, stack and weight of each distinct stack of each thread."""
        for (tid, stack), weight in self._of.weights.items():
            yield self._of.threads.get(tid, Thread(tid, "")), stack, weight

    def top(self, count: int = 20, *, by_total: bool = False) -> list[FunctionRow]:
        """The functions with most samples of their own (``by_total``: with what they call), all threads
        together."""
        return totals_of(self._of).rows(count, by_total=by_total)

    def share(self, row: FunctionRow, *, by_total: bool = False) -> float:
        """A row's part of all, 0.0 to 1.0."""
        return (row.total_ticks if by_total else row.self_ticks) / self.total if self.total else 0.0

    def fold(self) -> dict[str, int]:
        """Weights by folded stack (``main;work;leaf``), as flamegraph.pl takes them."""
        return dict(folded_stacks(self._of, RenderOptions()))

    def save(self, path: str | Path, format: str | None = None) -> None:
        """Write it, in the format of that name or of the path's ending (svg, folded, txt, json, pb.gz,
        speedscope.json, firefox.json).  Raises UsageError (no such format) and PyattachError."""
        write_atomically(path, renderer_for(format or path).render(self._of, RenderOptions()))

    def diff(self, before: Profile, path: str | Path) -> None:
        """Draw this profile as SVG, coloured by what has changed since ``before``.  Raises UsageError where
        the modes differ, PyattachError where it can't be written."""
        write_atomically(path, diff_svg(before._of, self._of, RenderOptions()))

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of process {self.meta.pid}, {self.total:,} in all>"


class HeapProfile(Profile):
    """What a process has allocated while it was attached to, by stack; weights are bytes.  As a Profile it
    is of what was live at the peak; ``kind`` gives the others."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(answer.profiles["peak", "bytes"], answer.residue)
        self._profiles = answer.profiles

    def kind(self, kind: str, unit: str = "bytes") -> Profile:
        """``kind``: "allocated" (freed or not), "live" (allocated and not freed), "peak" (live when most
        was), "temporary" (freed before the thread allocated anything else), "leaked" (with ``leaks``);
        ``unit``: "bytes" or "blocks".  Raises UsageError."""
        if (kind, unit) not in self._profiles:
            kinds, units = (sorted({key[n] for key in self._profiles}) for n in (0, 1))
            raise UsageError(
                f"no profile of the heap is of kind {kind!r} and unit {unit!r}",
                f"kinds: {', '.join(kinds)}; units: {', '.join(units)}",
            )
        return Profile(self._profiles[kind, unit], self.residue)

    def allocated_bytes(self, module: str | None = None) -> int:
        """Bytes allocated, freed or not; with ``module`` only by stacks with a frame of a file whose name
        begins so ("libfoo": libfoo.so.1)."""
        return self._sum("allocated", "bytes", module)

    def live_bytes(self, module: str | None = None) -> int:
        """Bytes allocated and not freed since, still in use or not: see ``leaked_bytes``."""
        return self._sum("live", "bytes", module)

    def leaked_bytes(self, module: str | None = None) -> int:
        """Bytes of blocks that nothing in the process leads to any more; with ``leaks=True`` only.  Raises
        UsageError without, or where they could not be looked for."""
        if ("leaked", "bytes") not in self._profiles:
            notes = [note for note in self.meta.notes if "leak" in note]
            raise UsageError("leaks were not looked for", "; ".join(notes) or "attach_heap(pid, leaks=True)")
        return self._sum("leaked", "bytes", module)

    def live_blocks(self, module: str | None = None) -> int:
        """The same, in blocks."""
        return self._sum("live", "blocks", module)

    def _sum(self, kind: str, unit: str, module: str | None) -> int:
        return sum(
            weight
            for (_, stack), weight in self._profiles[kind, unit].weights.items()
            if module is None or any(frame.module.startswith(module) for frame in stack)
        )


Result = TypeVar("Result", bound=Profile)


class Attachment(Generic[Result]):
    """A session on a process, from ``with`` to its end.  Made by ``attach`` and ``attach_heap``."""

    def __init__(self, request: Request, result: Callable[[Answer], Result]) -> None:
        self._request, self._result = request, result
        self._process: subprocess.Popen[bytes] | None = None
        self._profile: Result | None = None

    def __enter__(self) -> Attachment[Result]:
        self._profile = None
        # The package's own folder first: it may have been imported from anywhere.
        root = str(Path(__file__).resolve().parent.parent)
        path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH", ""))))
        self._process = subprocess.Popen(
            [sys.executable, "-c", "from pyattach.attacher.remote import main; main()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": path},
        )
        try:
            assert self._process.stdin is not None
            with contextlib.suppress(BrokenPipeError):  # the answer says why
                pickle.dump(self._request, self._process.stdin)
                self._process.stdin.flush()
            self._take(self._said())
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.stop()
        except PyattachError:
            if error is None:
                raise

    def stop(self) -> Result:
        """End it now, as the end of the ``with`` does: the target is let go of, and checked.  Raises
        PyattachError."""
        try:
            if self._profile is None and self._process is not None:
                assert self._process.stdin is not None
                with contextlib.suppress(BrokenPipeError):
                    # A byte, and not only the end: forks of the caller have the other end of the pipe, too.
                    self._process.stdin.write(b"\n")
                    self._process.stdin.close()
                self._take(self._said())
        finally:
            self._end()
        return self.profile

    @property
    def profile(self) -> Result:
        """What was recorded; there once the session has ended.  Raises PyattachError before."""
        if self._profile is None:
            raise PyattachError(
                "the session goes on", "end the `with`, or call stop(), then take the profile"
            )
        return self._profile

    def _said(self) -> object:
        assert self._process is not None and self._process.stdout is not None
        try:
            said: object = pickle.load(self._process.stdout)
        except EOFError:
            status = self._process.wait()
            return PyattachError(
                f"the process that profiled ended with {status}", "the target is as it was within a second"
            )
        return said

    def _take(self, said: object) -> None:
        if isinstance(said, PyattachError):
            raise said
        if said != STARTED:
            assert isinstance(said, Answer)
            self._profile = self._result(said)

    def _end(self) -> None:
        if self._process is not None:
            with self._process as process:
                assert process.stdin is not None
                with contextlib.suppress(BrokenPipeError):
                    process.stdin.close()
            self._process = None


def attach(
    pid: int,
    *,
    hz: float = 99.0,
    mode: str = "cpu",
    threads: Sequence[str] = (),
    duration_s: float | None = None,
    subprocesses: bool = False,
    lines: bool = False,
    allow_seccomp: bool = False,
) -> Attachment[Profile]:
    """Sample process ``pid`` within a ``with``, ``hz`` times per second of CPU time (``mode`` "wall": of real
    time, also where threads wait).  Within the ``with`` samples are being taken; its end, ``duration_s``
    seconds, or the end of the process ends it.

    ``threads``: only those of these names (``worker-*``) or ids; ``subprocesses``: children too; ``lines``:
    source lines and inlined functions; ``allow_seccomp``: also where a filter may forbid what is needed.

    The ``with`` raises PyattachError: NoPermission, NoSuchTarget, UnsupportedTarget, TargetDied, UsageError.
    """
    if not 10 <= hz <= 10_000:
        raise UsageError(f"{hz:g} Hz is no rate to sample at", "take 10 to 1000")
    if mode not in ("cpu", "wall"):
        raise UsageError(f"there is no mode {mode!r}", "take cpu or wall")
    options = Options(
        rate_hz=float(hz),
        duration_s=duration_s,
        threads=ThreadChoice((threads,) if isinstance(threads, str) else tuple(map(str, threads))),
        subprocesses=subprocesses,
        allow_seccomp=allow_seccomp,
        mode=mode,
        names=NameOptions(lines=lines),
    )
    return Attachment(Request(pid, options), lambda answer: Profile(answer.profiles["", ""], answer.residue))


def attach_heap(
    pid: int, *, sample_bytes: int = 0, leaks: bool = False, duration_s: float | None = None,
    allow_seccomp: bool = False,
) -> Attachment[HeapProfile]:  # fmt: skip
    """Record what process ``pid`` allocates within a ``with``: every call of malloc and its kin, or one in
    ``sample_bytes`` on average, from which the rest is estimated.  ``leaks``: at the end each thread is
    stopped for a moment, and what nothing leads to any more is told apart.  Otherwise as ``attach``.

    Raises UsageError where both are asked for: what leads to a block would not be known."""
    if leaks and sample_bytes:
        raise UsageError("leaks can't be told where allocations are sampled", "leave out sample_bytes")
    options = Options(duration_s=duration_s, allow_seccomp=allow_seccomp)
    return Attachment(Request(pid, options, heap=True, sample_bytes=sample_bytes, leaks=leaks), HeapProfile)


def read(path: str | Path) -> Profile:
    """The profile in a file: pictures and JSON of pyattach, folded stacks, pprof, what a program has recorded
    of itself (PYATTACH_OUT).  Raises PyattachError."""
    from .attacher.recording import read_any

    return Profile(read_any(path))
