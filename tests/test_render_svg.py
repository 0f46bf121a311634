"""The flame graph: its file read as XML, and used in Chromium as a person would."""

from __future__ import annotations

import json
import os
import shutil
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from selenium import webdriver
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement

from pyattach.render.formats import RenderOptions, renderer_for, write_atomically
from pyattach.render.profile import Meta, Profile, Thread
from pyattach.render.tree import REST, build, least_ticks, pruned
from pyattach.symbols.frame import Frame, FrameKind

SVG = "{http://www.w3.org/2000/svg}"
HOSTILE = (
    "<script>window.pwned=1</script>",
    "]]><script>window.pwned=1</script>",
    "</metadata><script>window.pwned=1</script>",
    "\"onload='window.pwned=1'",
    "&lt;b&gt;&#0;",
    "line\nbreak",
    "nul\0",
    "\x1b[31mred",
    "\u202egnp.exe",
    "\ufffe\uffff\ud800",
    "${window.pwned=1}",
    "__proto__",
    "x" * 10_000,
)


def frame(name: str, module: str = "app", kind: FrameKind = FrameKind.USER) -> Frame:
    return Frame(name, module, kind)


def profile(stacks: dict[str, int], **meta: object) -> Profile:
    weights = {(1, tuple(frame(name) for name in stack.split())): ticks for stack, ticks in stacks.items()}
    return Profile(Meta(samples=sum(stacks.values()), **meta), {1: Thread(1, "app")}, weights)  # type: ignore[arg-type]


def hostile_profile(names: tuple[str, ...] = HOSTILE) -> Profile:
    weights = {(n, (frame("main"), frame(bad, bad), frame("f"))): 10 for n, bad in enumerate(names)}
    threads = {n: Thread(n, bad) for n, bad in enumerate(names)}
    meta = Meta(command=" ".join(names), ended_by=names[0], version=names[0], notes=names, samples=10)
    return Profile(meta, threads, weights)


def svg(of: Profile, **options: object) -> str:
    return "".join(renderer_for("svg").render(of, RenderOptions(**options)))  # type: ignore[arg-type]


def drawn(text: str) -> list[tuple[str, float, float]]:
    """Colour class, x and width of each rectangle of the static picture, px."""
    rects = ET.fromstring(text.encode()).findall(f".//{SVG}g[@id='frames']/{SVG}rect")
    return [(r.get("class", ""), float(r.get("x", "")), float(r.get("width", ""))) for r in rects]


def texts(text: str) -> list[str]:
    return [element.text or "" for element in ET.fromstring(text.encode()).iter(f"{SVG}text")]


def decoded(text: str) -> dict[str, list[int]]:
    data = ET.fromstring(text.encode()).find(f"{SVG}metadata")
    assert data is not None
    result: dict[str, list[int]] = json.loads(data.text or "")
    return result


def test_tree_is_in_order_of_name_and_adds_up() -> None:
    tree = build(profile({"main b": 3, "main a": 2, "main a x": 5, "init": 1}))
    names = [(tree.frames[f].name, tree.ticks[n], tree.depth[n]) for n, f in enumerate(tree.frame)]
    assert names == [
        ("all", 11, 0),
        ("init", 1, 1),
        ("main", 10, 1),
        ("a", 7, 2),
        ("x", 5, 3),
        ("b", 3, 2),
    ]
    assert [names[child][0] for child in tree.children(2)] == ["a", "b"]


def test_same_name_of_two_modules_is_two_functions() -> None:
    one, other = frame("init", "liba.so"), frame("init", "libb.so")
    tree = build(Profile(Meta(), {}, {(1, (one,)): 1, (1, (other,)): 2, (2, (frame("init", "liba.so"),)): 4}))
    assert tree.ticks == [7, 5, 2]


def test_pruning_keeps_the_sum_and_counts_what_it_takes() -> None:
    whole = build(profile({"main a": 50, "main b": 1, "main c x": 2, "main c y": 1, "d": 1}))
    tree = pruned(pruned(whole, 2), 4)
    assert [(tree.frame[n] == REST, tree.ticks[n], tree.count[n]) for n in range(len(tree))] == [
        (False, 55, 0),
        (False, 54, 0),
        (False, 50, 0),
        (True, 4, 2),
        (True, 1, 1),
    ]
    assert tree.end[0] == len(tree)
    assert least_ticks(whole, share=0.001, most_nodes=3) == 4


def test_small_siblings_become_a_block_and_not_self_time() -> None:
    picture = drawn(svg(profile({"main hot": 9000, **{f"main f{n}": 1 for n in range(5)}})))
    assert [kind[0] for kind, _, _ in picture] == ["b", "u", "u", "r"]
    block = svg(profile({"main hot": 500, **{f"main f{n}": 1 for n in range(2000)}}))
    assert "(2,000 smaller)" in texts(block)


def test_threads_are_a_level_of_their_own() -> None:
    both = Profile(Meta(), {1: Thread(1, "io"), 2: Thread(2, "io")}, {(n, (frame("f"),)): n for n in (1, 2)})
    assert [t for t in texts(svg(both, threads=True)) if t.startswith("io-")] == ["io-1", "io-2"]
    assert len(drawn(svg(both))) == 2


