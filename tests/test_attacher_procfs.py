"""/proc/PID decoded: names that look like fields, threads that are gone, text that wants to be more."""

from __future__ import annotations

import ctypes
import mmap
import os
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import hostile

from pyattach.attacher import procfs
from pyattach.attacher.procfs import Blocked, Stat, parse_stat, read_blocked, read_stat, read_status

PR_SET_NAME = 15
BAD = "\N{REPLACEMENT CHARACTER}"
TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def stat_line(name: bytes, state: bytes = b"S") -> bytes:
    """proc_pid_stat(5): fields 4 and on hold their own number, utime and stime 700 and 300 ticks."""
    fields = [str(number).encode() for number in range(4, 53)]
    fields[14 - 4], fields[15 - 4] = b"700", b"300"
    return b"42 (" + name + b") " + state + b" " + b" ".join(fields) + b"\n"


@pytest.mark.parametrize("name", [b"sh", b"", b"a) S 1 (", b")", b"((", b") R 0 0", b"a b c", b"(sd-pam)"])
def test_a_name_ends_at_the_last_parenthesis(name: bytes) -> None:
    assert parse_stat(stat_line(name)) == Stat(
        name.decode(), "S", 4, 9, 22, 1000 / TICKS_PER_S, (16 + 17) / TICKS_PER_S
    )


@hostile()
@given(st.binary(max_size=15).filter(lambda name: b"\0" not in name), st.sampled_from([b"R", b"Z", b"t"]))
def test_any_name_is_text_that_can_be_printed(name: bytes, state: bytes) -> None:
    stat = parse_stat(stat_line(name, state))
    assert stat.name.isprintable()
    assert (stat.state, stat.parent, stat.start_time) == (state.decode(), 4, 22)


def in_a_thread_named(name: bytes, look: Callable[[int], None]) -> None:
    def run() -> None:
        ctypes.CDLL(None).prctl(PR_SET_NAME, name, 0, 0, 0)
        try:
            look(threading.get_native_id())
        except BaseException as error:  # noqa: BLE001 - raised again by the test's own thread
            failures.append(error)

    failures: list[BaseException] = []
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if failures:
        raise failures[0]


@pytest.mark.parametrize(
    "name", [b"a) S 1 (", b"x\x1b[31mred", b"two\nlines", b"\xff\xfe", b"\x0cTracerPid:\t7"]
)
def test_a_real_thread_of_that_name(name: bytes) -> None:
    def look(tid: int) -> None:
        stat = read_stat(os.getpid(), tid)
        assert stat is not None
        assert stat.state == "R"
        assert stat.parent == os.getppid()
        assert stat.name.isprintable()
        assert read_status(os.getpid(), tid)["TracerPid"] == read_status(os.getpid())["TracerPid"]
        assert read_status(os.getpid(), tid)["Tgid"] == str(os.getpid())

    in_a_thread_named(name, look)


def test_our_own_stat() -> None:
    stat = read_stat(os.getpid())
    assert stat is not None
    assert (stat.state, stat.parent) == ("R", os.getppid())
    used = os.times()
    assert 0 <= round(stat.cpu_s * TICKS_PER_S) <= round((used.user + used.system) * TICKS_PER_S)
    assert read_stat(os.getpid(), os.getpid()) is not None


def test_what_is_gone_is_no_error() -> None:
    with subprocess.Popen(["true"]) as child:
        pid = child.pid
    assert read_stat(pid) is None
    assert read_stat(pid, pid) is None
    assert read_stat(os.getpid(), pid) is None
    assert read_status(pid) == {}
    assert procfs.thread_ids(pid) == []
    assert procfs.thread_cpu_ns(pid, pid) is None
    assert procfs.command_line(pid) == ""
    with pytest.raises(ProcessLookupError):
        read_blocked(pid, pid)


def test_threads_are_listed() -> None:
    seen: list[list[int]] = []
    in_a_thread_named(b"extra", lambda tid: seen.append([tid, *procfs.thread_ids(os.getpid())]))
    tid, *listed = seen[0]
    assert tid in listed
    assert os.getpid() in listed
    assert listed == sorted(listed)


