"""Help of the command lines, as wide as the terminal."""

from __future__ import annotations

import argparse
import os
import sys

_COLUMNS = 80  # where there is no terminal


class HelpText(argparse.HelpFormatter):
    """argparse makes one for every option that is added, and asks shutil for the width: importing that, with
    all the formats of archives, would take 5 ms."""

    def __init__(self, prog: str, width: int | None = None) -> None:
        super().__init__(prog, width=_columns() - 2 if width is None else width)


class RawHelpText(HelpText, argparse.RawDescriptionHelpFormatter):
    """With the description's lines as they are."""


def _columns() -> int:
    """As ``shutil.get_terminal_size`` finds them."""
    words = os.environ.get("COLUMNS", "")
    columns = int(words) if words.isdecimal() and words.isascii() else 0
    if not columns and sys.__stdout__ is not None:
        try:
            columns = os.get_terminal_size(sys.__stdout__.fileno()).columns
        except (OSError, ValueError):  # no terminal; closed
            columns = 0
    return columns or _COLUMNS
