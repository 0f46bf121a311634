"""Which command it is: ``pyattach PID`` or ``pyattach run -- COMMAND``."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from . import cli, run_cli


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the ``pyattach`` command; returns its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    return run_cli.main(words[1:]) if words[:1] == ["run"] else cli.main(words)
