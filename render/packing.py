"""A profile's document as it is stored in a picture: the same, with its long columns as text.

A column of small whole numbers becomes a string, each number a character: as UTF-8 a small one is one byte,
so that gzip finds more in it than in digits and commas.  Of the nodes, ``frame`` holds ranks instead of
indices, the most frequent first, and ``order`` the index for each rank; ``rest`` holds the counts alone, in
the order of the nodes that are -1.  A column with a number too large for a character stays a list.
"""

from __future__ import annotations

import base64
import collections
import json
import re
import zlib
from collections.abc import Iterable
from typing import Any

_FIRST = 36  # of 0: what is before it stands for -1 and needs no escape in JSON
_SURROGATES, _SURROGATES_END = 0xD800, 0xE000
_LONE = re.compile("[\ud800-\udfff]")
_REST = -1
_GZIP = 31  # window bits that ask for gzip's header; without a time


def packed(document: dict[str, Any]) -> dict[str, Any]:
    """``document`` with its columns packed."""
    nodes, samples = document["nodes"], document["samples"]
    order = [frame for frame, _ in collections.Counter(nodes["frame"]).most_common()]
    rank_of = {frame: rank for rank, frame in enumerate(order)}
    ranks = [rank_of[frame] for frame in nodes["frame"]]
    return {
        **document,
        "nodes": {"order": _text(order), "frame": _text(ranks), "up": _text(nodes["up"])},
        "samples": {name: _text(column) for name, column in samples.items()},
        "rest": _text(document["rest"].values()),
    }


def unpacked(document: dict[str, Any]) -> dict[str, Any]:
    """``document`` as it was before ``packed``, or as it is where it is not packed."""
    nodes, rest = document["nodes"], document["rest"]
    if "order" not in nodes:
        return document
    order = _numbers(nodes["order"])
    frames = [order[rank] for rank in _numbers(nodes["frame"])]
    blocks = (node for node, frame in enumerate(frames) if frame == _REST)
    return {
        **document,
        "nodes": {"frame": frames, "up": _numbers(nodes["up"])},
        "samples": {name: _numbers(column) for name, column in document["samples"].items()},
        "rest": {str(node): count for node, count in zip(blocks, _numbers(rest), strict=True)},
    }


def gzip_base64(data: bytes) -> str:
    """``data`` in letters and digits; the same data makes the same text."""
    # Z_FILTERED leaves out the shortest matches: in columns they cost more than the bytes themselves.
    forms = (_gzip(data, strategy) for strategy in (zlib.Z_DEFAULT_STRATEGY, zlib.Z_FILTERED))
    return base64.b64encode(min(forms, key=len)).decode()


def _gzip(data: bytes, strategy: int) -> bytes:
    packer = zlib.compressobj(7, zlib.DEFLATED, _GZIP, zlib.DEF_MEM_LEVEL, strategy)
    return packer.compress(data) + packer.flush()


def json_bytes(value: object) -> bytes:
    """JSON without blanks, in UTF-8; lone surrogates, which that can't hold, are escaped."""
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=False)
    return _LONE.sub(lambda found: f"\\u{ord(found[0]):04x}", text).encode()


def _text(column: Iterable[int]) -> str | list[int]:
    values = list(column)
    last = 0x10FFFF - _FIRST - (_SURROGATES_END - _SURROGATES)
    if values and (min(values) < -1 or max(values) > last):
        return values
    return "".join(map(_character, values))


def _character(value: int) -> str:
    code = value + _FIRST
    return chr(code if code < _SURROGATES else code + _SURROGATES_END - _SURROGATES)


def _numbers(column: str | list[int]) -> list[int]:
    if not isinstance(column, str):
        return column
    gap = _SURROGATES_END - _SURROGATES
    return [code - _FIRST - (gap if code >= _SURROGATES_END else 0) for code in map(ord, column)]
