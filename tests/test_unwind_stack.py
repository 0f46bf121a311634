"""How much stack the handler needs: it runs on the target's stack, which may be small, and calls nobody.

Sums the frames that gcc reports (-fcallgraph-info=su) along the deepest chain from the handler.
"""

from __future__ import annotations

import importlib.util
import re
import subprocess
from collections import defaultdict
from functools import cache
from pathlib import Path

import support

INJECT = Path(__file__).resolve().parent.parent / "inject"
STUB = INJECT / "stub"

LIMIT = 2560
"""As handler.c says it: of a signal stack of 8 KB the kernel takes 3.6 KB for the registers of AVX-512."""
WORD = 8  # the return address of each call is no part of a frame as gcc counts it


def flags() -> list[str]:
    spec = importlib.util.spec_from_file_location("build_stub", INJECT / "build_stub.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found: list[str] = list(module.FREESTANDING)
    return found


def test_the_handler_needs_little_stack(tmp_path: Path) -> None:
    sizes: dict[str, int] = {}
    calls: dict[str, set[str]] = defaultdict(set)
    for source in sorted(STUB.glob("*.c")):
        command = [
            "gcc",
            *flags(),
            "-fcallgraph-info=su",
            "-c",
            str(source),
            "-o",
            str(tmp_path / f"{source.stem}.o"),
        ]
        subprocess.run(command, check=True, cwd=tmp_path)
    for graph in tmp_path.glob("*.ci"):
        text = graph.read_text()
        for title, label in re.findall(r'node: \{ title: "([^"]+)" label: "([^"]*)"', text):
            if match := re.search(r"\\n(\d+) bytes \(([a-z,]+)\)", label):
                name = title.rpartition(":")[2]
                assert match[2] in ("static", "dynamic,bounded"), f"{title}: {match[2]}"
                sizes[name] = max(sizes.get(name, 0), int(match[1]))
        for caller, callee in re.findall(r'edge: \{ sourcename: "([^"]+)" targetname: "([^"]+)"', text):
            calls[caller.rpartition(":")[2]].add(callee.rpartition(":")[2])

    @cache
    def deepest(name: str) -> tuple[int, tuple[str, ...]]:
        if name == "__indirect_call":
            # t->copy, s->probe and find_module; whom a foreign signal is handed on to uses its own stack.
            targets = {"vm_copy", "page_readable", "modules_find"}
        else:
            assert name in sizes, f"{name} is called and is not the stub's"
            targets = calls[name]
        below = max((deepest(callee) for callee in targets), default=(0, ()))
        return sizes.get(name, 0) + WORD + below[0], (name, *below[1])

    total, chain = deepest("pa_handler")
    print()
    for name in chain:
        print(f"{sizes.get(name, 0):>6} {name}")
    print(f"{total:>6} in all")
    assert total < LIMIT


def test_the_stub_calls_nothing_outside_itself() -> None:
    stub = str(INJECT / "_stub.so")
    undefined = subprocess.run(
        [support.requires("nm"), "--dynamic", "--undefined-only", stub],
        capture_output=True,
        text=True,
        check=True,
    )
    assert undefined.stdout == ""
    needed = subprocess.run(
        [support.requires("readelf"), "-dW", stub], capture_output=True, text=True, check=True
    )
    assert "(NEEDED)" not in needed.stdout
    relocations = subprocess.run(
        [support.requires("readelf"), "-rW", stub], capture_output=True, text=True, check=True
    )
    assert not re.search(r"JUMP_SLO|GLOB_DAT|R_X86_64_64", relocations.stdout), relocations.stdout
