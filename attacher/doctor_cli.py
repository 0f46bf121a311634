"""``pyattach doctor PID``: the command line."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..errors import PyattachError
from ..render.names import printable
from .cli_options import add_pid, chosen_pid
from .help_text import HelpText
from .outputs import write

if TYPE_CHECKING:
    from .doctor import Report


def parser() -> argparse.ArgumentParser:
    """The command line of ``pyattach doctor``."""
    p = argparse.ArgumentParser(
        prog="pyattach doctor",
        description="Say what attaching to a process would come to, without touching it.",
        epilog="The exit code is the one that attaching would end with: 0 where it will work.",
        formatter_class=HelpText,
    )
    add_pid(p)
    p.add_argument("--json", action="store_true", help="for programs")
    return p


def main(argv: Sequence[str]) -> int:
    """Returns the exit code."""
    arguments = parser().parse_args(argv)
    from .doctor import examine

    try:
        report = examine(chosen_pid(arguments))
        write("-", [((as_json(report) if arguments.json else as_text(report)) + "\n").encode()])
    except PyattachError as error:
        print(f"pyattach: {error}", file=sys.stderr)  # noqa: T201
        return int(error.exit_code)
    return report.exit_code


def as_text(report: Report) -> str:
    """A line for each finding, then the verdict."""
    width = max(len(finding.topic) for finding in report.findings)
    lines = []
    for finding in report.findings:
        mark = "-" if finding.refusal is not None else " "
        lines.append(f"{mark} {finding.topic:{width}}  {printable(finding.said)}")
    return "\n".join([*lines, "", *map(_safe, report.verdict.split("\n"))])


def _safe(line: str) -> str:
    return " " * (len(line) - len(line.lstrip())) + printable(line)


def as_json(report: Report) -> str:
    """An object with the pid, the verdict, the exit code and the findings."""
    import json

    findings = [
        {
            "topic": finding.topic,
            "said": finding.said,
            "refused": finding.refusal is not None,
            "way_out": finding.refusal.way_out if finding.refusal is not None else "",
            "option": finding.option,
        }
        for finding in report.findings
    ]
    whole = {
        "pid": report.pid,
        "verdict": report.verdict,
        "exit_code": report.exit_code,
        "findings": findings,
    }
    return json.dumps(whole, indent=2)
