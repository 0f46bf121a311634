"""Walks that take their outer frames from the last one find what they would find anew."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from native.drivers import STUB, compiler

DRIVER = Path(__file__).resolve().parent / "native" / "kept_driver.c"


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("kept") / "kept_driver"
    flags = ["-std=gnu11", "-O1", "-g", "-Wall", "-Wextra", "-Werror", f"-I{STUB}"]
    flags += ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-sanitize=alignment"]
    sources = [str(STUB / name) for name in ("walk.c", "cfi.c", "expr.c")]
    subprocess.run([*compiler(), *flags, str(DRIVER), *sources, "-o", str(output)], check=True)
    return output


def said(driver: Path, *words: object) -> dict[str, int]:
    done = subprocess.run([driver, *map(str, words)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return {name: int(number) for name, number in re.findall(r"([a-z ]+?) (\d+)", done.stdout)}


@pytest.mark.parametrize("seed", range(1, 5))
@pytest.mark.parametrize("max_depth", [64, 512, 600])
def test_they_find_the_same(driver: Path, seed: int, max_depth: int) -> None:
    """Stacks of up to 600 frames that grow and shrink, of which words are overwritten at times."""
    counts = said(driver, "walks", seed, 20_000, max_depth)
    assert counts["walks"] == 20_000
    assert counts[" differ"] == counts[" wrong"] == 0
    assert counts[" again"] > 10_000, "frames that no walk has gone through anew"


def test_nothing_is_read_that_was_not_asked_for(driver: Path) -> None:
    """The memory of the last walk is the target's to overwrite: no reason to read outside of the stack."""
    counts = said(driver, "garbage", 1, 50_000)
    assert counts["rounds"] == 50_000
    assert counts[" out of bounds"] == 0
