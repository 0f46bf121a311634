"""Profiles to be drawn, and pages of them in Chromium, for the tests of what is shown."""

from __future__ import annotations

import base64
import contextlib
import gzip
import json
import shutil
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from selenium import webdriver
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.wait import WebDriverWait
from support import skip_unless_ci

from pyattach.render.formats import RenderOptions, write_atomically
from pyattach.render.packing import unpacked
from pyattach.render.profile import Meta, Profile, Thread
from pyattach.render.renderer import encoded
from pyattach.render.svg import svg as drawing
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
    "(unbalanced [regexp",
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


def adversarial_profile() -> Profile:
    """The hostile names as functions, modules and threads, calling one another and themselves; siblings too
    small to be drawn, a stack deeper than the page."""
    weights = {}
    for n, bad in enumerate(HOSTILE):
        f, g = frame(bad, bad), frame(HOSTILE[n - 1], "lib", FrameKind.LIBRARY)
        weights[n, (frame("main"), f, frame("f"))] = 10_000 + 100 * n
        weights[n, (frame("main"), f, g, f)] = 3000
        weights[n, (frame("main"), g)] = 500 + n
    tiny = {(0, (frame("main"), frame(f"tiny {n}{HOSTILE[n % 14][:50]}"))): 1 for n in range(150)}
    deep = {(1, tuple(frame(f"{HOSTILE[n % 14][:20]}{n}") for n in range(300))): 5000}
    meta = Meta(command=" ".join(HOSTILE), ended_by=HOSTILE[0], version=HOSTILE[0], notes=HOSTILE)
    threads = {n: Thread(n, bad) for n, bad in enumerate(HOSTILE)}
    return Profile(meta, threads, {**weights, **tiny, **deep})


def svg(of: Profile, base: Profile | None = None, **options: object) -> str:
    return b"".join(encoded(drawing(of, RenderOptions(**options), base))).decode()  # type: ignore[arg-type]


def packed(text: str) -> dict[str, Any]:
    """What is stored in the picture, its columns unpacked."""
    data = ET.fromstring(text.encode()).find(f"{SVG}metadata")
    assert data is not None
    result: dict[str, Any] = json.loads(gzip.decompress(base64.b64decode(data.text or "")))
    result["profile"] = unpacked(result["profile"])
    return result


@contextlib.contextmanager
def chromium(folder: Path) -> Iterator[webdriver.Chrome]:
    """Headless Chromium, with its profile in ``folder``."""
    binary, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (binary and driver):
        skip_unless_ci("needs chromium and chromedriver (Debian: chromium chromium-driver)")
    assert binary and driver
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    quiet = ("quic", "background-networking", "component-update", "sync", "gpu", "dev-shm-usage")
    for argument in (
        *("--headless", "--no-sandbox", "--no-first-run", "--window-size=1280,800"),
        *(f"--disable-{what}" for what in quiet),
        f"--user-data-dir={folder}",
    ):
        options.add_argument(argument)
    with webdriver.Chrome(options=options, service=webdriver.ChromeService(driver)) as chrome:
        yield chrome


