"""The unwinder against the processor, instruction by instruction.

tests/native/oracle.c single-steps a program, keeps a shadow stack of its calls, and compares the stub's
unwinder with it at each instruction.  Where the two differ, EXPLAINED says why; anything else fails.
"""

from __future__ import annotations

import concurrent.futures
import ctypes.util
import os
import re
import shutil
import struct
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import pytest
import support

from pyattach.symbols.elf import ElfImage

STUB = Path(__file__).resolve().parent.parent / "inject" / "stub"
ORACLE = Path(__file__).resolve().parent / "native" / "oracle.c"
DEADLINE_S = 110

WANTED = 1_000_000
WANTED_SHARE = 0.9999


@dataclass(frozen=True)
class Place:
    """Where an instruction lies: its file, the offset there, and the function's name if it has one."""

    path: str
    offset: int

    @property
    def file(self) -> str:
        return Path(self.path).name

    @property
    def function(self) -> str:
        return function_at(self.path, self.offset)

    def __str__(self) -> str:
        return f"{self.file}+0x{self.offset:x} ({self.function or 'no symbol'})"


@dataclass(frozen=True)
class Difference:
    count: int
    place: Place
    callers: tuple[Place, ...]
    end: int
    text: str


@dataclass(frozen=True)
class Result:
    program: str
    compared: int
    equal: int
    signals: int
    deepest: int
    differences: tuple[Difference, ...]


# Looking into the files: which function an address lies in, and whether any table covers it.


@lru_cache(maxsize=64)
def image(path: str) -> ElfImage | None:
    return ElfImage.open(path) if os.path.isfile(path) else None


@lru_cache(maxsize=4096)
def function_at(path: str, offset: int) -> str:
    opened = image(path)
    symbol = opened.function_symbols().lookup(offset) if opened else None
    return symbol.name.decode() if symbol else ""


@lru_cache(maxsize=256)
def section(path: str, name: bytes) -> tuple[int, bytes]:
    opened = image(path)
    return (opened.section_content(name, 1 << 26) if opened else None) or (0, b"")


@lru_cache(maxsize=64)
def fde_ranges(path: str) -> tuple[tuple[int, int], ...]:
    """[start, end) of all FDEs, read independently of the stub; pointers are pcrel sdata4 everywhere."""
    base, content = section(path, b".eh_frame")
    found, at = [], 0
    while at + 4 <= len(content):
        (length,) = struct.unpack_from("<I", content, at)
        if not length:
            break
        (cie,) = struct.unpack_from("<I", content, at + 4)
        if cie:
            start, size = struct.unpack_from("<ii", content, at + 8)
            found.append((base + at + 8 + start, base + at + 8 + start + size))
        at += 4 + length
    return tuple(found)


def fde_of(place: Place) -> tuple[int, int] | None:
    return next((fde for fde in fde_ranges(place.path) if fde[0] <= place.offset < fde[1]), None)


def is_covered(place: Place) -> bool:
    return fde_of(place) is not None


# The explanations.


CRT_FUNCTIONS = {
    "_init",
    "_fini",
    "frame_dummy",
    "register_tm_clones",
    "deregister_tm_clones",
    "__do_global_dtors_aux",
}


def in_crt_files(d: Difference, _result: Result) -> bool:
    """crti.o, crtn.o and crtbegin.o come without CFI; stripped files are known by .init_array's entry."""
    place = d.place
    if is_covered(place):
        return False
    if place.function in CRT_FUNCTIONS:
        return True
    for name in (b".init", b".fini"):
        start, content = section(place.path, name)
        if start <= place.offset < start + len(content):
            return True
    for name in (b".init_array", b".fini_array"):
        _, content = section(place.path, name)
        for (function,) in struct.iter_unpack("<Q", content[:8]):
            # deregister_tm_clones, register_tm_clones, __do_global_dtors_aux, frame_dummy: in this order
            if function - 0x80 <= place.offset < function + 0x50:
                return True
    return False


def in_longjmp(d: Difference, result: Result) -> bool:
    """Registers are replaced one by one, the stack pointer among the last; no table could say that.

    The function that does it has no symbol in a stripped libc: it is the one that longjmp() calls.
    """
    return d.place.file.startswith("libc.") and fde_of(d.place) in {
        fde_of(other.place)
        for other in result.differences
        if "longjmp" in other.place.function + other.callers[0].function
    }


