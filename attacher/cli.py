"""The ``pyattach`` command."""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TextIO

from .. import __version__
from ..errors import ExitCode, PyattachError, UsageError
from ..inject.layout import Unwind
from ..render.names import printable
from ..render.plain import PlainView
from ..render.terminal_keys import TerminalKeys, in_foreground
from ..render.text import summary_lines
from .account import TO_SPEAK_OF_S
from .choosing import ThreadChoice
from .clock import NAMES as CLOCKS
from .contract import Options, Outcome, Progress, unheard
from .family import attach as attach_family
from .following import attach
from .heap_words import AUTO, DRAWN, add_entries_option, add_heap_options
from .interim import on_request
from .live_table import LiveTable
from .naming import add_name_options, name_options
from .outputs import add_output_options, check_outputs, default_suffix, render_options, write_outputs
from .stay import HOW_LOADED
from .verify import Verification
from .words import RATE_RANGE_HZ, duration_s, interval_hz, overhead_share, rate_hz

if TYPE_CHECKING:
    from ..render.live import LiveView
    from .heap_beside import HeapBeside

_DESCRIPTION = "Attach to a running process, sample where its CPU time goes, and leave it as it was."
_EXAMPLES = """\
examples:
  pyattach 1234                      until Ctrl-C; live table; then 1234-TIME.svg
  pyattach -p 1234 -d 30 -o out.svg  thirty seconds
  pyattach 1234 -o out.folded -o -   folded stacks into a file, a summary on stdout
  pyattach run -o out.svg -- make    start a program, sample all of it (pyattach run --help)
  pyattach heap 1234                 who allocates memory, what is not freed (pyattach heap --help)
  pyattach report 1234.svg -o x.pb.gz   another format; pyattach diff a.svg b.svg
  pyattach doctor 1234               would it work? nothing is touched
  kill -USR1 $(pgrep pyattach)       a picture of what there is so far; it goes on

exit codes: 0 ok, 1 error, 2 usage, 3 permission, 4 unsupported target, 5 no samples,
            6 target died, 7 detach incomplete
"""


