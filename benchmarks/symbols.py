"""Are names, lines and inlined calls right, and how long do they take?

1. Functions: random addresses of code, beside ``addr2line`` and ``nm``.  "equal": as addr2line says; "alias":
   another name of the same function, by nm; "gap": nm knows no function there, by its sizes, and addr2line
   stretches the one before; "plt": entries of the PLT, which addr2line does not name; "by nm": nm's sizes are
   on our side; "other": all else, the disagreement.
2. Lines, of addresses in functions (not between them): the whole chain of inlined calls with lines, beside
   ``addr2line -i`` and ``llvm-symbolizer``.
3. Speed: each figure in a process of its own, beside the plain loop of pyelftools, and addr2line.
4. From the end of sampling to the written file, on programs with large tables.
"""

from __future__ import annotations

import collections
import contextlib
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import symbol_builds as builds
from common import BUILD, ROOT, machine, parser_of, table
from programs import PROGRAMS, NotHere
from symbol_oracles import Call, Nm, addr2line_chains, llvm_chains, text_ranges

from pyattach.symbols.cache import Cache
from pyattach.symbols.codefile import CodeFile
from pyattach.symbols.elf import ElfImage
from pyattach.symbols.files import own_path_opener
from pyattach.symbols.lines import LineReader
from pyattach.symbols.summing import Summing

AGREE_FUNCTIONS, AGREE_LINES = 99.9, 99.5  # percent
SAMPLED_S = 20

FILES: dict[str, Callable[[], Path]] = {
    "libc": lambda: builds.library("libc.so.6"),
    "libstdc++": lambda: builds.library("libstdc++.so.6"),
    "node": builds.node,
    "postgres": builds.postgres,
    "sqlite3 -g": builds.sqlite,
}


def picked(path: Path, count: int) -> list[int]:
    """Random addresses of code, the same every time."""
    picks, ranges = random.Random(6), text_ranges(path)
    starts = picks.choices([start for start, _ in ranges], [size for _, size in ranges], k=count)
    sizes = dict(ranges)
    return [start + picks.randrange(sizes[start]) for start in starts]


def opened(path: Path, cache: Cache | None = None) -> CodeFile:
    return CodeFile(ElfImage.open(path), str(path), [own_path_opener], cache, print, Summing(print))


def name_of(file: CodeFile, address: int) -> str:
    found = file.symbol(address)
    return found[1].name.decode().partition("@@")[0] if found is not None else ""


# Functions.

KINDS = ("equal", "alias", "gap", "plt", "by nm", "other")


def judged(nm: Nm, address: int, ours: str, theirs: str) -> str:
    if ours == theirs or ours.partition("@")[0] == theirs or (not ours and theirs == "??"):
        return "plt" if ours.endswith("@plt") else "equal"
    covering = nm.covering(address)
    if ours.endswith("@plt") and not covering:
        return "plt"
    if ours.partition("@")[0] in covering:
        return "alias" if theirs in covering else "by nm"
    return "gap" if not ours and not covering else "other"


def functions(count: int) -> None:
    rows, whole = [], collections.Counter[str]()
    for name, path_of in FILES.items():
        with contextlib.suppress(NotHere):
            path = path_of()
            addresses, nm, file = picked(path, count), Nm(path), opened(path)
            theirs = [
                chain[-1][0].partition("@")[0] if chain else "??"
                for chain in addr2line_chains(path, addresses)
            ]
            kinds = collections.Counter[str]()
            for address, their in zip(addresses, theirs, strict=True):
                ours = name_of(file, address)
                kind = judged(nm, address, ours, their)
                kinds[kind] += 1
                if kind == "other" and kinds[kind] <= 3 and os.environ.get("VERBOSE"):
                    print(
                        f"    {name} {address:#x}: {ours!r}, addr2line {their!r}, nm {nm.covering(address)}"
                    )
            rows.append(_agreement(name, kinds))
            whole += kinds
    rows.append(_agreement("all", whole))
    print("\nFunctions: ours beside addr2line's and nm's")
    table(("file", "addresses", *KINDS, "agree"), rows)
    share = 100 * (1 - whole["other"] / whole.total())
    print(f"agreement {share:.3f}%, wanted {AGREE_FUNCTIONS}%: {_verdict(share, AGREE_FUNCTIONS)}")


