"""Compiles what runs in the target, from ``stub/`` into files beside this one, and the
unwinder for pyattach's own side.

``_stub.so``     the shared object that samples there, from ``stub/*.c``
``_preload.so``  the same, and a constructor from ``stub/preload/``, to start a program with
``_heap.so``     the heap profiler's stub, from ``stub/heap/*.c`` and the unwinder
``_heap_preload.so``  the same, with the allocator's functions under their own names, to start a program with
``_boot.bin``    the bootstrap, position-independent bytes without headers, from ``stub/boot/boot.S``
``_loader.bin``  the loader, the same kind of bytes, from ``stub/boot/loader.c``
``_unwind.so``   for pyattach itself: the stub's unwinder as a library, what a tick costs; ``stub/outside``

Run as a script it builds in place.  It needs a C compiler (``$CC``, or ``cc``) and the linker that
comes with it, and nothing but the standard library: setup.py and the tests' conftest call it too.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

ARTIFACTS = (
    "_stub.so", "_preload.so", "_heap.so", "_heap_preload.so", "_boot.bin", "_loader.bin", "_unwind.so",
)  # fmt: skip

UNWINDER = ("walk.c", "cfi.c", "expr.c", "string.c")

SOURCE_SUFFIXES = {".c", ".h", ".S", ".ld"}

# What both the stub and the flat binaries need: no libc, no vector registers (the handler would have
# to save them), no canary (it is read through TLS), frame pointers and unwind tables (a sample taken
# in our own code must be recognisable), no loop turned into a call of memcpy or memset.
FREESTANDING = shlex.split("""
    -std=gnu11 -O2 -g0 -Wall -Wextra -Werror -ffreestanding -fno-builtin -fvisibility=hidden
    -fno-stack-protector -fasynchronous-unwind-tables -fcf-protection=none -mgeneral-regs-only
    -fno-omit-frame-pointer -fno-tree-loop-distribute-patterns -fPIC
""")

# -z defs: a missing symbol fails this build and not the target.  separate-code: no file bytes are
# mapped executable that are not code.  No build id: the stub is never looked up by one.
SHARED_OBJECT = shlex.split("""
    -nostdlib -shared -Wl,-z,defs -Wl,-z,noexecstack -Wl,-z,separate-code -Wl,-z,relro
    -Wl,--build-id=none -Wl,--hash-style=gnu
""")

# No symbol for the program to find in place of its own, and a constructor before all others.
PRELOADED = shlex.split("-DEXPORT=HIDDEN -Wl,-init=pa_preload -Wl,-z,initfirst")

# The heap profiler needs a part of the unwinder, and preloaded not all of its own: the rest takes memory.
HEAP = shlex.split("-ffunction-sections -Wl,--gc-sections")

# The allocator's functions are there to be found in place of the C library's.
PRELOADED_HEAP = shlex.split(
    "-DPA_HEAP_PRELOADED -DEXPORT=HIDDEN -Wl,-init=heap_begin -Wl,-fini=heap_end -Wl,-z,initfirst"
)

# A jump table would be data with addresses in it, which nobody relocates in a flat binary; unwind
# tables would have no headers to be found by.
FLAT_CODE = shlex.split("-fno-jump-tables -fno-asynchronous-unwind-tables")

FLAT_LINK = shlex.split("""
    --oformat binary -z noexecstack --build-id=none --no-dynamic-linker --orphan-handling=error
