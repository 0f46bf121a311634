"""The flame graph of a real program in Chromium: what is shown and counted is what is in the profile."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator

import pytest
from graphs import Page, chromium
from selenium.webdriver.common.keys import Keys
from support import requires, spawn
from test_attach_run import attach

from pyattach.render.facts import share
from pyattach.render.profile import Profile, Stack, totals_of
from pyattach.render.reading import read_profile

WORK = """
console.log("ready");
const fib = (n) => n < 2 ? n : fib(n - 1) + fib(n - 2);
const some = Array.from({length: 500}, (_, i) => ({i, s: "x" + i}));
for (;;) { fib(22); JSON.parse(JSON.stringify(some)).sort((a, b) => a.s < b.s ? 1 : -1); }
"""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    """Two seconds of node: long C++ names, generated code, several threads, deep stacks."""
    folder = tmp_path_factory.mktemp("page")
    with spawn([requires("node"), "-e", WORK]) as target:
        attach(target.pid, "-d", "2", "-o", folder / "node.svg")
    with chromium(folder / "chromium") as browser:
        yield Page(browser, folder / "node.svg")


@pytest.fixture
def of(page: Page) -> Iterator[Profile]:
    page.open()
    yield read_profile(page.path)
    assert page.errors() == []


def matching(of: Profile, pattern: str) -> int:
    """Ticks of the stacks with a frame that matches, in name or module."""
    found = re.compile(pattern, re.IGNORECASE)
    return sum(
        ticks
        for stack, ticks in of.merged().items()
        if any(found.search(frame.name) or found.search(frame.module) for frame in stack)
    )


def nodes(stacks: dict[Stack, int]) -> Counter[Stack]:
    """Ticks of each distinct beginning of a stack."""
    out: Counter[Stack] = Counter()
    for stack, ticks in stacks.items():
        for depth in range(1, len(stack) + 1):
            out[stack[:depth]] += ticks
    return out


@pytest.mark.parametrize("pattern", ["v8::", "json|array", "^fib$", "0x[0-9a-f]+$", "libc", "[(]"])
def test_search_counts_exactly(page: Page, of: Profile, pattern: str) -> None:
    page.keys("/", pattern)
    found = re.compile(pattern, re.IGNORECASE)
    frames = sum(bool(found.search(s[-1].name) or found.search(s[-1].module)) for s in nodes(of.merged()))
    ticks = matching(of, pattern)
    assert page.text("matched") == f"{frames:,} · matched {share(ticks, of.total)} ({ticks:,} samples)"
    if frames:
        page.keys(Keys.ENTER)
        assert page.text("matched").startswith(f"1 of {frames:,} · ")
        page.chord(Keys.SHIFT, Keys.ENTER)
        assert page.text("matched").startswith(f"{frames:,} of {frames:,} · ")


def test_search_counts_the_same_from_the_leaves(page: Page, of: Profile) -> None:
    page.keys("r", "/", "v8::")
    ticks = matching(of, "v8::")
    assert page.text("matched").endswith(f"matched {share(ticks, of.total)} ({ticks:,} samples)")


def test_the_frames_are_those_of_the_profile(page: Page, of: Profile) -> None:
    script = """return [...document.querySelectorAll("g.frame")].map(
        g => [g.dataset.name, +g.dataset.samples]).filter(([name]) => !name.includes("smaller"))"""
    for stacks in (of.merged(), {stack[::-1]: ticks for stack, ticks in of.merged().items()}):
        merged: Counter[Stack] = Counter()
        for stack, ticks in stacks.items():
            merged[stack] += ticks
        real = Counter((stack[-1].name, ticks) for stack, ticks in nodes(merged).items())
        shown = Counter((name, ticks) for name, ticks in page.run(script))
        assert shown.pop(("all", of.total)) == 1
        assert sum(shown.values()) > 20
        assert not shown - real
        page.keys("r")


def test_every_frame_and_its_blocks_make_up_its_parent(page: Page, of: Profile) -> None:
    """A row is never wider than the one it stands on, and zooming keeps the samples."""
    widest = page.run("""return [...document.querySelectorAll("g.frame")].map(g =>
        [g.dataset.name, +g.dataset.samples, +g.querySelector("rect").getAttribute("width")])""")
    whole = next(width for name, _, width in widest if name == "all")
    for name, ticks, width in widest:
        assert width <= whole and abs(width - max(0.6, ticks / of.total * (whole + 0.6) - 0.6)) < 1, name


def test_the_table_is_that_of_the_profile(page: Page, of: Profile) -> None:
    page.press("table")
    shown = page.rows("functions")
    ours = totals_of(of).rows(300)
    assert len(shown) == len(ours)
    shares = [[share(row.self_ticks, of.total), share(row.total_ticks, of.total)] for row in ours]
    assert [row[:2] for row in shown] == shares


def test_a_removed_function_is_out_of_all_its_stacks(page: Page, of: Profile) -> None:
    name = max(
        (row for row in totals_of(of).rows(50) if 0 < row.total_ticks < of.total),
        key=lambda row: row.total_ticks,
    ).frame
    rest = sum(ticks for stack, ticks in of.merged().items() if name not in stack)
    page.keys("/", "^" + re.escape(name.name).replace("/", "[/]") + "$", Keys.ENTER, Keys.ESCAPE)
    page.run("document.activeElement?.blur()")
    page.press("remove-all")
    if rest:
        assert page.samples()["all"] == rest
    page.keys("u")
    assert page.samples()["all"] == of.total
