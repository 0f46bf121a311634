"""The command to run: which file it is, and whether a library can be preloaded into it."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shlex
import stat
from collections.abc import Sequence

from ..errors import CommandNotExecutable, CommandNotFound, MalformedInput
from ..symbols.elf import ElfImage

_MOST_INTERPRETERS = 4
"""So many scripts may interpret each other: BINPRM_MAX_RECURSION of the kernel's fs/exec.c."""

_ATTACH = "attach by pid instead: pyattach PID"


@dataclasses.dataclass(frozen=True)
class Program:
    """What is executed; ``refusal``: why nothing can be sampled there, empty where it can be."""

    path: str
    argv: tuple[str, ...]
    refusal: str = ""


def find_program(words: Sequence[str]) -> Program:
    """Find the command as a shell does.  Raises CommandNotFound and CommandNotExecutable.

    A script for ``#!/usr/bin/env NAME`` is given to NAME at once: env would replace itself by it, and
    what is preloaded does not survive that.
    """
    path = _on_path(words[0])
    named = _behind_env(path)
    if named:
        interpreter = _on_path(named[0])
        return Program(interpreter, (*named, path, *words[1:]), _refusal(interpreter))
    return Program(path, tuple(words), _refusal(path))


def _on_path(name: str) -> str:
    folders = [""] if "/" in name else os.get_exec_path()
    unusable = ""
    for folder in folders:
        path = os.path.join(folder, name)  # noqa: PTH118 - "./x" must stay what it is
        if os.path.isfile(path) and os.access(path, os.X_OK):  # noqa: PTH113
            return path
        if os.path.exists(path):  # noqa: PTH110
            unusable = unusable or path
    if unusable:
        raise CommandNotExecutable(f"{unusable}: is no file that may be executed", "chmod +x, if it is yours")
    raise CommandNotFound(f"{name}: command not found")


def _head(path: str) -> bytes:
    with contextlib.suppress(OSError), open(path, "rb") as file:
        return file.read(256)
    return b""


def _shebang(path: str) -> list[str]:
    """The interpreter and its argument, which is one word whatever is in it (man execve)."""
    head = _head(path)
    if not head.startswith(b"#!"):
        return []
    return os.fsdecode(head[2:].split(b"\n")[0].strip()).split(maxsplit=1)


def _behind_env(path: str) -> list[str]:
    """The command that a script asks env for; empty where it asks for something else, or for more."""
    words = _shebang(path)
    if len(words) != 2 or os.path.basename(words[0]) != "env":  # noqa: PTH119
        return []
    with contextlib.suppress(ValueError):
        command = shlex.split(words[1].removeprefix("-S")) if words[1].startswith("-S") else [words[1]]
        if command and not command[0].startswith("-") and "=" not in command[0]:
            return command
    return []


def _refusal(path: str) -> str:
    for _ in range(_MOST_INTERPRETERS):
        words = _shebang(path)
        if not words:
            break
        path = words[0]
    head = _head(path)
    if head[:4] != b"\x7fELF":
        return ""  # unreadable, or for the kernel to say: it may know other formats
    if head[4] != 2 or head[18:20] != b"\x3e\0":
        return f"{path} is no 64-bit x86 program: nothing is sampled"
    if _gains_privileges(path):
        return f"{path} is setuid, nothing can be preloaded: nothing is sampled; as root, {_ATTACH}"
    with contextlib.suppress(MalformedInput, OSError), ElfImage.open(path) as image:
        if not image.has_interpreter:
            return f"{path} is static, nothing can be preloaded: nothing is sampled; {_ATTACH}"
    return ""


def _gains_privileges(path: str) -> bool:
    """Whether the dynamic linker will not listen to the environment (AT_SECURE, man ld.so)."""
    with contextlib.suppress(OSError):
        found = os.stat(path)  # noqa: PTH116
        return bool(
            (found.st_mode & stat.S_ISUID and found.st_uid != os.getuid())
            or (found.st_mode & stat.S_ISGID and found.st_gid != os.getgid())
        )
    return False
