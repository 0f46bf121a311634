"""Files of every format in the programs that they are for, and read back: the same totals everywhere."""

from __future__ import annotations

import base64
import collections
import contextlib
import dataclasses
import gzip
import json
import math
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from graphs import chromium, frame, hostile_profile
from graphs import profile as small
from hypothesis import given
from hypothesis import strategies as st
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.support.wait import WebDriverWait
from support import BUILD, hostile, requires, skip_unless_ci

from pyattach.errors import MalformedInput, PyattachError
from pyattach.render import reading
from pyattach.render.combine import below, combined
from pyattach.render.formats import RENDERERS, RenderOptions, renderer_for, write_atomically
from pyattach.render.packing import packed
from pyattach.render.pprof import read_pprof
from pyattach.render.profile import Meta, Profile, Thread, Timeline, totals_of
from pyattach.render.reading import read_profile
from pyattach.render.renderer import Renderer
from pyattach.symbols.frame import TRUNCATED, FrameKind

SPEEDSCOPE = BUILD / "speedscope-1.25.0" / "package" / "dist" / "release"


def real_profile() -> Profile:
    """Of two threads, with recursion, templates, libraries, code without symbols."""
    main, work = frame("main", "server"), frame("ns::Pool<std::string>::work(int)", "server")
    malloc = frame("malloc", "libc.so.6", FrameKind.LIBRARY)
    bare = frame("server+0x1234", "server", FrameKind.UNKNOWN)
    weights = {
        (10, (main, work)): 700,
        (10, (main, work, work, malloc)): 200,
        (11, (main, bare)): 50,
        (11, (TRUNCATED, malloc)): 40,
        (11, (main, work)): 3,
        (11, ()): 7,
    }
    meta = Meta("/usr/bin/server -x", 10, "cpu", 99.0, 98.0, 1.7e9, 10.1, 10.0, 1000, version="0.1.0")
    return Profile(meta, {10: Thread(10, "server"), 11: Thread(11, "worker")}, weights)


def written(name: str, of: Profile, path: Path, **options: Any) -> Path:
    write_atomically(path, renderer_for(name).render(of, RenderOptions(**options)))
    return path


def self_and_total(of: Profile) -> dict[str, tuple[int, int]]:
    return {row.frame.name: (row.self_ticks, row.total_ticks) for row in totals_of(of).rows(10**6)}


# Back again.


@pytest.mark.parametrize(
    ("name", "threads"), [("svg", True), ("json", True), ("pprof", True), ("folded", False)]
)
@pytest.mark.parametrize(
    "of", [real_profile(), hostile_profile(), small({})], ids=["real", "hostile", "empty"]
)
def test_what_was_written_is_read_back(name: str, threads: bool, of: Profile, tmp_path: Path) -> None:
    back = read_profile(written(name, of, tmp_path / "x"))
    assert back.total == of.total
    again = [b"".join(renderer_for("folded").render(p, RenderOptions(threads=threads))) for p in (of, back)]
    assert again[0] == again[1]


def test_a_picture_and_json_keep_everything(tmp_path: Path) -> None:
    cpu, heap = (
        real_profile(),
        Meta("server", 10, "heap", unit="blocks", kind="live", rows=(("RSS", "1 MiB"),)),
    )
    for of in (cpu, dataclasses.replace(cpu, meta=heap)):
        for name in ("svg", "json"):
            assert read_profile(written(name, of, tmp_path / name)) == of


def test_pprof_keeps_mode_rate_times_and_kinds(tmp_path: Path) -> None:
    of = real_profile()
    back = read_profile(written("pprof", of, tmp_path / "x.pb.gz"))
    assert (back.meta.mode, back.meta.rate_asked_hz) == ("cpu", 99.0)
    assert (back.meta.started_at_unix_s, back.meta.duration_s) == (1.7e9, 10.1)
    assert dict(back.threads) == dict(of.threads)
    kinds = {f.name: f.kind for _, stack in back.weights for f in stack}
    assert kinds == {f.name: f.kind for _, stack in of.weights for f in stack}


