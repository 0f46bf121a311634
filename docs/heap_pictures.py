"""Draws the heap's pictures anew: redis, postgres and CPython under ``pyattach PID --heap``, in Chromium.

    python docs/heap_pictures.py [FOLDER]        default: docs/pictures

Fails where a client of one of them sees an error.  Needs redis, postgres, python3 and chromium
(tests/install-programs test; tests/install-programs bench).
"""

from __future__ import annotations

import contextlib
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks"), str(ROOT / "docs")]

import pictures  # noqa: E402  it finds the tests' helpers, too
import programs  # noqa: E402
from graphs import chromium  # noqa: E402

SECONDS = "6"
SCRIPT = """\
import json
while True:
    rows = [{"number": i, "squares": [i * i] * 3, "name": f"row {i}"} for i in range(20000)]
    assert json.loads(json.dumps(rows)) == rows
"""


def recorded(pid: int, to: Path, kind: str = "peak") -> None:
    """CPU time to ``to``, allocations beside it."""
    command = [*pictures.PYATTACH, str(pid), "--heap", "--heap-kind", kind, "-d", SECONDS, "-o", str(to)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    if done.returncode or "left behind" in done.stderr:
        raise RuntimeError(f"{to.stem}: {done.returncode}\n{done.stderr}")


def redis(folder: Path, to: Path) -> str:
    """Under redis-benchmark; what that has said."""
    with programs.redis(folder) as pid:
        port = re.search(r":(\d+)", programs.command_of(pid))
        assert port
        words = ["redis-benchmark", "-p", port[1], "-q", "-n", "300000", "-t", "set,lpush,hset", "-d", "200"]
        with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as load:
            recorded(pid, to)
            said = load.communicate()[0]
    if load.returncode or "rror" in said:
        raise RuntimeError(said)
    return said.replace("\r", "\n").strip().splitlines()[-1]


def postgres(folder: Path, to: Path) -> str:
    """A backend under pgbench, which is asked again at the end, of the same server."""
    with programs.postgres(folder) as pid:
        recorded(pid, to, "allocated")
        words = [programs.postgres_bin("pgbench"), "-h", folder, "-U", "bench", "-T", "2", "postgres"]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        if not Path(f"/proc/{pid}").exists():
            raise RuntimeError("the backend has ended")
    said = re.search(r"number of failed transactions: 0 .*", done.stdout)
    if done.returncode or not said:
        raise RuntimeError(done.stdout + done.stderr)
    return said[0]


def cpython(folder: Path, to: Path) -> str:
    """A script that checks its own results."""
    (folder / "work.py").write_text(SCRIPT)
    environment = {"PYTHONMALLOC": "malloc", "PATH": "/usr/bin"}
    with subprocess.Popen(["python3", "work.py"], env=environment, cwd=folder) as process:
        try:
            programs.wait_for("it runs", lambda: "work.py" in programs.command_of(process.pid))
            recorded(process.pid, to)
            if process.poll() is not None:
                raise RuntimeError(f"it ended with {process.returncode}")
        finally:
            process.kill()
    return "its results are right"


PROGRAMS: dict[str, Callable[[Path, Path], str]] = {"redis": redis, "postgres": postgres, "cpython": cpython}


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def main() -> None:
    to = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs" / "pictures"
    with scratch() as out:
        for name, run in PROGRAMS.items():
            with scratch() as folder:
                print(f"{name}: {run(folder, out / f'{name}.svg')}", flush=True)
        with chromium(out / "chromium") as browser:
            for name in PROGRAMS:
                pictures.shot(browser, out / f"{name}-heap.svg", to / f"heap-{name}.png")


if __name__ == "__main__":
    main()