class Page:
    """A flame graph on the screen."""

    def __init__(self, browser: webdriver.Chrome, path: Path) -> None:
        self.browser, self.path = browser, path
        browser.get_log("browser")
        self.open()

    @classmethod
    def of(
        cls,
        browser: webdriver.Chrome,
        path: Path,
        of: Profile,
        base: Profile | None = None,
        **options: object,
    ) -> Page:
        write_atomically(path, encoded(drawing(of, RenderOptions(**options), base)))  # type: ignore[arg-type]
        return cls(browser, path)

    def open(self, fragment: str = "") -> None:
        """Load it, as from an address that somebody was sent."""
        self.browser.get("about:blank")
        self.browser.get(self.path.as_uri() + fragment)
        self.wait("the script has drawn it", "return document.documentElement.hasAttribute('data-ready')")

    def wait(self, what: str, script: str) -> None:
        WebDriverWait(self.browser, 30).until(lambda browser: browser.execute_script(script), what)

    def run(self, script: str, *arguments: object) -> Any:
        return self.browser.execute_script(script, *arguments)

    def frames(self) -> dict[str, float]:
        """Width in px by name, in the order of drawing; of frames of the same name, the last."""
        script = """return [...document.querySelectorAll("g.frame")].map(g =>
            [g.dataset.name, +g.querySelector("rect").getAttribute("width")])"""
        return dict(self.run(script))

    def samples(self) -> dict[str, int]:
        script = (
            "return [...document.querySelectorAll('g.frame')].map(g => [g.dataset.name, +g.dataset.samples])"
        )
        return dict(self.run(script))

    def heights(self) -> dict[str, float]:
        script = """return [...document.querySelectorAll("g.frame")].map(g =>
            [g.dataset.name, +g.querySelector("rect").getAttribute("y")])"""
        return dict(self.run(script))

    def having(self, state: str) -> set[str]:
        """Names of the frames that are marked so."""
        script = "return [...document.querySelectorAll('g.frame.' + arguments[0])].map(g => g.dataset.name)"
        return set(self.run(script, state))

    def frame(self, name: str) -> WebElement:
        return self.browser.find_element(By.CSS_SELECTOR, f'g.frame[data-name="{name}"] rect')

    def text(self, element: str) -> str:
        return self.browser.find_element(By.ID, element).text

    def at(self, index: int) -> WebElement:
        """The rectangle of a frame by its place in the order of drawing, in the middle of the window."""
        found = self.browser.find_elements(By.CSS_SELECTOR, "g.frame")[index]
        script = """arguments[0].scrollIntoView({block: 'center'});
            const done = arguments[1], painted = () => requestAnimationFrame(() => setTimeout(done));
            requestAnimationFrame(painted)"""
        self.browser.execute_async_script(script, found)
        return found.find_element(By.CSS_SELECTOR, "rect")

    def point(self, index: int, *, click: bool = False, held: str = "") -> None:
        """To a frame by its place in the order of drawing."""
        actions = ActionChains(self.browser).move_to_element(self.at(index))
        if held:
            actions.key_down(held)
        if click:
            actions.click()
        if held:
            actions.key_up(held)
        actions.perform()

    def copied(self, key: str) -> str:
        """What is in the clipboard after this key."""
        for name in ("clipboard-read", "clipboard-write"):
            permission = {"permission": {"name": name}, "setting": "granted"}
            self.browser.execute_cdp_cmd("Browser.setPermission", permission)
        self.keys(key)
        said = "return document.querySelector('#details').textContent.endsWith('clipboard.')"
        self.wait("it is said", said)
        script = "navigator.clipboard.readText().then(arguments[0], e => arguments[0](String(e)))"
        return str(self.browser.execute_async_script(script))

    def hover(self, name: str) -> None:
        ActionChains(self.browser).move_to_element(self.frame(name)).perform()

    def click(self, name: str, *, held: str = "") -> None:
        actions = ActionChains(self.browser).move_to_element(self.frame(name))
        if held:
            actions.key_down(held).click().key_up(held).perform()
        else:
            actions.click().perform()

    def press(self, button: str) -> None:
        self.browser.find_element(By.ID, button).click()

    def keys(self, *keys: str) -> None:
        ActionChains(self.browser).send_keys(*keys).perform()

    def chord(self, held: str, key: str) -> None:
        ActionChains(self.browser).key_down(held).send_keys(key).key_up(held).perform()

    def escape(self) -> None:
        self.keys(Keys.ESCAPE)

    def rows(self, table: str) -> list[list[str]]:
        """The cells of a table, row by row."""
        script = """return [...document.querySelectorAll(`#${arguments[0]} tbody tr`)].map(
            row => [...row.cells ?? row.children].map(cell => cell.textContent.trim()))"""
        rows: list[list[str]] = self.run(script, table)
        return rows

    def choose(self, table: str, name: str) -> None:
        row = f'#{table} tbody tr[data-name="{name}"]'
        self.browser.find_element(By.CSS_SELECTOR, row).click()

    def value(self) -> str:
        return str(self.run("return document.querySelector('#search').value"))

    def errors(self) -> list[str]:
        return [entry["message"] for entry in self.browser.get_log("browser")]
