"""Everything that can be done in a flame graph, in Chromium, on a profile of a real program and on an
adversarial one: what is shown and counted is what is in the profile, and no name of it does anything."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from graphs import Page, adversarial_profile, chromium
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from support import requires, spawn
from test_attach_run import attach

from pyattach.render.facts import share
from pyattach.render.formats import RenderOptions, renderer_for, write_atomically
from pyattach.render.profile import Profile, Stack, totals_of
from pyattach.render.reading import read_profile
from pyattach.symbols.frame import Frame

WORK = """
console.log("ready");
const fib = (n) => n < 2 ? n : fib(n - 1) + fib(n - 2);
const some = Array.from({length: 500}, (_, i) => ({i, s: "x" + i}));
for (;;) { fib(22); JSON.parse(JSON.stringify(some)).sort((a, b) => a.s < b.s ? 1 : -1); }
"""


def node_svg(path: Path) -> None:
    """Two seconds of node: long C++ names, generated code, several threads, deep stacks."""
    with spawn([requires("node"), "-e", WORK]) as target:
        attach(target.pid, "-d", "2", "-o", path)


def adversarial_svg(path: Path) -> None:
    write_atomically(path, renderer_for("svg").render(adversarial_profile(), RenderOptions()))


@pytest.fixture(scope="module", params=[node_svg, adversarial_svg], ids=["node", "adversarial"])
def page(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    folder = tmp_path_factory.mktemp("page")
    request.param(folder / "x.svg")
    with chromium(folder / "chromium") as browser:
        yield Page(browser, folder / "x.svg")


@pytest.fixture
def of(page: Page) -> Iterator[Profile]:
    page.open()
    yield read_profile(page.path)
    assert page.errors() == []
    assert page.run("return typeof window.pwned") == "undefined"
    elements = page.run("return [...new Set([...document.querySelectorAll('*')].map(e => e.localName))]")
    assert not {"iframe", "img", "object", "a", "link"} & set(elements)


def matching(of: Profile, pattern: str, flags: int = re.IGNORECASE, below: Stack = ()) -> tuple[int, int]:
    """Of the frames at and above the end of ``below``: how many match in name or module, and how many ticks
    the stacks with such a frame have."""
    found, depth = re.compile(pattern, flags), max(0, len(below) - 1)

    def matches(frame: Frame) -> bool:
        return bool(found.search(frame.name) or found.search(frame.module))

    stacks = {stack: n for stack, n in of.merged().items() if stack[: len(below)] == below}
    frames = sum(matches(node[-1]) for node in nodes(stacks) if len(node) > depth)
    return frames, sum(n for stack, n in stacks.items() if any(map(matches, stack[depth:])))


def nodes(stacks: dict[Stack, int]) -> Counter[Stack]:
    """Ticks of each distinct beginning of a stack."""
    out: Counter[Stack] = Counter()
    for stack, ticks in stacks.items():
        for depth in range(1, len(stack) + 1):
            out[stack[:depth]] += ticks
    return out


def shown(page: Page) -> list[dict[str, Any]]:
    """All frames as they are drawn."""
    script = """return [...document.querySelectorAll("g.frame")].map((g, at) => {
        const rect = g.querySelector("rect");
        return {at, name: g.dataset.name, module: g.dataset.module, ticks: +g.dataset.samples,
            rest: rect.matches(".r"), width: +rect.getAttribute("width"), y: +rect.getAttribute("y")}})"""
    frames: list[dict[str, Any]] = page.run(script)
    return frames


def counted(page: Page) -> Counter[tuple[str, int]]:
    """Name and samples of all frames drawn, without blocks."""
    return Counter((frame["name"], frame["ticks"]) for frame in shown(page) if not frame["rest"])


def some_frame(page: Page, of: Profile) -> tuple[int, Stack]:
    """A frame, neither very wide nor narrow, with others above it: its place, and its stack, as copied."""
    whole = shown(page)[0]["width"]
    at_depth = [f for f in shown(page) if not f["rest"] and 12 < f["width"] < 0.8 * whole]
    for frame in sorted(at_depth, key=lambda f: -f["width"]):
        page.point(frame["at"])
        names = page.copied("C").split("\n")
        fits = [n for n in nodes(of.merged()) if [f.name for f in n] == names and f_is(n[-1], frame)]
        deeper = [n for n in nodes(of.merged()) if len(n) > len(names) and n[: len(names)] in fits]
        if len(fits) == 1 and deeper:
            assert nodes(of.merged())[fits[0]] == frame["ticks"]
            return frame["at"], fits[0]
    raise AssertionError("no frame is of a middle width")


def f_is(frame: Frame, drawn: dict[str, Any]) -> bool:
    return (frame.name, frame.module) == (drawn["name"], drawn["module"])


def matched(page: Page, of: Profile, pattern: str, flags: int = re.IGNORECASE) -> None:
    """What the page says is what is in the profile."""
    frames, ticks = matching(of, pattern, flags)
    assert page.text("matched") == f"{frames:,} · matched {share(ticks, of.total)} ({ticks:,} samples)"


PATTERNS = ["v8::", "json|array", "^fib$", "0x[0-9a-f]+$", "libc", "[(]", "<script>", r"\]\]>", "^x+$"]
PATTERNS += ["\ufffd", "__proto__", "window.*=1", "^main$", "&lt;", r"\$\{", "tiny 1?7"]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_search_counts_exactly(page: Page, of: Profile, pattern: str) -> None:
    page.keys("/", pattern)
    matched(page, of, pattern)
    frames, _ = matching(of, pattern)
    if frames:
        page.keys(Keys.ENTER)
        assert page.text("matched").startswith(f"1 of {frames:,} · ")
        page.chord(Keys.SHIFT, Keys.ENTER)
        assert page.text("matched").startswith(f"{frames:,} of {frames:,} · ")


def test_the_search_is_opened_told_apart_and_gone_through(page: Page, of: Profile) -> None:
    for opened in (lambda: page.chord(Keys.CONTROL, "f"), lambda: page.keys("/"), lambda: page.keys(Keys.F3)):
        opened()
        page.keys("MAIN|SCRIPT")
        matched(page, of, "MAIN|SCRIPT")
        page.press("case")
        matched(page, of, "MAIN|SCRIPT", 0)
        page.press("case")
        page.escape()
        assert page.text("matched") == page.value() == ""
    page.keys("/", "a")
    frames, _ = matching(of, "a")
    page.run("document.activeElement.blur()")
    for key, at in (("n", 1), ("n", 2), ("N", 1), ("N", frames)):
        page.keys(key)
        assert page.text("matched").startswith(f"{at:,} of {frames:,} · ")
    for button, at in (("next", 1), ("previous", frames)):
        page.press(button)
        assert page.text("matched").startswith(f"{at:,} of {frames:,} · ")
    page.escape()
    page.keys("/", "(a")
    assert page.text("matched") == "not a regular expression"


def test_search_counts_the_same_from_the_leaves(page: Page, of: Profile) -> None:
    page.keys("r", "/", "v8::|script")
    _, ticks = matching(of, "v8::|script")
    assert page.text("matched").endswith(f"matched {share(ticks, of.total)} ({ticks:,} samples)")


def test_click_zooms_and_everything_leads_back(page: Page, of: Profile) -> None:
    whole = shown(page)
    at, stack = some_frame(page, of)
    below = nodes({s: n for s, n in of.merged().items() if s[: len(stack)] == stack})
    for back in (page.escape, lambda: page.press("reset"), lambda: page.point(0, click=True)):
        page.point(at, click=True)
        now = shown(page)
        wide = {(f["name"], f["ticks"]) for f in now if f["width"] == now[0]["width"]}
        assert (stack[-1].name, below[stack]) in wide, page.run("return [location.hash, scrollY]")
        around = Counter(
            (n[-1].name, ticks) for n, ticks in nodes(of.merged()).items() if n == stack[: len(n)]
        )
        within = Counter((n[-1].name, ticks) for n, ticks in below.items())
        assert not counted(page) - around - within - Counter([("all", of.total)])
        page.keys("/", "a")
        frames, ticks = matching(of, "a", below=stack)
        assert page.text("matched") == (
            f"{frames:,} · matched {share(ticks, below[stack])} ({ticks:,} samples) of this view"
        )
        page.escape()
        back()
        assert shown(page) == whole


def test_the_frames_are_those_of_the_profile(page: Page, of: Profile) -> None:
    for stacks in (of.merged(), {stack[::-1]: ticks for stack, ticks in of.merged().items()}):
        real = Counter((stack[-1].name, ticks) for stack, ticks in nodes(stacks).items())
        drawn = counted(page)
        assert drawn.pop(("all", of.total)) == 1
        assert sum(drawn.values()) > 20
        assert not drawn - real
        page.keys("r")


def test_flames_turn_into_an_icicle_and_back(page: Page, of: Profile) -> None:
    flames = shown(page)
    for turn in (lambda: page.press("turn"), lambda: page.keys("i")):
        bottom = max(f["y"] for f in shown(page))
        before = shown(page)
        turn()
        assert [f | {"y": bottom - f["y"]} for f in before] == shown(page)
    assert shown(page) == flames


def test_threads_are_told_apart(page: Page, of: Profile) -> None:
    ticks_of = {thread.tid: sum(stacks.values()) for thread, stacks in of.by_thread()}
    if len(ticks_of) == 1:
        assert not page.browser.find_elements(By.ID, "split")
        return
    page.keys("t")
    threads = {f["name"]: f["ticks"] for f in shown(page)}
    wide = {tid: n for tid, n in ticks_of.items() if n > of.total / 500}
    assert wide
    for tid, ticks in wide.items():
        assert [n for name, n in threads.items() if name.endswith(f"-{tid}")] == [ticks], tid
    page.press("split")
    assert f"-{max(wide)}" not in "".join(f["name"][-8:] for f in shown(page))


def test_every_frame_is_as_wide_as_its_share(page: Page, of: Profile) -> None:
    whole = shown(page)[0]["width"]
    for frame in shown(page):
        width = max(0.6, frame["ticks"] / of.total * (whole + 0.6) - 0.6)
        assert abs(frame["width"] - width) < 1 and frame["width"] <= whole, frame


def test_details_tooltip_and_copies_are_those_of_the_frame(page: Page, of: Profile) -> None:
    at, stack = some_frame(page, of)
    page.point(0)
    page.point(at)
    ticks, merged = nodes(of.merged()), of.merged()
    above = ticks[stack[:-1]] if len(stack) > 1 else of.total
    figures = [
        f"{ticks[stack]:,} samples", f"{share(ticks[stack], of.total)} of all",
        f"{share(ticks[stack], above)} of parent",
        f"self {merged.get(stack, 0):,} ({share(merged.get(stack, 0), of.total)})",
    ]  # fmt: skip
    details = page.run("return document.querySelector('#details').textContent")
    assert details.endswith("  " + "  ".join(figures))
    title = page.run(f"return document.querySelectorAll('g.frame')[{at}].querySelector('title').textContent")
    module = [stack[-1].module] if stack[-1].module else []
    assert title == "\n".join([stack[-1].name, *module, *figures])
    assert page.copied("c") == stack[-1].name


def samples_left(page: Page) -> int:
    """Of all; of no samples at all nothing is drawn, but it is said."""
    if not shown(page):
        assert "Nothing is left to be shown; Undo brings it back." in page.text("frames")
        return 0
    return page.samples()["all"]


def test_what_is_removed_is_out_of_all_sums_until_undone(page: Page, of: Profile) -> None:
    at, stack = some_frame(page, of)
    whole, ticks = shown(page), nodes(of.merged())[stack]
    everywhere = sum(n for s, n in of.merged().items() if any(f_is(f, whole[at]) for f in s))
    page.point(at, click=True, held=Keys.ALT)
    assert samples_left(page) == of.total - ticks
    for _ in range(2):  # by thread, and back
        page.keys("t")
        assert samples_left(page) == of.total - ticks
    page.keys("u")
    for key, gone in (("x", ticks), ("X", everywhere)):
        assert shown(page) == whole
        page.point(at)
        page.keys(key)
        assert samples_left(page) == of.total - gone
        page.press("undo")
    for button, gone in (("remove", ticks), ("remove-all", everywhere)):
        page.point(at)
        page.press(button)
        assert samples_left(page) == of.total - gone
        page.keys("u")


def test_the_table_is_that_of_the_profile(page: Page, of: Profile) -> None:
    page.press("table")
    for by_total in (False, True):
        page.browser.find_element(By.CSS_SELECTOR, f'[data-sort="{("self", "total")[by_total]}"]').click()
        rows, ours = page.rows("functions"), totals_of(of).rows(300, by_total=by_total)
        shares = [[share(row.self_ticks, of.total), share(row.total_ticks, of.total)] for row in ours]
        assert [row[:2] for row in rows] == shares
        for row, name in zip(rows, (row.frame.name for row in ours), strict=True):
            if len({r.self_ticks for r in ours}) == len(ours):
                assert row[2] == name


def neighbours(of: Profile, frame: Frame, *, callers: bool) -> Counter[tuple[str, str]]:
    """Name and ticks of the functions that call it, or that it calls; of each stack once."""
    ticks: Counter[Frame] = Counter()
    for stack, n in of.merged().items():
        calls = {(a, b) for a, b in itertools.pairwise(stack)}
        for other in {a if callers else b for a, b in calls if (b if callers else a) == frame}:
            ticks[other] += n
    return Counter((other.name[:200], f"{n:,}") for other, n in ticks.items())


def test_callers_and_callees_are_those_of_the_profile(page: Page, of: Profile) -> None:
    page.press("table")
    ours = totals_of(of).rows(300)
    for at in range(5):
        page.browser.find_elements(By.CSS_SELECTOR, "#functions tbody tr")[at].click()
        title = page.run("return document.querySelector('#functions tr.on').title").split("\n")
        frame = next(r.frame for r in ours if [r.frame.name, r.frame.module] == title[:2])
        for table, callers in (("callers", True), ("callees", False)):
            rows = Counter((name.removesuffix("…"), n) for _, n, name in page.rows(table))
            assert rows == neighbours(of, frame, callers=callers)


def test_the_address_keeps_what_is_seen(page: Page, of: Profile) -> None:
    at, _ = some_frame(page, of)
    page.point(at, click=True)
    page.keys("i", "f", "/", "a")
    page.run("document.activeElement.blur()")
    page.browser.find_elements(By.CSS_SELECTOR, "#functions tbody tr")[0].click()
    seen = (shown(page), page.text("matched"), page.rows("callers"), page.rows("functions"))
    page.open(page.run("return location.hash"))
    assert (shown(page), page.text("matched"), page.rows("callers"), page.rows("functions")) == seen


def test_keys_lead_through_the_frames(page: Page, of: Profile) -> None:
    page.keys(Keys.ARROW_UP, Keys.ARROW_UP)
    (chosen,) = page.having("selected")
    heaviest = max(nodes(of.merged()).items(), key=lambda node: (len(node[0]) == 1, node[1]))[0]
    assert chosen in {node[-1].name for node in nodes(of.merged()) if node[:-1] == heaviest}
    page.keys(" ")
    assert shown(page)[2]["width"] == shown(page)[0]["width"]
    page.keys("?")
    assert "Ctrl-F" in page.text("help")
    page.keys("?", Keys.ARROW_DOWN, Keys.ENTER)
    assert page.rows("functions")


def test_blocks_of_smaller_frames_and_folded_stacks_open(page: Page, of: Profile) -> None:
    for mark in ("smaller)", "⋯ deeper"):
        found = [f for f in shown(page) if f["name"].endswith(mark)]
        if not found:
            continue  # a program may have none; the adversarial profile has both
        page.point(found[-1]["at"], click=True)
        real = Counter((node[-1].name, n) for node, n in nodes(of.merged()).items())
        assert not counted(page) - real - Counter([("all", of.total)])
        assert mark == "smaller)" or "⋯" in shown(page)[1]["name"]
        page.escape()
    if of.meta.command.startswith("<script>"):
        assert any(f["name"].endswith("smaller)") for f in shown(page))
        assert any(f["name"] == "⋯ deeper" for f in shown(page))


def test_a_name_has_one_colour(page: Page, of: Profile) -> None:
    script = """return [...document.querySelectorAll("g.frame rect:not(.r)")].map(r =>
        [r.parentNode.dataset.name + "\\0" + r.parentNode.dataset.module, r.getAttribute("class")])"""
    before = dict(page.run(script))
    page.keys("r")
    after = dict(page.run(script))
    assert all(after[name] == colour for name, colour in before.items() if name in after)
    assert len(set(before) & set(after)) > 5
    assert page.text("legend")
