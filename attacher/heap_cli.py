"""``pyattach heap PID``: the command line."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TextIO

from ..errors import ExitCode, PyattachError
from ..render.streams import speak
from .cli import StopSignals, default_output, on_a_terminal, show_verified
from .cli_options import add_verify_option, chosen_pid
from .heap_words import add_entries_option, add_heap_options
from .help_text import RawHelpText
from .outputs import check_outputs
from .words import duration_s

if TYPE_CHECKING:
    from .heap_session import HeapOptions, HeapOutcome, HeapSession

_DESCRIPTION = "See where a running process allocates memory, and what it does not free, from now on."
_EPILOG = """\
Calls of malloc and its kin are redirected in every module, and put back at the end.  Every call is counted;
--heap-sample records a share of them.  Blocks from before have no stack; what they are is listed.

examples:
  pyattach heap 1234                        until Ctrl-C; then 1234-TIME.svg, by bytes at the peak
  pyattach heap 1234 -d 30 --kind live -o live.svg -o -
  pyattach heap 1234 --leaks --kind leaked  what is lost, told apart from what is still in use
  kill -USR1 $(pgrep pyattach)              a picture and the sites so far; it goes on
"""


def parser() -> argparse.ArgumentParser:
    """The command line of ``pyattach heap``."""
    p = argparse.ArgumentParser(
        prog="pyattach heap",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=RawHelpText,
    )
    p.add_argument("pid_word", nargs="?", metavar="PID", help="the process to attach to")
    p.add_argument("-p", "--pid", dest="pid_option", metavar="PID", help="the same")
    p.add_argument("-d", "--duration", type=duration_s, metavar="TIME", help="30, 500ms, 2m")
    p.add_argument(
        "-o", "--output", action="append", metavar="FILE",
        help=".svg, .folded or .txt by its ending; - for the text on stdout; may be repeated",
    )  # fmt: skip
    add_heap_options(p, "--kind", "--unit")
    add_entries_option(p)
    p.add_argument(
        "--no-before", dest="before", action="store_false", help="don't look at what was allocated before"
    )
    p.add_argument("--unwind", choices=("auto", "fp", "cfi"), default="auto", help="how stacks are walked")
    p.add_argument("--allow-seccomp", action="store_true", help="attach to targets with a seccomp filter too")
    add_verify_option(p)
    p.add_argument("-v", "--verbose", action="store_true", help="tell more, and tracebacks of errors")
    p.add_argument("--no-live", action="store_true", help="no live table")
    p.add_argument("-q", "--quiet", action="store_true", help="errors only")
    p.set_defaults(inverted=False, reverse=False)  # for a picture beside a CPU's there are options
    return p


def run(arguments: argparse.Namespace, err: TextIO) -> int:
    """Do what the command line asks for; the exit code.  Raises PyattachError."""

    def say(line: str) -> None:
        if not arguments.quiet:
            speak(line, err)

    pid = chosen_pid(arguments)
    outputs = arguments.output or [default_output(pid)]
    check_outputs(outputs)
    from ..inject.layout import Unwind
    from .heap_options import heap_options, report_heap
    from .heap_session import HeapOptions

    options = heap_options(
        arguments,
        HeapOptions(
            duration_s=arguments.duration,
            unwind=Unwind[arguments.unwind.upper()],
            allow_seccomp=arguments.allow_seccomp,
            before=True,
            entries=arguments.entries,
        ),
    )
    with StopSignals() as stop:
        outcome = _attach(pid, options, stop, arguments, say)
        try:
            if stop.count < 2:
                report_heap(outcome, outputs, arguments, say)
        finally:
            show_verified(outcome, pid, outputs, arguments, err)
    if outcome.residue:
        return int(ExitCode.DETACH_INCOMPLETE)
    if outcome.failure:
        return int(ExitCode.ERROR)
    if not outcome.target_ended:
        say("detached: mappings, open files and redirected words are as before")
    return int(ExitCode.OK)


def _attach(
    pid: int,
    options: HeapOptions,
    stop: StopSignals,
    arguments: argparse.Namespace,
    say: Callable[[str], None],
) -> HeapOutcome:
    """With the live view, where there is a terminal for it."""
    from .heap_attach import attach_heap
    from .heap_options import interim_reports

    if arguments.no_live or arguments.quiet or not on_a_terminal():
        look = interim_reports(pid, stop.report_wanted, arguments, say)
        return attach_heap(pid, options, stop.stopped, look)
    from ..render.heap_view import PACE_S, HeapView
    from ..render.terminal_keys import TerminalKeys
    from .heap_live import HeapLive

    said: list[str] = []
    keys: list[str] = []

    def wanted() -> bool:
        asked = stop.report_wanted() or bool(keys)
        keys.clear()
        return asked

    def snapshot() -> str:
        keys.append("w")
        return "writing what there is so far"

    with HeapView(keys=TerminalKeys(), snapshot=snapshot) as view:
        live = HeapLive(view, PACE_S)
        write = interim_reports(pid, wanted, arguments, said.append)

        def look(session: HeapSession) -> None:
            write(session)
            live(session)

        outcome = attach_heap(pid, options, live.stopped(stop.stopped), look)
    for line in said:
        say(line)
    return outcome


def main(argv: Sequence[str]) -> int:
    """``pyattach heap``; returns the exit status."""
    arguments = parser().parse_args(argv)
    try:
        return run(arguments, sys.stderr)
    except PyattachError as error:
        if arguments.verbose:
            import traceback

            speak(traceback.format_exc().rstrip(), sys.stderr)
        speak(f"pyattach: {error}", sys.stderr)
        return int(error.exit_code)