def test_colour_of_a_name_never_changes() -> None:
    one, other = drawn(svg(profile({"a b": 1}))), drawn(svg(profile({"b": 1, "c": 5})))
    assert one[2][0] == other[1][0]


def test_footer_tells_what_was_measured() -> None:
    meta = Meta(
        "/bin/app <x>", 7, "cpu", 99.0, 98.5, None, 3.0, None, 12, 3, 1, 2, 0.001, version="9", notes=("n1",)
    )
    foot = " ".join(texts(svg(Profile(meta, {}, {(1, (frame("f"),)): 12}))))
    for fact in ("command: /bin/app <x>", "pid: 7", "99 Hz asked, 98.5 Hz of CPU time reached", "dropped: 3"):
        assert fact in foot
    for fact in (
        "truncated stacks: 1 (8.33%)",
        "0.10% of CPU time in the signal handler",
        "pyattach: 9",
        "n1",
    ):
        assert fact in foot
    assert "share of the samples, not a span of time" in foot
    assert "CPU time:" not in foot


def test_hostile_names_stay_text() -> None:
    text = svg(hostile_profile(), threads=True, title=HOSTILE[0])
    root = ET.fromstring(text.encode())
    assert len(root.findall(f".//{SVG}script")) == 1
    assert {element.tag.removeprefix(SVG) for element in root.iter()} <= {
        *("svg", "title", "style", "rect", "text", "g", "metadata", "script")
    }
    assert "<script>window" not in text
    assert not any(name.lower().startswith("on") for element in root.iter() for name in element.attrib)
    assert "<" not in (root.find(f"{SVG}metadata").text or "")  # type: ignore[union-attr]
    assert max(map(len, text.splitlines())) < 40_000


@settings(max_examples=40, deadline=None)
@given(st.lists(st.text(st.characters(codec=None)), min_size=1, max_size=6).map(tuple))
def test_any_names_make_a_file_that_can_be_read(names: tuple[str, ...]) -> None:
    text = svg(hostile_profile(names), threads=True)
    ET.fromstring(text.encode())
    data = decoded(text)
    assert data["nodes"][1] == 10 * len(names)


def test_bytes_for_each_frame() -> None:
    stacks = {f"main loop_{a} function_{a}_{b} leaf_{b}": 10 for a in range(20) for b in range(20)}
    empty, full = svg(profile({})), svg(profile(stacks))
    assert (len(full.encode()) - len(empty.encode())) / len(drawn(full)) < 200


def test_many_stacks_stay_a_small_file() -> None:
    frames = [frame(f"function_{n}") for n in range(1000)]
    weights = {
        (1, (frames[0], *(frames[(n * k) % 1000] for k in (1, 7, 31, 101, 211)), frames[n % 997])): 1
        for n in range(100_000)
    }
    text = svg(Profile(Meta(), {}, weights))
    assert len(text) < 3_000_000


# In the browser.


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (chromium and driver) and not os.environ.get("CI"):
        pytest.skip("chromium and chromedriver are not installed (Debian: chromium chromium-driver)")
    assert chromium and driver
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    quiet = ("quic", "background-networking", "component-update", "sync", "gpu", "dev-shm-usage")
    for argument in (
        *("--headless", "--no-sandbox", "--no-first-run", "--window-size=1280,800"),
        *(f"--disable-{what}" for what in quiet),
        f"--user-data-dir={tmp_path_factory.mktemp('chromium')}",
    ):
        options.add_argument(argument)
    with webdriver.Chrome(options=options, service=webdriver.ChromeService(driver)) as chrome:
        yield chrome


class Page:
    """A flame graph on the screen."""

    def __init__(self, browser: webdriver.Chrome, path: Path, of: Profile, **options: object) -> None:
        write_atomically(path, [svg(of, **options)])
        self.browser = browser
        browser.get_log("browser")
        browser.get(path.as_uri())

    def frames(self) -> dict[str, float]:
        """Width in px by name."""
        found = self.browser.find_elements(By.CSS_SELECTOR, "g.frame")
        return {f.get_attribute("data-name") or "": f.rect["width"] for f in found}

    def frame(self, name: str) -> WebElement:
        return self.browser.find_element(By.CSS_SELECTOR, f'g.frame[data-name="{name}"] rect')

    def text(self, element: str) -> str:
        return self.browser.find_element(By.ID, element).text

    def click(self, name: str) -> None:
        ActionChains(self.browser).move_to_element(self.frame(name)).click().perform()

    def keys(self, *keys: str) -> None:
        ActionChains(self.browser).send_keys(*keys).perform()

    def value(self) -> str:
        return str(self.browser.execute_script("return document.querySelector('#search').value"))

    def errors(self) -> list[str]:
        return [entry["message"] for entry in self.browser.get_log("browser")]


STACKS = {"main parse": 300, "main parse Malloc": 100, "main parse Malloc Malloc_slow": 100, "main run": 500}


