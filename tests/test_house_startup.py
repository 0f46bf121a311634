"""What is imported when: little to begin with, and nothing while a thread of the target is held."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from test_attach_run import Spawn

from pyattach.inject.fault import BORROWING

ROOT = Path(__file__).resolve().parent.parent
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}

NEEDED_LATER = set(
    """
    bz2 dataclasses inspect json logging lzma pickle random rich shutil subprocess tempfile traceback
    pyattach.api pyattach.attacher.family pyattach.attacher.heap_session pyattach.attacher.live_table
    pyattach.attacher.run pyattach.inject.heap_layout pyattach.render.combine pyattach.render.facts
    pyattach.render.live pyattach.render.profile pyattach.render.text pyattach.symbols.completing
    pyattach.symbols.demangle pyattach.symbols.frame_names pyattach.symbols.lines pyattach.symbols.plt
""".split()
)
"""What an attach has no need of before it samples."""

NEEDED_TO_ATTACH = {"ctypes", "mmap", "struct", "pyattach.attacher.session", "pyattach.symbols.elf"}
"""What help has no need of."""

WATCHED = """
import sys
from pyattach.inject import fault

steps, seen = [], set(sys.modules)

def reach(step, _pid):
    new = sorted(set(sys.modules) - seen)
    seen.update(new)
    steps.append((f"{fault._phase}.{step}" if fault._phase else step, new))

fault.reach = reach
from pyattach.attacher.main import main
before = sorted(sys.modules)
code = main(sys.argv[2:])
import json
with open(sys.argv[1], "w") as file:
    json.dump((code, before, steps), file)
"""
"""A session, told of at each of its steps: which modules have been imported since the one before."""


def python(*words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *map(str, words)], env=ENVIRONMENT, capture_output=True, text=True, check=True
    )


def imported_by(*words: str) -> set[str]:
    said = python("-X", "importtime", *words).stderr
    return {line.rpartition("|")[2].strip() for line in said.splitlines() if line.startswith("import time:")}


@pytest.fixture(scope="module")
def at_start() -> set[str]:
    """What Python itself has imported, and what finds pyattach in an editable installation."""
    return imported_by("-c", "pass")


@pytest.fixture(scope="module")
def with_ptrace() -> set[str]:
    """What python-ptrace imports for its call."""
    return imported_by("-c", "import ptrace.binding.func, ptrace.binding.linux_struct")


@pytest.mark.parametrize(
    "words",
    ["--version", "--help", "run --help", "heap --help", "report --help", "diff --help", "doctor --help"],
)
def test_help_is_not_waited_for(words: str, at_start: set[str]) -> None:
    seen = imported_by("-m", "pyattach", *words.split()) - at_start
    assert "pyattach.attacher.main" in seen
    assert seen & (NEEDED_LATER | NEEDED_TO_ATTACH) == set()


SESSIONS = {
    "cpu": [], "wall": ["--mode", "wall"], "dlopen": ["--loader", "dlopen"], "map": ["--loader", "map"],
    "timer": ["--clock", "timer"], "heap beside": ["--heap"], "entries": ["--heap", "--entries", "always"],
}  # fmt: skip


@pytest.mark.parametrize("options", SESSIONS.values(), ids=SESSIONS)
def test_nothing_is_imported_while_a_thread_is_held(
    spawn: Spawn, tmp_path: Path, with_ptrace: set[str], options: list[str]
) -> None:
    with spawn("split") as target:
        begun = tmp_path / "steps"
        words = (target.pid, "-d", "100ms", "--no-live", "-o", tmp_path / "o.folded", *options)
        python("-c", WATCHED, begun, *words)
    code, before, steps = json.loads(begun.read_text())
    assert code == 0
    names = [step for step, _ in steps]
    phases = ("load", "stop", "unload")  # for each of which a thread is borrowed
    held = {f"{phase}.{step}" for phase in phases for step in BORROWING[1:]}  # since "seized"
    held |= set(BORROWING[1:])  # of the heap's session, which is no phase
    assert {f"{phase}.restored" for phase in phases} <= set(names)
    assert {step: new for step, new in steps if step in held and new} == {}
    if "--heap" not in options:
        sampling = names.index("load.done")
        first = set(before).union(*(new for _, new in steps[: sampling + 1])) - with_ptrace
        assert first & NEEDED_LATER == set()
