"""Programs that work without an end, and how much they have done: CPython, xz, redis."""

from __future__ import annotations

import contextlib
import dataclasses
import mmap
import os
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

TARGET_CPU, OTHER_CPU = 1, 0

PYTHON_WORK = """
import mmap, struct, sys, time
file = open(sys.argv[1], "r+b")
shared = mmap.mmap(file.fileno(), 4096)
def leaf(x, n):
    return (x * 31 + n) % 1000003
def middle(x, n):
    return leaf(x, n) + leaf(n, x) & 0xfffff
print("ready", flush=True)
x = rounds = 0
while True:
    for n in range(2000):
        x = middle(x, n)
    rounds += 1
    struct.pack_into("=Q", shared, 0, rounds)
"""


@dataclasses.dataclass
class Target:
    """A program at work: its process, how much work it has done."""

    pid: int
    units: Callable[[], float]

    def cpu_s(self) -> float:
        """CPU time of all its threads, seconds (Documentation/scheduler/sched-stats.rst)."""
        tasks = Path(f"/proc/{self.pid}/task").iterdir()
        return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9


@contextlib.contextmanager
def started(
    argv: Sequence[str], environment: dict[str, str], **options: object
) -> Iterator[subprocess.Popen[Any]]:
    words = ["taskset", "-c", str(TARGET_CPU), *argv]
    process = subprocess.Popen(words, env={**os.environ, **environment}, **options)  # type: ignore[call-overload]
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@contextlib.contextmanager
def counting_file(size: int = 4096) -> Iterator[tuple[Path, mmap.mmap]]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "shared")
        path.write_bytes(bytes(size))
        with path.open("r+b") as file, mmap.mmap(file.fileno(), size) as shared:
            yield path, shared


@contextlib.contextmanager
def cpython(environment: dict[str, str]) -> Iterator[Target]:
    with counting_file() as (path, shared):
        argv = [sys.executable, "-c", PYTHON_WORK, str(path)]
        quiet = {"stderr": subprocess.DEVNULL}
        with started(argv, environment, stdout=subprocess.PIPE, **quiet) as process:
            assert process.stdout is not None
            process.stdout.readline()
            yield Target(process.pid, lambda: struct.unpack_from("=Q", shared)[0])


@contextlib.contextmanager
def xz(environment: dict[str, str]) -> Iterator[Target]:
    argv = ["xz", "-6", "-T1", "-c"]
    fed, over = [0], threading.Event()
    block = os.urandom(1 << 15).hex().encode()

    def feed(pipe: int) -> None:
        with contextlib.suppress(BrokenPipeError):
            while not over.is_set():
                fed[0] += os.write(pipe, block[: 1 << 13])

    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with started(argv, environment, stdin=subprocess.PIPE, **quiet) as process:
        assert process.stdin is not None
        feeder = threading.Thread(target=feed, args=(process.stdin.fileno(),), daemon=True)
        feeder.start()
        time.sleep(0.5)
        yield Target(process.pid, lambda: fed[0])
        over.set()
        process.kill()
        feeder.join()


@contextlib.contextmanager
def redis(environment: dict[str, str]) -> Iterator[Target]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    argv = ["redis-server", "--port", str(port), "--save", "", "--bind", "127.0.0.1", "--daemonize", "no"]
    with started(argv, environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        for _ in range(100):
            with contextlib.suppress(OSError):
                answers = socket.create_connection(("127.0.0.1", port))
                break
            time.sleep(0.05)

        def commands() -> float:
            answers.sendall(b"INFO stats\r\n")
            text = answers.recv(1 << 16)
            return float(text.split(b"total_commands_processed:")[1].split(b"\r")[0])

        load = [
            "redis-benchmark",
            "-p",
            str(port),
            "-t",
            "set,get",
            "-l",
            "-P",
            "16",
            "-c",
            "20",
            "-r",
            "10000",
            "-q",
        ]
        with subprocess.Popen(load, stdout=subprocess.DEVNULL) as client, answers:
            time.sleep(0.5)
            yield Target(process.pid, commands)
            client.kill()


PROGRAMS = {"cpython": cpython, "xz": xz, "redis": redis}
NEEDS = {"cpython": sys.executable, "xz": "xz", "redis": "redis-server"}
"""What each can't do without."""
