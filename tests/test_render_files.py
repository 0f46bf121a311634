"""Folded stacks, the text summary, choosing a format and writing its file."""

from __future__ import annotations

import collections
import dataclasses
import gzip
import html
import os
import re
import shutil
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyattach.errors import PyattachError, UsageError
from pyattach.render.facts import facts
from pyattach.render.formats import RENDERERS, RenderOptions, renderer_for, write_atomically
from pyattach.render.names import cells, crop, printable
from pyattach.render.pprof import read_pprof
from pyattach.render.profile import Meta, Profile, Thread
from pyattach.render.renderer import encoded
from pyattach.render.text import summary_lines
from pyattach.symbols.frame import TRUNCATED, Frame, FrameKind
from pyattach.symbols.syscalls import waiting_address, waiting_frame

MAIN = Frame("main", "app", FrameKind.USER)
WORK = Frame("work(int)", "app", FrameKind.USER)
MALLOC = Frame("malloc", "libc.so.6", FrameKind.LIBRARY)
HOSTILE = (
    "<script>alert(1)</script>",
    "]]>",
    '"quo\'tes"',
    "a;b",
    "line\nbreak",
    "nul\0",
    "\x1b[31mred\x1b]0;title\x07",
    "\u202egnp.exe",
    "x" * 10_000,
    "worker 12",
    "12",
    " 12.5 ",
    "",
    "\ud800",
    "名前",
)


def profile(weights: dict[tuple[int, tuple[Frame, ...]], int], **meta: object) -> Profile:
    threads = {1: Thread(1, "app"), 2: Thread(2, "io;1")}
    return Profile(Meta(samples=sum(weights.values()), **meta), threads, weights)  # type: ignore[arg-type]


SMALL = profile(
    {(1, (MAIN, WORK)): 70, (1, (MAIN, WORK, MALLOC)): 20, (2, (MAIN, WORK)): 7, (2, (TRUNCATED, MALLOC)): 3},
    command="/usr/bin/app --fast",
    pid=4711,
    rate_asked_hz=99.0,
    rate_reached_hz=98.25,
    duration_s=65.2,
    truncated=3,
    handler_share=0.00004,
    version="0.1.0",
)


def rendered(name: str, of: Profile, **options: object) -> str:
    data = b"".join(renderer_for(name).render(of, RenderOptions(**options)))  # type: ignore[arg-type]
    return gzip.decompress(data).decode("latin1") if name == "pprof" else data.decode()


def test_folded_merges_threads_and_sorts() -> None:
    assert rendered("folded", SMALL) == "[truncated];malloc 3\nmain;work(int) 77\nmain;work(int);malloc 20\n"


def test_folded_keeps_threads_apart() -> None:
    assert rendered("folded", SMALL, threads=True) == (
        "app-1;main;work(int) 70\n"
        "app-1;main;work(int);malloc 20\n"
        "io:1-2;[truncated];malloc 3\n"
        "io:1-2;main;work(int) 7\n"
    )


def test_folded_number_at_the_end_of_a_name_is_no_count() -> None:
    leaf = Frame("worker 12", "", FrameKind.USER)
    assert (
        rendered("folded", profile({(1, (MAIN, leaf)): 5, (1, ()): 1})) == "[no stack] 1\nmain;worker_12 5\n"
    )


@given(st.lists(st.lists(st.text(), max_size=4), max_size=5))
def test_folded_is_one_line_for_each_stack(stacks: list[list[str]]) -> None:
    weights = {
        (1, tuple(Frame(name, "", FrameKind.USER) for name in stack)): n + 1 for n, stack in enumerate(stacks)
    }
    lines = rendered("folded", profile(weights)).split("\n")
    assert lines.pop() == ""
    parsed = [re.fullmatch(r"([^;\x00-\x1f]+(?:;[^;\x00-\x1f]+)*) (\d+)", line) for line in lines]
    assert sum(int(match[2]) for match in parsed if match) == sum(weights.values())
    assert len(lines) <= len(weights)
    for match in parsed:
        assert match
        assert not re.search(r"\s\d+(\.\d*)?$", match[1])  # flamegraph.pl would take it for a second count


def flamegraph_pl() -> str | None:
    found = shutil.which("flamegraph.pl") or shutil.which("flamegraph")
    known = [Path("/usr/bin/flamegraph.pl"), Path("/usr/share/perl5/Devel/NYTProf/flamegraph.pl")]
    return found or next((str(path) for path in known if path.exists()), None)


