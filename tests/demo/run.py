"""What ``make demo`` runs: profile a bundled program while it works, and check everything.

The program (tests/targets/demo.c) has four threads with different work and prints checksums that do
not depend on how fast it ran.  It fails if pyattach fails, if a file is missing or empty of what it
must show, or if the program did not come out of it with its right answer and exit code 0.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shlex
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path

SOURCE = Path(__file__).resolve().parent.parent / "targets" / "demo.c"

PROFILE_S = 5
PYATTACH_DEADLINE_S = PROFILE_S + 60
PROGRAM_DEADLINE_S = 60

EXPECTED_OUTPUT = """\
ready
hashing e754d78a22b599ba
sorting b7937a7b6893d4f1
matrix 6cd719d8ebf0da18
strings f9d7cd2863b111b4
checksum bea45149cebb4cbf
"""

# One function of each thread that takes far more than a few samples of it.
EXPECTED_FUNCTIONS = ("hash_blocks", "sort_numbers", "multiply", "build_strings")


class DemoFailed(Exception):
    """Something in the demo is not as it must be; the message says what."""


def main() -> None:
    parser = argparse.ArgumentParser(description="Profile a bundled program and check the outcome.")
    parser.add_argument("--pyattach", type=Path, required=True, help="the pyattach command to run")
    parser.add_argument("--output", type=Path, default=Path("demo-out"), help="folder for the results")
    arguments = parser.parse_args()
    try:
        demo(arguments.pyattach, arguments.output)
    except DemoFailed as failure:
        sys.exit(f"demo: FAILED: {failure}")


def demo(pyattach: Path, output_dir: Path) -> None:
    """Raises DemoFailed at the first thing that is wrong."""
    output_dir.mkdir(parents=True, exist_ok=True)
    outputs = [output_dir / f"demo.{kind}" for kind in ("svg", "folded", "txt")]
    for path in outputs:
        path.unlink(missing_ok=True)  # a file of an earlier run proves nothing
    program = compile_program(output_dir)
    with running(program) as process:
        started = time.monotonic()
        wait_until_ready(process)
        print(f"demo: {program} runs as pid {process.pid}", flush=True)
        profile(pyattach, process.pid, outputs)
        if process.poll() is not None:
            raise DemoFailed(f"the program ended early, after {time.monotonic() - started:.1f} s")
        print("demo: pyattach is done, the program is told to end", flush=True)
        check_program(process)
    check_outputs(*outputs)
    print(f"demo: the program ended with 0 and the right checksums, {time.monotonic() - started:.1f} s\n")
    print(outputs[2].read_text(encoding="utf-8"))
    print("demo: flame graph   ", outputs[0], "(open it in a browser)")
    print("demo: folded stacks ", outputs[1])
    print("demo: top table     ", outputs[2])


def compile_program(output_dir: Path) -> Path:
    program = output_dir / "demo"
    compiler = shlex.split(os.environ.get("CC", "")) or ["cc"]
    run([*compiler, "-O2", "-fno-omit-frame-pointer", "-pthread", str(SOURCE), "-o", str(program)], 120)
    return program


@contextlib.contextmanager
def running(program: Path) -> Iterator[subprocess.Popen[str]]:
    """It works until its standard input is closed: pyattach takes as long as it takes."""
    command = [str(program.resolve()), "-"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()  # does nothing when it has ended


def wait_until_ready(process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    # The program can't hang before this line: it only starts its threads.
    if process.stdout.readline() != "ready\n":
        raise DemoFailed("the program did not start")


def profile(pyattach: Path, pid: int, outputs: list[Path]) -> None:
    command = [str(pyattach), str(pid), "--hz", "99", "-d", str(PROFILE_S)]
    for path in outputs:
        command += ["-o", str(path)]
    print("demo: $", shlex.join(command), flush=True)
    run(command, PYATTACH_DEADLINE_S)


def run(command: list[str], deadline_s: float) -> None:
    try:
        code = subprocess.run(command, stdin=subprocess.DEVNULL, timeout=deadline_s, check=False).returncode
    except FileNotFoundError as error:
        raise DemoFailed(f"{command[0]} is not there ({error})") from error
    except subprocess.TimeoutExpired as error:
        raise DemoFailed(f"{command[0]} was not done after {deadline_s} s") from error
    if code != 0:
        raise DemoFailed(f"{command[0]} ended with {code}")


def check_program(process: subprocess.Popen[str]) -> None:
    try:
        rest, _ = process.communicate("", timeout=PROGRAM_DEADLINE_S)
    except subprocess.TimeoutExpired as error:
        raise DemoFailed(f"the program did not end within {PROGRAM_DEADLINE_S:.0f} s") from error
    if process.returncode != 0:
        raise DemoFailed(f"the program ended with {process.returncode}; it printed:\n{rest}")
    if "ready\n" + rest != EXPECTED_OUTPUT:
        raise DemoFailed(f"the program computed something else:\n{rest}expected:\n{EXPECTED_OUTPUT}")


def check_outputs(svg: Path, folded: Path, table: Path) -> None:
    for path in (svg, folded, table):
        if not path.is_file() or path.stat().st_size == 0:
            raise DemoFailed(f"{path} was not written")
    try:
        root = ElementTree.parse(svg).getroot()
    except ElementTree.ParseError as error:
        raise DemoFailed(f"{svg} is not well-formed: {error}") from error
    if not root.tag.endswith("}svg"):
        raise DemoFailed(f"{svg} is no SVG: its root is {root.tag}")
    for path in (svg, folded):
        text = path.read_text(encoding="utf-8")
        absent = [name for name in EXPECTED_FUNCTIONS if name not in text]
        if absent:
            raise DemoFailed(f"{path} does not show {', '.join(absent)}, where the program spent its time")


if __name__ == "__main__":
    main()
