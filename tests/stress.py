"""Storms, longer than the tests can wait: ``make stress``.

For each kind of storm a target is attached to and detached from many times at random moments, then sampled
for a while at 1000 Hz.  It must stay alive, finish with the right output, and keep nothing of ours.
Prints a table; the exit code is 1 when anything went wrong.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import os
import random
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from pyattach.attacher.session import Options, attach  # noqa: E402
from pyattach.errors import PyattachError  # noqa: E402
from tests.support import build_target  # noqa: E402

KINDS = ("malloc", "dlopen", "threads", "signals", "mixed")


@dataclasses.dataclass
class Result:
    """What came of one storm."""

    kind: str
    cycles: int = 0
    residues: int = 0
    samples: int = 0
    incomplete: int = 0
    refused: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    end: str = ""

    @property
    def good(self) -> bool:
        return not self.residues and not self.refused and self.end == "right"


def libraries(folder: Path) -> list[str]:
    """Copies of one library under several names, so that each is loaded as its own."""
    original = build_target("lib_late", "-shared", "-fPIC")
    names = [folder / f"lib{name}.so" for name in ("one", "two", "three")]
    for name in names:
        shutil.copy(original, name)
    return [str(name) for name in names]


def one_attach(pid: int, options: Options, result: Result) -> None:
    try:
        outcome = attach(pid, options, lambda: False, lambda _progress: None)
    except PyattachError as error:
        result.refused[error.what] += 1
        return
    result.cycles += 1
    result.residues += bool(outcome.residue)
    for line in outcome.residue:
        print(f"  left behind: {line}", *outcome.profile.meta.notes, sep="\n    ")
    result.samples += outcome.profile.meta.samples
    result.incomplete += outcome.profile.meta.truncated


def storm(kind: str, cycles: int, seconds: float) -> Result:
    result = Result(kind)
    with tempfile.TemporaryDirectory() as folder:
        command = [str(build_target("storm")), kind, *libraries(Path(folder))]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            process.stdout.readline()
            for _ in range(cycles):
                one_attach(process.pid, Options(rate_hz=250, duration_s=random.random() * 0.05), result)
            if seconds:
                one_attach(process.pid, Options(rate_hz=1000, duration_s=seconds), result)
            try:
                output, _ = process.communicate("", timeout=30)
            except subprocess.TimeoutExpired:
                process.kill()
                result.end = "hung"
                return result
    right = process.returncode == 0 and output.startswith("done ") and output.split()[2] == "0"
    result.end = "right" if right else f"exit {process.returncode}, {output.strip()!r}"
    return result


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cycles", type=int, default=1000, help="attach/detach cycles of each storm")
    parser.add_argument("--seconds", type=float, default=60.0, help="sampling at 1000 Hz after them")
    parser.add_argument("kinds", nargs="*", default=KINDS)
    arguments = parser.parse_args()
    print(f"kernel {os.uname().release}, {os.cpu_count()} processors")
    print(
        f"{'storm':<9}{'cycles':>7}{'residues':>10}{'samples':>9}{'incomplete':>12}  target's end; refusals"
    )
    bad = False
    for kind in arguments.kinds:
        result = storm(kind, arguments.cycles, arguments.seconds)
        share = 100 * result.incomplete / result.samples if result.samples else 0.0
        print(
            f"{kind:<9}{result.cycles:>7}{result.residues:>10}{result.samples:>9}{share:>11.2f}% {result.end}"
            + "".join(f"; {count} x {what}" for what, count in result.refused.items()),
            flush=True,
        )
        bad = bad or not result.good
    return int(bad)


if __name__ == "__main__":
    sys.exit(main())
