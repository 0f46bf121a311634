"""Which files are written, in which format: the options for that, checks before, and the writing."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import PyattachError, UsageError
from ..render.formats import RENDERERS, RenderOptions, is_special, renderer_for, write_atomically
from ..render.streams import give_up

if TYPE_CHECKING:
    from ..render.profile import Profile
    from ..render.renderer import Renderer


def add_output_options(p: argparse.ArgumentParser) -> None:
    """What every command has that writes a profile."""
    p.add_argument(
        "-o", "--output", action="append", metavar="FILE",
        help="its ending tells the format: .svg, .folded, .txt, .pb.gz, ...; - for stdout; may be repeated",
    )  # fmt: skip
    p.add_argument(
        "-f", "--format", metavar="NAME", help=f"of all files: {', '.join(r.name for r in RENDERERS)}"
    )
    p.add_argument("-t", "--threads", action="store_true", help="split the output by thread")
    p.add_argument(
        "--folded-lines", action="store_true", help="with --lines: folded stacks by line, not by function"
    )
    add_picture_options(p)


def add_picture_options(p: argparse.ArgumentParser) -> None:
    """How a flame graph opens; all of it can be switched in the page."""
    p.add_argument("--inverted", action="store_true", help="flame graph: the root at the top (icicle)")
    p.add_argument("--reverse", action="store_true", help="flame graph: merged from the leaves on")


def render_options(arguments: argparse.Namespace) -> RenderOptions:
    """What renderers need of the command line."""
    return RenderOptions(
        threads=arguments.threads, inverted=arguments.inverted, reverse=arguments.reverse,
        lines=arguments.folded_lines,
    )  # fmt: skip


def default_suffix(wanted: str | None) -> str:
    """The ending of a file that was not named.  Raises UsageError where the format is not known."""
    return _renderer(f".{RENDERERS[0].name}", wanted).suffixes[0]


def check_outputs(outputs: Sequence[str], wanted: str | None = None) -> None:
    """Find out before attaching what could not be written after.  Raises UsageError."""
    for output in outputs:
        _renderer(output, wanted)
        if output == "-":
            continue
        if os.path.isdir(output):  # noqa: PTH112
            raise UsageError(f"{output} is a folder", "name a file in it")
        if is_special(output):
            continue
        folder = Path(os.path.realpath(output)).parent
        if not os.path.isdir(folder):  # noqa: PTH112 - false where it may not be looked into
            raise UsageError(f"{output}: there is no folder {folder}", "make it, or name another place")
        if not os.access(folder, os.W_OK):
            raise UsageError(f"{output}: {folder} can't be written to", "name another place with -o")


def write_outputs(
    profile: Profile,
    outputs: Sequence[str],
    options: RenderOptions,
    say: Callable[[str], None],
    wanted: str | None = None,
) -> None:
    """Write every file; one that fails does not keep the others from being written."""
    failed: list[PyattachError] = []
    for output in outputs:
        try:
            write(output, _renderer(output, wanted).render(profile, options))
            if output != "-":
                say(f"wrote {output}")
        except PyattachError as error:
            failed.append(error)
    if failed:
        raise failed[0]


def write(output: str, pieces: Iterable[bytes]) -> None:
    """``pieces`` into a file, or ``-`` for stdout.  Raises PyattachError."""
    if output != "-":
        write_atomically(output, pieces)
        return
    try:
        sys.stdout.flush()
        for piece in pieces:
            sys.stdout.buffer.write(piece)
        sys.stdout.buffer.flush()
    except (OSError, ValueError) as error:  # ValueError: it is closed
        give_up(sys.stdout)
        raise PyattachError(f"cannot write to stdout: {getattr(error, 'strerror', None) or error}") from error


def _renderer(output: str, wanted: str | None) -> Renderer:
    if wanted is not None:
        for renderer in RENDERERS:
            if renderer.name == wanted:
                return renderer
        known = ", ".join(renderer.name for renderer in RENDERERS)
        raise UsageError(f"no format is called {wanted!r}", f"known formats: {known}")
    return renderer_for("text" if output == "-" else output)