""")


class BuildError(RuntimeError):
    """The stub could not be built; the message says what to try next."""


def build(source_dir: Path, output_dir: Path) -> None:
    """Compile ``source_dir`` (``inject/stub``) into the ARTIFACTS in ``output_dir``.

    Each file appears whole or not at all, so that builds may race and a stub in use is never written
    to.  The files take the time of the newest source they were built from: a source saved while the
    compiler runs leaves them stale.  Raises BuildError.
    """
    # The compiler runs inside source_dir and sees relative names, so that the bytes it makes do not
    # depend on where the checkout lies.
    source_dir, output_dir = source_dir.resolve(), output_dir.resolve()
    newest_ns = _newest_source_ns(source_dir)
    compiler = _compiler()
    linker = _linker(compiler)
    output_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".stub-", dir=output_dir) as scratch_name:
        scratch = Path(scratch_name)
        for command in _commands(compiler, linker, source_dir, scratch):
            _run(command, source_dir)
        for name in ARTIFACTS:
            os.utime(scratch / name, ns=(newest_ns, newest_ns))
            (scratch / name).replace(output_dir / name)


def is_stale(source_dir: Path, output_dir: Path) -> bool:
    """Whether an artifact is missing from ``output_dir`` or older than a source or this script."""
    try:
        oldest_ns = min((output_dir / name).stat().st_mtime_ns for name in ARTIFACTS)
    except FileNotFoundError:
        return True
    return oldest_ns < _newest_source_ns(source_dir)


def _commands(compiler: list[str], linker: str, source_dir: Path, scratch: Path) -> Iterator[list[str]]:
    sources = sorted(path.name for path in source_dir.glob("*.c"))
    if not sources:
        raise BuildError(f"{source_dir} holds no *.c file\n  take a complete checkout or sdist")
    shared_object = scratch / "_stub.so"
    yield [*compiler, *FREESTANDING, "-I.", *sources, *SHARED_OBJECT, "-o", str(shared_object)]
    preloaded = [
        *sources,
        "preload/preload.c",
        "preload/record.c",
        "preload/record_maps.c",
        *SHARED_OBJECT,
        *PRELOADED,
    ]
    yield [*compiler, *FREESTANDING, "-I.", *preloaded, "-o", str(scratch / "_preload.so")]
    heap = [*UNWINDER, *sorted(f"heap/{path.name}" for path in (source_dir / "heap").glob("*.c"))]
    yield [*compiler, *FREESTANDING, *HEAP, "-I.", *heap, *SHARED_OBJECT, "-o", str(scratch / "_heap.so")]
    preloaded = [*HEAP, *heap, "preload/preload.c", *SHARED_OBJECT, *PRELOADED_HEAP]
    yield [*compiler, *FREESTANDING, "-I.", *preloaded, "-o", str(scratch / "_heap_preload.so")]
    outside = [*UNWINDER, *sorted(f"outside/{path.name}" for path in (source_dir / "outside").glob("*.c"))]
    yield [*compiler, *FREESTANDING, "-I.", *outside, *SHARED_OBJECT, "-o", str(scratch / "_unwind.so")]
    for source, artifact in (("boot/boot.S", "_boot.bin"), ("boot/loader.c", "_loader.bin")):
        compiled = str(scratch / artifact) + ".o"
        yield [*compiler, *FREESTANDING, *FLAT_CODE, "-I.", "-c", source, "-o", compiled]
        yield [linker, *FLAT_LINK, "-T", "boot/flat.ld", compiled, "-o", str(scratch / artifact)]


def _newest_source_ns(source_dir: Path) -> int:
    # A directory's own time changes when a file in it comes, goes or is renamed.
    inputs = [Path(__file__), source_dir]
    inputs += [path for path in source_dir.rglob("*") if path.is_dir() or path.suffix in SOURCE_SUFFIXES]
    try:
        return max(path.stat().st_mtime_ns for path in inputs)
    except FileNotFoundError as error:
        raise BuildError(f"{error.filename} is missing\n  take a complete checkout or sdist") from error


def _compiler() -> list[str]:
    command = shlex.split(os.environ.get("CC", "")) or ["cc"]
    if shutil.which(command[0]) is None:
        raise BuildError(
            f"the stub needs a C compiler, and there is no {command[0]!r} here\n"
            "  install one (Debian, Ubuntu: apt-get install gcc), or name yours: CC=/path/to/gcc"
        )
    return command


def _linker(compiler: list[str]) -> str:
    named = _run([*compiler, "-print-prog-name=ld"]).strip() or "ld"
    linker = shutil.which(named)
    if linker is None:
        raise BuildError(
            f"the stub needs GNU ld, and there is no {named!r} here\n"
            "  install it (Debian, Ubuntu: apt-get install binutils)"
        )
    return linker


def _run(command: list[str], directory: Path | None = None) -> str:
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise BuildError(f"{shlex.join(command)}\n{done.stdout}{done.stderr}  (in {directory or Path.cwd()})")
    if done.stderr:
        sys.stderr.write(done.stderr)
    return done.stdout


def main() -> None:
    here = Path(__file__).resolve().parent
    parser = argparse.ArgumentParser(description="Compile the stub that runs in the target.")
    parser.add_argument("--if-stale", action="store_true", help="do nothing when it is up to date")
    parser.add_argument("--output", type=Path, default=here, help="where the files go (default: beside me)")
    arguments = parser.parse_args()
    if arguments.if_stale and not is_stale(here / "stub", arguments.output):
        return
    try:
        build(here / "stub", arguments.output)
    except BuildError as error:
        sys.exit(f"build_stub: {error}")


if __name__ == "__main__":
    main()
