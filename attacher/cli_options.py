"""What the command line takes: its options, its help, and the process that it names."""

from __future__ import annotations

import argparse

from .. import __version__
from ..errors import UsageError
from .heap_words import add_entries_option, add_heap_options
from .help_text import RawHelpText
from .naming_options import add_name_options
from .outputs import add_output_options
from .words import CLOCKS, duration_s, interval_hz, overhead_share, rate_hz

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
        formatter_class=RawHelpText,
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
    add_verify_option(p)
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


def add_verify_option(p: argparse.ArgumentParser) -> None:
    """How much is said of what is compared at the end."""
    p.add_argument(
        "--verify", choices=("line", "json"), default="line",
        help="what was compared before and after: a line, or (json) all of it on stdout",
    )  # fmt: skip
