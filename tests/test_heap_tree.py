"""Stacks and sites are each there once, also where threads look for the same ones at the same time."""

from __future__ import annotations

import re
import subprocess

import pytest
from native.drivers import build_driver


@pytest.mark.parametrize("threads", [1, 4, 8])
@pytest.mark.parametrize("seed", [1, 2])
def test_each_is_there_once(seed: int, threads: int) -> None:
    """Addresses that differ in their upper halves only, long lists, nodes and sites below the same node."""
    driver = build_driver("heap_tree_driver")
    words = [driver, str(seed), str(threads), "30000"]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    counts = {name: int(number) for name, number in re.findall(r"(\w+) (\d+)", done.stdout)}
    assert counts["looked"] == threads * 30_000
    assert counts["differ"] == counts["wrong"] == counts["twice"] == counts["refused"] == 0
    assert counts["nodes"] > 10_000
    assert counts["sites"] > 10_000
    # Those that two threads made at once are there, and nothing leads to the later one.
    made = counts["nodes"] + counts["sites"] - 2 * 16
    assert 0.99 * made < counts["linked"] <= made
