"""What a renderer is: a name, the suffixes of its files, and lines made from a profile."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from .profile import Profile


class RenderOptions(NamedTuple):
    """What the user may choose: ``threads`` keeps threads apart, ``title`` replaces the title made from
    the command, ``top`` is the number of functions in each table of the text.  How a picture opens:
    ``inverted`` with the root at the top (an icicle), ``reverse`` with the leaves first.  ``lines``: folded
    stacks tell lines of one function apart."""

    threads: bool = False
    title: str = ""
    top: int = 30
    inverted: bool = False
    reverse: bool = False
    lines: bool = False


class Renderer(Protocol):
    """One output format."""

    @property
    def name(self) -> str:
        """What the user calls the format."""

    @property
    def suffixes(self) -> tuple[str, ...]:
        """File name endings that stand for it, with their dot."""

    def render(self, profile: Profile, options: RenderOptions) -> Iterator[bytes]:
        """The file in pieces, line ends included."""


def encoded(pieces: Iterable[str]) -> Iterator[bytes]:
    """Text in UTF-8; what can't be encoded (a lone surrogate) becomes a question mark."""
    return (piece.encode("utf-8", "replace") for piece in pieces)
