"""Text of the target made harmless: no control characters, no marks that reorder what stands beside them."""

from __future__ import annotations

import re

LONGEST_NAME = 1000  # characters
_LONGEST_WARNING = 500

# Controls, line and paragraph separators, marks that reorder text, and what can't be encoded.  Compiled when
# it is first used, as that takes its time: ``re`` keeps it.
_UNSHOWABLE = "[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"


def clean(name: str) -> str:
    """``name``, not too long, with a replacement character for each that can't be shown."""
    return re.sub(_UNSHOWABLE, "\ufffd", name[:LONGEST_NAME])


def escaped(text: str) -> str:
    """A warning, not too long, with such characters as numbers."""
    return re.sub(_UNSHOWABLE, lambda match: f"\\u{ord(match[0]):04x}", text)[:_LONGEST_WARNING]
