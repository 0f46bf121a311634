"""The flame graph in Chromium, used as a person would."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from graphs import HOSTILE, Page, chromium, hostile_profile, profile
from selenium import webdriver
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from pyattach.render.profile import Meta, Profile, Thread


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    with chromium(tmp_path_factory.mktemp("chromium")) as chrome:
        yield chrome


STACKS = {"main parse": 300, "main parse Malloc": 100, "main parse Malloc Malloc_slow": 100, "main run": 500}


@pytest.fixture
def page(browser: webdriver.Chrome, tmp_path: Path) -> Iterator[Page]:
    page = Page.of(browser, tmp_path / "a.svg", profile(STACKS, pid=7, command="app", duration_s=10.0))
    yield page
    assert page.errors() == []


def test_click_zooms_and_reset_goes_back(page: Page) -> None:
    whole = page.frames()
    assert list(whole) == ["all", "main", "parse", "run", "Malloc", "Malloc_slow"]
    assert whole["parse"] == pytest.approx(whole["all"] / 2, abs=2)
    page.click("parse")
    assert "run" not in page.frames()
    assert page.frames()["parse"] == pytest.approx(whole["all"], abs=2)
    page.click("Malloc")
    page.click("main")  # an ancestor: back out to it
    assert page.frames() == whole
    page.click("Malloc")
    page.press("reset")
    assert page.frames() == whole
    page.click("Malloc")
    page.escape()
    assert page.frames() == whole


def test_search_does_not_count_nested_matches_twice(page: Page) -> None:
    page.keys("/", "malloc")
    assert page.text("matched") == "2 · matched 20.00% (200 samples)"
    assert page.having("hit") == {"Malloc", "Malloc_slow"}
    page.press("case")
    assert page.text("matched") == "0 · matched 0.00% (0 samples)"
    page.press("case")
    page.click("parse")
    assert page.text("matched") == "2 · matched 40.00% (200 samples) of this view"
    page.escape()
    assert (page.text("matched"), page.value()) == ("", "")
    assert "run" not in page.frames()  # the zoom is left by the next Escape
    page.escape()
    assert "run" in page.frames()


def test_next_and_previous_go_through_the_matches(page: Page) -> None:
    page.keys("/", "malloc", Keys.ENTER)
    assert page.text("matched").startswith("1 of 2 · matched 20.00%")
    assert page.having("selected") == {"Malloc"}
    page.keys(Keys.ENTER)
    assert (page.text("matched")[:6], page.having("selected")) == ("2 of 2", {"Malloc_slow"})
    page.keys(Keys.ENTER)
    assert page.text("matched").startswith("1 of 2")
    page.chord(Keys.SHIFT, Keys.ENTER)
    assert page.text("matched").startswith("2 of 2")
    page.run("document.activeElement?.blur()")
    page.keys("n")
    assert page.text("matched").startswith("1 of 2")
    page.keys("N")
    assert page.text("matched").startswith("2 of 2")
    page.press("next")
    assert page.text("matched").startswith("1 of 2")
    page.press("previous")
    assert page.text("matched").startswith("2 of 2")


def test_a_match_too_small_to_be_drawn_is_reached(browser: webdriver.Chrome, tmp_path: Path) -> None:
    stacks = {"main hot": 100_000, "main cold needle": 1, "main cool": 2}
    page = Page.of(browser, tmp_path / "a.svg", profile(stacks))
    page.keys("/", "needle")
    assert "needle" not in page.frames() and page.having("holds-hit") == {"(2 smaller)"}
    assert page.text("matched") == "1 · matched 0.00% (1 samples)"
    page.keys(Keys.ENTER)
    assert page.having("selected") == {"needle"}
    assert page.text("matched") == "1 of 1 · matched 0.00% (1 samples)"
    assert page.errors() == []


def test_ctrl_f_opens_the_search_and_a_bad_pattern_is_told(page: Page) -> None:
    page.chord(Keys.CONTROL, "f")
    page.keys("^(run")
    assert page.text("matched") == "not a regular expression"
    page.keys("|main)$")
    assert page.text("matched") == "2 · matched 100.00% (1,000 samples)"


def test_details_and_tooltip_tell_the_figures(page: Page) -> None:
    page.hover("parse")
    figures = "500 samples  50.00% of all  50.00% of parent  self 300 (30.00%)"
    assert page.text("details").split() == f"parse [app] {figures}".split()
    title = page.browser.find_element(By.CSS_SELECTOR, 'g.frame[data-name="parse"] title')
    assert title.get_attribute("textContent") == "parse\napp\n" + figures.replace("  ", "\n")


def test_question_mark_shows_the_keys(page: Page) -> None:
    page.keys("?")
    assert "Ctrl-F" in page.text("help")
    page.escape()
    assert not page.browser.find_elements(By.ID, "help")


def test_flames_turn_into_an_icicle(page: Page) -> None:
    flames = page.heights()
    assert flames["all"] > flames["main"] > flames["parse"] == flames["run"] > flames["Malloc"]
    page.press("turn")
    icicle = page.heights()
    assert icicle["all"] < icicle["main"] < icicle["parse"] == icicle["run"] < icicle["Malloc"]
    page.keys("i")
    assert page.heights() == flames


def test_callees_first_merges_from_the_leaves(page: Page) -> None:
    page.press("reverse")
    script = """return [...document.querySelectorAll("g.frame")].map(
        g => `${g.dataset.name} ${g.dataset.samples}`)"""
    assert sorted(page.run(script)) == sorted(
        [
            *("all 1000", "run 500", "main 500", "parse 300", "main 300"),
            *("Malloc 100", "parse 100", "main 100"),
            *("Malloc_slow 100", "Malloc 100", "parse 100", "main 100"),
        ]
    )
    page.keys("/", "^malloc$")
    assert page.text("matched") == "2 · matched 20.00% (200 samples)"
    page.escape()
    page.keys("r")
    assert list(page.frames()) == ["all", "main", "parse", "run", "Malloc", "Malloc_slow"]


def test_it_opens_as_it_was_asked_for(browser: webdriver.Chrome, tmp_path: Path) -> None:
    page = Page.of(browser, tmp_path / "a.svg", profile(STACKS), inverted=True, reverse=True)
    heights = page.heights()
    assert heights["all"] < heights["run"] < heights["main"]
    assert page.errors() == []


def test_what_is_removed_is_out_of_all_sums_until_undone(page: Page) -> None:
    whole = page.samples()
    page.click("Malloc_slow", held=Keys.ALT)
    assert page.samples() == {"all": 900, "main": 900, "parse": 400, "run": 500, "Malloc": 100}
    page.hover("run")
    page.keys("x")
    assert page.samples() == {"all": 400, "main": 400, "parse": 400, "Malloc": 100}
    page.hover("Malloc")
    page.keys("X")
    assert page.samples() == {"all": 300, "main": 300, "parse": 300}
    page.press("undo")
    page.keys("u")
    page.keys("u")
    assert page.samples() == whole


def test_everything_may_be_removed(page: Page) -> None:
    page.hover("main")
    page.keys("x")
    assert "Nothing is left" in page.text("frames")
    page.keys("u")
    assert page.samples()["all"] == 1000


def test_a_caller_is_removed_in_the_callees_view(page: Page) -> None:
    page.keys("r")
    page.hover("Malloc_slow")
    page.keys("x")
    assert page.samples()["all"] == 900 and "Malloc_slow" not in page.samples()
    page.keys("r")
    assert page.samples() == {"all": 900, "main": 900, "parse": 400, "run": 500, "Malloc": 100}


def test_names_and_stacks_are_copied(page: Page) -> None:
    origin = page.run("return location.origin")
    for permission in ("clipboard-read", "clipboard-write"):
        page.browser.execute_cdp_cmd(
            "Browser.setPermission", {"permission": {"name": permission}, "setting": "granted"}
        )
    assert origin in ("null", "file://")
    read = "const done = arguments[0]; navigator.clipboard.readText().then(done, e => done(String(e)))"
    page.hover("Malloc")
    page.keys("c")
    page.wait("it is said", "return document.querySelector('#details').textContent.includes('clipboard')")
    assert page.browser.execute_async_script(read) == "Malloc"
    page.hover("Malloc")
    page.keys("C")
    page.wait("it is said", "return document.querySelector('#details').textContent.includes('stack is in')")
    assert page.browser.execute_async_script(read) == "main\nparse\nMalloc"


def test_the_table_of_functions_and_the_sandwich(page: Page) -> None:
    wide = page.frames()["all"]
    page.press("table")
    assert page.frames()["all"] < wide - 300  # it stands beside the picture
    assert page.rows("functions") == [
        ["50.00%", "50.00%", "run"],
        ["30.00%", "50.00%", "parse"],
        ["10.00%", "20.00%", "Malloc"],
        ["10.00%", "10.00%", "Malloc_slow"],
        ["0.00%", "100.00%", "main"],
    ]
    page.browser.find_element(By.CSS_SELECTOR, '#functions [data-sort="total"]').click()
    assert page.rows("functions")[0][2] == "main"
    page.choose("functions", "Malloc")
    assert page.rows("callers") == [["100.00%", "200", "parse"]]
    assert page.rows("callees") == [["50.00%", "100", "Malloc_slow"]]
    page.choose("callers", "parse")
    assert page.rows("callers") == [["100.00%", "500", "main"]]
    page.keys("/", "malloc")
    assert [row[2] for row in page.rows("functions")] == ["Malloc", "Malloc_slow"]
    page.escape()
    page.keys("f")
    assert page.frames()["all"] == wide


def test_recursion_is_counted_once_in_the_table(browser: webdriver.Chrome, tmp_path: Path) -> None:
    page = Page.of(browser, tmp_path / "a.svg", profile({"f g f g": 10, "f f": 5, "g": 5}))
    page.press("table")
    assert page.rows("functions") == [["75.00%", "75.00%", "g"], ["25.00%", "75.00%", "f"]]
    page.choose("functions", "f")
    assert page.rows("callers") == [["66.67%", "10", "g"], ["33.33%", "5", "f"]]
    assert page.rows("callees") == [["66.67%", "10", "g"], ["33.33%", "5", "f"]]
    assert page.errors() == []


def test_threads_split_and_merge(browser: webdriver.Chrome, tmp_path: Path) -> None:
    one, other = (profile({"main a": 30, "main b": 10}).merged(), profile({"main b": 60}).merged())
    weights = {(1, stack): n for stack, n in one.items()} | {(2, stack): n for stack, n in other.items()}
    both = Profile(Meta(), {1: Thread(1, "io"), 2: Thread(2, "io")}, weights)
    page = Page.of(browser, tmp_path / "a.svg", both)
    assert page.samples() == {"all": 100, "main": 100, "a": 30, "b": 70}
    page.press("split")
    assert page.samples()["io-1"] == 40 and page.samples()["io-2"] == 60
    page.click("io-1")
    assert page.samples() == {"all": 100, "io-1": 40, "main": 40, "a": 30, "b": 10}
    page.press("split")
    assert page.samples() == {"all": 100, "main": 100, "a": 30, "b": 70}
    page = Page.of(browser, tmp_path / "b.svg", both, threads=True)
    assert page.samples()["io-2"] == 60
    assert page.errors() == []


def test_the_address_keeps_what_is_seen_by_stack(page: Page) -> None:
    page.keys("/", "slow")
    page.press("case")
    page.run("document.activeElement?.blur()")
    page.press("turn")
    page.click("parse")
    page.hover("Malloc")
    page.keys("f")
    page.choose("functions", "Malloc_slow")
    seen = (page.samples(), page.heights(), page.text("matched"), page.rows("callers"))
    fragment = page.run("return location.hash")
    page.browser.set_window_size(1000, 700)
    try:
        page.open(fragment)
        assert (page.samples(), page.heights(), page.text("matched"), page.rows("callers")) == seen
        assert page.value() == "slow"
    finally:
        page.browser.set_window_size(1280, 800)


def test_the_address_keeps_removals_and_the_order(page: Page) -> None:
    page.keys("r")
    page.hover("Malloc_slow")
    page.keys("x")
    page.hover("run")
    page.keys("X")
    seen = page.samples()
    page.open(page.run("return location.hash"))
    assert page.samples() == seen
    page.keys("u", "u", "r")
    assert page.samples()["all"] == 1000
    assert page.run("return location.hash") == ""


def test_an_address_of_another_profile_leads_as_far_as_it_goes(
    browser: webdriver.Chrome, tmp_path: Path
) -> None:
    page = Page.of(browser, tmp_path / "a.svg", profile(STACKS))
    page.click("Malloc")
    fragment = page.run("return location.hash")
    other = Page.of(browser, tmp_path / "b.svg", profile({"main parse x": 5, "main": 5}))
    other.open(fragment)
    assert other.samples() == {"all": 10, "main": 10, "parse": 5, "x": 5}
    other.open("#z=%00.zz&o=-zz&x=~~r.&v=ir&s=%5B&f=nothing&sort=x")
    assert other.text("matched") == "not a regular expression"
    assert other.errors() == []


def test_arrow_keys_select_and_enter_asks_who_calls(page: Page) -> None:
    page.keys(Keys.ARROW_UP, Keys.ARROW_UP)
    assert page.having("selected") == {"parse"}
    page.keys(Keys.ARROW_RIGHT)
    assert page.having("selected") == {"run"}
    page.keys(Keys.ARROW_LEFT, Keys.ARROW_UP, " ")
    assert "run" not in page.samples()
    page.keys(Keys.ARROW_DOWN, Keys.ENTER)
    assert page.rows("callers") == [["100.00%", "500", "main"]]


def test_width_follows_the_window(page: Page) -> None:
    wide = page.frames()["all"]
    page.browser.set_window_size(900, 800)
    try:
        page.wait(
            "it is drawn anew",
            f"return document.querySelector('g.frame rect').getAttribute('width') < {wide - 300}",
        )
    finally:
        page.browser.set_window_size(1280, 800)


def test_nothing_leaves_a_narrow_window(page: Page) -> None:
    page.browser.set_window_size(500, 800)
    try:
        page.open()
        page.press("table")
        script = """const right = (e) => e.getBoundingClientRect().right;
            return [...document.querySelectorAll("#head *, #footer *, #side, g.frame rect, #frames text")]
            .filter(e => right(e) > right(document.documentElement) + 1)
            .map(e => e.outerHTML.slice(0, 100))"""
        assert page.run(script) == []
    finally:
        page.browser.set_window_size(1280, 800)


def test_a_tall_page_does_not_scroll_by_itself(browser: webdriver.Chrome, tmp_path: Path) -> None:
    deep = [f"f{n}" for n in range(70)]
    stacks = {" ".join(deep): 50, " ".join([*deep[:25], "a"]): 30, " ".join([*deep[:25], "b", "c"]): 20}
    page = Page.of(browser, tmp_path / "a.svg", profile(stacks))
    names = list(page.frames())
    frames = (
        "const done = arguments[0]; let n = 20; (function f() { n-- ? requestAnimationFrame(f) : done() })()"
    )
    for leave in (page.escape, lambda: page.press("reset")):
        page.point(names.index("c"), click=True)
        browser.execute_async_script(frames)
        leave()
        page.run("scrollTo(0, 131)")
        browser.execute_async_script(frames)
        page.point(names.index("c"))
        before = page.run("scrollBy(0, 15); return scrollY")
        browser.execute_async_script(frames)
        assert page.run("return scrollY") == before
    assert page.errors() == []


def test_what_was_zoomed_to_or_found_is_in_the_window(browser: webdriver.Chrome, tmp_path: Path) -> None:
    deep = [f"f{n}" for n in range(75)]
    stacks = {" ".join(deep): 50, " ".join([*deep[:25], "a"]): 30, " ".join([*deep[:25], "b", "c"]): 20}
    page = Page.of(browser, tmp_path / "a.svg", profile(stacks))
    # Once the head has followed the window: the second frame that is painted.
    script = """const [name, done] = arguments;
        const box = (selector) => document.querySelector(selector).getBoundingClientRect();
        const look = () => {
            const at = box(`g.frame[data-name="${name}"]`), head = box("#head");
            done([head.top, head.bottom - at.top <= 0.01, at.bottom <= innerHeight]); };
        requestAnimationFrame(() => requestAnimationFrame(() => setTimeout(look)))"""
    for name in ("f60", "f2", "c"):
        page.keys("/", f"^{name}$", Keys.ENTER)
        assert browser.execute_async_script(script, name) == [0, True, True], name
        page.point(list(page.frames()).index(name), click=True)
        assert browser.execute_async_script(script, name) == [0, True, True], name
        page.keys("/")
        page.escape()
        page.escape()
    assert page.errors() == []


def test_a_block_of_smaller_frames_opens(browser: webdriver.Chrome, tmp_path: Path) -> None:
    page = Page.of(
        browser, tmp_path / "a.svg", profile({"main hot": 5000, **{f"main f{n}": 1 for n in range(2600)}})
    )
    page.click("(2,600 smaller)")
    assert len(page.frames()) == 503  # all, main, as many as are drawn at once, and the block of the others
    page.click("(2,100 smaller)")
    assert "(1,600 smaller)" in page.frames()
    seen = page.samples()
    page.open(page.run("return location.hash"))
    assert page.samples() == seen, "the address keeps it"
    page.escape()
    assert list(page.frames()) == ["all", "main", "hot", "(2,600 smaller)"]
    assert page.errors() == []


def test_the_address_keeps_a_view_of_smaller_frames(browser: webdriver.Chrome, tmp_path: Path) -> None:
    """By the frames in it or, where those are fewer, by those that are not: another profile may have more."""
    small = {f"main f{n}": 1 for n in range(20)}
    page = Page.of(browser, tmp_path / "a.svg", profile({"main hot": 90_000, **small}))
    page.click("(20 smaller)")
    seen, fragment = page.samples(), page.run("return location.hash")
    assert seen["f7"] == 1 and "hot" not in seen and len(fragment) < 30
    page.open(fragment)
    assert page.samples() == seen
    other = Page.of(browser, tmp_path / "b.svg", profile({"main hot": 90_000, **small, "main new": 2}))
    other.open(fragment)
    assert other.samples()["new"] == 2
    hot = {f"main hot{n}": 10_000 for n in range(9)}
    page = Page.of(browser, tmp_path / "c.svg", profile({**hot, "main f1": 1, "main f2": 1}))
    page.click("(2 smaller)")
    seen = page.samples()
    page.open(page.run("return location.hash"))
    assert page.samples() == seen and {"f1", "f2"} < set(seen) and "hot1" not in seen
    page.keys("i")
    assert page.samples() == seen
    page.escape()
    assert "o=" not in page.run("return location.hash") and page.errors() == []


def test_a_stack_deeper_than_the_page_is_folded(browser: webdriver.Chrome, tmp_path: Path) -> None:
    page = Page.of(browser, tmp_path / "a.svg", profile({" ".join(f"f{n}" for n in range(1000)): 10}))
    shown = page.frames()
    assert list(shown)[-2:] == ["f79", "⋯ deeper"] and len(shown) == 82
    page.click("⋯ deeper")
    shown = page.frames()
    assert list(shown)[:2] == ["all", "⋯ 68 frames above"]
    assert list(shown)[-2:] == ["f159", "⋯ deeper"]
    page.click("⋯ 68 frames above")
    assert "f67" in page.frames()
    page.escape()
    assert "f0" in page.frames()
    page.keys("/", "^f999$", Keys.ENTER)
    assert page.having("selected") == {"f999"}
    assert page.errors() == []


@pytest.mark.parametrize("threads", [False, True])
def test_hostile_names_run_nothing(browser: webdriver.Chrome, tmp_path: Path, threads: bool) -> None:
    page = Page.of(browser, tmp_path / "a.svg", hostile_profile(), threads=threads, title=HOSTILE[0])
    for found in browser.find_elements(By.CSS_SELECTOR, "g.frame rect")[:20]:
        ActionChains(browser).move_to_element(found).perform()
    page.keys("/", "script")
    matched = page.text("matched")
    assert matched == "3 · matched 21.43% (30 samples)"  # 3 of 14
    page.press("table")
    page.press("keys")
    page.run("document.activeElement?.blur()")
    page.keys("r", "i", "t")
    page.open(page.run("return location.hash"))
    assert page.text("matched") == matched
    assert browser.execute_script("return typeof window.pwned") == "undefined"
    assert "<script>window.pwned=1</script>" in page.frames()
    assert page.errors() == []


def test_empty_profile_is_a_picture_that_says_so(browser: webdriver.Chrome, tmp_path: Path) -> None:
    page = Page.of(browser, tmp_path / "a.svg", profile({}, duration_s=10.0, ended_by="duration reached"))
    assert "No samples in 10.0 s." in page.text("frames")
    page.keys("/", "x", "i", "?", Keys.ESCAPE)
    assert page.errors() == []


def test_a_diff_tells_what_was_before(browser: webdriver.Chrome, tmp_path: Path) -> None:
    after, before = profile({"main a": 800, "main b": 200}), profile({"main a": 250, "main b": 250})
    page = Page.of(browser, tmp_path / "a.svg", after, before)
    script = "return [...document.querySelectorAll('g.frame rect')].map(r => r.getAttribute('class'))"
    assert page.run(script) == ["b", "same", "more2", "less2"]
    page.hover("a")
    assert "was 50.00%  +30.00 points" in page.text("details")
    page.keys("r")
    assert page.samples()["a"] == 800
    assert "smaller share" in page.text("legend")
    assert page.errors() == []


def test_without_scripts_it_is_a_picture(page: Page) -> None:
    page.browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        page.browser.get(page.path.as_uri() + "#again")
        page.browser.refresh()
        shown = [text.text for text in page.browser.find_elements(By.CSS_SELECTOR, "text")]
        assert {"all", "main", "parse", "run", "Malloc", "command: app"} <= set(shown)
        assert not page.browser.find_elements(By.ID, "search")
    finally:
        page.browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})


def test_dark_scheme_has_light_text_on_a_dark_ground(page: Page) -> None:
    script = "const s = getComputedStyle(document.querySelector(arguments[0])); return [s.fill, s.color]"
    dark = {"features": [{"name": "prefers-color-scheme", "value": "dark"}]}
    page.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", dark)
    try:
        assert page.run(script, ".bg")[0] == "rgb(22, 24, 28)"
        assert page.run(script, "#frames text")[0] == "rgb(236, 238, 241)"
        assert page.run(script, "#title")[1] == "rgb(240, 242, 244)"
    finally:
        page.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