def test_flamegraph_pl_counts_the_same(tmp_path: Path) -> None:
    script = flamegraph_pl()
    if script is None and not os.environ.get("CI"):
        pytest.skip("flamegraph.pl is not installed (Debian: libdevel-nytprof-perl)")
    assert script
    names = [name for name in HOSTILE if len(name) < 100] + ["f", "g", "operator<"]
    weights = {
        (1, (MAIN, Frame(a, "", FrameKind.USER), Frame(b, "", FrameKind.USER))): 1 + i + 7 * k
        for i, a in enumerate(names)
        for k, b in enumerate(names)
    }
    folded = tmp_path / "out.folded"
    write_atomically(folded, renderer_for(folded).render(profile(weights), RenderOptions()))
    run = subprocess.run(
        ["perl", script, "--minwidth", "0", str(folded)], capture_output=True, check=True, encoding="utf-8"
    )
    assert "Ignored" not in run.stderr
    theirs: collections.Counter[str] = collections.Counter()
    for name, ticks in re.findall(r"<title>(.*) \(([\d,]+) samples, [\d.]+%\)</title>", run.stdout):
        theirs[html.unescape(name)] += int(ticks.replace(",", ""))
    ours: collections.Counter[str] = collections.Counter()
    for path, ticks in totals_by_path(folded.read_text(encoding="utf-8")).items():
        ours[path[-1].replace("<", "(").replace(">", ")")] += ticks
    assert theirs.pop("all") == sum(weights.values())
    assert theirs == ours


def totals_by_path(folded: str) -> collections.Counter[tuple[str, ...]]:
    totals: collections.Counter[tuple[str, ...]] = collections.Counter()
    for line in folded.splitlines():
        stack, _, ticks = line.rpartition(" ")
        path = tuple(stack.split(";"))
        for depth in range(len(path)):
            totals[path[: depth + 1]] += int(ticks)
    return totals


def test_text_shows_what_was_measured_and_nothing_else() -> None:
    assert rendered("text", SMALL, top=2) == (
        "command            /usr/bin/app --fast\n"
        "pid                4711\n"
        "mode               cpu\n"
        "rate               99 Hz asked, 98.2 Hz of CPU time reached\n"
        "duration           1 min 05 s\n"
        "samples            100\n"
        "dropped            0\n"
        "truncated stacks   3 (3.00%)\n"
        "unresolved leaves  0\n"
        "overhead           under 0.01% of CPU time in the signal handler; "
        "what the kernel's delivery of ticks costs could not be measured\n"
        "pyattach           0.1.0\n"
        "\n"
        "by self: samples whose innermost frame it was\n"
        "    self    total    samples  function\n"
        "  77.00%   97.00%         77  work(int)  [app]\n"
        "  23.00%   23.00%         23  malloc  [libc.so.6]\n"
        "\n"
        "by total: samples with it anywhere on the stack\n"
        "    self    total    samples  function\n"
        "  77.00%   97.00%         97  work(int)  [app]\n"
        "   0.00%   97.00%         97  main  [app]\n"
    )


COSTS = profile(
    {(1, (MAIN,)): 100},
    duration_s=10.0,
    handler_share=0.0012,
    delivery_share=0.002,
    delivery_ns_per_tick=20_040.0,
    overhead_of_wall=0.0064,
    handler_percentiles_ns=(4200.4, 12_345.6),
    handler_ns_per_sample=5100.0,
    own_startup_cpu_s=0.351,
    own_sampling_cpu_s=0.1,
)


@pytest.mark.parametrize("name", ["text", "svg"])
def test_what_sampling_costs_is_said_in_full(name: str) -> None:
    shown = html.unescape(" ".join(re.sub(r"<[^>]*>|\n", " ", rendered(name, COSTS)).split()))
    for fact in (
        "0.32% of CPU time: 0.12% in the signal handler, 0.20% in the kernel's delivery (calibrated, "
        "20.0 µs a tick); 0.64% of the time passed",
        "p50 4,200 ns, p99 12,346 ns in the handler, mean 5,100 ns",
        "0.35 s to start, 0.10 s to sample (1.00% of a processor)",
    ):
        assert fact in shown


def test_text_by_thread_has_a_section_for_each() -> None:
    text = rendered("text", SMALL, threads=True)
    assert "thread app-1: 90 samples, 90.00%\n" in text
    assert "thread io;1-2: 10 samples, 10.00%\n" in text


def test_summary_is_short() -> None:
    lines = list(summary_lines(SMALL, top=1))
    assert lines[0] == "rate              99 Hz asked, 98.2 Hz of CPU time reached"
    assert lines[-1] == "  77.00%   97.00%         97  work(int)  [app]"
    assert "  77.00%   97.00%         77  work(int)  [app]" in lines


@pytest.mark.parametrize("name", [renderer.name for renderer in RENDERERS])
def test_an_empty_profile_says_why(name: str) -> None:
    text = rendered(name, profile({}, duration_s=10.0, cpu_time_s=0.0, ended_by="duration reached"))
    if name in ("svg", "text"):
        assert "No samples in 10.0 s." in text
        assert "Ended by: duration reached." in text


@pytest.mark.parametrize("name", [renderer.name for renderer in RENDERERS])
@pytest.mark.parametrize("threads", [False, True])
def test_hostile_names_leave_no_control_character(name: str, threads: bool) -> None:
    weights = {(1, (MAIN, Frame(bad, bad, FrameKind.USER))): 5 for bad in HOSTILE}
    hostile = Profile(Meta(command=HOSTILE[6], notes=HOSTILE), {1: Thread(1, HOSTILE[6])}, weights)
    text = rendered(name, hostile, threads=threads)
    if name == "pprof":
        text = "".join(
            frame.name for _, stack in read_pprof(text.encode("latin1")).weights for frame in stack
        )
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]", text)


