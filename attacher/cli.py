"""The ``pyattach`` command.

Whoever attaches wants to see what happens now, so nothing is imported here before it is needed: the parts of
a session when a process is to be attached to, renderers and tables when there is something to be shown.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TextIO

from ..errors import ExitCode, PyattachError, UsageError
from ..render.streams import speak
from .cli_options import chosen_pid, parser
from .heap_words import DRAWN, NEVER
from .naming_options import name_options
from .outputs import check_outputs, default_suffix, render_options, write_outputs
from .words import RATE_RANGE_HZ

if TYPE_CHECKING:
    import argparse

    from ..render.live import LiveView
    from ..render.plain import PlainView
    from .contract import Options, Outcome, Progress
    from .heap_beside import HeapBeside
    from .heap_session import HeapOutcome


class StopSignals:
    """SIGINT, SIGTERM and SIGHUP end a run alike; a second SIGINT skips the report, never the detach.
    SIGUSR1 asks for a report of what there is so far."""

    def __init__(self) -> None:
        self.count = 0
        self._reports_asked = False
        self._before: dict[int, object] = {}

    def __enter__(self) -> StopSignals:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN:
                continue  # nohup
            self._before[number] = signal.signal(number, self._on_signal)
        # Inherited as ignored, it would have the kernel tell nobody how a child has ended (man 2 wait).
        self._before[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        self._before[signal.SIGUSR1] = signal.signal(signal.SIGUSR1, self._on_request)
        return self

    def __exit__(self, *_exc: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _on_signal(self, number: int, _frame: object) -> None:
        self.count += 1

    def _on_request(self, _number: int, _frame: object) -> None:
        self._reports_asked = True

    def stopped(self) -> bool:
        return self.count > 0

    def report_wanted(self) -> bool:
        """Whether one was asked for since the last call."""
        asked, self._reports_asked = self._reports_asked, False
        return asked


def default_output(pid: int, wanted: str | None = None) -> str:
    """``PID-TIME.svg`` in the current folder, or with the ending of the wanted format.  Raises UsageError."""
    return f"{pid}-{time.strftime('%Y%m%dT%H%M%S')}{default_suffix(wanted)}"


def on_a_terminal() -> bool:
    """Whether there is somebody to see a live view."""
    if not (sys.stderr.isatty() and sys.stdout.isatty()) or os.environ.get("TERM", "") in ("dumb", "unknown"):
        return False
    from ..render.terminal_keys import in_foreground

    return in_foreground(sys.stdout.fileno())


def _view(arguments: argparse.Namespace) -> LiveView | PlainView | None:
    if arguments.no_live or arguments.quiet:
        return None
    if not on_a_terminal():
        from ..render.plain import PlainView

        return PlainView(sys.stderr)
    from ..render.live import LiveView  # it brings rich with it
    from ..render.terminal_keys import TerminalKeys

    return LiveView(keys=TerminalKeys())


def session_options(arguments: argparse.Namespace) -> Options:
    """What the session needs of the command line."""
    from ..inject.layout import Unwind
    from .choosing import ThreadChoice
    from .contract import Options

    return Options(
        rate_hz=arguments.rate,
        duration_s=arguments.duration,
        max_depth=max(1, min(arguments.max_depth, 4096)),
        unwind=Unwind[arguments.unwind.upper()],
        loader=arguments.loader,
        allow_seccomp=arguments.allow_seccomp,
        clock=arguments.clock,
        jitter=not arguments.no_jitter,
        threads=ThreadChoice(tuple(arguments.only)),
        follow_exec=arguments.follow_exec,
        subprocesses=arguments.subprocesses,
        max_overhead=arguments.max_overhead,
        mode=arguments.mode,
        names=name_options(arguments),
        say=_voice(arguments),
    )


def _voice(arguments: argparse.Namespace) -> Callable[[str], None]:
    from .contract import unheard

    return unheard if arguments.quiet else _say_beside_the_view


def _say_beside_the_view(line: str) -> None:
    from ..render.names import printable

    speak(f"pyattach: {printable(line)}", sys.stderr)


def run(arguments: argparse.Namespace, err: TextIO) -> ExitCode:
    """Do what the command line asks for; the exit code.  Raises PyattachError."""

    def say(line: str) -> None:
        if not arguments.quiet:
            speak(line, err)

    pid = chosen_pid(arguments)
    outputs = arguments.output or [default_output(pid, arguments.format)]
    check_outputs(outputs, arguments.format)
    if arguments.rate > RATE_RANGE_HZ[1]:
        say(f"warning: {arguments.rate:g} Hz costs the target more than a few percent of its time")
    options = session_options(arguments)
    heap = _heap_beside(arguments, pid, outputs, options)
    with StopSignals() as stop:
        outcome = _attach(pid, options, stop, _view(arguments), heap)
        with contextlib.ExitStack() as reports:  # one that fails does not keep the others from being made
            reports.callback(show_verified, outcome, pid, outputs, arguments, err)
            if stop.count < 2:
                if heap is not None:
                    reports.callback(_report_heap, heap, outputs, arguments, say)
                reports.callback(_report, outcome, outputs, arguments, say)
    return outcome.exit_code


def check_heap_words(arguments: argparse.Namespace) -> None:
    """Raises UsageError where something is said of the heap, and not that it is to be recorded."""
    chosen = arguments.heap_kind != DRAWN or arguments.entries != NEVER
    if not arguments.heap and (chosen or arguments.leaks or arguments.heap_sample):
        raise UsageError("that is about the heap, which is not recorded", "add --heap")


def _heap_beside(
    arguments: argparse.Namespace, pid: int, outputs: list[str], options: Options
) -> HeapBeside | None:
    """The heap's recording, where it is asked for.  Raises UsageError."""
    check_heap_words(arguments)
    if not arguments.heap:
        return None
    from .heap_beside import HeapBeside, heap_outputs
    from .heap_options import heap_options, interim_reports
    from .heap_session import HeapOptions

    if options.subprocesses:
        raise UsageError("--heap is for one process", "leave out -s; for a child: pyattach heap PID")
    beside = heap_outputs(outputs, arguments.format)
    check_outputs(beside, arguments.format)
    files = [{os.path.realpath(output) for output in those if output != "-"} for those in (outputs, beside)]
    if both := sorted(files[0] & files[1]):
        raise UsageError(f"{both[0]} would be the CPU's profile and the heap's", "name other files with -o")
    chosen = HeapOptions(
        names=options.names,
        unwind=options.unwind,
        allow_seccomp=options.allow_seccomp,
        before=True,
        entries=arguments.entries,
    )
    heap = HeapBeside(pid, heap_options(arguments, chosen))
    heap.on_look = interim_reports(pid, heap.was_asked, arguments, _voice(arguments), "-heap")
    return heap


