"""``pyattach run -- COMMAND``: the command line, the signals, and the child's exit status as our own."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TextIO

from ..errors import ExitCode, PyattachError, UsageError
from ..render.streams import speak
from .cli import StopSignals, check_heap_words, session_options, tell_failure
from .cli_options import add_options
from .heap_words import NEVER, add_heap_options
from .help_text import RawHelpText
from .outputs import check_outputs, default_suffix, render_options, write_outputs

if TYPE_CHECKING:
    from ..inject.preload import PreloadedStub
    from .child import ChildProcess
    from .clock import Clock
    from .contract import Options, Outcome
    from .heap_session import HeapOptions
    from .program import Program

_DESCRIPTION = "Start a program with the sampler preloaded, and see where its CPU time goes, start to end."
_EPILOG = """\
The program keeps its terminal, its signals and its environment.  pyattach exits as it does: with its exit
status, 128 and more where a signal has ended it, 126 or 127 where it could not be run.
With -d or Ctrl-C the sampling ends and the program goes on, if it does.  Programs that it starts are
sampled with -s; static and setuid programs are not.

examples:
  pyattach run -- ./server --port 80         until it ends or Ctrl-C; then server-TIME.svg
  pyattach run -d 30 -o out.svg -- python3 x.py
"""


def parser() -> argparse.ArgumentParser:
    """The command line of ``pyattach run``."""
    p = argparse.ArgumentParser(
        prog="pyattach run",
        usage="pyattach run [options] -- COMMAND [ARGUMENT ...]",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=RawHelpText,
    )
    add_options(p)
    p.set_defaults(only=[], loader="auto", mode="cpu")
    p.add_argument("--live", action="store_true", help="a live table, where stderr is a terminal")
    p.add_argument(
        "--print-preload", action="store_true",
        help="only print the path of the library with which a program samples itself: LD_PRELOAD=PATH "
        "PYATTACH_OUT=FILE PROGRAM, then pyattach report FILE",
    )  # fmt: skip
    p.add_argument("--heap", action="store_true", help="where memory is allocated, instead of CPU time")
    add_heap_options(p, "--heap-kind", "--heap-unit")
    p.set_defaults(before=False, entries=NEVER)
    p.add_argument("command", nargs=argparse.REMAINDER, metavar="COMMAND", help="the program to start")
    return p


class RunSignals(StopSignals):
    """As for an attach; but SIGTERM and SIGHUP, which may have come to pyattach alone, are handed on to
    the program.  SIGINT comes from the terminal, to both."""

    def __init__(self) -> None:
        super().__init__()
        self._child: ChildProcess | None = None
        self._early: list[int] = []

    def _on_signal(self, number: int, frame: object) -> None:
        super()._on_signal(number, frame)
        if self._child is None:
            self._early.append(number)
        elif number != signal.SIGINT:
            self._child.hand_on(number)

    def become(self) -> None:
        """In the process that will be the program: handling as it was, and what came here meanwhile."""
        self.__exit__()
        for number in self._early:
            os.kill(os.getpid(), number)

    def adopt(self, child: ChildProcess) -> None:
        """Hand on to ``child``, also what came before there was one."""
        self._child = child
        for number in self._early:
            if number != signal.SIGINT:
                child.hand_on(number)


def run(arguments: argparse.Namespace, err: TextIO) -> int:
    """Run the command and profile it; its exit status.  Raises PyattachError before it is started."""

    def say(line: str) -> None:
        if not arguments.quiet:
            speak(f"pyattach: {line}", err)

    from .child import start
    from .clock import choose_for_child
    from .program import find_program

    words = arguments.command[1:] if arguments.command[:1] == ["--"] else arguments.command
    if not words:
        raise UsageError("no command given", "try: pyattach run -- COMMAND")
    check_heap_words(arguments)
    outputs = arguments.output or [_default_output(words[0], arguments.format)]
    check_outputs(outputs, arguments.format)
    program = find_program(words)
    if arguments.heap and arguments.subprocesses:
        raise UsageError("--heap is for one process", "leave out -s; for its children: pyattach heap PID")
    options = _with_inherited_filter(session_options(arguments))
    clock = choose_for_child(options.clock, options.rate_hz, jitter=options.jitter)
    with contextlib.ExitStack() as undo:
        stub = _stub(arguments, options, clock)
        undo.callback(stub.close)
        signals = RunSignals()
        undo.enter_context(signals)
        child = start(program, stub, signals.become)
        undo.enter_context(child)
        undo.callback(child.wait)  # whatever comes
        signals.adopt(child)
        try:
            if arguments.heap:
                failure = _record_heap(child, program, stub, signals, arguments, options, outputs, say)
            else:
                outcome = _profiled(child, program, stub, clock, signals, arguments)
                failure = outcome.failure
                _report(outcome, outputs, arguments, say)
            failed = int(ExitCode.ERROR) if failure else 0
            tell_failure(failure, err)
        except (OSError, PyattachError) as error:
            failed = int(error.exit_code if isinstance(error, PyattachError) else ExitCode.ERROR)
            speak(f"pyattach: {error}", err)
        return child.wait() or failed


def _stub(arguments: argparse.Namespace, options: Options, clock: Clock) -> PreloadedStub:
    """The file that the program is started with."""
    if arguments.heap:
        from .heap_run import heap_stub

        return heap_stub(_heap_options(arguments, options))
    from .run import sampler_stub

    return sampler_stub(options, clock)


def _record_heap(
    child: ChildProcess, program: Program, stub: PreloadedStub, signals: RunSignals,
    arguments: argparse.Namespace, options: Options, outputs: Sequence[str], say: Callable[[str], None],
) -> str:  # fmt: skip
    """What failed once it was recorded; empty, if nothing."""
    from .heap_options import interim_reports, report_heap
    from .heap_run import profile_heap_of_child

    look = interim_reports(child.pid, signals.report_wanted, arguments, say)
    chosen = _heap_options(arguments, options)
    heap = profile_heap_of_child(child, program, stub, chosen, signals.stopped, look)
    report_heap(heap, outputs, arguments, say)
    return heap.failure


def _heap_options(arguments: argparse.Namespace, options: Options) -> HeapOptions:
    """Leaks are looked for at the program's end, unless that is not wanted, or allocations are sampled."""
    from .heap_options import heap_options
    from .heap_session import HeapOptions

    if arguments.lines:
        raise UsageError("--lines is of no use with run --heap: its profiles have none", "leave it out")
    chosen = HeapOptions(
        names=options.names,
        duration_s=options.duration_s,
        unwind=options.unwind,
        allow_seccomp=options.allow_seccomp,
        leaks=not arguments.heap_sample,
    )
    return heap_options(arguments, chosen)


