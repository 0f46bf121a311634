"""Real programs: attach while they work, see the right functions, leave; their work comes out right."""

from __future__ import annotations

import contextlib
import hashlib
import re
import signal
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import requires, skip_unless_ci
from test_attach_run import (
    MARK,
    Folded,
    Spawn,
    attach,
    cpu_time_s,
    five_errors,
    maps_text,
    modules_by_self,
    pyattach,
    wait_for,
    weights_in,
)

BENCHMARK_DEADLINE_S = 60
SPLIT_S = 8


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def ping(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
        connection.sendall(b"PING\r\n")
        return connection.recv(64) == b"+PONG\r\n"
    return False


@pytest.fixture
def redis(may_trace: None, tmp_path: Path) -> Iterator[tuple[int, int]]:
    """A server of our own: its pid and port."""
    port = free_port()
    argv = [requires("redis-server"), "--port", str(port), "--bind", "127.0.0.1", "--save", ""]
    argv += ["--appendonly", "no", "--dir", str(tmp_path)]
    with subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            wait_for("redis-server answers", lambda: ping(port))
            yield server.pid, port
            assert server.poll() is None, "redis-server has died"
        finally:
            server.kill()


def test_redis_under_load(redis: tuple[int, int], tmp_path: Path) -> None:
    pid, port = redis
    load = [requires("redis-benchmark"), "-h", "127.0.0.1", "-p", str(port), "-q", "-n", "60000", "-c", "20"]
    load += ["-t", "set,get,lpush"]
    folded = tmp_path / "o.folded"
    # Until told to stop: the whole load runs while it is sampled.
    with pyattach(pid, "-o", folded, "-o", "-") as run:
        run.wait_sampling(pid, cpu_s=0)
        done = subprocess.run(load, capture_output=True, text=True, timeout=BENCHMARK_DEADLINE_S, check=False)
        run.tell(signal.SIGINT)
        out = run.finish()
    assert done.returncode == 0, done.stdout + done.stderr
    for test in ("SET", "GET", "LPUSH"):
        assert re.search(rf"{test}: [\d.]+ requests per second", done.stdout), done.stdout
    assert ping(port)
    # Most of its time goes to the kernel, on behalf of these.
    leaves, inclusive = Folded(folded).leaves(), Folded(folded).inclusive()
    assert sum(inclusive[name] for name in ("write", "read", "epoll_wait")) >= 0.5 * leaves.total(), out
    modules = modules_by_self(out)
    server = Path(f"/proc/{pid}/exe").resolve().name  # the file that redis-server is a link to
    assert modules["libc.so.6"] + modules[server] >= 0.8 * leaves.total(), out
    assert modules[server] > 0, out


def test_the_heap_of_redis_under_load(redis: tuple[int, int], tmp_path: Path) -> None:
    """It keeps the addresses of malloc and free in tables; nothing of the hooks stays all the same."""
    pid, port = redis
    load = [requires("redis-benchmark"), "-h", "127.0.0.1", "-p", str(port), "-q", "-n", "60000", "-c", "20"]
    folded = tmp_path / "o.folded"
    with pyattach("heap", pid, "-o", folded, "-o", "-") as run:
        run.wait_until("the hooks are in", lambda: MARK in maps_text(pid))
        done = subprocess.run(
            [*load, "-t", "set,lpush"],
            capture_output=True,
            text=True,
            timeout=BENCHMARK_DEADLINE_S,
            check=False,
        )
        run.tell(signal.SIGINT)
        run.finish(0)
    assert done.returncode == 0, done.stdout + done.stderr
    assert ping(port) and MARK not in maps_text(pid)
    frames = {frame for stack in Folded(folded).stacks for frame in stack}
    server = Path(f"/proc/{pid}/exe").resolve().name  # debian's has no names, but where its debug symbols are
    assert any(frame == "zmalloc" or frame.startswith(f"{server}+0x") for frame in frames), frames


def test_xz_finishes_with_the_right_file(spawn: Spawn, tmp_path: Path) -> None:
    plain, packed = tmp_path / "data", tmp_path / "data.xz"
    blocks = (hashlib.sha256(str(n).encode()).hexdigest().encode() for n in range(60_000))
    plain.write_bytes(b"\n".join(blocks))
    with open(packed, "wb") as output:
        xz = subprocess.Popen([requires("xz"), "-9", "-T1", "--stdout", str(plain)], stdout=output)
    with xz:
        try:
            run = attach(xz.pid, "-d", "1", "-o", "-", "-o", tmp_path / "o.folded")
            assert xz.wait(60) == 0
        finally:
            xz.kill()
    restored = subprocess.run(["xz", "-dc", str(packed)], capture_output=True, check=True).stdout
    assert restored == plain.read_bytes()
    # Debian strips liblzma: only what it exports has a name, the compressor's core is liblzma+0x...
    assert modules_by_self(run.out).most_common(1)[0][0].startswith("liblzma.so.5"), run.out
    top = Folded(tmp_path / "o.folded").top()
    assert re.match(r"lzma_|bt_|lz_|liblzma\.so\.5[.\d]*\+0x", top), top


PYTHON_LOOP = """\
import sys
def work(count):
    total = 0
    for number in range(count):
        total = (total * 31 + number) % 1000003
    return total
print("ready", flush=True)
print("total", work(int(sys.argv[1])))
"""


@pytest.mark.parametrize("interpreter", ["this", "system"])
def test_cpython(spawn: Spawn, tmp_path: Path, interpreter: str) -> None:
    python = sys.executable if interpreter == "this" else "/usr/bin/python3"
    if not Path(python).exists():
        skip_unless_ci(f"there is no {python} (tests/install-programs test)")
    count = 25_000_000
    with spawn([python, "-c", PYTHON_LOOP, str(count)]) as target:
        run = attach(target.pid, "-d", "1", "-o", "-", "-o", tmp_path / "o.folded")
        output = target.finish(deadline_s=60)
    total = 0
    for number in range(count):
        total = (total * 31 + number) % 1000003
    assert output == f"total {total}\n"
    assert re.match(r"(lib)?python3", modules_by_self(run.out).most_common(1)[0][0]), run.out
    heaviest = [name for name, _ in Folded(tmp_path / "o.folded").leaves().most_common(3)]
    assert "_PyEval_EvalFrameDefault" in heaviest, run.out


SQL = """\
WITH RECURSIVE
  n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 6000000)
SELECT count(*), sum(i % 7), sum(i * i % 11) FROM n;
"""


def test_sqlite_shell(may_trace: None, tmp_path: Path) -> None:
    with subprocess.Popen(
        [requires("sqlite3"), "-batch", ":memory:"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as shell:
        try:
            assert shell.stdin is not None
            shell.stdin.write("SELECT 'ready';\n" + SQL)
            shell.stdin.flush()
            assert shell.stdout is not None
            run = attach(shell.pid, "-d", "1", "-o", "-", "-o", tmp_path / "o.folded")
            output, _ = shell.communicate(timeout=60)
        finally:
            shell.kill()
    assert shell.returncode == 0
    numbers = range(1, 6_000_001)
    expected = f"{len(numbers)}|{sum(i % 7 for i in numbers)}|{sum(i * i % 11 for i in numbers)}"
    assert output.split() == ["ready", expected]
    # Where the library is stripped, its entry points have names and its byte code engine has none.
    assert modules_by_self(run.out).most_common(1)[0][0].startswith("libsqlite3.so"), run.out
    top = Folded(tmp_path / "o.folded").top()
    assert re.match(r"sqlite3|libsqlite3\.so", top), top


def split_leaves(spawn: Spawn, folded: Path, firefox: Path) -> tuple[Counter[str], list[int]]:
    with spawn("split") as target:
        attach(target.pid, "--hz", "400", "-d", str(SPLIT_S), "-o", folded, "-o", firefox)
        assert target.finish().startswith("done ")
    profile = Folded(folded)
    assert profile.inclusive()["main"] >= 0.99 * profile.total
    return Counter(profile.leaves()), weights_in(firefox)


def test_shares_are_right(spawn: Spawn, tmp_path: Path) -> None:
    """Where the processors are free, two runs have 4000 samples (at least: timers tick at 250 Hz), and 70% a
    standard error of 0.7 points."""
    runs = [split_leaves(spawn, tmp_path / f"{n}.folded", tmp_path / f"{n}.firefox.json") for n in "op"]
    leaves, weights = runs[0][0] + runs[1][0], runs[0][1] + runs[1][1]
    for name in (70, 20, 10):
        share = leaves[f"work_{name}"] / leaves.total()
        assert share == pytest.approx(name / 100, abs=five_errors(name / 100, weights)), leaves


def test_the_rate_is_what_was_asked_for(spawn: Spawn, tmp_path: Path) -> None:
    """Ticks are counted in CPU time, so a busy machine does not change their number: every sample
    stands for one period of the target's CPU time."""
    folded = tmp_path / "o.folded"
    with spawn("split") as target:
        begin = cpu_time_s(target.pid)
        with pyattach(target.pid, "--hz", "200", "-o", folded, "-o", "-") as run:
            run.wait_sampling(target.pid, cpu_s=2)
            run.tell(signal.SIGINT)
            run.finish()
        used_s = cpu_time_s(target.pid) - begin
        target.finish()
    # What was used while attaching, before the first and after the last tick, has no samples; CPU times are
    # seen in steps of 10 ms, the user's and the kernel's.
    total = Folded(folded).total
    assert 200 * 2.0 * 0.9 <= total <= 200 * (used_s + 0.02) + 2
