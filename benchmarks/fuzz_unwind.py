"""Fuzz the stub's unwinder: random registers, stacks and tables, under AddressSanitizer and UBSan.

With clang by libFuzzer, which looks for inputs that reach new code; without it by the fuzzer's own
generator.  Ends with 1 when it found something, and says where the input lies.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
STUB = ROOT / "inject" / "stub"
FUZZER = ROOT / "tests" / "native" / "fuzz_unwind.c"
SANITIZERS = ("address,undefined", "-fno-sanitize-recover=all")
SEEDS = 500


def build(output: Path, *compiler: str) -> bool:
    sources = [str(STUB / name) for name in ("walk.c", "cfi.c", "expr.c")]
    command = [*compiler, "-O1", "-g", f"-I{STUB}", str(FUZZER), *sources, "-o", str(output)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        print(done.stderr, file=sys.stderr)
    return done.returncode == 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=1)
    options, _ = parser.parse_known_args()  # `make bench` gives all benchmarks the same arguments
    seconds = max(1, round(options.minutes * 60))
    with tempfile.TemporaryDirectory(prefix="fuzz_unwind-") as name:
        scratch = Path(name)
        own, guided = scratch / "own", scratch / "guided"
        if not build(own, "cc", "-DFUZZ_MAIN", f"-fsanitize={SANITIZERS[0]}", SANITIZERS[1]):
            return 1
        if shutil.which("clang") and build(
            guided, "clang", f"-fsanitize=fuzzer,{SANITIZERS[0]}", SANITIZERS[1]
        ):
            (scratch / "corpus").mkdir()
            subprocess.run([str(own), "seeds", str(SEEDS), str(scratch / "corpus")], check=True)
            command = [
                str(guided), "-max_len=5000", f"-max_total_time={seconds}", f"-seed={options.seed}",
                "-print_final_stats=1", f"-artifact_prefix={tempfile.gettempdir()}/fuzz_unwind-",
                str(scratch / "corpus"),
            ]  # fmt: skip
        else:
            command = [str(own), str(1 << 60), str(options.seed), str(seconds)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    tail = (done.stdout + done.stderr).splitlines()[-40:] if done.returncode else []
    print("\n".join(tail))
    for line in (done.stdout + done.stderr).splitlines():
        if (
            line.startswith(("ran ", "stat::number_of_executed_units", "stat::average_exec"))
            or " DONE " in line
        ):
            print(line)
    print("found something" if done.returncode else "found nothing")
    return 1 if done.returncode else 0


if __name__ == "__main__":
    sys.exit(main())
