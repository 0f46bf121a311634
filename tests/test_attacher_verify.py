"""What counts as left behind: each kind of residue by itself, and what the target does by itself is none."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from pyattach.attacher import verify
from pyattach.attacher.verify import Snapshot, Verification, remains
from pyattach.inject.layout import TICK_TAG

OURS = "/memfd:pyattach-0123456789abcdef (deleted)"
SIGPROF = int(signal.SIGPROF)
BIT = 1 << (SIGPROF - 1)

BEFORE = Snapshot(
    mappings={
        0x1000: (0x2000, "r--p", "/bin/target"),
        0x2000: (0x3000, "r-xp", "/bin/target"),
        0x9000: (0xA000, "rw-p", ""),
        0xB000: (0xC000, "rw-p", "[heap]"),
    },
    fds={0: "/dev/null", 3: "socket:[17]"},
    caught=0x2,
    ignored=0x1000,
    timers=0,
    tracer=0,
    stopped_threads=(),
)


def after(**changes: object) -> list[str]:
    return remains(BEFORE, BEFORE._replace(**changes), [SIGPROF])  # type: ignore[arg-type]


def with_mapping(start: int, end: int, permissions: str, path: str) -> dict[int, tuple[int, str, str]]:
    return {**BEFORE.mappings, start: (end, permissions, path)}


def test_nothing_remains() -> None:
    assert after() == []


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        pytest.param(
            {"mappings": with_mapping(0x7000, 0x8000, "rw-s", OURS)},
            f"mapping 7000-8000 rw-s of {OURS}",
            id="mapping",
        ),
        pytest.param({"fds": {**BEFORE.fds, 7: OURS}}, f"open file 7: {OURS}", id="open file"),
        pytest.param(
            {"mappings": with_mapping(0x2000, 0x3000, "rwxp", "/bin/target")},
            "protection of /bin/target at 2000: rwxp, was r-xp",
            id="protection",
        ),
        pytest.param({"caught": 0x2 | BIT}, f"signal {SIGPROF} is not handled as before", id="signal caught"),
        pytest.param(
            {"ignored": 0x1000 | BIT}, f"signal {SIGPROF} is not handled as before", id="signal ignored"
        ),
        pytest.param({"timers": 2}, "2 timers", id="timers"),
        pytest.param({"tracer": 4711}, "a tracer: pid 4711", id="tracer"),
        pytest.param(
            {"stopped_threads": (12, 13)}, "thread 12 is stopped|thread 13 is stopped", id="stopped"
        ),
    ],
)
def test_each_residue_is_said(changes: dict[str, object], line: str) -> None:
    assert after(**changes) == line.split("|")


def test_all_at_once_are_said_each_on_a_line_of_its_own() -> None:
    lines = after(
        mappings=with_mapping(0x7000, 0x8000, "r-xp", OURS), fds={9: OURS}, caught=BIT, ignored=0, timers=1,
        tracer=1, stopped_threads=(5,),
    )  # fmt: skip
    assert len(lines) == 6
    assert not [line for line in lines if "\n" in line]


def test_a_signal_that_was_caught_and_is_no_more() -> None:
    before = BEFORE._replace(caught=BIT)
    assert len(remains(before, BEFORE._replace(caught=0), [SIGPROF])) == 1
    assert remains(before, BEFORE._replace(caught=BIT | 1), [SIGPROF]) == []


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"mappings": with_mapping(0x7000, 0x8000, "rw-p", "")}, id="it has mapped memory"),
        pytest.param(
            {"mappings": with_mapping(0x7000, 0x8000, "r-xp", "/lib/new.so")}, id="it has loaded a library"
        ),
        pytest.param({"mappings": with_mapping(0xB000, 0xF000, "rw-p", "[heap]")}, id="its heap has grown"),
        pytest.param({"mappings": with_mapping(0x9000, 0xA000, "r-xp", "")}, id="it compiles code"),
        pytest.param(
            {"mappings": with_mapping(0x2000, 0x2800, "rw-p", "/bin/target")},
            id="it has mapped its file anew",
        ),
        pytest.param({"mappings": {}}, id="it has unmapped all"),
        pytest.param({"fds": {0: "/dev/null", 8: "/tmp/log"}}, id="it has opened and closed files"),
        pytest.param({"caught": 0x6, "ignored": 0}, id="it handles other signals otherwise"),
    ],
)
def test_what_the_target_does_by_itself_is_no_residue(changes: dict[str, object]) -> None:
    assert after(**changes) == []


def test_what_another_session_left_before_is_not_ours() -> None:
    before = BEFORE._replace(mappings=with_mapping(0x7000, 0x8000, "r-xp", OURS), fds={4: OURS}, timers=3)
    assert remains(before, before, [SIGPROF]) == []
    assert remains(before, before._replace(timers=2), [SIGPROF]) == []
    assert remains(before, before._replace(timers=4), [SIGPROF]) == ["1 timers"]


def test_our_file_under_a_number_that_was_another() -> None:
    assert after(fds={0: "/dev/null", 3: OURS}) == [f"open file 3: {OURS}"]


def test_our_mapping_in_a_place_that_was_another() -> None:
    assert after(mappings=with_mapping(0x9000, 0xA000, "r-xp", OURS)) == [f"mapping 9000-a000 r-xp of {OURS}"]


def timer(value: int, number: int = 0) -> str:
    """One timer in /proc/PID/timers (proc_pid_timers(5))."""
    return f"ID: {number}\nsignal: 27/{value:016x}\nnotify: signal/tid.99\nClockID: -790\n"


@pytest.mark.parametrize(
    ("text", "count"),
    [
        pytest.param("", 0, id="none"),
        pytest.param(timer(TICK_TAG << 32), 1, id="a session's"),
        pytest.param(timer((TICK_TAG | 0xBEEF) << 32 | 7), 1, id="with its random bits and a slot"),
        pytest.param(timer(0) + timer(0x7FFC_1234_5678, 1), 0, id="the target's own"),
        pytest.param(timer(TICK_TAG), 0, id="the mark in the wrong half"),
        pytest.param(timer(0) + timer(TICK_TAG << 32, 1) + timer(TICK_TAG << 32 | 1, 2), 2, id="several"),
    ],
)
def test_our_timers_are_known_by_their_mark(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str, count: int
) -> None:
    (tmp_path / "timers").write_text(text)
    monkeypatch.setattr(verify, "Path", lambda path: tmp_path / Path(path).name)
    assert verify._our_timers(1) == count


def test_a_kernel_that_does_not_list_timers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(verify, "Path", lambda _path: tmp_path / "none")
    assert verify._our_timers(1) == 0


def test_all_of_it_as_json() -> None:
    """What the target has changed by itself is in it, too, and no mask is cut."""
    mappings = with_mapping(0xD000, 0xE000, "rw-p", "/new.so")
    later = BEFORE._replace(mappings=mappings, fds={0: "/dev/null"}, caught=1 << 63)
    found = json.loads(json.dumps(Verification(17, BEFORE, later, ("a tracer",)).as_json()))
    assert (found["pid"], found["complete"], found["left"]) == (17, False, ["a tracer"])
    assert found["changed"] == {
        "mappings": {"gone": {}, "new": {"d000-e000": ["rw-p", "/new.so"]}},
        "fds": {"gone": {"3": "socket:[17]"}, "new": {}},
        "caught": {"before": f"{2:016x}", "after": "8000000000000000"},
    }
    assert found["before"]["mappings"]["1000-2000"] == ["r--p", "/bin/target"]
