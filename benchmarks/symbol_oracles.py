"""What binutils and LLVM say of addresses, read so that it can be compared."""

from __future__ import annotations

import bisect
import json
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path

Call = tuple[str, str, int]
"""Function, path, line."""


class Nm:
    """The functions that ``nm`` lists, with sizes; ``objdump`` tells which sections are code."""

    def __init__(self, path: Path) -> None:
        self.names_at: dict[int, set[str]] = {}
        self._end_at: dict[int, int] = {}
        files = [(path, ()), (path, ("-D",)), *((debug, ()) for debug in debug_files(path))]
        for file, option in files:
            for line in _lines(["nm", "--defined-only", "-n", "-f", "sysv", *option, str(file)]):
                self._take([word.strip() for word in line.split("|")])
        self._starts = sorted(self.names_at)

    def _take(self, words: list[str]) -> None:
        if (
            len(words) != 7
            or words[3] not in ("FUNC", "IFUNC", "<OS specific>: 10", "NOTYPE")
            or not words[1]
        ):
            return
        if words[3] == "NOTYPE" and not words[6].startswith((".text", ".init", ".fini", ".plt")):
            return
        start, size = int(words[1], 16), int(words[4] or "0", 16)
        self.names_at.setdefault(start, set()).add(words[0].partition("@")[0])
        self._end_at[start] = max(self._end_at.get(start, 0), start + size)

    def covering(self, address: int) -> set[str]:
        """All names of functions that hold ``address`` by their sizes."""
        found: set[str] = set()
        at = bisect.bisect_right(self._starts, address) - 1
        for start in self._starts[max(0, at - 50) : at + 1]:
            if self._end_at[start] > address:
                found |= self.names_at[start]
        return found


def debug_files(path: Path) -> list[Path]:
    """The separate debug file, where it is installed."""
    for line in _lines(["readelf", "-n", str(path)]):
        if found := re.search(r"Build ID: ([0-9a-f]{2})([0-9a-f]+)", line):
            debug = Path("/usr/lib/debug/.build-id", found[1], f"{found[2]}.debug")
            return [debug] if debug.exists() else []
    return []


def text_ranges(path: Path) -> list[tuple[int, int]]:
    """Start and size of each section of code, by ``readelf``."""
    out = []
    for line in _lines(["readelf", "-SW", str(path)]):
        found = re.match(
            r"\s*\[ *\d+\] (\S+)\s+PROGBITS\s+([0-9a-f]+) [0-9a-f]+ ([0-9a-f]+)\s+\S+\s+(\S+)", line
        )
        if found and "X" in found[4]:
            out.append((int(found[2], 16), int(found[3], 16)))
    return out


def addr2line_chains(path: Path, addresses: Sequence[int]) -> list[list[Call]]:
    """``addr2line -a -f -i``: innermost first."""
    chains: list[list[Call]] = []
    pending = ""
    for line in _asked(["addr2line", "-a", "-f", "-i", "-e", str(path)], addresses):
        if line.startswith("0x") and not pending:
            chains.append([])
        elif not pending:
            pending = line
        else:
            where, _, number = re.sub(r" \(discriminator \d+\)$", "", line).rpartition(":")
            chains[-1].append((pending, where, int(number) if number.isdigit() else 0))
            pending = ""
    return chains


def llvm_chains(path: Path, addresses: Sequence[int]) -> list[list[Call]]:
    """``llvm-symbolizer``: innermost first."""
    command = ["llvm-symbolizer", "--output-style=JSON", "--no-demangle", f"--obj={path}"]
    text = "".join(f"{address:#x}\n" for address in addresses)
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=True)
    out = []
    for line in done.stdout.splitlines():
        found = json.loads(line).get("Symbol", [])
        out.append([(call["FunctionName"], call["FileName"], int(call["Line"])) for call in found])
    return out


def _asked(command: list[str], addresses: Sequence[int]) -> list[str]:
    text = "".join(f"{address:#x}\n" for address in addresses)
    return subprocess.run(command, input=text, capture_output=True, text=True, check=True).stdout.splitlines()


def _lines(command: list[str]) -> list[str]:
    return subprocess.run(
        command, capture_output=True, text=True, errors="replace", check=False
    ).stdout.splitlines()
