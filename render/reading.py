"""Profiles read back from files: pictures, JSON and folded stacks of our own and of others, pprof."""

from __future__ import annotations

import base64
import binascii
import io
import json
import re
import zlib
from pathlib import Path

from ..errors import MalformedInput, PyattachError
from ..symbols.frame import Frame
from .document import profile_of
from .folded import NO_STACK
from .kinds import kind_of
from .pprof import read_pprof
from .profile import Meta, Profile, Stack, Thread, uncollected
from .weights import StackWeights

MOST_BYTES = 2 << 30
"""Of a file once unpacked: a small one may hold anything."""

_MOST_DIGITS = 18  # of the ticks of a folded stack: 64 bits

_STORED = re.compile(rb'<metadata id="profile">([A-Za-z0-9+/=\s]*)</metadata>')


def read_profile(path: str | Path) -> Profile:
    """The profile in a file; what it is, is told by its content.  Raises PyattachError (it can't be read)
    and MalformedInput (it holds no profile), both with the path."""
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise PyattachError(f"cannot read {path}: {error.strerror or error}") from error
    try:
        with uncollected():
            return profile_from(data)
    except MalformedInput as error:
        raise MalformedInput(f"{path}: {error.what}", error.way_out) from error


def profile_from(data: bytes) -> Profile:
    """The profile in a file's content.  Raises MalformedInput."""
    if data[:2] == b"\x1f\x8b":
        data = unpacked(data)
    start = data[:512].lstrip(b"\xef\xbb\xbf \t\r\n")
    if start.startswith((b"<?xml", b"<svg", b"<!DOCTYPE svg")):
        return _from_svg(data)
    if start.startswith(b"{"):
        return profile_of(_json(data))
    if not start or _is_text(data[:4096]):
        return _from_folded(data)
    return read_pprof(data)


def unpacked(data: bytes) -> bytes:
    """What gzip has packed, MOST_BYTES at most.  Raises MalformedInput."""
    out, rest = [], data
    left = MOST_BYTES
    while rest:
        inflate = zlib.decompressobj(wbits=31)
        try:
            out.append(inflate.decompress(rest, left))
        except zlib.error as error:
            raise MalformedInput(f"damaged: {error}") from error
        left -= len(out[-1])
        if inflate.unconsumed_tail or left <= 0:
            raise MalformedInput("it is too large")
        if not inflate.eof:
            raise MalformedInput("damaged: the end is missing")
        rest = inflate.unused_data
    return b"".join(out)


def _is_text(start: bytes) -> bool:
    return not re.search(rb"[\x00-\x08\x0e-\x1f]", start)


def _from_svg(data: bytes) -> Profile:
    # Looked for as text: what would be an XML parser's work is anybody's file.
    found = _STORED.search(data)
    if not found:
        raise MalformedInput("no profile is stored in this picture", "pictures of pyattach hold one")
    try:
        packed = base64.b64decode(found[1])
    except binascii.Error as error:
        raise MalformedInput(f"damaged: {error}") from error
    document = _json(unpacked(packed))
    return profile_of(document.get("profile") if isinstance(document, dict) else None)


def _json(data: bytes) -> object:
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise MalformedInput(f"damaged: {error}") from error


class _Frames(dict[bytes, Frame]):
    """A frame for each name, made when it is first asked for."""

    def __missing__(self, name: bytes) -> Frame:
        text = name.decode("utf-8", "replace")
        self[name] = frame = Frame(text, "", kind_of(text))
        return frame


def _from_folded(data: bytes) -> Profile:
    """Any folded stacks; blank lines and comments (#) are left out."""
    frame_of = _Frames().__getitem__
    stacks: dict[bytes, int] = {}
    for count, line in enumerate(io.BytesIO(data), 1):
        if line.startswith(b"# "):
            continue
        stack, _, ticks = line.rstrip().rpartition(b" ")
        if stack and ticks.isdigit() and len(ticks) <= _MOST_DIGITS:
            stacks[stack] = stacks.get(stack, 0) + int(ticks)
        elif line.strip() and not line.startswith(b"#"):
            shown = line[:80].decode("utf-8", "replace").rstrip()
            raise MalformedInput(f"line {count} is no folded stack: {shown!r}")
    nothing = NO_STACK.encode()
    stacks = {stack: ticks for stack, ticks in stacks.items() if ticks}
    keys: list[tuple[int, Stack]] = [
        (0, () if stack == nothing else tuple(map(frame_of, stack.split(b";")))) for stack in stacks
    ]
    weights = StackWeights(keys, list(stacks.values()))
    return Profile(Meta(mode="", samples=sum(weights.values())), {0: Thread(0, "")}, weights)
