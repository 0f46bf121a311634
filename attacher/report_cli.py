"""``pyattach report FILE``: a profile that was written before, in another format; and ``pyattach diff``."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..errors import ExitCode, PyattachError, UsageError
from .help_text import HelpText, RawHelpText
from .outputs import (
    add_output_options,
    add_picture_options,
    check_outputs,
    render_options,
    write,
    write_outputs,
)

if TYPE_CHECKING:
    pass

_REPORT = (
    "Write a profile anew, in any format: one of pyattach (SVG, JSON, folded), folded stacks, pprof's, or "
    "what a program has recorded of itself (PYATTACH_OUT)."
)
_DIFF = """\
Draw the second profile as a flame graph, coloured by how the share of each frame has changed: red is more,
blue is less, yellow is new, grey is the same or within the noise of sampling.  Swap the files to see what is
gone.  Both may be any file that `pyattach report` reads.
"""


def report_parser() -> argparse.ArgumentParser:
    """The command line of ``pyattach report``."""
    p = argparse.ArgumentParser(prog="pyattach report", description=_REPORT, formatter_class=HelpText)
    p.add_argument(
        "file",
        metavar="FILE",
        help="a profile: .svg, .json, .folded, .pb.gz, a recording; told by its content",
    )
    add_output_options(p)
    return p


def diff_parser() -> argparse.ArgumentParser:
    """The command line of ``pyattach diff``."""
    p = argparse.ArgumentParser(prog="pyattach diff", description=_DIFF, formatter_class=RawHelpText)
    p.add_argument("before", metavar="BEFORE", help="a profile")
    p.add_argument("after", metavar="AFTER", help="the profile whose shape is drawn")
    p.add_argument(
        "-o", "--output", default="diff.svg", metavar="FILE", help="default: diff.svg; - for stdout"
    )
    p.add_argument(
        "--different-modes", action="store_true", help="compare profiles of different modes (cpu, wall) too"
    )
    add_picture_options(p)
    p.set_defaults(threads=False, folded_lines=False)
    return p


def report(arguments: argparse.Namespace) -> ExitCode:
    """Read and write; NO_SAMPLES where the profile is empty.  Raises PyattachError."""
    outputs = arguments.output or ["-"]
    check_outputs(outputs, arguments.format)
    from .recording import read_any

    profile = read_any(arguments.file)
    write_outputs(profile, outputs, render_options(arguments), _say, arguments.format)
    return ExitCode.OK if profile.total else ExitCode.NO_SAMPLES


def diff(arguments: argparse.Namespace) -> ExitCode:
    """Read two and draw them; NO_SAMPLES where one is empty.  Raises PyattachError."""
    check_outputs([arguments.output], "svg")
    if arguments.output != "-" and not arguments.output.endswith(".svg"):
        raise UsageError(f"{arguments.output}: a diff is a picture", "name a file that ends with .svg")
    from .recording import read_any

    before, after = read_any(arguments.before), read_any(arguments.after)
    for path, profile in ((arguments.before, before), (arguments.after, after)):
        if not profile.total:
            print(f"pyattach: {path} holds no samples: there is nothing to compare", file=sys.stderr)  # noqa: T201
            return ExitCode.NO_SAMPLES
    from ..render.compare import diff_svg

    options = render_options(arguments)
    write(arguments.output, diff_svg(before, after, options, different_modes=arguments.different_modes))
    if arguments.output != "-":
        _say(f"wrote {arguments.output}")
    return ExitCode.OK


def main(command: str, argv: Sequence[str]) -> int:
    """``pyattach report`` or ``pyattach diff``; returns the exit code."""
    arguments = (diff_parser() if command == "diff" else report_parser()).parse_args(argv)
    from ..render.profile import uncollected

    for number in (signal.SIGTERM, signal.SIGHUP):  # so that no half-written file stays
        if signal.getsignal(number) == signal.SIG_DFL:
            signal.signal(number, lambda number, _frame: sys.exit(128 + number))
    try:
        with uncollected():  # from the first stack read to the last byte written
            return int(diff(arguments) if command == "diff" else report(arguments))
    except PyattachError as error:
        print(f"pyattach: {error}", file=sys.stderr)  # noqa: T201
        return int(error.exit_code)
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except BrokenPipeError:
        return int(ExitCode.ERROR)


def _say(line: str) -> None:
    print(line, file=sys.stderr)  # noqa: T201
