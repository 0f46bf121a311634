"""Streams that the user reads, and that may go away: a terminal that is closed, a reader that ends first."""

from __future__ import annotations

import contextlib
import errno
import os
from typing import IO


def speak(line: str, stream: IO[str] | None) -> None:
    """Print a line for the user.  That nobody hears it any more costs nobody a profile.  ``stream`` None:
    there was none from the begin."""
    if stream is None:
        return
    try:
        print(line, file=stream, flush=True)
    except OSError as error:
        if error.errno != errno.EAGAIN:
            give_up(stream)
    except ValueError:  # it is closed
        return


def give_up(stream: IO[str]) -> None:
    """What is in its buffer still, and what comes later, goes nowhere: Python would fail to flush it at the
    end."""
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.dup2(nowhere, stream.fileno())
        finally:
            os.close(nowhere)