def test_a_format_is_known_by_name_and_by_suffix() -> None:
    assert (
        renderer_for("svg").name == renderer_for("a/B.SVG").name == renderer_for(Path("x.svg")).name == "svg"
    )
    assert renderer_for("out.collapsed").name == "folded"
    assert renderer_for("out.txt").name == renderer_for("text").name == "text"
    with pytest.raises(
        UsageError, match=r"'out\.pdf'\n.*svg \(\.svg\), folded \(\.folded \.collapsed\), text"
    ):
        renderer_for("out.pdf")


def test_a_file_is_whole_and_readable_as_the_umask_says(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_atomically(tmp_path / "a.txt", encoded(["ü", "\ud800", "\n"]))
    finally:
        os.umask(before)
    assert (tmp_path / "a.txt").read_bytes() == "ü?\n".encode()
    assert stat.S_IMODE((tmp_path / "a.txt").stat().st_mode) == 0o640
    assert os.listdir(tmp_path) == ["a.txt"]


def test_a_failure_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    def broken() -> Iterator[bytes]:
        yield b"half"
        raise KeyboardInterrupt

    (tmp_path / "a.txt").write_text("before")
    with pytest.raises(KeyboardInterrupt):
        write_atomically(tmp_path / "a.txt", broken())
    assert (tmp_path / "a.txt").read_text() == "before"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_what_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(PyattachError, match=r"gone/a\.svg: No such file or directory\n  create its folder"):
        write_atomically(tmp_path / "gone" / "a.svg", [b"x"])
    with pytest.raises(PyattachError, match="a directory\n  name a file, not a folder"):
        write_atomically(tmp_path, [b"x"])


def test_a_link_is_followed_and_a_device_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "file")
    write_atomically(tmp_path / "link", [b"x"])
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "file").read_text() == "x"
    os.mkfifo(tmp_path / "fifo")
    reader = os.open(tmp_path / "fifo", os.O_RDONLY | os.O_NONBLOCK)
    write_atomically(tmp_path / "fifo", [b"through"])
    assert os.read(reader, 100) == b"through"
    os.close(reader)
    assert (tmp_path / "fifo").is_fifo()


@pytest.mark.parametrize(
    ("name", "width", "cropped"),
    [
        ("main", 4, "main"),
        ("work(int, char const*)", 10, "work"),
        ("ns::Pool<std::string>::query(int) const", 15, "ns::Pool::query"),
        ("ns::Pool<std::string>::query(int) const", 12, "…Pool::query"),
        ("ns::Pool::query", 7, "…query"),
        ("ns::Pool::query", 4, "que…"),
        ("process_request", 8, "process…"),
        ("名前名前", 5, "名前…"),
        ("main", 0, ""),
    ],
)
def test_the_telling_part_of_a_name_is_kept(name: str, width: int, cropped: str) -> None:
    assert crop(name, width) == cropped


@given(st.text(), st.integers(0, 40))
def test_a_cropped_name_always_fits(name: str, width: int) -> None:
    assert cells(crop(name, width)) <= width
    assert printable(printable(name)) == printable(name)


@pytest.mark.parametrize(
    ("samples", "said"),
    [(50, "2.0 s, 1.5 s of it (74.75%) in no sample"), (189, "2.0 s"), (250, "2.0 s")],
)
def test_cpu_time_that_no_sample_stands_for_is_spoken_of(samples: int, said: str) -> None:
    measured = profile({(1, (MAIN, WORK)): samples}, rate_asked_hz=99.0, cpu_time_s=2.0, duration_s=2.0)
    assert dict(facts(measured.meta))["CPU time"] == said
    dropped = dataclasses.replace(measured.meta, dropped=max(0, 198 - samples))
    assert dict(facts(dropped))["CPU time"] == "2.0 s"  # those are told of by themselves


def wall_profile() -> Profile:
    waiting = waiting_frame(waiting_address(202))
    return profile(
        {(1, (MAIN, WORK)): 25, (1, (MAIN, waiting)): 75},
        mode="wall", rate_asked_hz=99.0, rate_reached_hz=98.0, duration_s=1.0, waiting=75,
    )  # fmt: skip


@pytest.mark.parametrize("name", ["text", "svg"])
def test_a_wall_profile_says_that_it_is_one(name: str) -> None:
    text = rendered(name, wall_profile())
    for fact in (
        "wall: share of the time of all threads, running and waiting",
        "99 Hz asked, 98 Hz reached",
        "100, 75 (75.00%) waiting",
        "[waiting: futex]",
    ):
        assert fact in text.replace("\n", " ")
    assert "CPU time" not in text


def test_the_summary_of_a_wall_profile_says_so_too() -> None:
    assert any("running and waiting" in line for line in summary_lines(wall_profile()))
