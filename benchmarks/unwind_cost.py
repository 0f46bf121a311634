"""What does a frame cost?  The stub's walk beside libunwind, glibc's backtrace() and bare frame pointers.

All walk the same stacks, in one process and in turn (native/unwind_cost.c), warm; the first walk with an
empty cache of rules is shown apart.  ``pa_walk`` has the thread's last walk to go by, as a tick has, and
compares each word of the stack with it; ``pa_walk-anew`` has only the rules.  ``unw_backtrace`` keeps a cache
of its own by address and does nothing else; ``unw_step`` is libunwind's general way, a frame at a time.
"""

from __future__ import annotations

import os
import shlex
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from common import DEADLINE_S, ROOT, arguments, compare, machine, table

STUB = ROOT / "inject" / "stub"
GOAL_NS = 20.0
GOAL_TIMES = 10.0
PEERS = ("unw_backtrace", "unw_step", "backtrace")


def build(folder: Path) -> Path:
    output = folder / "unwind_cost"
    sources = [Path(__file__).parent / "native" / "unwind_cost.c"]
    sources += [STUB / name for name in ("walk.c", "cfi.c", "expr.c", "string.c")]
    compiler = shlex.split(os.environ.get("CC", "")) or ["cc"]
    # The stub's files as the stub is compiled, as far as it matters here.
    flags = ["-std=gnu11", "-O2", "-fno-omit-frame-pointer", "-fno-stack-protector", f"-I{STUB}"]
    done = subprocess.run(
        [*compiler, *flags, *map(str, sources), "-o", str(output), "-lunwind", "-ldl"],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        sys.exit(f"can't be compiled; libunwind's headers are in Debian's libunwind-dev:\n{done.stderr}")
    return output


def said(met: bool) -> str:
    return "met" if met else "NOT MET"


def main() -> None:
    chosen = arguments(__doc__.splitlines()[0])
    print(machine())
    batches, walks = (9, 100) if chosen.quick else (61, 500)
    with tempfile.TemporaryDirectory() as folder:
        command = [str(build(Path(folder))), str(batches), str(walks)]
        text = subprocess.run(command, capture_output=True, text=True, check=True, timeout=DEADLINE_S).stdout
    rows, per_frame = [], {}
    for line in text.splitlines():
        depth, walker, frames, *took = line.split()
        ns = [float(word) / int(frames) for word in took]
        per_frame[int(depth), walker] = statistics.median(ns)
        figures = (statistics.median(ns) * int(frames), statistics.median(ns), min(ns), max(ns))
        rows.append([walker, depth, frames, *(f"{figure:,.1f}" for figure in figures)])
    print(f"\nnanoseconds; {batches} batches of {walks} walks, the walkers in turn; cold: single walks\n")
    table(["walker", "depth", "frames", "a walk", "a frame", "min", "max"], rows)
    print(f"\ngoals: {GOAL_NS:g} ns a frame at most, {GOAL_TIMES:g} times as fast as libunwind")
    for deep in sorted({at for at, _ in per_frame}):
        others = {name: ns for (at, name), ns in per_frame.items() if at == deep}
        peers: dict[str, float] = {name: others[name] for name in PEERS if name in others}
        ours = others["pa_walk"]
        compare(f"unwinding a warm frame, {deep} deep", "ns", ours, peers)
        print(f"depth {deep}: a warm frame: {said(ours <= GOAL_NS)}: {ours:.1f} ns")
        for walker in ("unw_step", "unw_backtrace"):
            times = per_frame[deep, walker] / ours
            print(f"depth {deep}: against {walker}: {said(times >= GOAL_TIMES)}: {times:.1f} times as fast")


if __name__ == "__main__":
    main()
