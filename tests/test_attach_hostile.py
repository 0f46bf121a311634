"""Targets that lie: nonsense in the shared memory, names made to confuse.  Runs end, clearly and in time."""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import time
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from support import build_target
from test_attach_run import Folded, Spawn, attach, check_svg

from pyattach.attacher.clock import TimerClock
from pyattach.attacher.contract import Options
from pyattach.attacher.planning import plan_region
from pyattach.attacher.procfs import read_status
from pyattach.attacher.sampling import Session
from pyattach.attacher.target import TargetProcess
from pyattach.errors import ExitCode, InjectionFailed
from pyattach.inject import loader
from pyattach.inject.borrow import Borrowed, error_text
from pyattach.inject.layout import BootArgs
from pyattach.inject.preload import PreloadedStub

LIMIT_S = 20.0
MEMORY_KIB = 1_000_000


@pytest.mark.parametrize(
    ("where", "seed"), [("all", 1), ("all", 2), ("control", 3), ("slots", 4), ("ring", 5)]
)
def test_nonsense_in_the_shared_memory(spawn: Spawn, tmp_path: Path, where: str, seed: int) -> None:
    """The stub believes what it reads there, too: a target can hurt itself, but not us, and nobody hangs."""
    with spawn("hostile", where, seed) as target:
        begun = time.monotonic()
        run = attach(target.pid, "-d", "1s", "--no-live", "-o", tmp_path / "o.svg", exit_code=None)
        assert time.monotonic() - begun < LIMIT_S
        assert run.process.returncode in (*ExitCode,), run.err
        assert run.err.strip(), "it said nothing"
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss < MEMORY_KIB


def test_the_shared_memory_is_not_cut_off(spawn: Spawn) -> None:
    """pyattach would be killed by its next store there."""
    plan = plan_region(Options(), 1, TimerClock())
    preloaded = PreloadedStub.create(plan)
    with spawn("quiet") as target, TargetProcess(target.pid) as process, contextlib.closing(preloaded):
        session = Session(process, Options())
        session.load()
        for memfd in (session.stub.memfd, preloaded.memfd):
            with pytest.raises(PermissionError):
                os.ftruncate(memfd, 4096)
        session.detach()
        session.close()
        target.finish()


def test_a_target_that_has_all_its_memory_locked(spawn: Spawn) -> None:
    """A new mapping's pages are there at once, all of them, unless that is seen to: the heap's are many."""

    def locked() -> int:
        return int(read_status(target.pid)["VmLck"].removesuffix(" kB")) * 1024

    with spawn("locked", ready=None) as target:
        if target.expect("") == "limited":
            pytest.skip("no more than a little memory may be locked here (RLIMIT_MEMLOCK)")
        with TargetProcess(target.pid) as process:
            before = locked()
            session = Session(process, Options())
            session.load()
            assert locked() - before < session.plan.size / 4
            session.detach()
            verified = session.verify()
            session.close()
        assert verified is not None and verified.left == ()
        assert target.finish().endswith("done\n")


@pytest.mark.parametrize(
    ("number", "words"),
    [(-12, os.strerror(12)), (0, "error 0"), (5, "error 5"), (-(1 << 31), "error -2147483648")],
)
def test_an_error_number_of_the_target(number: int, words: str) -> None:
    """What failed there, and why, is the target's word."""
    memfd = os.memfd_create("boot")
    borrowed = Borrowed(BootArgs(step=77, error=number or 1), memfd, 0, 0)
    target = cast(TargetProcess, SimpleNamespace(pid=1))
    assert error_text(number) == words
    with pytest.raises(InjectionFailed, match="running the command failed there"):
        loader._check(target, borrowed)
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(memfd)


@pytest.mark.parametrize(
    "name",
    ["new\nline.so", "esc\x1b[2J\x1b]0;title\x07.so", "7f0000000000-7f0000001000 r-xp 00000000 00:00 0 x.so",
     "semi;colon 12.so", "<script>alert(1)</script>.so", "\u202eright-to-left.so", "(deleted) (deleted).so"],
    ids=["newline", "escapes", "like a line of maps", "folded", "markup", "bidi", "deleted"],
)  # fmt: skip
def test_names_of_files_made_to_confuse(spawn: Spawn, tmp_path: Path, name: str) -> None:
    library = tmp_path / name.replace("</", "<")
    shutil.copy(build_target("lib_late", "-shared", "-fPIC"), library)
    folded, svg, text = tmp_path / "o.folded", tmp_path / "o.svg", tmp_path / "o.txt"
    with spawn("dlopener", library) as target:
        target.tell()
        target.expect("opened")
        run = attach(target.pid, "-d", "500ms", "-o", folded, "-o", svg, "-o", text)
        target.finish()
    assert Folded(folded).leaves()["late_inner"] > 0.8 * Folded(folded).total
    check_svg(svg)
    for said in (run.err, run.out, folded.read_text(), text.read_text()):
        assert "\x1b" not in said and "\u202e" not in said
    assert "<script>" not in svg.read_text().partition("<script")[0]
