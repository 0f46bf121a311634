"""Debug files from servers: a real debuginfod, and ones that are slow, wrong or gone.  Loopback only."""

from __future__ import annotations

import contextlib
import http.server
import os
import shutil
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support import build_target, requires
from test_attach_run import Folded, Spawn, attach

from pyattach.symbols import debuginfod
from pyattach.symbols.cache import Cache
from pyattach.symbols.debuginfod import Debuginfod, urls
from pyattach.symbols.elf import ElfImage


@pytest.fixture
def split_up(tmp_path: Path) -> tuple[Path, Path]:
    """A stripped program, and the folder that its debug file is in."""
    program, folder = tmp_path / "program", tmp_path / "debug"
    shutil.copy(build_target("split", "-g"), program)
    folder.mkdir()
    subprocess.run(["objcopy", "--only-keep-debug", program, folder / "program.debug"], check=True)
    subprocess.run(["strip", program], check=True)
    return program, folder


def build_id(path: Path) -> bytes:
    with ElfImage.open(path) as image:
        assert image.build_id
        return image.build_id


@contextlib.contextmanager
def real_server(folder: Path, wanted: bytes) -> Iterator[str]:
    """Debian's debuginfod on that folder, once it has found the build ``wanted``."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = [requires("debuginfod"), "-F", "-d", ":memory:", "-p", str(port), str(folder)]
    environment = {key: value for key, value in os.environ.items() if key != "DEBUGINFOD_URLS"}
    with subprocess.Popen(
        words, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        try:
            url = f"http://127.0.0.1:{port}"
            end = time.monotonic() + 30
            while True:
                with contextlib.suppress(OSError):
                    urllib.request.urlopen(f"{url}/buildid/{wanted.hex()}/debuginfo").close()
                    break
                assert time.monotonic() < end and process.poll() is None, "debuginfod does not answer"
                time.sleep(0.05)
            yield url
        finally:
            process.kill()


def test_a_run_takes_names_from_a_server(
    spawn: Spawn, tmp_path: Path, split_up: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    program, folder = split_up
    folded = tmp_path / "o.folded"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with real_server(folder, build_id(program)) as url:
        monkeypatch.setenv("DEBUGINFOD_URLS", url)
        with spawn([str(program)]) as target:
            run = attach(target.pid, "-d", "300ms", "-o", folded)
            assert "debuginfod: asking 127.0.0.1" in run.err
    assert named(folded) > 0.8
    # The server is gone now, what it had is kept.
    with spawn([str(program)]) as target:
        run = attach(target.pid, "-d", "300ms", "-o", folded)
    assert named(folded) > 0.8 and "asking" not in run.err


def named(folded: Path) -> float:
    """The share of samples whose innermost function has its name."""
    leaves = Folded(folded).leaves()
    return sum(leaves[f"work_{share}"] for share in (70, 20, 10)) / leaves.total()


class Quiet(http.server.BaseHTTPRequestHandler):
    def log_message(self, *_words: object) -> None:
        pass


@contextlib.contextmanager
def server(answer: Callable[[Quiet], None]) -> Iterator[tuple[str, list[str]]]:
    """One that answers so; its address, and the paths that were asked for."""
    asked: list[str] = []

    class Handler(Quiet):
        def do_GET(self) -> None:
            asked.append(self.path)
            with contextlib.suppress(OSError):
                answer(self)

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        listening.daemon_threads = True
        listening.block_on_close = False
        thread = threading.Thread(target=listening.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.server_address[1]}", asked
        finally:
            listening.shutdown()
            thread.join()


def send(content: bytes, status: int = 200, length: int | None = None) -> Callable[[Quiet], None]:
    def answer(request: Quiet) -> None:
        request.send_response(status)
        request.send_header("Content-Length", str(len(content) if length is None else length))
        request.end_headers()
        request.wfile.write(content)

    return answer


def raw(content: bytes) -> Callable[[Quiet], None]:
    """An answer of any form, or of none."""

    def answer(request: Quiet) -> None:
        request.wfile.write(content)
        request.close_connection = True

    return answer


def drip(request: Quiet) -> None:
    request.send_response(200)
    request.end_headers()
    for _ in range(1000):
        request.wfile.write(b"x")
        time.sleep(0.02)


def client(address: str, folder: Path, seconds: float = 20) -> Debuginfod:
    return Debuginfod([address], Cache(folder), time.monotonic() + seconds, lambda _line: None)


ID = bytes(range(20))


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (send(b"no ELF file"), "program (debuginfod)"),
        (send(b"", 500), ""),
        (send(b"short", length=1000), "127.0.0.1"),
        (send(b"", length=10**12), "127.0.0.1"),
        (raw(b"no HTTP at all\r\n\r\n"), "127.0.0.1"),
        (raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nno number\r\n"), "127.0.0.1"),
        (raw(b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 1000 + b"\r\n"), "127.0.0.1"),
    ],
    ids=["nonsense", "error", "cut", "huge", "no HTTP", "bad chunk", "many headers"],
)
def test_servers_that_are_broken(tmp_path: Path, answer: Callable[[Quiet], None], said: str) -> None:
    with server(answer) as (address, _):
        used = client(address, tmp_path)
        assert used.fetch(ID, "program") is None
    assert said in " ".join(used.failures)


def test_another_builds_file_is_not_taken(tmp_path: Path) -> None:
    with server(send(build_target("split", "-g").read_bytes())) as (address, _):
        assert client(address, tmp_path).fetch(ID, "program") is None


def test_a_deadline_is_kept(tmp_path: Path) -> None:
    with server(drip) as (address, _):
        used = client(address, tmp_path, seconds=0.3)
        assert used.fetch(ID, "program") is None
        assert "took too long" in used.failures[0] or "no time" in used.failures[0]
        assert used.fetch(ID, "another") is None
        assert "no time was left" in used.failures[-1]


def test_that_a_server_has_nothing_is_kept(tmp_path: Path) -> None:
    with server(send(b"", 404)) as (address, asked):
        for _ in range(2):
            used = client(address, tmp_path)
            assert used.fetch(ID, "program") is None and not used.failures
    assert len(asked) == 1


def test_a_server_that_is_gone_is_asked_once(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{probe.getsockname()[1]}"
    used = client(address, tmp_path)
    assert used.fetch(ID, "one") is None and used.fetch(bytes(20), "other") is None
    assert len(used.failures) == 1 and address in used.failures[0]
    with server(send(b"", 404)) as (address, asked):
        for build in (ID, bytes(20)):  # nobody has said that there is nothing
            client(address, tmp_path).fetch(build, "program")
    assert len(asked) == 2


def test_a_file_that_is_too_large_is_not_the_servers_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(debuginfod, "_MOST_BYTES", 1000)
    with server(send(bytes(2000))) as (address, asked):
        used = client(address, tmp_path)
        assert used.fetch(ID, "large") is None and used.fetch(bytes(20), "other") is None
    assert len(asked) == 2 and "large has more than" in used.failures[0]


def test_which_servers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEBUGINFOD_URLS", "https://one/ file:///etc http://two:8002 ftp://three")
    assert urls() == ["https://one", "http://two:8002"]
    monkeypatch.delenv("DEBUGINFOD_URLS")
    assert urls() == []
