"""The flame graph beside its peers' on the same folded stacks: time, bytes for each visible frame; then in
Chromium: until it is painted, and a zoom.  And what a refresh of the live view costs.

    python benchmarks/render.py [--inferno PYTHON] [--peer COMMAND] [--lines 10000 1000000] [--frames 100000]

Peers take folded stacks on stdin and write SVG: flamegraph.pl (Debian's libdevel-nytprof-perl), inferno
through its binding for Python (PyPI's pyinferno, in the environment of PYTHON), and any other that is given
(``--peer inferno-flamegraph``).  Times are from a process's start to its end, the median of some runs in
turns.  A visible frame is a frame's rectangle in the SVG as it is on disk.
"""

from __future__ import annotations

import argparse
import functools
import io
import os
import random
import re
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from common import compare  # noqa: E402
from graphs import chromium  # noqa: E402
from rich.console import Console  # noqa: E402

from pyattach.render.formats import RenderOptions, renderer_for  # noqa: E402
from pyattach.render.live import LiveView  # noqa: E402
from pyattach.render.live_header import LiveHeader  # noqa: E402
from pyattach.render.live_totals import LiveTotals  # noqa: E402
from pyattach.render.profile import Meta, Profile, Stack, Thread  # noqa: E402
from pyattach.symbols.frame import Frame, FrameKind  # noqa: E402

FLAMEGRAPH_PL = "/usr/share/perl5/Devel/NYTProf/flamegraph.pl"
INFERNO = """import sys, pyinferno
sys.stdout.write(pyinferno.flamegraph_from_lines(sys.stdin.read().splitlines()))"""
PYATTACH = [sys.executable, "-m", "pyattach", "report"]
FIRST_PAINT = """return performance.getEntriesByType("paint").find(
    e => e.name === "first-paint")?.startTime"""


def folded_lines(count: int, seed: int = 1) -> Iterator[str]:
    """``count`` distinct stacks as a program has them: some functions are hot, deep stacks share their
    beginnings, names are as long as C's and, every third, C++'s."""
    choose = random.Random(seed)
    names = [
        f"ns{n % 17}::Component{n % 131}::function_{n}" if n % 3 == 0 else f"function_{n}"
        for n in range(4000)
    ]
    seen: set[str] = set()
    path: list[str] = []
    while len(seen) < count:
        del path[min(len(path), 3 + int(choose.expovariate(0.15))) :]
        depth = 8 + int(choose.expovariate(0.08))
        while len(path) < depth:
            path.append(names[min(int(choose.paretovariate(0.6)), len(names)) - 1])
        line = ";".join(path)
        path = path[: choose.randrange(4, len(path))]
        if line not in seen:
            seen.add(line)
            yield f"{line} {1 + int(choose.paretovariate(0.9)) % 1000}\n"


def visible_frames(svg: str) -> int:
    """Rectangles that stand for frames: ours, and those of flamegraph.pl and its like."""
    ours = re.search(r'<g id="frames">(.*?)<g id="still-foot">', svg, re.DOTALL)
    if ours:
        return ours[1].count("<rect ")
    return len(re.findall(r"<title>[^<]* \([\d,]+ samples", svg)) or svg.count("<rect ")