def in_eh_return(d: Difference, _result: Result) -> bool:
    """_Unwind_Resume and _Unwind_RaiseException overwrite their own saved registers with those of the
    handler's frame (uw_install_context_1), then pop them and jump there."""
    places = (d.place, *d.callers)
    return any(
        place.file.startswith("libgcc_s") and place.function.startswith("_Unwind_") for place in places
    ) and d.place.file.startswith("libgcc_s")


def in_realigned(d: Difference, _result: Result) -> bool:
    """Behind `leave`, gcc's CFI still finds the DRAP register through the frame pointer, which is gone."""
    return d.place.function == "realigned"


EXPLAINED: dict[str, tuple[int, Callable[[Difference, Result], bool]]] = {
    # name: (at most so many places in one run, the test)
    "crt*.o: no CFI": (120, in_crt_files),
    "libc: longjmp's last instructions": (16, in_longjmp),
    "libgcc_s: eh_return installs the handler's registers": (120, in_eh_return),
    "gcc: behind the leave of a realigned frame": (4, in_realigned),
}


def explanation(d: Difference, result: Result) -> str:
    return next((name for name, (_, test) in EXPLAINED.items() if test(d, result)), "")


def explains(word: str, result: Result) -> bool:
    return any(word in explanation(d, result) for d in result.differences)


# The programs.


@dataclass(frozen=True)
class Run:
    name: str
    argv: tuple[str, ...]
    skip: int
    steps: int


SQL = (
    "create table t(a, b); insert into t values(1,2),(3,4),(5,6);"
    "select a, sum(b) from t where a > 1 group by a order by 2 desc;"
)


def programs(data: Path) -> Iterator[Run]:
    """Steps beyond a program's end do no harm.  `skip` leaves out crt1.o's part, which one run has."""
    for name, flags, arguments, skip in (
        ("-O0", ("-O0", "-fomit-frame-pointer"), ("1", "quick"), 2000),
        ("-O2", ("-O2", "-fomit-frame-pointer"), ("1",), 0),
        ("-O3 CET", ("-O3", "-fomit-frame-pointer", "-fcf-protection=full"), ("1", "quick"), 2000),
    ):
        built = support.build_target("oracle_c", "-Wno-infinite-recursion", *flags)
        yield Run(f"C {name}", (str(built), *arguments), skip, 400_000)
    built = support.build_target("oracle_cpp", "-fomit-frame-pointer")
    yield Run("C++", (str(built), "1", "-1", "quick"), 2000, 300_000)
    if ctypes.util.find_library("crypto") == "libcrypto.so.3":
        built = support.build_target(
            "oracle_crypto", "-Wl,--no-as-needed", "-l:libcrypto.so.3", "-l:libz.so.1"
        )
        yield Run("libcrypto, zlib", (str(built),), 2000, 200_000)
    yield Run("gzip", (support.requires("gzip"), "-c", str(data)), 2000, 150_000)
    yield Run("sqlite3", (support.requires("sqlite3"), ":memory:", SQL), 60_000, 250_000)


@pytest.fixture(scope="module")
def oracle(tmp_path_factory: pytest.TempPathFactory, may_trace: None) -> Path:
    output = tmp_path_factory.mktemp("oracle") / "oracle"
    sources = [str(STUB / name) for name in ("walk.c", "cfi.c", "expr.c")]
    command = [
        "cc",
        "-O2",
        "-Wall",
        "-Wextra",
        "-Werror",
        f"-I{STUB}",
        str(ORACLE),
        *sources,
        "-o",
        str(output),
    ]
    subprocess.run(command, check=True)
    return output


def parse_place(text: str) -> Place:
    path, _, offset = text.rpartition("+")
    return Place(path, int(offset, 16))


