"""``pyattach completion SHELL``: a script with which the shell completes commands, options, files and
pids."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence

import shtab

from ..errors import PyattachError
from . import cli_options, doctor_cli, heap_cli, report_cli, run_cli
from .help_text import RawHelpText
from .outputs import write

SHELLS = ("bash", "zsh")
COMMANDS: dict[str, Callable[[], argparse.ArgumentParser]] = {
    "run": run_cli.parser,
    "heap": heap_cli.parser,
    "report": report_cli.report_parser,
    "diff": report_cli.diff_parser,
    "doctor": doctor_cli.parser,
}
"""What may stand where a pid would."""

_FILES = ("output", "file", "before", "after")
_PIDS = {"bash": "_pyattach_pids", "zsh": "_pids"}
_PREAMBLE = '_pyattach_pids() {\n  compgen -W "$(cd /proc && echo [0-9]*)" -- "$1"\n}\n'
_PID_OR_COMMAND = "\n_shtab_pyattach_pos_0_COMPGEN=_pyattach_pids\n"
_EPILOG = """\
examples:
  pyattach completion bash > ~/.local/share/bash-completion/completions/pyattach
  pyattach completion zsh > ~/.zfunc/_pyattach      with ~/.zfunc in fpath
"""


def parser() -> argparse.ArgumentParser:
    """The command line of ``pyattach completion``."""
    p = argparse.ArgumentParser(
        prog="pyattach completion",
        description="Print what makes the shell complete pyattach's commands, options, files and pids.",
        epilog=_EPILOG,
        formatter_class=RawHelpText,
    )
    p.add_argument("shell", choices=SHELLS)
    return p


def whole_parser() -> argparse.ArgumentParser:
    """All commands as one parser.  Nothing is parsed by it: a pid stands where commands do."""
    whole = argparse.ArgumentParser(prog="pyattach")
    cli_options.add_options(whole)
    cli_options.add_attach_options(whole)
    whole.add_argument("-p", "--pid", dest="pid_option", metavar="PID")
    commands = whole.add_subparsers()
    for name, make in COMMANDS.items():
        made = make()
        what = (made.description or "").split(". ")[0]  # without it shtab leaves the command out
        commands.add_parser(name, parents=[made], add_help=False, help=what)
        for action in commands.choices[name]._actions:  # shtab's way: what completes is said of each
            _say_what_completes(action)
    for action in whole._actions:
        _say_what_completes(action)
    return whole


def _say_what_completes(action: argparse.Action) -> None:
    if action.dest in _FILES:
        action.complete = shtab.FILE  # type: ignore[attr-defined]
    elif action.dest in ("pid_word", "pid_option"):
        action.complete = _PIDS  # type: ignore[attr-defined]


def script(shell: str) -> str:
    """For bash or zsh."""
    if shell == "zsh":
        return shtab.complete(whole_parser(), shell="zsh")
    return shtab.complete(whole_parser(), shell="bash", preamble=_PREAMBLE) + _PID_OR_COMMAND


def main(argv: Sequence[str]) -> int:
    """Returns the exit code."""
    try:
        write("-", [script(parser().parse_args(argv).shell).encode()])
    except PyattachError as error:
        print(f"pyattach: {error}", file=sys.stderr)  # noqa: T201
        return int(error.exit_code)
    return 0