def test_a_thread_that_takes_the_place_of_another_changes_their_sign() -> None:
    def sign() -> tuple[int, int] | None:
        return procfs.sign_of_threads(os.getpid())

    seen: list[tuple[int, int] | None] = []
    in_a_thread_named(b"first", lambda _tid: seen.append(sign()))
    in_a_thread_named(b"second", lambda _tid: seen.append(sign()))
    first, second = seen
    assert first is not None and second is not None
    assert first[1] != second[1]
    assert procfs.sign_of_threads(2**22 + 1) is None


def test_a_file_longer_than_a_page_is_read_to_its_end() -> None:
    pages = [
        mmap.mmap(-1, 4096, prot=(mmap.PROT_READ, mmap.PROT_READ | mmap.PROT_WRITE)[n % 2])
        for n in range(100)
    ]
    maps = procfs.read_file("/proc/self/maps")
    assert len(maps) > 4096 and maps.endswith(b"\n")
    assert maps.count(b"[stack]") == 1, "which comes near the end"
    for page in pages:
        page.close()


@pytest.fixture
def crafted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Files under this folder stand in for those of /proc."""
    read_file = procfs.read_file
    monkeypatch.setattr(procfs, "Path", lambda path: tmp_path / str(path).removeprefix("/proc/"))
    monkeypatch.setattr(
        procfs, "read_file", lambda path: read_file(f"{tmp_path}/{path.removeprefix('/proc/')}")
    )
    return tmp_path


def write(root: Path, path: str, text: str) -> None:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("running\n", None),
        ("-1 0x7ffc0000 0x401000\n", Blocked(-1, 0x7FFC0000, 0x401000)),
        ("202 0x1 0x2 0x3 0x4 0x5 0x6 0x7ffc0000 0x401000\n", Blocked(202, 0x7FFC0000, 0x401000)),
    ],
)
def test_where_a_thread_sleeps(crafted: Path, text: str, expected: Blocked | None) -> None:
    write(crafted, "7/task/8/syscall", text)
    assert read_blocked(7, 8) == expected


def test_status_lines(crafted: Path) -> None:
    write(crafted, "7/status", "Name:\ta: b\nUid:\t1\t2\t3\t4\nSigCgt:\t0000000004000000\nEmpty:\n")
    assert read_status(7) == {"Name": "a: b", "Uid": "1\t2\t3\t4", "SigCgt": "0000000004000000", "Empty": ""}


@pytest.mark.parametrize(("text", "ns"), [("123 4 5\n", 123), ("", None), ("rubbish\n", None)])
def test_cpu_time_of_a_thread(crafted: Path, text: str, ns: int | None) -> None:
    write(crafted, "7/task/8/schedstat", text)
    assert procfs.thread_cpu_ns(7, 8) == ns


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        (b"/bin/sh\0-c\0echo hi\0", "/bin/sh -c echo hi"),
        (b"one", "one"),
        (b"\0\0\0", "[kworker]"),
        (b"", "[kworker]"),
        (b"evil\x1b]0;title\x07\0\xff\0", f"evil{BAD}]0;title{BAD} {BAD}"),
        (b"a\nb\0", f"a{BAD}b"),
    ],
)  # fmt: skip
def test_a_command_line_is_one_line_of_text(crafted: Path, raw: bytes, shown: str) -> None:
    (crafted / "7").mkdir()
    (crafted / "7/cmdline").write_bytes(raw)
    (crafted / "7/stat").write_bytes(stat_line(b"kworker"))
    assert procfs.command_line(7) == shown


def test_of_an_endless_command_line_the_begin_is_read(crafted: Path) -> None:
    (crafted / "7").mkdir()
    (crafted / "7/cmdline").write_bytes(b"x" * 1_000_000)
    (crafted / "7/stat").write_bytes(stat_line(b"long"))
    assert procfs.command_line(7) == "x" * 65536