def follow(oracle: Path, run: Run, cpu: int) -> Result:
    """One run; tracer and tracee on one processor, where a switch between them is cheapest."""
    command = ["taskset", "-c", str(cpu), str(oracle), str(run.steps), str(run.skip), *run.argv]
    done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S, check=True)
    differences = []
    for line in done.stdout.splitlines():
        if match := re.match(r"differs (\d+) (\S+) end=(\d+) .*callers=(\S+),(\S+)$", line):
            places = [parse_place(match[index]) for index in (2, 4, 5)]
            differences.append(Difference(int(match[1]), places[0], tuple(places[1:]), int(match[3]), line))
    total = re.search(
        r"^compared (\d+) equal (\d+) .* signals (\d+) calls \d+ deepest (\d+) again (\d+) other (\d+)$",
        done.stdout,
        re.M,
    )
    assert total, done.stdout + done.stderr
    compared, equal, signals, deepest, again, other = map(int, total.groups())
    assert again, "no walk has taken a frame from the one before"
    assert not other, "with the one before to go by, a walk found another stack"
    assert compared - equal == sum(d.count for d in differences), "more places than the oracle has room for"
    return Result(run.name, compared, equal, signals, deepest, tuple(differences))


def follow_all(oracle: Path, runs: list[Run]) -> list[Result]:
    cpus = sorted(os.sched_getaffinity(0))[:2]
    lanes = [runs[index :: len(cpus)] for index in range(len(cpus))]

    def lane(index: int) -> list[Result]:
        return [follow(oracle, run, cpus[index]) for run in lanes[index]]

    with concurrent.futures.ThreadPoolExecutor(len(cpus)) as pool:
        return [result for results in pool.map(lane, range(len(cpus))) for result in results]


def check(results: list[Result]) -> float:
    """Print the tables; fail on what is not explained.  Returns the share that is equal."""
    unexplained = []
    print(f"\n{'program':<18}{'compared':>10}{'differ':>8}{'signals':>9}{'deepest':>9}")
    for r in results:
        print(f"{r.program:<18}{r.compared:>10,}{r.compared - r.equal:>8}{r.signals:>9}{r.deepest:>9}")
    compared, equal = sum(r.compared for r in results), sum(r.equal for r in results)
    print(f"{'all':<18}{compared:>10,}{compared - equal:>8}   equal {equal / compared:.4%}")
    instructions: Counter[str] = Counter()
    for result in results:
        places: Counter[str] = Counter()
        for difference in result.differences:
            name = explanation(difference, result)
            instructions[name] += difference.count
            places[name] += 1
            if not name:
                callers = ", ".join(map(str, difference.callers))
                unexplained.append(f"{result.program}: {difference.place} from {callers}: {difference.text}")
        for name, count in places.items():
            assert not name or count <= EXPLAINED[name][0], f"{result.program}: {count} places of {name!r}"
    for name, count in instructions.most_common():
        print(f"{count:>8} {name or 'NOT EXPLAINED'}")
    assert not unexplained, "\n".join(unexplained)
    return equal / compared


def test_every_instruction_of_a_million(oracle: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.write_bytes(b"".join(b"%d %x\n" % (n * n, n * 7919) for n in range(600)))
    results = follow_all(oracle, list(programs(data)))
    share = check(results)
    assert sum(r.compared for r in results) >= WANTED
    assert share >= WANTED_SHARE
    by_name = {r.program: r for r in results}
    for name in ("C -O0", "C -O2", "C -O3 CET"):
        assert by_name[name].signals == 2, "one handler in another"
        assert explains("longjmp", by_name[name]), "longjmp was not reached"


def test_exceptions_through_many_frames(oracle: Path) -> None:
    """Each frame that has something to clean up costs an eh_return: too many for the share above."""
    built = support.build_target("oracle_cpp", "-fomit-frame-pointer")
    result = follow(
        oracle,
        Run("C++, throwing", (str(built), "2", "5", "quick"), 0, 250_000),
        min(os.sched_getaffinity(0)),
    )
    assert check([result]) > 0.98
    assert explains("eh_return", result)


def test_rust(oracle: Path, tmp_path: Path) -> None:
    rustc = shutil.which("rustc")
    if rustc is None:
        pytest.skip("no rustc here, and none is installed for this one test")
    built = tmp_path / "oracle_rust"
    source = support.SOURCES / "oracle_rust.rs"
    subprocess.run([rustc, "-O", "-g", "-o", str(built), str(source)], check=True, capture_output=True)
    result = follow(oracle, Run("Rust", (str(built),), 2000, 100_000), max(os.sched_getaffinity(0)))
    assert check([result]) >= WANTED_SHARE
