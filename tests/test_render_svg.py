"""The flame graph as a file: read as XML, as a viewer without scripts shows it."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET

import pytest
from graphs import HOSTILE, SVG, frame, hostile_profile, packed, profile, svg
from hypothesis import given, settings
from hypothesis import strategies as st
from support import hostile

from pyattach.render.document import profile_of
from pyattach.render.large_tree import build_bounded
from pyattach.render.packing import json_bytes, unpacked
from pyattach.render.packing import packed as packed_columns
from pyattach.render.profile import Meta, Profile, Thread
from pyattach.render.tree import REST, build, least_ticks, pruned


def drawn(text: str) -> list[tuple[str, float, float]]:
    """Colour class, x and width of each rectangle of the static picture, px."""
    rects = ET.fromstring(text.encode()).findall(f".//{SVG}g[@id='frames']//{SVG}rect")
    return [(r.get("class", ""), float(r.get("x", "")), float(r.get("width", ""))) for r in rects]


def texts(text: str) -> list[str]:
    return [element.text or "" for element in ET.fromstring(text.encode()).iter(f"{SVG}text")]


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
    assert re.fullmatch("[A-Za-z0-9+/=]+", root.find(f"{SVG}metadata").text or "")  # type: ignore[union-attr]


@hostile(40)
@given(st.lists(st.text(st.characters(codec=None)), min_size=1, max_size=6).map(tuple))
def test_any_names_make_a_file_that_can_be_read(names: tuple[str, ...]) -> None:
    text = svg(hostile_profile(names), threads=True)
    ET.fromstring(text.encode())
    assert sum(packed(text)["profile"]["samples"]["ticks"]) == 10 * len(names)


def test_bytes_for_each_frame() -> None:
    stacks = {f"main loop_{a} function_{a}_{b} leaf_{b}": 10 for a in range(20) for b in range(20)}
    empty, full = svg(profile({})), svg(profile(stacks))
    assert (len(full.encode()) - len(empty.encode())) / len(drawn(full)) < 177


def test_what_every_file_has_is_small() -> None:
    assert len(svg(profile({"main": 1})).encode()) < 25_000


@settings(max_examples=200)
@given(
    st.lists(st.integers(-1, 10), min_size=1),
    st.lists(st.integers(-1, 2**70) | st.sampled_from([0xD7DB, 0xD7DC, 0xDFDC, 0x10F7DB, 0x10F7DC])),
    st.text(st.characters(codec=None)),
)
def test_a_packed_document_is_the_same_unpacked(frames: list[int], ticks: list[int], name: str) -> None:
    document = {
        "frames": [[name, 0, "user"]],
        "nodes": {"frame": frames, "up": [1] * len(frames)},
        "samples": {"thread": [-1] * len(ticks), "node": [0] * len(ticks), "ticks": ticks},
        "rest": {str(node): 1000 + node for node, index in enumerate(frames) if index == REST},
    }
    stored = json.loads(json_bytes(packed_columns(document)))
    assert unpacked(stored) == document
    assert unpacked(document) == document


def test_many_stacks_stay_a_small_file() -> None:
    frames = [frame(f"function_{n}") for n in range(1000)]
    weights = {
        (1, (frames[0], *(frames[(n * k) % 1000] for k in (1, 7, 31, 101, 211)), frames[n % 997])): 1
        for n in range(100_000)
    }
    text = svg(Profile(Meta(), {}, weights))
    assert len(text) < 3_000_000


def test_what_is_stored_is_the_whole_profile() -> None:
    both = Profile(
        Meta("app <x>", 7, "wall", 99.0, None, None, 3.5, None, 12, truncated_by=(("why", 3),), notes=("n",)),
        {1: Thread(1, "io"), 2: Thread(2, "")},
        {(1, (frame("a"), frame("b", "lib"))): 3, (2, (frame("a"),)): 4, (2, ()): 5},
    )
    assert profile_of(packed(svg(both, threads=True))["profile"]) == both


def test_the_most_frames_of_a_file_are_bounded_and_the_sums_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyattach.render.svg._KEPT_NODES", 50)
    of = profile({f"main f{n} g{n}": 1 + n for n in range(100)})
    text = svg(of)
    kept = profile_of(packed(text)["profile"])
    assert kept.total == of.total
    assert len(packed(text)["profile"]["nodes"]["frame"]) <= 51
    assert any("smaller)" in stack[-1].name for stack in kept.merged())
    assert "heaviest frames are in this file" in "".join(texts(text))


def test_deep_stacks_are_folded_with_a_mark() -> None:
    text = svg(profile({" ".join(f"f{n}" for n in range(300)): 10}))
    assert len(drawn(text)) == 82
    assert "⋯ deeper" in texts(text)


def test_flames_stand_on_their_root_and_an_icicle_hangs_from_it() -> None:
    def tops(text: str) -> list[float]:
        rows = ET.fromstring(text.encode()).findall(f".//{SVG}g[@id='frames']/{SVG}g")
        return [float(re.findall(r"[\d.]+", row.get("transform", ""))[1]) for row in rows]

    flames, icicle = (tops(svg(profile({"a b c": 1}), inverted=inverted)) for inverted in (False, True))
    assert flames == sorted(flames, reverse=True) and icicle == sorted(icicle) and len(icicle) == 4


def test_leaf_first_merges_from_the_leaves() -> None:
    names = texts(svg(profile({"main a malloc": 1, "main b malloc": 1}), reverse=True))
    assert names.count("malloc") == 1 and names.count("main") == 2


def test_every_rectangle_has_its_figures_as_a_tooltip() -> None:
    root = ET.fromstring(svg(profile({"main a": 3, "main b": 1})).encode())
    titles = [t.text for t in root.findall(f".//{SVG}rect/{SVG}title")]
    assert titles == [
        "4 (100.00%)",
        "4 (100.00%)",
        "3 (75.00%)",
        "1 (25.00%)",
    ]  # the names are written on them
    narrow = svg(profile({"main a": 990, "main with_a_long_name": 10}))
    assert "<title>with_a_long_name, 10 (1.00%)</title>" in narrow


def test_a_diff_has_the_later_shape_and_says_what_grew() -> None:
    before, after = (
        profile({"main a": 500, "main b": 500, "gone": 300}),
        profile({"main a": 800, "main b": 200, "main c": 9}),
    )
    text = svg(after, before)
    # all; main, 77% before and all of it now; a, b, c.  What is gone is not there.
    assert [kind for kind, _, _ in drawn(text)] == ["b", "more1", "more2", "less2", "new"]
    assert profile_of(packed(text)["profile"]) == after


def test_a_diff_takes_no_noise_for_a_change() -> None:
    text = svg(profile({"main a": 52, "main b": 48, "c": 1}), profile({"main a": 48, "main b": 52}))
    assert {kind for kind, _, _ in drawn(text)} == {"b", "same"}


def test_chance_goes_by_ticks_not_by_what_they_stand_for() -> None:
    """Timers' at 1000 Hz are four periods each."""
    now, before = {"main a": 600, "main b": 400}, {"main a": 540, "main b": 460}
    kinds = [
        {kind for kind, _, _ in drawn(svg(profile(now, ticks=ticks), profile(before, ticks=ticks)))}
        for ticks in (1000, 250)
    ]
    assert kinds == [{"b", "same", "more0", "less1"}, {"b", "same"}]


@settings(max_examples=200)
@given(
    st.dictionaries(
        st.tuples(st.integers(1, 2), st.lists(st.sampled_from("abcd"), max_size=5).map(tuple)),
        st.integers(1, 9),
        max_size=30,
    ),
    st.integers(1, 40),
)
def test_a_bounded_tree_is_the_pruned_tree(
    stacks: dict[tuple[int, tuple[str, ...]], int], most_nodes: int
) -> None:
    weights = {(tid, tuple(frame(name) for name in stack)): ticks for (tid, stack), ticks in stacks.items()}
    of = Profile(Meta(), {}, weights)
    whole = build(of)
    bounded = build_bounded(of, most_nodes=most_nodes)
    if len(whole) <= most_nodes:
        assert bounded == whole
    else:
        assert bounded == pruned(whole, least_ticks(whole, share=0, most_nodes=most_nodes))
        assert sum(index != REST for index in bounded.frame) <= max(1, most_nodes)
