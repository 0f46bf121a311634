"""A short run of the fuzzer; benchmarks/fuzz_unwind.py runs it for as long as one likes."""

from __future__ import annotations

import subprocess
from pathlib import Path

STUB = Path(__file__).resolve().parent.parent / "inject" / "stub"
FUZZER = Path(__file__).resolve().parent / "native" / "fuzz_unwind.c"

ITERATIONS = 400_000
SANITIZERS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all")


def test_nothing_crashes_the_unwinder(tmp_path: Path) -> None:
    output = tmp_path / "fuzz_unwind"
    sources = [str(STUB / name) for name in ("walk.c", "cfi.c", "expr.c")]
    flags = ["-DFUZZ_MAIN", "-O1", "-g", "-Wall", "-Wextra", "-Werror", *SANITIZERS, f"-I{STUB}"]
    subprocess.run(["cc", *flags, str(FUZZER), *sources, "-o", str(output)], check=True)
    done = subprocess.run([str(output), str(ITERATIONS), "1"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"ran {ITERATIONS}\n"
