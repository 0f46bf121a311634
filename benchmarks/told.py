"""A program that works once it is told to, sampled from there until it says that it is done."""

from __future__ import annotations

import select
import subprocess

from common import DEADLINE_S

from pyattach.attacher.contract import Options
from pyattach.attacher.session import attach as run_session
from pyattach.render.profile import Profile


def sampled(process: subprocess.Popen[str], clock: str, rate_hz: float) -> tuple[Profile, list[int]]:
    """It is told at the first progress.  The profile, and the numbers of the line it says."""
    assert process.stdin is not None and process.stdout is not None
    stdin, stdout = process.stdin, process.stdout
    begun, line = False, ""

    def done() -> bool:
        nonlocal line
        if begun and not line and select.select([stdout], [], [], 0)[0]:
            line = stdout.readline()
        return bool(line)

    def begin(_progress: object) -> None:
        nonlocal begun
        if not begun:
            begun = True
            stdin.write("\n")
            stdin.flush()

    options = Options(rate_hz=rate_hz, clock=clock, duration_s=DEADLINE_S)
    profile = run_session(process.pid, options, done, begin).profile
    return profile, [int(word) for word in line.split()[1:]]