def _verdict(share: float, wanted: float) -> str:
    return "met" if share >= wanted else "NOT MET"


def _agreement(name: str, kinds: collections.Counter[str]) -> list[str]:
    share = 100 * (1 - kinds["other"] / kinds.total())
    return [name, f"{kinds.total():,}", *(f"{kinds[kind]:,}" for kind in KINDS), f"{share:.3f}%"]


# Lines.


def our_chains(path: Path, addresses: Sequence[int], cache: Cache | None = None) -> list[list[Call]]:
    """Innermost first."""
    with ElfImage.open(path) as image:
        reader = LineReader(cache, time.monotonic() + 120)
        found = reader.read(image, addresses)
    if found is None:
        raise SystemExit(f"{path}: {reader.error}")
    return [
        [
            *((c.function, c.path, c.line) for c in reversed(line.inlined)),
            (line.function, line.path, line.line),
        ]
        for line in found
    ]


def comparable(chain: Sequence[Call]) -> list[tuple[str, str, int]]:
    """Without what can't be told apart or is not known.  A function's cold part has a symbol of its own, by
    which we call it; in DWARF it is the function."""
    calls = [(f.removesuffix(".cold"), Path(path).name.replace("??", ""), line) for f, path, line in chain]
    return [] if all(not path and not line for _, path, line in calls) else calls


def lines(count: int) -> None:
    rows, whole, right = [], 0, 0
    for compiler, version in builds.DWARFS:
        with contextlib.suppress(NotHere):
            path = builds.sqlite(compiler, version)
            nm = Nm(path)
            addresses = [address for address in picked(path, 2 * count) if nm.covering(address)][:count]
            ours, binutils, llvm = (
                [comparable(chain) for chain in chains(path, addresses)]
                for chains in (our_chains, addr2line_chains, llvm_chains)
            )
            first = [a == b for a, b in zip(ours, binutils, strict=True)]
            second = [a == b for a, b in zip(ours, llvm, strict=True)]
            either = [a or b for a, b in zip(first, second, strict=True)]
            if os.environ.get("VERBOSE"):
                for n in [n for n, ok in enumerate(either) if not ok][:4]:
                    print(f"    {addresses[n]:#x}\n      {ours[n]}\n      {binutils[n]}\n      {llvm[n]}")
            deep = sum(len(chain) > 1 for chain in ours)
            figures = (f"{100 * sum(same) / len(same):.2f}%" for same in (first, second, either))
            rows.append([f"{compiler} DWARF {version}", f"{count:,}", f"{deep:,}", *figures])
            whole, right = whole + count, right + sum(either)
    print("\nLines and inlined calls: whole chains that are equal")
    table(("build of SQLite", "addresses", "in inlined", "addr2line -i", "llvm-symbolizer", "either"), rows)
    share = 100 * right / max(1, whole)
    print(f"agreement {share:.3f}%, wanted {AGREE_LINES}%: {_verdict(share, AGREE_LINES)}")


# Speed: the steps below run in processes of their own and print a line of JSON.


