"""What lines of a live view are made of: texts fitted to columns."""

from __future__ import annotations

from collections.abc import Iterable

from rich.text import Text

from .names import cells, crop, printable

DIM = "bright_black"


def one_line(text: str, style: str = "") -> Text:
    """A line that is never broken."""
    return Text(text, style=style, no_wrap=True, overflow="crop")


def joined(parts: Iterable[str], width: int, between: str = " · ") -> str:
    """As many of the first parts as fit into ``width`` columns."""
    text = ""
    for part in parts:
        longer = text + between + part if text else crop(part, width)
        if cells(longer) > width:
            break
        text = longer
    return text


def padded(text: str, width: int) -> str:
    """``text`` in exactly ``width`` columns."""
    text = crop(text, width)
    return text + " " * (width - cells(text))


def short_command_line(command: str) -> str:
    """The (untrusted) command without the folder of its program."""
    program, _, arguments = printable(command).partition(" ")
    return f"{program.rpartition('/')[2]} {arguments}".strip() or "?"
