"""Programs that are hard to attach to, each at work until it is told to end, and what it says then."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from tests.support import build_target

FINISH_S = 10.0
"""A program that has not ended so long after it was told to hangs."""

Verdict = Callable[[], str]
"""Ends the program; "right", or what was wrong."""

Storm = contextlib.AbstractContextManager[tuple[int, Verdict]]


class NotHere(Exception):
    """What the storm needs is not installed."""


def _ended(process: subprocess.Popen[str], right: Callable[[str], bool]) -> str:
    try:
        output, _ = process.communicate("", timeout=FINISH_S)
    except subprocess.TimeoutExpired:
        process.kill()
        return "hung"
    if process.returncode == 0 and right(output):
        return "right"
    return f"exit {process.returncode}, {output.strip()[-200:]!r}"


@contextlib.contextmanager
def _program(
    words: list[str], right: Callable[[str], bool], env: Mapping[str, str] | None = None
) -> Iterator[tuple[int, Verdict]]:
    environment = {**os.environ, **env} if env else None
    with subprocess.Popen(
        words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        try:
            assert process.stdout is not None
            process.stdout.readline()
            yield process.pid, lambda: _ended(process, right)
        finally:
            process.kill()


def _no_errors(output: str) -> bool:
    """``done OPERATIONS ERRORS``."""
    words = output.split()
    return words[:1] == ["done"] and words[2] == "0"


@contextlib.contextmanager
def _storm(kind: str, preload: str = "") -> Iterator[tuple[int, Verdict]]:
    with tempfile.TemporaryDirectory() as folder:
        original = build_target("lib_late", "-shared", "-fPIC")
        libraries = [f"{folder}/lib{name}.so" for name in ("one", "two", "three")]
        for library in libraries:
            shutil.copy(original, library)
        env = {"LD_PRELOAD": preload} if preload else None
        with _program([str(build_target("storm")), kind, *libraries], _no_errors, env) as running:
            yield running


def _preloaded(library: str) -> Storm:
    found = next(Path("/usr/lib").glob(f"*-linux-gnu*/{library}"), None)
    if found is None:
        raise NotHere(f"{library} is not installed")
    return _storm("malloc", str(found))


@contextlib.contextmanager
def _execs() -> Iterator[tuple[int, Verdict]]:
    """Works for 5 ms between two; a new one is begun by who asks for it once this has come to its end."""
    with subprocess.Popen(
        [str(build_target("execs")), "400", "5"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None and process.stdin is not None
            process.stdout.readline()
            process.stdin.write("\n")
            process.stdin.flush()
            yield process.pid, lambda: _ended(process, lambda output: output == "done\n")
        finally:
            process.kill()


def _threads(busy: int, blocked: int) -> Storm:
    words = [str(build_target("threads")), str(busy), str(blocked)]
    return _program(words, lambda output: output == "eintr 0\ndone\n")


_PYTHON = """
import hashlib, json, sys, threading
stopped, done, wrong = False, 0, 0
text = json.dumps([{"key": n, "value": [n] * 20} for n in range(200)])
expected = hashlib.sha256(text.encode()).hexdigest()
def work():
    global done, wrong
    while not stopped:
        again = json.dumps(json.loads(text))
        wrong += hashlib.sha256(again.encode()).hexdigest() != expected
        done += 1
threads = [threading.Thread(target=work) for _ in range(4)]
for thread in threads: thread.start()
print("ready", flush=True)
sys.stdin.read()
stopped = True
for thread in threads: thread.join()
print("done", done, wrong)
"""


@contextlib.contextmanager
def _redis() -> Iterator[tuple[int, Verdict]]:
    server, client = shutil.which("redis-server"), shutil.which("redis-benchmark")
    if server is None or client is None:
        raise NotHere("redis is not installed")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as undo:
        words = [server, "--port", port, "--bind", "127.0.0.1", "--save", "", "--dir", folder]
        process = undo.enter_context(subprocess.Popen(words, stdout=subprocess.DEVNULL))
        undo.callback(process.kill)
        _wait_for_port(int(port))
        load = undo.enter_context(
            subprocess.Popen(
                [client, "-p", port, "-q", "-l", "-n", "20000", "-c", "20", "-t", "set,get,lpush,lpop"],
                stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
            )
        )  # fmt: skip
        undo.callback(load.kill)

        def verdict() -> str:
            if load.poll() is not None:
                return f"its client ended with {load.returncode}: {load.stderr.read() if load.stderr else ''}"
            load.kill()
            answer = subprocess.run(
                [server.replace("redis-server", "redis-cli"), "-p", port, "ping"],
                capture_output=True, text=True, timeout=FINISH_S,
            ).stdout.strip()  # fmt: skip
            process.terminate()
            code = process.wait(FINISH_S)
            return "right" if answer == "PONG" and code == 0 else f"exit {code}, {answer!r}"

        yield process.pid, verdict


def _wait_for_port(port: int) -> None:
    end = time.monotonic() + FINISH_S
    while True:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
            return
        if time.monotonic() > end:
            raise TimeoutError(f"nobody listens on port {port}")
        time.sleep(0.02)


STORMS: dict[str, Callable[[], Storm]] = {
    "malloc": lambda: _storm("malloc"),
    "dlopen": lambda: _storm("dlopen"),
    "forks": lambda: _storm("forks"),
    "execs": _execs,
    "threads": lambda: _storm("threads"),
    "signals": lambda: _storm("signals"),
    "handlers": lambda: _program(
        [str(build_target("handlers")), "asleep", "1", "shared", "2000"], lambda out: out == "done 0\n"
    ),
    "mixed": lambda: _storm("mixed"),
    "cpu": lambda: _program([str(build_target("threads")), "2", "0"], lambda out: out == "eintr 0\ndone\n"),
    "blocked": lambda: _program(
        [str(build_target("threads")), "0", "6"], lambda out: out == "eintr 0\ndone\n"
    ),
    "jemalloc": lambda: _preloaded("libjemalloc.so.2"),
    "tcmalloc": lambda: _preloaded("libtcmalloc_minimal.so.4"),
    "redis": _redis,
    "python": lambda: _program([sys.executable, "-c", _PYTHON], _no_errors),
}
"""By name: all the kinds there are."""
