"""Draws the pictures of the README anew: the demo program profiled, shown in Chromium and in a terminal.

    python docs/pictures.py [FOLDER]        default: docs/pictures

Needs cc, chromium with its driver, and tmux (tests/install-programs test).
"""

from __future__ import annotations

import contextlib
import io
import math
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from graphs import Page, chromium  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.terminal_theme import NIGHT_OWLISH  # noqa: E402
from rich.text import Text  # noqa: E402
from selenium import webdriver  # noqa: E402
from test_attach_live import Terminal  # noqa: E402

PYATTACH = [sys.executable, "-m", "pyattach"]
WIDTH = 1000


EARLIER = {
    "quick_sort(numbers, numbers + NUMBERS);": "qsort(numbers, NUMBERS, sizeof numbers[0], descending);",
    "hash = fnv1a(block, sizeof block, hash);": "hash = fnv1a(block, sizeof block / 4, hash);",
}
"""What the demo program is like before, for the diff: it sorts by qsort alone, and hashes a quarter."""


@contextlib.contextmanager
def demo(folder: Path, changes: dict[str, str] | None = None) -> Iterator[int]:
    """The demo program, with changes to its source; its pid."""
    program, source = folder / "demo", (ROOT / "tests/targets/demo.c").read_text()
    for old, new in (changes or {}).items():
        assert source.count(old) == 1
        source = source.replace(old, new)
    (folder / "demo.c").write_text(source)
    flags = ["-O2", "-fno-omit-frame-pointer", "-pthread", f"-I{ROOT / 'tests/targets'}"]
    subprocess.run(["cc", *flags, "-o", str(program), str(folder / "demo.c")], check=True)
    with subprocess.Popen([str(program), "30"], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            process.stdout.readline()
            yield process.pid
        finally:
            process.kill()
            process.wait()


def profiled(folder: Path, name: str, changes: dict[str, str] | None = None) -> Path:
    """A picture of five seconds of the demo program."""
    path = folder / f"{name}.svg"
    with demo(folder, changes) as pid:
        subprocess.run(
            [*PYATTACH, str(pid), "-q", "-d", "5", "--hz", "499", "-o", str(path)], check=True, cwd=ROOT
        )
    return path


def shot(browser: webdriver.Chrome, path: Path, to: Path, *, dark: bool = False, script: str = "") -> None:
    """The upper part of the page, as high as it has something to show."""
    scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": scheme})
    size = {"width": WIDTH, "height": 500, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    page = Page(browser, path)
    page.run("document.documentElement.style.overflow = 'hidden';" + script)
    foot = page.run("return document.querySelector('.truth').getBoundingClientRect().bottom")
    side = page.run("return document.querySelector('#side')?.getBoundingClientRect().bottom ?? 0")
    size["height"] = math.ceil(max(foot, side) + 8)
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.save_screenshot(str(to))


def live(folder: Path) -> str:
    """The live view's screen after some seconds, with its colours, as SVG."""
    with demo(folder) as pid, tempfile.TemporaryDirectory() as short:
        terminal = Terminal(Path(short, "tmux"), 100, 18)
        try:
            terminal.wait_until("the shell is there", lambda rows: rows and rows[0].startswith("$"))
            command = shlex.join([*PYATTACH, str(pid), "-d", "20", "-o", str(folder / "live.svg")])
            terminal.line(f"cd {shlex.quote(str(ROOT))}; {command}")
            terminal.wait_until(
                "some seconds have passed", lambda rows: re.search(r"[6-9]\.\d s, 1", rows[0] if rows else "")
            )
            terminal.type("Down", "Down")
            terminal.wait_until("one is selected", lambda rows: "[demo]" in rows[-1])
            screen = terminal.run("capture-pane", "-p", "-e")
            terminal.type("C-c")
            terminal.wait_until("it has ended", lambda rows: any("detached" in row for row in rows))
        finally:
            terminal.run("kill-server")
    console = Console(record=True, width=100, file=io.StringIO())
    console.print(Text.from_ansi(screen.rstrip("\n")))
    return console.export_svg(title="pyattach", theme=NIGHT_OWLISH)


def main() -> None:
    to = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs" / "pictures"
    to.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        before, after = profiled(folder, "before", EARLIER), profiled(folder, "after")
        diff = folder / "diff.svg"
        command = [*PYATTACH, "diff", str(before), str(after), "-o", str(diff)]
        subprocess.run(command, check=True, cwd=ROOT)
        (folder / "live-screen.svg").write_text(live(folder))
        with chromium(folder / "chromium") as browser:
            shot(browser, after, to / "flamegraph.png")
            table = "document.getElementById('table').click();"
            chosen = "document.querySelector('#functions tbody tr').click();"
            icicle = "document.getElementById('turn').click();"
            shot(browser, after, to / "icicle.png", dark=True, script=icicle + table + chosen)
            shot(browser, diff, to / "diff.png")
            size = {"width": 1000, "height": 410, "deviceScaleFactor": 1, "mobile": False}
            browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
            (folder / "live.html").write_text(
                "<body style='margin:0'>" + (folder / "live-screen.svg").read_text()
            )
            browser.get((folder / "live.html").as_uri())
            browser.save_screenshot(str(to / "live.png"))
    for path in sorted(to.glob("*.png")):
        print(f"{path}: {path.stat().st_size / 1024:.0f} KB")


if __name__ == "__main__":
    main()