def test_folded_stacks_of_others_are_read(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("# a comment\n\nmain;f g;h 12\nmain;f g;h 3\r\nmain 0\n[no stack] 2\n")
    back = read_profile(tmp_path / "x")
    assert {tuple(f.name for f in stack): n for stack, n in back.merged().items()} == {
        ("main", "f g", "h"): 15,
        (): 2,
    }


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"<svg>nothing</svg>", "no profile is stored in this picture"),
        (b'<svg><metadata id="profile">AAAA</metadata></svg>', "damaged"),
        (b'<svg><metadata id="profile">A</metadata></svg>', "damaged"),
        (b"{}", "no profile of pyattach"),
        (b"{", "damaged"),
        (b'{"format":"pyattach-profile","version":2}', "version is 2"),
        (b'{"format":"pyattach-profile","version":1}', "damaged"),
        (b"main;f " + b"9" * 5000, "line 1 is no folded stack"),
        (b"main;f twelve", "line 1 is no folded stack: 'main;f twelve'"),
        (b"\x1f\x8b\x08", "damaged"),
        (b"\x0a\x00\x01", "wire type 1|longer|no profile|without an end"),
        (gzip.compress(b"main 5", mtime=0)[:-4], "the end is missing"),
        (b"[" * 100_000, "no folded stack|damaged"),
    ],
)
def test_what_is_no_profile_is_refused_with_its_name(data: bytes, why: str, tmp_path: Path) -> None:
    (tmp_path / "it").write_bytes(data)
    with pytest.raises(MalformedInput, match=rf"it: .*({why})"):
        read_profile(tmp_path / "it")


HUGE = 10**400


@pytest.mark.parametrize(
    ("place", "value"),
    [("samples", {"thread": [0], "node": [1], "ticks": [number]}) for number in (math.inf, math.nan, HUGE)]
    + [("threads", [[number, "main"]]) for number in (math.inf, HUGE)]
    + [("rest", {"1": number}) for number in (math.inf, HUGE)],
)  # fmt: skip
def test_numbers_that_nobody_counted_are_refused(place: str, value: object) -> None:
    document = json.loads(b"".join(renderer_for("json").render(small({"a": 1}), RenderOptions())))
    document[place] = value
    if place == "rest":
        document["nodes"]["frame"][1] = -1
    with pytest.raises(MalformedInput, match="damaged"):
        reading.profile_of(document)


@pytest.mark.parametrize(
    "number", [math.inf, -math.inf, math.nan, HUGE, 1e-300], ids=["inf", "-inf", "nan", "huge", "tiny"]
)
def test_figures_that_nobody_measured_are_left_out(number: float) -> None:
    """JSON may hold them: no format fails for it."""
    document = json.loads(b"".join(renderer_for("json").render(real_profile(), RenderOptions())))
    numbers = {key for key, value in document["meta"].items() if not isinstance(value, (str, list))}
    assert len(numbers) > 15
    document["meta"].update(dict.fromkeys(numbers, number))
    document["meta"]["handler_percentiles_ns"] = [1, min(number, 1e300)]
    back = reading.profile_of(document)
    assert back.meta == Meta("/usr/bin/server -x", version="0.1.0")
    for renderer in RENDERERS:
        assert b"".join(renderer.render(back, RenderOptions()))


def test_comments_are_no_stacks(tmp_path: Path) -> None:
    """austin's end in numbers."""
    path = tmp_path / "a.folded"
    path.write_text("# interval: 100\nmain;f 3\n# duration: 383010\n#main 2\n")
    assert read_profile(path).total == 5


def test_bytes_are_bytes_everywhere(tmp_path: Path) -> None:
    of = small({"main f": 300}, mode="heap", unit="bytes", kind="temporary")
    path = written("pprof", of, tmp_path / "a.pb.gz")
    assert read_profile(path).meta.unit == "bytes" and read_profile(path).meta.mode == "heap"
    speedscope = json.loads(written("speedscope", of, tmp_path / "a.speedscope.json").read_text())
    assert speedscope["profiles"][0]["unit"] == "bytes"
    firefox = json.loads(written("firefox", of, tmp_path / "a.firefox.json").read_text())
    assert firefox["threads"][0]["samples"]["weightType"] == "bytes"


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(PyattachError, match=r"cannot read .*nothing: No such file"):
        read_profile(tmp_path / "nothing")


def test_a_bomb_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(reading, "MOST_BYTES", 1000)
    (tmp_path / "it").write_bytes(gzip.compress(b"a" * 100_000))
    with pytest.raises(MalformedInput, match="too large"):
        read_profile(tmp_path / "it")


@hostile(300)
@given(st.binary(max_size=300))
def test_any_bytes_are_a_profile_or_refused(data: bytes) -> None:
    for read in (reading.profile_from, read_pprof):
        with contextlib.suppress(MalformedInput):
            assert read(data).total >= 0


