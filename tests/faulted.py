"""Runs of pyattach that end, stop or hurt their target at a fault point, each in a fork of this process."""

from __future__ import annotations

import dataclasses
import os
import sys
import tempfile
import time
import traceback

from pyattach.attacher import cli, following, later  # noqa: F401
from pyattach.inject import fault

DEADLINE_S = 30.0

later.import_the_rest()  # once, and not in each of the forks; so with what follows an attach


@dataclasses.dataclass(frozen=True)
class Faulted:
    """How a run ended: ``status`` as of subprocess, minus the signal's number where one has ended it."""

    status: int
    said: str
    seconds: float


def begin(pid: int, chosen: str, *arguments: object) -> tuple[int, int]:
    """Start ``pyattach PID ARGUMENTS`` with that PYATTACH_FAULT: its pid, and a file of what it says."""
    said = os.memfd_create("said")
    child = os.fork()
    if child:
        return child, said
    code = 70
    try:
        os.dup2(said, 1)
        os.dup2(said, 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
        fault.choose(chosen)
        code = cli.main([str(word) for word in (pid, "--no-live", *arguments)])
    except SystemExit as error:
        code = int(error.code or 0)
    except BaseException:  # noqa: BLE001 - it ends here, whatever it is
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def finish(child: int, said: int) -> tuple[int, str]:
    """Wait for the end of a run: its status and what it said.  Raises AssertionError after DEADLINE_S."""
    end = time.monotonic() + DEADLINE_S
    while not (done := os.waitpid(child, os.WNOHANG))[0]:
        if time.monotonic() > end:
            os.kill(child, 9)
            os.waitpid(child, 0)
            raise AssertionError(f"pyattach did not end within {DEADLINE_S} s")
        time.sleep(0.002)
    with open(said, "rb") as file:
        file.seek(0)
        text = file.read().decode(errors="replace")
    return os.waitstatus_to_exitcode(done[1]), text


def run(pid: int, chosen: str, *arguments: object) -> Faulted:
    """One whole run, ended in whatever way."""
    with tempfile.TemporaryDirectory() as folder:
        begun = time.monotonic()
        more = ("-o", f"{folder}/o.folded", *arguments, *(() if "-" in arguments else ("-o", "-")))
        status, text = finish(*begin(pid, chosen, *more))
    return Faulted(status, text, time.monotonic() - begun)
