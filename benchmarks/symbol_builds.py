"""Files that names and lines are judged on: what is installed, and builds of SQLite with debug information.

SQLite's source, one file of nine megabytes, comes from the release of better-sqlite3 on npm.
"""

from __future__ import annotations

import shutil
import subprocess
import tarfile
from pathlib import Path

from common import BUILD
from programs import NotHere, need, postgres_bin

_PACKAGE = "better-sqlite3@12.11.1"
_FOLDER = BUILD / "symbols"
_COPIES = 18

DWARFS = tuple((cc, version) for cc in ("gcc", "clang") for version in (4, 5))


def library(name: str) -> Path:
    """A library of the system, by what its file is called."""
    for folder in ("/usr/lib/x86_64-linux-gnu", "/usr/lib64", "/usr/lib"):
        path = Path(folder, name)
        if path.exists():
            return path.resolve()
    raise NotHere(f"{name} is not installed")


def node() -> Path:
    return Path(need("node")).resolve()


def postgres() -> Path:
    return Path(postgres_bin("postgres"))


def sqlite_source() -> Path:
    """The folder with sqlite3.c, fetched the first time."""
    folder = _FOLDER / "sqlite"
    if (folder / "sqlite3.c").exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    command = [need("npm"), "pack", "--silent", _PACKAGE]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise NotHere(f"npm could not fetch {_PACKAGE}: {done.stderr.strip()[:200]}")
    with tarfile.open(folder / done.stdout.strip().splitlines()[-1]) as package:
        for member in package.getmembers():
            name = Path(member.name).name
            if member.isfile() and name in ("sqlite3.c", "sqlite3.h", "sqlite3.tar.gz"):
                content = package.extractfile(member)
                assert content is not None
                (folder / name).write_bytes(content.read())
    if not (folder / "sqlite3.c").exists():
        raise NotHere(f"{_PACKAGE} holds no sqlite3.c")
    return folder


def sqlite(compiler: str = "gcc", dwarf: int = 5) -> Path:
    """A shared library with debug information, optimised: with thousands of inlined calls."""
    output = _FOLDER / f"sqlite-{compiler}-{dwarf}.so"
    if not output.exists():
        flags = ["-O2", f"-gdwarf-{dwarf}", "-fPIC", "-shared", "-DSQLITE_ENABLE_FTS5", "-w"]
        source = sqlite_source()
        _compile(output, [need(compiler), *flags, str(source / "sqlite3.c")])
    return output


def large() -> Path:
    """A program of 100 MB and more, nearly all of it debug information: SQLite many times over."""
    output = _FOLDER / "large"
    if not output.exists():
        unit, compiled, objects = _FOLDER / "large.c", _FOLDER / "large.o", []
        unit.write_text(
            f'#define SQLITE_API static\n#include "{sqlite_source()}/sqlite3.c"\n'
            "void *used(void) { return (void *)sqlite3_exec; }\n"
        )
        _compile(compiled, [need("gcc"), "-c", "-O2", "-g", "-DSQLITE_ENABLE_FTS5", "-w", str(unit)])
        for number in range(_COPIES):  # compiled once: the linker gives each copy addresses of its own
            objects.append(str(_FOLDER / f"large{number}.o"))
            renamed = f"used=used{number}"
            subprocess.run([need("objcopy"), "--redefine-sym", renamed, compiled, objects[-1]], check=True)
        uses = "".join(f"extern void *used{n}(void);\n" for n in range(_COPIES))
        sum_of = " + ".join(f"(long)used{n}()" for n in range(_COPIES))
        unit.write_text(f"{uses}int main(void) {{ return (int)({sum_of}); }}\n")
        _compile(output, [need("gcc"), "-O2", "-g", str(unit), *objects, "-lm"])
        for path in _FOLDER.glob("large*.[co]"):
            path.unlink()
    return output


def _compile(output: Path, command: list[str]) -> None:
    output.parent.mkdir(parents=True, exist_ok=True)
    scratch = output.with_suffix(".new")
    subprocess.run([*command, "-o", str(scratch)], check=True, capture_output=True)
    shutil.move(scratch, output)