@pytest.fixture
def page(browser: webdriver.Chrome, tmp_path: Path) -> Iterator[Page]:
    page = Page(browser, tmp_path / "a.svg", profile(STACKS, pid=7, command="app", duration_s=10.0))
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
    page.browser.find_element(By.ID, "reset").click()
    assert page.frames() == whole
    page.click("Malloc")
    page.keys(Keys.ESCAPE)
    assert page.frames() == whole


def test_search_does_not_count_nested_matches_twice(page: Page) -> None:
    page.keys("/", "malloc")
    assert page.text("matched") == "Matched: 20.00% (200 samples)"
    hits = page.browser.find_elements(By.CSS_SELECTOR, "g.frame.hit")
    assert {hit.get_attribute("data-name") for hit in hits} == {"Malloc", "Malloc_slow"}
    page.browser.find_element(By.ID, "case").click()
    assert page.text("matched") == "Matched: 0.00% (0 samples)"
    page.browser.find_element(By.ID, "case").click()
    page.click("parse")
    assert page.text("matched") == "Matched: 40.00% (200 samples) of this view"
    page.keys(Keys.ESCAPE)
    assert (page.text("matched"), page.value()) == ("", "")
    assert "run" not in page.frames()  # the zoom is left by the next Escape
    page.keys(Keys.ESCAPE)
    assert "run" in page.frames()


def test_ctrl_f_opens_the_search_and_a_bad_pattern_is_told(page: Page) -> None:
    ActionChains(page.browser).key_down(Keys.CONTROL).send_keys("f").key_up(Keys.CONTROL).perform()
    page.keys("^(run")
    assert page.text("matched") == "not a regular expression"
    page.keys("|main)$")
    assert page.text("matched") == "Matched: 100.00% (1,000 samples)"


def test_details_and_tooltip_tell_the_figures(page: Page) -> None:
    ActionChains(page.browser).move_to_element(page.frame("parse")).perform()
    figures = "500 samples  50.00% of all  50.00% of parent  self 300 (30.00%)"
    assert page.text("details").split() == f"parse [app] {figures}".split()
    title = page.browser.find_element(By.CSS_SELECTOR, 'g.frame[data-name="parse"] title')
    assert title.get_attribute("textContent") == "parse\napp\n" + figures.replace("  ", "\n")


def test_question_mark_shows_the_keys(page: Page) -> None:
    page.keys("?")
    assert "Ctrl-F" in page.text("help")
    page.keys(Keys.ESCAPE)
    assert not page.browser.find_elements(By.ID, "help")


def test_width_follows_the_window(page: Page) -> None:
    wide = page.frames()["all"]
    page.browser.set_window_size(900, 800)
    try:
        page.browser.execute_async_script(
            "const done = arguments[0]; requestAnimationFrame(() => requestAnimationFrame(() => done()))"
        )
        assert page.frames()["all"] < wide - 300
    finally:
        page.browser.set_window_size(1280, 800)


def test_a_block_of_smaller_frames_opens(browser: webdriver.Chrome, tmp_path: Path) -> None:
    page = Page(
        browser, tmp_path / "a.svg", profile({"main hot": 500, **{f"main f{n}": 1 for n in range(2600)}})
    )
    page.click("(2,600 smaller)")
    assert len(page.frames()) == 503  # all, main, as many as are drawn at once, and the block of the others
    page.click("(2,100 smaller)")
    assert "(1,600 smaller)" in page.frames()
    page.keys(Keys.ESCAPE)
    assert list(page.frames()) == ["all", "main", "hot", "(2,600 smaller)"]
    assert page.errors() == []


@pytest.mark.parametrize("threads", [False, True])
def test_hostile_names_run_nothing(browser: webdriver.Chrome, tmp_path: Path, threads: bool) -> None:
    page = Page(browser, tmp_path / "a.svg", hostile_profile(), threads=threads, title=HOSTILE[0])
    for found in browser.find_elements(By.CSS_SELECTOR, "g.frame rect")[:20]:
        ActionChains(browser).move_to_element(found).perform()
    page.keys("/", "script")
    page.browser.find_element(By.ID, "keys").click()
    assert browser.execute_script("return typeof window.pwned") == "undefined"
    assert "<script>window.pwned=1</script>" in page.frames()
    assert page.errors() == []


def test_empty_profile_is_a_picture_that_says_so(browser: webdriver.Chrome, tmp_path: Path) -> None:
    page = Page(browser, tmp_path / "a.svg", profile({}, duration_s=10.0, ended_by="duration reached"))
    assert "No samples in 10.0 s." in page.text("frames")
    page.keys("/", "x", "i", "?", Keys.ESCAPE)
    assert page.errors() == []


def test_dark_scheme_has_light_text_on_a_dark_ground(page: Page) -> None:
    script = "return getComputedStyle(document.querySelector(arguments[0])).fill"
    dark = {"features": [{"name": "prefers-color-scheme", "value": "dark"}]}
    page.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", dark)
    try:
        assert page.browser.execute_script(script, ".bg") == "rgb(22, 24, 28)"
        assert page.browser.execute_script(script, "#frames text") == "rgb(236, 238, 241)"
    finally:
        page.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