def _report_heap(
    heap: HeapBeside, outputs: list[str], arguments: argparse.Namespace, say: Callable[[str], None]
) -> None:
    from .heap_beside import heap_outputs
    from .heap_options import report_heap

    if heap.outcome is not None:
        report_heap(heap.outcome, heap_outputs(outputs, arguments.format), arguments, say)


def tell_failure(failure: str, err: TextIO) -> None:
    """What has failed once there were samples, if anything has."""
    from ..render.names import printable

    if failure:
        speak(f"pyattach: {printable(failure)}; the profile is of what there was until then", err)


def show_verified(
    outcome: Outcome | HeapOutcome,
    pid: int,
    outputs: Sequence[str],
    arguments: argparse.Namespace,
    err: TextIO,
) -> None:
    """What has failed and what is left behind, if anything is; all that was compared where that was asked
    for: on stdout, or where an output goes there, on ``err``."""
    from ..render.names import printable

    residue = outcome.residue
    tell_failure(outcome.failure, err)
    for line in residue:
        speak(f"pyattach: left behind in process {pid}: {printable(line)}", err)
    if arguments.verify == "json":
        whole = not residue and not outcome.failure
        shown = {"complete": whole, "left": list(residue), "targets": [v.as_json() for v in outcome.verified]}
        import json

        speak(json.dumps(shown, indent=1), err if "-" in outputs else sys.stdout)


def _attach(
    pid: int,
    options: Options,
    stop: StopSignals,
    view: LiveView | PlainView | None,
    heap: HeapBeside | None,
) -> Outcome:
    from .following import attach
    from .interim import on_request
    from .procfs import command_line

    def session(should_stop: Callable[[], bool], look: Callable[[Progress], None]) -> Outcome:
        if options.subprocesses:
            from . import family

            return family.attach(pid, options, should_stop, look)
        if heap is None:
            return attach(pid, options, should_stop, look)
        return heap.noted(attach(pid, options, should_stop, look, heap))

    def wanted() -> bool:
        asked = stop.report_wanted()
        if asked and heap is not None:
            heap.write_so_far()
        return asked

    command = command_line(pid)
    if view is None:
        return session(stop.stopped, on_request(wanted, pid, command, options))
    from .live_table import LiveTable

    with view, LiveTable(view, pid, command, options, heap) as table:
        look = on_request(wanted, pid, command, options, table)
        return session(table.stopped(stop.stopped), look)


def _report(
    outcome: Outcome, outputs: Sequence[str], arguments: argparse.Namespace, say: Callable[[str], None]
) -> None:
    """The files first: whoever reads what is said may have gone, or take his time."""
    written: list[str] = []
    try:
        write_outputs(outcome.profile, outputs, render_options(arguments), written.append, arguments.format)
    finally:
        _tell(outcome, outputs, arguments, written, say)


def _tell(
    outcome: Outcome,
    outputs: Sequence[str],
    arguments: argparse.Namespace,
    written: Sequence[str],
    say: Callable[[str], None],
) -> None:
    from ..render.names import printable
    from ..render.text import summary_lines
    from .account import TO_SPEAK_OF_S
    from .stay import HOW_LOADED

    if "-" not in outputs or arguments.format not in (None, "text"):
        for line in summary_lines(outcome.profile, top=10):
            say(line)
    for note in outcome.profile.meta.notes:
        if arguments.verbose or not note.startswith(HOW_LOADED):
            say(f"note: {printable(note)}")
    for line in written:
        say(line)
    if not outcome.profile.total:
        idle = (outcome.profile.meta.cpu_time_s or 0.0) < TO_SPEAK_OF_S
        what = "used no CPU time while it was sampled" if idle else "ran, but no tick came"
        say(f"no samples: the target {what}")
    if not outcome.residue and not outcome.failure and not outcome.target_ended:
        say("detached: mappings, open files, signal handling and timers are as before")


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the ``pyattach`` command; returns its exit code."""
    arguments = parser().parse_args(argv)
    try:
        return int(run(arguments, sys.stderr))
    except PyattachError as error:
        if arguments.verbose:
            import traceback

            speak(traceback.format_exc().rstrip(), sys.stderr)
        speak(f"pyattach: {error}", sys.stderr)
        return int(error.exit_code)
