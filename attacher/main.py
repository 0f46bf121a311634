"""Which command it is: ``pyattach PID``, or one that begins with a word."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

_FAULT = "PYATTACH_FAULT"  # see inject/fault.py


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the ``pyattach`` command; returns its exit code."""
    if os.environ.get(_FAULT):
        from ..errors import UsageError
        from ..inject import fault

        try:
            fault.choose_from_environment()
        except UsageError as error:
            print(f"pyattach: {error}", file=sys.stderr)  # noqa: T201
            return int(error.exit_code)
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] == ["run"]:
        from . import run_cli

        return run_cli.main(words[1:])
    if words[:1] == ["heap"]:
        from . import heap_cli

        return heap_cli.main(words[1:])
    if words[:1] == ["doctor"]:
        from . import doctor_cli

        return doctor_cli.main(words[1:])
    if words[:1] in (["report"], ["diff"]):
        from . import report_cli

        return report_cli.main(words[0], words[1:])
    if words[:1] == ["completion"]:
        from . import completion_cli

        return completion_cli.main(words[1:])
    from . import cli

    return cli.main(words)
