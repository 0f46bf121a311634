"""The folded file of a real run in flamegraph.pl, the tool it is made for."""

from __future__ import annotations

import re
import shutil
import subprocess
import xml.etree.ElementTree as ElementTree
from collections import Counter
from pathlib import Path

import pytest
from support import skip_unless_ci
from test_attach_run import Folded, Spawn, attach

PLACES = ("/usr/share/perl5/Devel/NYTProf/flamegraph.pl",)  # Debian's libdevel-nytprof-perl
SVG = "{http://www.w3.org/2000/svg}"


def flamegraph() -> str:
    found = shutil.which("flamegraph.pl") or next((place for place in PLACES if Path(place).exists()), None)
    if found is None:
        skip_unless_ci("needs flamegraph.pl (libdevel-nytprof-perl)")
    assert found is not None
    return found


def frames(stacks: Counter[tuple[str, ...]]) -> Counter[tuple[str, int]]:
    """The frames of a flame graph as (name, samples): one for each distinct stack prefix."""
    prefixes: Counter[tuple[str, ...]] = Counter()
    for stack, ticks in stacks.items():
        for depth in range(1, len(stack) + 1):
            prefixes[stack[:depth]] += ticks
    return Counter((prefix[-1], ticks) for prefix, ticks in prefixes.items())


@pytest.mark.parametrize(
    "program", [["demo", 30], ["recurse", 40], ["threads", 2, 0]], ids=lambda program: program[0]
)
@pytest.mark.parametrize("by_thread", [False, True], ids=["merged", "threads"])
def test_frame_counts_are_equal(spawn: Spawn, tmp_path: Path, program: list[object], by_thread: bool) -> None:
    folded = tmp_path / "o.folded"
    with spawn(*program) as target:
        attach(target.pid, "-d", "500ms", "-o", folded, *(["--threads"] if by_thread else []))
    ours = Folded(folded)
    done = subprocess.run(
        # minwidth 0: all frames, also the narrowest
        ["perl", flamegraph(), "--minwidth", "0", str(folded)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert not done.stderr, done.stderr  # it complains of lines it can't read
    theirs: Counter[tuple[str, int]] = Counter()
    for title in ElementTree.fromstring(done.stdout).iter(f"{SVG}title"):
        name, ticks = re.fullmatch(
            r"(.*) \(([\d,]+) samples, [\d.]+%\)", title.text or "", re.DOTALL
        ).groups()  # type: ignore[union-attr]
        theirs[name, int(ticks.replace(",", ""))] += 1
    assert theirs == frames(ours.stacks) + Counter({("all", ours.total): 1})