def parser() -> argparse.ArgumentParser:
    """The command line; shown by ``--help`` on one screen."""
    p = argparse.ArgumentParser(
        prog="pyattach",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_pid(p)
    add_options(p)
    add_attach_options(p)
    return p


def add_pid(p: argparse.ArgumentParser) -> None:
    """The process, in either of two ways; see ``chosen_pid``."""
    p.add_argument("pid_word", nargs="?", metavar="PID", help="the process to attach to")
    p.add_argument("-p", "--pid", dest="pid_option", metavar="PID", help="the same")


def add_options(p: argparse.ArgumentParser) -> None:
    """What attaching to a process and starting one have in common."""
    pace = p.add_mutually_exclusive_group()
    pace.add_argument(
        "--hz", "-r", "--rate", "-F", dest="rate", type=rate_hz, default=99.0, metavar="HZ",
        help="samples per second of CPU time, or of real time (wall), 10 to 1000 (default 99)",
    )  # fmt: skip
    pace.add_argument(
        "-i", "--interval", dest="rate", type=interval_hz, default=99.0, metavar="TIME",
        help="the same as CPU time between two samples: 10ms, 1000us",
    )  # fmt: skip
    p.add_argument(
        "--max-overhead", type=overhead_share, metavar="SHARE",
        help="1%%: lower the rate by itself where sampling costs more of the CPU time",
    )  # fmt: skip
    p.add_argument(
        "-d", "--duration", type=duration_s, metavar="TIME", help="30, 500ms, 2m (default: until Ctrl-C)"
    )
    add_output_options(p)
    p.add_argument("--no-live", action="store_true", help="no live table")
    p.add_argument(
        "--max-depth", type=int, default=512, metavar="N", help="frames of a stack at most (default 512)"
    )
    p.add_argument(
        "--unwind", choices=("auto", "fp", "cfi"), default="auto",
        help="call frame information, frame pointers where there is none (auto), or one of them alone",
    )  # fmt: skip
    p.add_argument(
        "-s", "--subprocesses", action="store_true",
        help="sample child processes too, those that come as well; one picture, processes as roots",
    )  # fmt: skip
    p.add_argument(
        "--no-follow-exec", dest="follow_exec", action="store_false",
        help="end when the process executes another program",
    )  # fmt: skip
    p.add_argument(
        "--clock", choices=CLOCKS, default="auto",
        help="what ticks: perf events, or timers where perf is not permitted (auto)",
    )  # fmt: skip
    add_name_options(p)
    p.add_argument("--no-jitter", action="store_true", help="ticks at even distances")
    p.add_argument("--allow-seccomp", action="store_true", help="attach to targets with a seccomp filter too")
    add_verify_option(p)
    p.add_argument("-v", "--verbose", action="store_true", help="tell what is done, and tracebacks of errors")
    p.add_argument("-q", "--quiet", action="store_true", help="errors only")
    p.add_argument("--version", action="version", version=f"pyattach {__version__}")


def add_attach_options(p: argparse.ArgumentParser) -> None:
    """What makes sense for a process that is running already."""
    p.add_argument(
        "--mode", choices=("cpu", "wall"), default="cpu",
        help="cpu: threads that run (default); wall: all threads, also where they wait",
    )  # fmt: skip
    p.add_argument(
        "--thread", action="append", default=[], metavar="NAME|TID", dest="only",
        help="only threads of this name ('worker-*') or id; may be repeated",
    )  # fmt: skip
    p.add_argument(
        "--loader", choices=("auto", "dlopen", "map"), default="auto",
        help="how the stub gets in (default: dlopen where that is shown to be safe, else mapped)",
    )  # fmt: skip
    p.add_argument(
        "--heap", action="store_true",
        help="record allocations, too: out.svg and out-heap.svg (pyattach heap: these alone)",
    )  # fmt: skip
    add_heap_options(p, "--heap-kind", "--heap-unit")
    add_entries_option(p)
    p.set_defaults(before=True)


def chosen_pid(arguments: argparse.Namespace) -> int:
    """The pid, given in one of two ways.  Raises UsageError."""
    words = [w for w in (arguments.pid_word, arguments.pid_option) if w is not None]
    if len(words) != 1:
        raise UsageError(
            "no pid given" if not words else "give the pid once, as PID or as -p PID", "try: pyattach --help"
        )
    if not words[0].isdecimal() or len(words[0]) > 10 or int(words[0]) == 0:
        raise UsageError(f"{words[0]!r} is no process id", "see `pgrep -a NAME` for the pids there are")
    return int(words[0])


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
    return sys.stderr.isatty() and sys.stdout.isatty() and in_foreground(sys.stdout.fileno())


def _view(arguments: argparse.Namespace) -> LiveView | PlainView | None:
    if arguments.no_live or arguments.quiet:
        return None
    if not on_a_terminal():
        return PlainView(sys.stderr)
    from ..render.live import LiveView  # late: it brings rich with it

    return LiveView(keys=TerminalKeys())


def session_options(arguments: argparse.Namespace) -> Options:
    """What the session needs of the command line."""
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
        say=unheard if arguments.quiet else _say_beside_the_view,
    )


def _say_beside_the_view(line: str) -> None:
    print(f"pyattach: {printable(line)}", file=sys.stderr)  # noqa: T201


def run(arguments: argparse.Namespace, err: TextIO) -> ExitCode:
    """Do what the command line asks for; the exit code.  Raises PyattachError."""

    def say(line: str) -> None:
        if not arguments.quiet:
            print(line, file=err)

    pid = chosen_pid(arguments)
    outputs = arguments.output or [default_output(pid, arguments.format)]
    check_outputs(outputs, arguments.format)
    if arguments.rate > RATE_RANGE_HZ[1]:
        say(f"warning: {arguments.rate:g} Hz costs the target more than a few percent of its time")
    options = session_options(arguments)
    heap = _heap_beside(arguments, pid, outputs, options)
    with StopSignals() as stop:
        outcome = _attach(pid, options, stop, _view(arguments), heap)
        if stop.count < 2:
            _report(outcome, outputs, arguments, say)
            if heap is not None:
                _report_heap(heap, outputs, arguments, say)
    show_verified(outcome.verified, outcome.residue, pid, outputs, arguments, err)
    return outcome.exit_code


def _says_of_the_heap(arguments: argparse.Namespace) -> bool:
    chosen = arguments.heap_kind != DRAWN or arguments.entries != AUTO
    return bool(chosen or arguments.leaks or arguments.heap_sample)