def step_table(path: Path, folder: Path) -> dict[str, float]:
    """The function table, ready; from the file or from the cache, as ``folder`` has it."""
    begun = time.perf_counter()
    file = opened(path, Cache(folder))
    file.symbol(0)
    ready_s = time.perf_counter() - begun
    addresses = picked(path, 20_000)
    unique = list(dict.fromkeys(addresses))[:10_000]
    from pyattach.symbols.address import InstructionPointer
    from pyattach.symbols.maps import Mapping, Maps
    from pyattach.symbols.resolver import Resolver

    executable = [s for s in file.image.segments if s.executable]
    status = os.stat(path)
    mappings = [
        Mapping(s.vaddr & ~4095, (s.vaddr + s.file_size + 4095) & ~4095, "r-xp", s.offset & ~4095,
                f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}", status.st_ino, str(path))
        for s in executable
    ]  # fmt: skip
    named_s = []
    for _ in range(6):  # each time by a new resolver; all but the first find the names in this process
        with Resolver(
            Maps(mappings),
            lambda m: own_path_opener(m.path),
            path_openers=[own_path_opener],
            cache=Cache(folder),
        ) as resolver:
            resolver.resolve(InstructionPointer(unique[0]))
            begun = time.perf_counter()
            for address in unique:
                resolver.resolve(InstructionPointer(address))
            named_s.append(time.perf_counter() - begun)
    return {"ready": ready_s, "named": named_s[0], "again": statistics.median(named_s[1:])}


def step_pyelftools(path: Path, _folder: Path) -> dict[str, float]:
    """The plain loop over the symbols."""
    from elftools.elf.elffile import ELFFile
    from elftools.elf.sections import SymbolTableSection

    begun, found = time.perf_counter(), {}
    with path.open("rb") as stream:
        for section in ELFFile(stream).iter_sections():
            if isinstance(section, SymbolTableSection):
                for symbol in section.iter_symbols():
                    if symbol["st_info"]["type"] == "STT_FUNC":
                        found[symbol["st_value"]] = symbol.name
    return {"ready": time.perf_counter() - begun}


def step_addr2line(path: Path, _folder: Path) -> dict[str, float]:
    addresses = picked(path, 10_000)
    begun = time.perf_counter()
    addr2line_chains(path, addresses)
    return {"named": time.perf_counter() - begun}


def step_lines(path: Path, folder: Path) -> dict[str, float]:
    """A thousand addresses with inlined calls."""
    addresses = picked(path, 1000)
    begun = time.perf_counter()
    our_chains(path, addresses, Cache(folder))
    return {"lines": time.perf_counter() - begun}


def step_addr2line_lines(path: Path, _folder: Path) -> dict[str, float]:
    addresses = picked(path, 1000)
    begun = time.perf_counter()
    addr2line_chains(path, addresses)
    return {"lines": time.perf_counter() - begun}


STEPS = {
    step.__name__.removeprefix("step_"): step
    for step in (step_table, step_pyelftools, step_addr2line, step_lines, step_addr2line_lines)
}


def measured(step: str, path: Path, folder: Path) -> dict[str, float]:
    command = [sys.executable, __file__, "--step", step, "--path", str(path), "--folder", str(folder)]
    return dict(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))


def run_step(name: str, path: Path, folder: Path) -> None:
    figures = STEPS[name](path, folder)
    usage = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    print(json.dumps({**figures, "peak": usage / 1024}))


def speed() -> None:
    rows: list[list[str]] = []

    def row(what: str, value: float, unit: str, wanted: float | None) -> None:
        shown = f"{value:.3f}" if unit == "s" else f"{value:.0f}"
        verdict = "" if wanted is None else "met" if value < wanted else "NOT MET"
        rows.append([what, f"{shown} {unit}", "" if wanted is None else f"< {wanted:g} {unit}", verdict])

    with contextlib.suppress(NotHere), tempfile.TemporaryDirectory() as scratch:
        path, folder = builds.node(), Path(scratch, "cache")
        cold, warm = (measured("table", path, folder) for _ in range(2))
        size = path.stat().st_size >> 20
        row(f"node ({size} MB): function table, cold", cold["ready"], "s", 0.5)
        row("the same from the cache", warm["ready"], "s", 0.1)
        row("the same by pyelftools' loop", measured("pyelftools", path, folder)["ready"], "s", None)
        row("node: 10,000 addresses named, names demangled for the first time", cold["named"], "s", None)
        row("the same by a process that finds the names in the cache", warm["named"], "s", None)
        row("the same, warm (median of 5, each by a new resolver)", warm["again"], "s", 0.05)
        row("the same by addr2line -f -i", measured("addr2line", path, folder)["named"], "s", None)
        row("node: peak memory", max(cold["peak"], warm["peak"]), "MB", 300)
    with contextlib.suppress(NotHere), tempfile.TemporaryDirectory() as scratch:
        path, folder = builds.large(), Path(scratch, "cache")
        cold, warm = (measured("lines", path, folder) for _ in range(2))
        size = path.stat().st_size >> 20
        row(f"-g binary ({size} MB): 1,000 lines with inlined calls, cold", cold["lines"], "s", 2)
        row("the same from the cache", warm["lines"], "s", None)
        row("the same by addr2line -i", measured("addr2line_lines", path, folder)["lines"], "s", None)
    print("\nSpeed")
    table(("what", "measured", "wanted", ""), rows)


