"""Names from the target made fit to be shown: they are untrusted and may hold anything."""

from __future__ import annotations

import re

# Patterns are compiled when they are first used, and kept by ``re``: with classes of characters from all over
# Unicode that takes milliseconds, and most names are ASCII.

# What can move the cursor, start an escape sequence, break a line or turn the text around it: C0, C1,
# the line separators, the bidirectional controls; and what XML 1.0 (section 2.2) does not allow:
# surrogates and the two noncharacters.
_UNSHOWABLE = (
    "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufeff\ufffe\uffff]"
)
_BLANKS = r"[\t\n\v\f\r]+"
_ARGUMENTS = r"\([^()]*\)(?: const)?(?: \[clone [^\]]*\])?$"
_TEMPLATE = r"<[^<>]*>"
_CROPPED_FROM = 1000  # bounds the work on a name of deeply nested templates
# Hangul Jamo is the first of the scripts that take two cells; punctuation, arrows and signs take one.
_MAYBE_WIDE = "[\u1100-\u1fff\u2300-\ufffc\U00010000-\U0010ffff]"


def printable(text: str) -> str:
    """``text`` on one line, without leading and trailing blanks, each control character as U+FFFD."""
    if text.isascii() and text.isprintable():
        return text.strip()
    return re.sub(_UNSHOWABLE, "\ufffd", re.sub(_BLANKS, " ", text.strip()))


def shortened(text: str, limit: int) -> str:
    """``text`` with its middle left out where it has more than ``limit`` characters."""
    if len(text) <= limit:
        return text
    tail = (limit - 1) // 2
    return f"{text[: limit - 1 - tail]}…{text[len(text) - tail :]}"


def cells(text: str) -> int:
    """Columns that ``text`` takes in a fixed-width font; never too few, sometimes too many."""
    return len(text) if text.isascii() else len(text) + len(re.findall(_MAYBE_WIDE, text))


def crop_front(text: str, width: int) -> str:
    """The end of ``text`` in at most ``width`` cells."""
    if cells(text) <= width:
        return text
    return "…" + _fitting(text[::-1], width - 1)[::-1] if width > 0 else ""


def crop(name: str, width: int) -> str:
    """``name`` in at most ``width`` cells, the most telling part kept.

    Arguments and template arguments go first, then the scopes in front, then the end of the bare name.
    """
    if cells(name) <= width:
        return name
    name = shortened(name, _CROPPED_FROM)
    bare = _without_arguments(name)
    if cells(bare) <= width:
        return bare
    last = bare.rpartition("::")[2] or bare
    if "::" in bare and cells(last) < width:
        return "…" + _fitting(bare[::-1], width - 1)[::-1].lstrip(":")
    return _fitting(last, width - 1) + "…" if width > 0 else ""


def _without_arguments(name: str) -> str:
    bare = re.sub(_ARGUMENTS, "", name)
    while (inner := re.sub(_TEMPLATE, "", bare)) != bare:
        bare = inner
    return bare or name


def _fitting(text: str, width: int) -> str:
    while cells(text[:width]) > width:
        text = text[: width - 1] if len(text) >= width else text[:-1]
    return text[: max(width, 0)]