def timed(run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def against_peers(lines: int, folder: Path, peers: list[tuple[str, list[str]]]) -> None:
    source = folder / "in.folded"
    source.write_text("".join(folded_lines(lines)))
    commands = [("pyattach report", [*PYATTACH, str(source), "-o", "-", "-f", "svg"]), *peers]
    times_s: dict[str, list[float]] = {name: [] for name, _ in commands}
    runs = 5 if lines <= 100_000 else 1
    for _ in range(runs):
        for name, command in commands:
            times_s[name].append(timed(functools.partial(written, command, source, folder / f"{name}.svg")))
    print(f"\n{lines:,} folded lines, {source.stat().st_size / 1e6:.1f} MB, median of {runs}")
    print(f"{'':24}{'time':>10}{'file':>12}{'frames':>9}{'bytes/frame':>13}")
    ours_s = statistics.median(times_s["pyattach report"])
    others_s = {name: statistics.median(times_s[name]) for name, _ in peers}
    compare(f"flame graph of {lines:,} stacks", "s", ours_s, others_s)
    for name, _ in commands:
        text = (folder / f"{name}.svg").read_text()
        size, frames, took_s = len(text.encode()), visible_frames(text), statistics.median(times_s[name])
        if name == "pyattach report":
            line(name, took_s, size, frames)
            stored = re.search(r'<metadata id="profile">(.*?)</metadata>', text)
            line("  without the profile", None, size - len(stored[1] if stored else ""), frames)
        else:
            line(name, took_s, size, frames, f"  {took_s / ours_s:.1f} times our time")


def written(command: list[str], source: Path, to: Path) -> None:
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    with open(source) as stdin, open(to, "w") as stdout:
        subprocess.run(command, stdin=stdin, stdout=stdout, stderr=subprocess.DEVNULL, check=True, env=env)


def line(name: str, took_s: float | None, size: int, frames: int, note: str = "") -> None:
    clock = "" if took_s is None else f"{took_s:.2f} s"
    print(f"{name:24}{clock:>10}{size:>12,}{frames:>9,}{size / max(1, frames):>13.0f}{note}", flush=True)


def many_frames(count: int) -> Profile:
    """A profile whose tree has ``count`` nodes or a few more."""
    choose, nodes = random.Random(2), 1
    functions = [Frame(f"ns::Component{n % 97}::function_{n}", "app", FrameKind.USER) for n in range(2000)]
    weights: dict[tuple[int, Stack], int] = {}
    prefixes: set[Stack] = set()
    while nodes < count:
        stack: Stack = ()
        for depth in range(4 + int(choose.expovariate(0.07))):
            stack = (*stack, functions[(depth * 37 + int(choose.expovariate(0.5))) % 2000])
            if stack not in prefixes:
                prefixes.add(stack)
                nodes += 1
        weights[1, stack] = weights.get((1, stack), 0) + 1 + choose.randrange(20)
    return Profile(Meta("app", 1, samples=sum(weights.values())), {1: Thread(1, "app")}, weights)


def in_chromium(count: int, folder: Path) -> None:
    path = folder / "many.svg"
    path.write_bytes(b"".join(renderer_for("svg").render(many_frames(count), RenderOptions())))
    drawn: list[float] = []
    painted: list[float | None] = []
    zoomed: list[float] = []
    reset: list[float | None] = []
    with chromium(folder / "chromium") as browser:
        for _ in range(5):
            browser.get("about:blank")
            browser.get(path.as_uri())
            browser.execute_async_script(
                """const done = arguments[0], look = () => document.documentElement.hasAttribute("data-ready")
                    ? requestAnimationFrame(() => setTimeout(done)) : setTimeout(look, 1); look()"""
            )
            drawn.append(
                browser.execute_script("return performance.getEntriesByName('pyattach-drawn')[0]?.startTime")
            )
            painted.append(browser.execute_script(FIRST_PAINT))
            for into, act in ((zoomed, "frame"), (reset, "reset")):
                into.append(
                    browser.execute_async_script(
                        """const [act, done] = arguments, started = performance.now();
                        const frame = () => [...document.querySelectorAll("g.frame")].filter(g =>
                            +g.querySelector("rect").getAttribute("width") < 900)[0];
                        (act === "reset" ? document.getElementById("reset") : frame()).dispatchEvent(
                            new MouseEvent("click", {bubbles: true}));
                        requestAnimationFrame(() => setTimeout(() => done(performance.now() - started)))""",
                        act,
                    )
                )
        frames = browser.execute_script("return document.querySelectorAll('g.frame').length")
    print(f"\nChromium, a tree of {count:,} frames ({frames:,} of them wide enough to be drawn), median of 5")
    for name, values in (
        ("first paint (static picture)", painted),
        ("drawn by the script", drawn),
        ("zoom, with paint", zoomed),
        ("reset, with paint", reset),
    ):
        known = [value for value in values if value is not None]
        print(f"  {name:30}{statistics.median(known):8.0f} ms" if known else f"  {name:30}    unknown")


def live_refresh(functions: int = 500) -> None:
    totals, choose = LiveTotals(), random.Random(3)
    frames = [Frame(f"ns::function_{n}", "app", FrameKind.USER) for n in range(functions)]
    stacks = [tuple(choose.choices(frames, k=25)) for _ in range(2000)]

    def add_all() -> None:
        for stack in stacks:
            totals.add(1, stack, 1)

    add_s = timed(add_all) / len(stacks)
    console = Console(file=io.StringIO(), force_terminal=True, width=120, height=40, _environ={})
    header = LiveHeader(1, "app", 99, 99, 1, 2000, 0, 0.001, 1, None)
    now = [0.0]
    with LiveView(console, clock=lambda: now[0]) as view:
        times_s = []
        for _ in range(50):
            now[0] += 10
            times_s.append(timed(lambda: view.update(header, totals)))
        pace_s = view.state.pace_s
    refresh_s = statistics.median(times_s)
    share = refresh_s / pace_s + add_s * 99
    print(
        f"\nlive view, {functions} functions, 120x40: {refresh_s * 1e3:.1f} ms a refresh, "
        f"{add_s * 1e6:.0f} µs a sample;"
    )
    print(f"  at its pace of {pace_s:g} s and 99 samples a second {share:.1%} of a core")


def installed(inferno: str) -> Iterator[tuple[str, list[str]]]:
    if Path(FLAMEGRAPH_PL).exists():
        yield "flamegraph.pl", ["perl", FLAMEGRAPH_PL]
    else:
        print("flamegraph.pl is missing: apt-get install libdevel-nytprof-perl")
    if not subprocess.run([inferno, "-c", "import pyinferno"], capture_output=True, check=False).returncode:
        yield "inferno (pyinferno)", [inferno, "-c", INFERNO]
    else:
        print("inferno is missing: pip install pyinferno, somewhere; then --inferno PYTHON, the one it is in")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--peer", action="append", default=[], metavar="COMMAND", help="one more, stdin to stdout"
    )
    parser.add_argument("--inferno", default=sys.executable, metavar="PYTHON", help="one that has pyinferno")
    parser.add_argument("--lines", type=int, nargs="+", default=[10_000, 1_000_000])
    parser.add_argument("--frames", type=int, default=100_000)
    arguments = parser.parse_args()
    peers = list(installed(arguments.inferno))
    for command in arguments.peer:
        words = shlex.split(command)
        peers.append((Path(words[-1]).name, words))
    with tempfile.TemporaryDirectory() as folder:
        for lines in arguments.lines:
            against_peers(lines, Path(folder), peers)
        if shutil.which("chromium"):
            in_chromium(arguments.frames, Path(folder))
    live_refresh()


if __name__ == "__main__":
    main()