# The whole.


def detaching(duration_s: float) -> None:
    rows = []
    for name in ("node", "postgres"):
        with contextlib.suppress(NotHere), tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            folder.chmod(0o755)
            (folder / "program").mkdir()
            with PROGRAMS[name](folder / "program") as pid:
                for state in ("cold", "cached"):
                    begun, left_s = _detached(pid, folder, duration_s, [])
                    rows.append(
                        [
                            f"{name}, {state}",
                            f"{begun:,.0f}",
                            f"{left_s:.2f} s",
                            "met" if left_s <= 1 else "NOT MET",
                        ]
                    )
                left = _detached(pid, folder, duration_s, ["--lines"])
                rows.append([f"{name}, --lines", f"{left[0]:,.0f}", f"{left[1]:.2f} s", ""])
    print(
        f"\nFrom the end of a profile of {duration_s:g} s to the end of pyattach, its files written"
        " (wanted: 1 s at most)"
    )
    table(("program", "samples", "time", ""), rows)


def _detached(pid: int, folder: Path, duration_s: float, options: list[str]) -> tuple[float, float]:
    """Samples, and how long after the stub had gone from the target all was written.  The target's mappings
    are looked at every 5 ms."""
    out = folder / "out.json"
    environment = {**os.environ, "XDG_CACHE_HOME": str(folder / "cache"), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "pyattach", str(pid), "-d", str(duration_s), "--no-live", "-q"]
    command += ["-o", str(out), "-o", str(folder / "out.svg"), *options]
    child = subprocess.Popen(command, env=environment, cwd=folder)
    seen, left = False, 0.0
    while child.poll() is None:
        there = "pyattach" in Path(f"/proc/{pid}/maps").read_text(errors="replace")
        seen = seen or there
        if seen and not there and not left:
            left = time.monotonic()
        time.sleep(0.005)
    taken_s = time.monotonic() - left
    if child.returncode or not left:
        raise SystemExit(f"pyattach failed with {child.returncode}, stub seen: {seen}")
    meta = json.loads(out.read_text())["meta"]
    return float(meta.get("samples") or meta.get("ticks") or 0), taken_s


PARTS = ("functions", "lines", "speed", "detaching")


def main() -> None:
    parser = parser_of(__doc__ or "")
    parser.add_argument("--only", action="append", choices=PARTS)
    parser.add_argument("--step", choices=STEPS)
    parser.add_argument("--path", type=Path)
    parser.add_argument("--folder", type=Path)
    arguments = parser.parse_args()
    if arguments.step:
        run_step(arguments.step, arguments.path, arguments.folder)
        return
    BUILD.mkdir(parents=True, exist_ok=True)
    print(machine())
    parts = arguments.only or PARTS
    quick = arguments.quick
    if "functions" in parts:
        functions(1000 if quick else 20_000)
    if "lines" in parts:
        lines(500 if quick else 5000)
    if "speed" in parts:
        speed()
    if "detaching" in parts:
        detaching(3 if quick else SAMPLED_S)


if __name__ == "__main__":
    main()
