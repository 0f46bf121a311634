"""The output formats, how one is chosen, and how a file of one is written."""

from __future__ import annotations

import errno
import importlib
import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import PyattachError, UsageError
from .renderer import Renderer, RenderOptions

if TYPE_CHECKING:
    from .profile import Profile

__all__ = ["RENDERERS", "RenderOptions", "Renderer", "renderer_for", "write_atomically"]


class _Format:
    """The ``render`` of a module beside this one, which is imported when it is wanted."""

    def __init__(self, name: str, suffixes: tuple[str, ...], module: str) -> None:
        self.name, self.suffixes, self._module = name, suffixes, module

    def render(self, profile: Profile, options: RenderOptions) -> Iterator[bytes]:
        """The file in pieces, line ends included."""
        module = importlib.import_module(self._module, __package__)
        pieces: Iterator[bytes] = module.render(profile, options)
        return pieces


RENDERERS: list[Renderer] = [
    _Format("svg", (".svg",), ".svg"),
    _Format("folded", (".folded", ".collapsed"), ".folded"),
    _Format("text", (".txt",), ".text"),
    _Format("speedscope", (".speedscope.json", ".speedscope"), ".speedscope"),
    _Format("firefox", (".firefox.json", ".gecko.json"), ".firefox"),
    _Format("json", (".json",), ".jsonfile"),
    _Format("pprof", (".pb.gz", ".pprof", ".pb"), ".pprof"),
]
"""All formats; the first is the default."""


def renderer_for(wanted: str | Path) -> Renderer:
    """The renderer for a format's name (``svg``) or for a file's suffix (``out.svg``).

    Raises UsageError, which names the known ones.
    """
    name = str(wanted).lower()
    for renderer in RENDERERS:
        if name == renderer.name:
            return renderer
    fits = [(len(suffix), r) for r in RENDERERS for suffix in r.suffixes if name.endswith(suffix)]
    if fits:
        return max(fits, key=lambda fit: fit[0])[1]  # out.speedscope.json is no out.json
    known = ", ".join(f"{r.name} ({' '.join(r.suffixes)})" for r in RENDERERS)
    raise UsageError(f"no output format fits '{wanted}'", f"known formats: {known}")


def write_atomically(path: str | Path, chunks: Iterable[bytes]) -> None:
    """Write ``chunks`` to ``path``; it holds all of them or stays as it was.

    A link is followed; a device or a pipe is written to directly, for it can't be replaced.
    Raises PyattachError where the file can't be written; what ``chunks`` raises passes through.
    """
    target = Path(os.path.realpath(path))
    try:
        if is_special(path):  # by its own name: /dev/stdout leads to one that is none ("pipe:[123]")
            with open(path, "wb") as file:
                file.writelines(chunks)
        else:
            _replace(target, chunks)
    except OSError as error:
        raise PyattachError(f"cannot write {path}: {error.strerror or error}", _way_out(error)) from error


def is_special(path: str | Path) -> bool:
    """Whether there is something that is no regular file: a device, a pipe, a folder."""
    try:
        return not stat.S_ISREG(os.stat(path).st_mode)  # noqa: PTH116
    except OSError:
        return False


def _replace(target: Path, chunks: Iterable[bytes]) -> None:
    temporary = target.with_name(f".pyattach-{os.urandom(8).hex()}.tmp")
    # Not tempfile: its files are readable by their owner only, ours follow the umask.
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        with open(fd, "wb") as file:
            file.writelines(chunks)
        temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _way_out(error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "make room there, or name a file on another disk with --output"
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        return "create its folder first, or name a file in a folder that exists with --output"
    if error.errno == errno.EISDIR:
        return "name a file, not a folder, with --output"
    return "name a file in a folder you may write to with --output"