@hostile()
@given(st.data())
def test_a_damaged_file_is_a_profile_or_refused(data: st.DataObject) -> None:
    whole = bytearray(
        gzip.decompress(b"".join(renderer_for("pprof").render(real_profile(), RenderOptions())))
    )
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(MalformedInput):
        read_pprof(bytes(whole))
    document = json.loads(b"".join(renderer_for("json").render(real_profile(), RenderOptions())))
    if data.draw(st.booleans()):
        document = packed(document)
        document["nodes"][data.draw(st.sampled_from(["order", "frame", "up"]))] = data.draw(st.text())
    for _ in range(data.draw(st.integers(0, 3))):
        place = data.draw(
            st.sampled_from(["threads", "modules", "frames", "nodes", "samples", "rest", "meta"])
        )
        document[place] = data.draw(
            st.none() | st.integers() | st.lists(st.integers(-3, 9)) | st.dictionaries(st.text(), st.none())
        )
    with contextlib.suppress(MalformedInput):
        reading.profile_of(document)


# In the programs that they are for.


@pytest.mark.parametrize("of", [real_profile(), hostile_profile()], ids=["real", "hostile"])
def test_go_tool_pprof_counts_the_same(of: Profile, tmp_path: Path) -> None:
    go = requires("go")
    path = written("pprof", of, tmp_path / "x.pb.gz")
    done = subprocess.run(
        [go, "tool", "pprof", "-top", "-nodecount=1000", "-nodefraction=0", "-symbolize=none", str(path)],
        capture_output=True, text=True, check=True, env={"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"},
    )  # fmt: skip
    assert f"of {of.total} total" in done.stdout
    theirs: collections.Counter[str] = collections.Counter()
    for line in done.stdout.splitlines():
        if found := re.match(r"\s*(\d+)\s+[\d.]+%\s+[\d.]+%\s+(\d+)\s+[\d.]+%\s+(.*)", line):
            theirs[found[3]] += int(found[1])
    assert sum(theirs.values()) == of.total
    if of.meta.pid:
        ours = self_and_total(of) | {"[no stack]": (7, 7)}
        assert theirs == {
            name.replace("<std::string>", "<...>") if False else name: n for name, (n, _) in ours.items()
        }


