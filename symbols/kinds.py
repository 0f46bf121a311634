"""Kinds of code, by the file it is in."""

from __future__ import annotations

import functools
import posixpath
import re

from .files import VDSO
from .frame import FrameKind

_INTERPRETER = re.compile(
    r"(?:lib)?(?:python|perl|ruby|php|lua|luajit|guile|tcl|pypy|R)[0-9.-]*[a-z]{0,2}(?:\.so[0-9.]*)?"
    r"|node|nodejs|deno|bun|libnode\.so[0-9.]*|libjvm\.so|lib(?:coreclr|mono(?:sgen|boehm)?-[0-9.]+)\.so"
    r"|beam(?:\.smp)?|wish[0-9.]*|tclsh[0-9.]*|octave(?:-cli)?(?:-[0-9.]+)?"
)


_SYSTEM_DIRECTORIES = (
    "/lib/", "/lib32/", "/lib64/", "/libx32/",
    "/usr/lib/", "/usr/lib32/", "/usr/lib64/", "/usr/libx32/",
    "/usr/local/lib/", "/usr/local/lib64/",
    "/nix/store/", "/gnu/store/", "/snap/",
)  # fmt: skip


@functools.lru_cache(maxsize=1024)
def kind_of_file(path: str, exe_path: str | None) -> FrameKind:
    """What code of the file at ``path`` is, as the target sees it, which runs ``exe_path``.

    KERNEL for the vdso; INTERPRETER if the file is called as one (``is_interpreter``); USER for the
    executable, and for files outside of the system's directories for libraries (/lib, /usr/lib,
    /usr/local/lib, their 32 and 64 variants, /nix/store, /gnu/store, /snap); LIBRARY for those in there.
    """
    if path == VDSO:
        return FrameKind.KERNEL
    if is_interpreter(path):
        return FrameKind.INTERPRETER
    if path == exe_path:
        return FrameKind.USER
    return FrameKind.LIBRARY if path.startswith(_SYSTEM_DIRECTORIES) else FrameKind.USER


def is_interpreter(path: str) -> bool:
    """Whether a file is the interpreter, or the virtual machine, of a language, by its name: python3.11,
    libpython3.11.so.1.0, perl, libruby-3.1.so.3.1, php8.2, lua5.4, node, libjvm.so, beam.smp, ..."""
    return _INTERPRETER.fullmatch(posixpath.basename(path)) is not None
