"""Stacks of allocations, from the thread's last walk as far as that goes, are those that the program has."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from native.drivers import STUB, compiler

DRIVER = Path(__file__).resolve().parent / "native" / "heap_stack_driver.c"


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("stacks") / "heap_stack_driver"
    flags = ["-std=gnu11", "-O1", "-g", "-Wall", "-Wextra", "-Werror", f"-I{STUB}"]
    flags += ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-sanitize=alignment"]
    sources = [str(STUB / name) for name in ("heap/stack.c", "walk.c", "cfi.c", "expr.c")]
    subprocess.run([*compiler(), *flags, str(DRIVER), *sources, "-o", str(output)], check=True)
    return output


@pytest.mark.parametrize("seed", range(1, 5))
@pytest.mark.parametrize("max_depth", [64, 512])
def test_they_are_those_of_the_program(driver: Path, seed: int, max_depth: int) -> None:
    """Stacks of up to 600 frames that grow and shrink; where words of the stack are overwritten, at least
    those that are found anew."""
    done = subprocess.run(
        [driver, str(seed), "20000", str(max_depth)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    counts = {name: int(number) for name, number in re.findall(r"(\w+) (\d+)", done.stdout)}
    assert counts["walks"] == 20_000
    assert counts["differ"] == counts["wrong"] == 0
    assert counts["nodes"] > 10_000


@pytest.mark.parametrize("returns_to", ["0x500000", "0x401000"])
def test_what_is_above_the_stack_is_not_believed_to_stay(driver: Path, returns_to: str) -> None:
    """A frame pointer that leads there is found again at the next walk: the mapping has gone by then."""
    done = subprocess.run([driver, "above", returns_to], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    first, again = re.findall(r"\d+", done.stdout)
    assert first != again