def test_go_tool_pprof_knows_times_and_threads(tmp_path: Path) -> None:
    go = requires("go")
    path = written("pprof", real_profile(), tmp_path / "x.pb.gz")
    run = [go, "tool", "pprof", "-symbolize=none"]
    env = {"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}
    done = subprocess.run([*run, "-raw", str(path)], capture_output=True, text=True, check=True, env=env)
    assert "PeriodType: cpu nanoseconds" in done.stdout and "Period: 10101010" in done.stdout
    assert "Duration: 10.1" in done.stdout and "thread:[worker]" in done.stdout
    done = subprocess.run(
        [*run, "-top", "-sample_index=cpu", str(path)], capture_output=True, text=True, check=True, env=env
    )
    assert "10.10s" in done.stdout


def test_speedscope_itself_counts_the_same(tmp_path: Path) -> None:
    if not (SPEEDSCOPE / "index.html").exists():
        skip_unless_ci("needs speedscope (tests/install-programs test)")
    of = real_profile()
    page = tmp_path / "speedscope"
    shutil.copytree(SPEEDSCOPE, page)
    # As speedscope's own command hands over a file: in a script beside the page.
    data = base64.b64encode(b"".join(renderer_for("speedscope").render(of, RenderOptions()))).decode()
    (page / "profile.js").write_text(f'speedscope.loadFileFromBase64("x.speedscope.json", "{data}")')
    with chromium(tmp_path / "chromium") as browser:
        browser.get(f"{(page / 'index.html').as_uri()}#localProfilePath={page / 'profile.js'}")
        WebDriverWait(browser, 30).until(lambda b: b.title == "server - speedscope", "it has loaded it")
        ActionChains(browser).send_keys("3").perform()  # its table of functions
        text = "return document.body.innerText"
        WebDriverWait(browser, 30).until(lambda b: "Symbol Name" in b.execute_script(text), "its table")
        table = browser.execute_script(text).partition("Symbol Name")[2]
        assert not [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
    rows = re.findall(r"^([\d,]+) \(.*\)\s+([\d,]+) \(.*\)\s+(.*)$", table, re.MULTILINE)
    theirs = {name: (int(own.replace(",", "")), int(total.replace(",", ""))) for total, own, name in rows}
    assert theirs == self_and_total(of) | {"[no stack]": (7, 7)}


def test_speedscope_totals(tmp_path: Path) -> None:
    of = real_profile()
    for threads in (False, True):
        document = json.loads(written("speedscope", of, tmp_path / "x", threads=threads).read_text())
        assert sum(sum(part["weights"]) for part in document["profiles"]) == of.total
        frames = [f["name"] for f in document["shared"]["frames"]]
        own: collections.Counter[str] = collections.Counter()
        for part in document["profiles"]:
            assert part["endValue"] == sum(part["weights"]) and len(part["samples"]) == len(part["weights"])
            for stack, ticks in zip(part["samples"], part["weights"], strict=True):
                own[frames[stack[-1]]] += ticks
        assert own == {name: n for name, (n, _) in self_and_total(of).items() if n} | {"[no stack]": 7}


# The columns of version 48 of the format.
FIREFOX_TABLES = {
    "stackTable": "frame:frameTable prefix:stackTable category subcategory",
    "frameTable": "address inlineDepth category subcategory func:funcTable nativeSymbol:nativeSymbols "
    "innerWindowID implementation:stringArray line column",
    "funcTable": "name:stringArray isJS relevantForJS resource:resourceTable fileName:stringArray lineNumber "
    "columnNumber",
    "resourceTable": "lib name:stringArray host:stringArray type",
    "nativeSymbols": "libIndex address name:stringArray functionSize",
    "samples": "stack:stackTable time weight",
    "markers": "data name:stringArray startTime endTime phase category",
}
"""What a table holds, and which table a column of indices leads into."""


def check_firefox(document: dict[str, Any]) -> collections.Counter[str]:
    """Every table has its columns, every index leads somewhere; samples by the name of their leaf."""
    own: collections.Counter[str] = collections.Counter()
    assert document["meta"]["preprocessedProfileVersion"] == 48
    categories = len(document["meta"]["categories"])
    for thread in document["threads"]:
        for name, described in FIREFOX_TABLES.items():
            table = thread[name]
            columns = {
                column: into for column, _, into in (word.partition(":") for word in described.split())
            }
            assert set(table) - {"length", "weightType"} == set(columns)
            for column, into in columns.items():
                assert len(table[column]) == table["length"], (name, column)
                if into:
                    target = thread[into]
                    size = len(target) if isinstance(target, list) else target["length"]
                    assert all(index is None or -1 <= index < size for index in table[column])
        assert all(0 <= category < categories for category in thread["frameTable"]["category"])
        prefixes = thread["stackTable"]["prefix"]
        assert all(prefix is None or prefix < index for index, prefix in enumerate(prefixes))
        samples = thread["samples"]
        assert samples["weightType"] == "samples" and samples["time"] == sorted(samples["time"])
        assert isinstance(thread["pid"], str)
        for stack, ticks in zip(samples["stack"], samples["weight"], strict=True):
            func = thread["frameTable"]["func"][thread["stackTable"]["frame"][stack]]
            own[thread["stringArray"][thread["funcTable"]["name"][func]]] += ticks
    return own


def test_firefox_tables_are_whole_and_count_the_same(tmp_path: Path) -> None:
    of = real_profile()
    document = json.loads(written("firefox", of, tmp_path / "x").read_text())
    assert check_firefox(document) == {n: s for n, (s, _) in self_and_total(of).items() if s} | {
        "[no stack]": 7
    }
    assert {thread["name"] for thread in document["threads"]} == {"server", "worker"}
    check_firefox(json.loads(written("firefox", hostile_profile(), tmp_path / "y").read_text()))


def test_firefox_samples_have_their_times(tmp_path: Path) -> None:
    main, other = (frame("main"),), (frame("main"), frame("other"))
    timeline = Timeline([0.5, 0.25, 1.0], [1, 1, 2], [0, 1, 1], [1, 2, 3], [main, other])
    of = Profile(
        Meta(pid=1, started_at_unix_s=100.0), {}, {(1, main): 1, (1, other): 2, (2, other): 3}, timeline
    )
    first, second = json.loads(written("firefox", of, tmp_path / "x").read_text())["threads"]
    assert (first["samples"]["time"], first["samples"]["weight"]) == ([250.0, 500.0], [2, 1])
    assert (first["isMainThread"], second["isMainThread"]) == (True, False)
    late = Profile(Meta(pid=1, started_at_unix_s=110.0), {}, of.weights, timeline)
    both = combined([of, below(late, frame("late"))]).timeline
    assert both is not None
    assert [(time_s, len(stack)) for time_s, _, stack, _ in both.samples()] == [
        (0.5, 1), (0.25, 2), (1.0, 2), (10.5, 2), (10.25, 3), (11.0, 3),
    ]  # fmt: skip
    assert combined([of, small({"a": 1})]).timeline is None


@pytest.mark.parametrize("renderer", RENDERERS, ids=lambda renderer: renderer.name)
def test_a_format_goes_by_its_suffixes(renderer: Renderer) -> None:
    assert [renderer_for("a.b" + suffix) for suffix in renderer.suffixes] == [renderer] * len(
        renderer.suffixes
    )
