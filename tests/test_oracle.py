"""The unwinder against the processor: real programs, stepped, compared at each instruction.

``native/oracle.c`` keeps a shadow stack of calls while it steps, and compares the unwinder's whole stack
with it.  What differs must be one of the places that are explained here.
"""

from __future__ import annotations

import os
import re
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pyattach.symbols.elf import ElfImage
from tests.support import build_target, requires

STUB = Path(__file__).resolve().parent.parent / "inject/stub"
NATIVE = Path(__file__).resolve().parent / "native"

EXPLAINED = {
    # Its last instructions load the registers of another frame, one by one.
    r"behind (_|sig)?longjmp": "registers are being replaced",
    # __builtin_eh_return: the stack is being replaced by the landing pad's.
    r"_Unwind_(Resume|RaiseException|ForcedUnwind|Resume_or_Rethrow)": "the frame is being replaced",
    # There is no call frame information for what crti.o and crtbegin.o bring.
    r"_init|_fini|(de)?register_tm_clones|frame_dummy|__do_global_dtors_aux": "no call frame information",
    # gcc's tables behind the `leave` of a function that realigns its stack say rbp is still its own.
    r"realigned": "wrong call frame information behind leave",
}

SQL = (
    "create table t(a,b); with recursive c(x) as (select 1 union all select x+1 from c where x<1500) "
    "insert into t select x,printf('%d-%f',x,x*1.5) from c; "
    "select count(*),sum(a),max(b) from t where b like '1%' order by a;"
)


def runs() -> list[tuple[int, int, list[str]]]:
    """Steps, steps skipped at the start, command."""
    c = [str(build_target("oracle_c", f"-{o}", "-w")) for o in ("O0", "O2", "O3")]
    c.append(str(build_target("oracle_c", "-O2", "-w", "-fcf-protection=full", "-fomit-frame-pointer")))
    cpp = [str(build_target("oracle_cpp", f"-{o}")) for o in ("O0", "O2")]
    return [
        *[(130_000, 0, [program]) for program in c],
        *[(100_000, 0, [program]) for program in cpp],
        (600_000, 60_000, [requires("sqlite3"), ":memory:", SQL]),
        (250_000, 60_000, [requires("openssl"), "dgst", "-sha256", "/etc/passwd"]),
        (200_000, 20_000, [requires("gzip"), "-c", "/etc/services"]),
    ]


@pytest.fixture(scope="module")
def oracle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    program = tmp_path_factory.mktemp("oracle") / "oracle"
    sources = [NATIVE / "oracle.c", *[STUB / name for name in ("walk.c", "cfi.c", "expr.c")]]
    subprocess.run(["cc", "-O2", "-w", f"-I{STUB}", *sources, "-o", program], check=True)
    return program


def step(oracle: Path, processor: int, run: tuple[int, int, list[str]]) -> tuple[list[str], str]:
    """The lines that differ, and the last line.  Tracer and tracee share one processor: switching between
    two costs more than the step."""
    steps, skip, command = run
    done = subprocess.run(
        ["taskset", "-c", str(processor), oracle, str(steps), str(skip), *command],
        capture_output=True, text=True, errors="replace", check=True, timeout=110,
    )  # fmt: skip
    lines = [line for line in done.stdout.splitlines() if line.startswith(("differs ", "compared "))]
    return lines[:-1], lines[-1]


def function_at(place: str, command: list[str]) -> str:
    """The function of ``module+0xoffset``, from the module's own symbols."""
    module, _, offset = place.partition("+")
    folders = [Path(command[0]).parent, *map(Path, ("/lib/x86_64-linux-gnu", "/usr/lib/x86_64-linux-gnu"))]
    path = next((folder / module for folder in folders if (folder / module).is_file()), None)
    if path is None:
        return place
    with ElfImage.open(path) as image:
        base = min(s.vaddr - s.offset for s in image.segments)
        table, address = image.function_symbols(), int(offset, 16) + base
        found = table.lookup(address)
        if found:
            return found.name.decode()
        # Static functions of a stripped library stand behind an exported one of the same source file.
        before = next((s for back in range(512) if (s := table.lookup(address - back))), None)
        return f"behind {before.name.decode()}" if before else place


@pytest.mark.timeout(300)
def test_every_stack_at_every_instruction(oracle: Path) -> None:
    todo = runs()
    processors = sorted(os.sched_getaffinity(0))[:2]
    compared = equal = 0
    unexplained: list[str] = []
    with ThreadPoolExecutor(len(processors)) as pool:
        parts = [todo[i :: len(processors)] for i in range(len(processors))]
        work = [
            pool.submit(lambda part, cpu: [(run, *step(oracle, cpu, run)) for run in part], part, cpu)
            for part, cpu in zip(parts, processors, strict=True)
        ]
        for run, different, summary in [row for future in work for row in future.result()]:
            figures = dict(re.findall(r"(\w+) (\d+)", summary))
            compared += int(figures["compared"])
            equal += int(figures["equal"])
            print(f"{Path(run[2][0]).name:<12} {summary}")
            for line in different:
                name = function_at(line.split()[2], run[2])
                why = next((why for pattern, why in EXPLAINED.items() if re.fullmatch(pattern, name)), None)
                print(f"    {name}: {line}: {why}")
                if why is None:
                    unexplained.append(f"{Path(run[2][0]).name}: {name}: {line}")
    print(f"compared {compared:,}, equal {100 * equal / compared:.4f}%")
    assert not unexplained
    assert compared >= 1_000_000
    assert equal >= 0.9999 * compared
