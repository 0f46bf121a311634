"""Padding between functions, near one of them: what no thread ever runs."""

from __future__ import annotations

from collections.abc import Iterable

from .got import Read
from .heap_layout import JUMP
from .prologue import NotMovable, decode

_LONGEST = 1 << 16
_PREFIXES = b"\x66\x2e"
_ENDS = (b"\xc3", b"\xc2", b"\xe9", b"\xeb", b"\x0f\x0b", b"\xf3\xc3", b"\xf4")
"""What a function's last instruction begins with, that nothing behind it is run after."""


def padding_near(address: int, functions: Iterable[tuple[int, int]], read: Read) -> list[int]:
    """Where a jump of JUMP bytes may be put that one of two bytes at ``address`` leads to.

    ``functions``: where all of them begin and end, by begin.  Between two of them there must be nothing
    but instructions that do nothing, and the first of the two must be seen to end by a jump or a return:
    read from its begin, so that no byte is taken for one.
    """
    out = []
    low, high = 0, 0
    for begin, end in functions:
        fits = high and begin - high >= JUMP and -128 <= high - address - 2 < 128
        if fits and _is_padding(read(high, begin - high)) and _ends_for_good(read(low, high - low)):
            out.append(high)
        if end > high:
            low, high = begin, end
    return out


def _is_padding(code: bytes) -> bool:
    return len(code) < _LONGEST and all(_does_nothing(one) for one in _instructions(code))


def _does_nothing(code: bytes) -> bool:
    return code.lstrip(_PREFIXES)[:2] in (b"\x90", b"\x0f\x1f") or code == b"\xcc"


def _ends_for_good(code: bytes) -> bool:
    if not code or len(code) >= _LONGEST:
        return False
    return _instructions(code)[-1].startswith(_ENDS)


def _instructions(code: bytes) -> list[bytes]:
    """All of ``code``; [b""] where it does not end with one of them."""
    out, at = [], 0
    while at < len(code):
        try:
            out.append(decode(code[at:]).code)
        except NotMovable:
            return [b""]
        at += len(out[-1])
    return out