def _with_inherited_filter(options: Options) -> Options:
    """Under a filter that pyattach hands down (a container's), no system call is tried that it may deny."""
    from . import procfs

    inherited = procfs.read_status(os.getpid()).get("Seccomp", "0") != "0"
    return options._replace(allow_seccomp=options.allow_seccomp or inherited)


def _profiled(
    child: ChildProcess,
    program: Program,
    stub: PreloadedStub,
    clock: Clock,
    signals: RunSignals,
    arguments: argparse.Namespace,
) -> Outcome:
    from .interim import on_request
    from .run import profile_child

    options = session_options(arguments)
    if not (arguments.live and sys.stderr.isatty()):
        look = on_request(signals.report_wanted, child.pid, child.command, options)
        return profile_child(child, program, stub, clock, options, signals.stopped, look)
    from ..render.live import LiveView  # it brings rich with it
    from .live_table import LiveTable

    with LiveView() as view, LiveTable(view, child.pid, child.command, options) as table:
        look = on_request(signals.report_wanted, child.pid, child.command, options, table)
        return profile_child(child, program, stub, clock, options, signals.stopped, look)


def _default_output(command: str, wanted: str | None) -> str:
    """``NAME-TIME.svg`` in the current folder, or with the ending of the wanted format."""
    name = os.path.basename(command.rstrip("/")) or "program"  # noqa: PTH119
    return f"{name}-{time.strftime('%Y%m%dT%H%M%S')}{default_suffix(wanted)}"


def _report(
    outcome: Outcome, outputs: Sequence[str], arguments: argparse.Namespace, say: Callable[[str], None]
) -> None:
    from ..render.facts import hertz, seconds
    from ..render.names import printable
    from ..render.text import summary_lines

    meta = outcome.profile.meta
    written: list[str] = []
    try:
        options = render_options(arguments)
        write_outputs(outcome.profile, outputs, options, written.append, arguments.format)
    finally:
        if arguments.verbose:
            for line in [*summary_lines(outcome.profile), *meta.notes]:
                say(printable(line))
        reached = "" if meta.rate_reached_hz is None else f", {hertz(meta.rate_reached_hz)} reached"
        cpu = "" if meta.cpu_time_s is None else f" in {seconds(meta.cpu_time_s)} of CPU time"
        say("; ".join([f"{meta.samples:,} samples{cpu}{reached}", *written]))
        if outcome.warning:
            say(outcome.warning)
        elif not meta.samples:
            say("no samples: the program used no CPU time, or less than the time between two ticks")


def main(argv: Sequence[str]) -> int:
    """``pyattach run``; returns the exit status."""
    arguments = parser().parse_args(argv)
    if arguments.print_preload:
        from ..inject.image import preload_path

        print(preload_path())  # noqa: T201
        return 0
    try:
        return run(arguments, sys.stderr)
    except PyattachError as error:
        if arguments.verbose:
            import traceback

            speak(traceback.format_exc().rstrip(), sys.stderr)
        speak(f"pyattach: {error}", sys.stderr)
        return int(error.exit_code)