def _heap_beside(
    arguments: argparse.Namespace, pid: int, outputs: list[str], options: Options
) -> HeapBeside | None:
    """The heap's recording, where it is asked for.  Raises UsageError."""
    if not arguments.heap:
        if _says_of_the_heap(arguments):
            raise UsageError("that is about the heap, which is not recorded", "add --heap")
        return None
    from .heap_beside import HeapBeside, heap_outputs  # late: a sampler alone need not wait for it
    from .heap_options import heap_options, interim_reports
    from .heap_session import HeapOptions

    if options.subprocesses:
        raise UsageError("--heap is for one process", "leave out -s; for a child: pyattach heap PID")
    check_outputs(heap_outputs(outputs, arguments.format), arguments.format)
    chosen = HeapOptions(
        unwind=options.unwind,
        allow_seccomp=options.allow_seccomp,
        before=True,
        entries=arguments.entries,
    )
    heap = HeapBeside(pid, heap_options(arguments, chosen))
    say = unheard if arguments.quiet else _say_beside_the_view
    heap.on_look = interim_reports(pid, heap.was_asked, arguments, say, "-heap")
    return heap


def _report_heap(
    heap: HeapBeside, outputs: list[str], arguments: argparse.Namespace, say: Callable[[str], None]
) -> None:
    from .heap_beside import heap_outputs
    from .heap_options import report_heap

    if heap.outcome is not None:
        report_heap(heap.outcome, heap_outputs(outputs, arguments.format), arguments, say)


def show_verified(
    verified: Sequence[Verification],
    residue: Sequence[str],
    pid: int,
    outputs: Sequence[str],
    arguments: argparse.Namespace,
    err: TextIO,
) -> None:
    """What is left behind, if anything is; all that was compared where that was asked for: on stdout, or
    where an output goes there, on ``err``."""
    for line in residue:
        print(f"pyattach: left behind in process {pid}: {line}", file=err)
    if arguments.verify == "json":
        shown = {"complete": not residue, "left": list(residue), "targets": [v.as_json() for v in verified]}
        print(json.dumps(shown, indent=1), file=err if "-" in outputs else sys.stdout)


def add_verify_option(p: argparse.ArgumentParser) -> None:
    """How much is said of what is compared at the end."""
    p.add_argument(
        "--verify", choices=("line", "json"), default="line",
        help="what was compared before and after: a line, or (json) all of it on stdout",
    )  # fmt: skip


def _attach(
    pid: int,
    options: Options,
    stop: StopSignals,
    view: LiveView | PlainView | None,
    heap: HeapBeside | None,
) -> Outcome:
    from .procfs import command_line

    def session(should_stop: Callable[[], bool], look: Callable[[Progress], None]) -> Outcome:
        if options.subprocesses:
            return attach_family(pid, options, should_stop, look)
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
    with view, LiveTable(view, pid, command, options, heap) as table:
        look = on_request(wanted, pid, command, options, table)
        return session(table.stopped(stop.stopped), look)


def _report(
    outcome: Outcome, outputs: Sequence[str], arguments: argparse.Namespace, say: Callable[[str], None]
) -> None:
    if "-" not in outputs or arguments.format not in (None, "text"):
        for line in summary_lines(outcome.profile, top=10):
            say(line)
    for note in outcome.profile.meta.notes:
        if arguments.verbose or not note.startswith(HOW_LOADED):
            say(f"note: {printable(note)}")
    write_outputs(outcome.profile, outputs, render_options(arguments), say, arguments.format)
    if not outcome.profile.total:
        idle = (outcome.profile.meta.cpu_time_s or 0.0) < TO_SPEAK_OF_S
        what = "used no CPU time while it was sampled" if idle else "ran, but no tick came"
        say(f"no samples: the target {what}")
    if not outcome.residue and not outcome.target_ended:
        say("detached: mappings, open files, signal handling and timers are as before")


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the ``pyattach`` command; returns its exit code."""
    arguments = parser().parse_args(argv)
    try:
        return int(run(arguments, sys.stderr))
    except PyattachError as error:
        if arguments.verbose:
            traceback.print_exc()
        print(f"pyattach: {error}", file=sys.stderr)  # noqa: T201
        return int(error.exit_code)
    except BrokenPipeError:
        return int(ExitCode.ERROR)
