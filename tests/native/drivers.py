"""Compiles the C drivers of this folder, together with the product's own C, for the tests beside it."""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from support import BUILD

HERE = Path(__file__).resolve().parent
INJECT = HERE.parent.parent / "inject"
STUB = INJECT / "stub"

RUN_DEADLINE_S = 60.0


def compiler() -> list[str]:
    return shlex.split(os.environ.get("CC", "")) or ["cc"]


def build_driver(name: str, *more: str, stub_sources: Sequence[str] = ()) -> Path:
    """The program made of ``<name>.c``, ``more`` files beside it, and files of ``inject/stub``; made anew
    when one of them has changed."""
    own = [HERE / f"{name}.c", *(HERE / other for other in more)]
    inputs = [*own, *sorted(p for p in STUB.rglob("*") if p.suffix in {".c", ".h", ".S"})]
    command = [*compiler(), "-std=gnu11", "-O1", "-g", "-Wall", "-Wextra", "-Werror", "-pthread"]
    command += [f"-I{STUB}", *map(str, own), *(str(STUB / source) for source in stub_sources)]
    digest = hashlib.sha256(repr(command).encode())
    for path in inputs:
        digest.update(path.read_bytes())
    output = BUILD / f"driver-{digest.hexdigest()[:12]}" / name
    if not output.exists():
        output.parent.mkdir(parents=True, exist_ok=True)
        # Linked under another name and then renamed: it is there whole, or not at all.
        with tempfile.TemporaryDirectory(dir=output.parent) as scratch:
            linked = Path(scratch) / name
            done = subprocess.run([*command, "-o", str(linked)], capture_output=True, text=True, check=False)
            assert done.returncode == 0, f"{shlex.join(command)}\n{done.stderr}"
            shutil.copy2(linked, linked.with_suffix(".whole"))
            linked.with_suffix(".whole").replace(output)
    return output


def run_driver(program: Path, *arguments: object) -> str:
    """All it printed.  A crash, a hang or an exit code fails the test, and says what was printed."""
    command = [str(program), *map(str, arguments)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=RUN_DEADLINE_S, stdin=subprocess.DEVNULL
    )
    assert done.returncode == 0, (
        f"{shlex.join(command)} ended with {done.returncode}\n{done.stdout}{done.stderr}"
    )
    return done.stdout
