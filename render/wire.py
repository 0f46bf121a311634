"""The wire format of protocol buffers, as far as pprof's profiles need it.

https://protobuf.dev/programming-guides/encoding/ : a message is fields; a field is a varint of its number
and wire type, then a varint (0), eight bytes (1), a length and bytes (2), or four bytes (5).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from ..errors import MalformedInput

_VARINT, _EIGHT, _BYTES, _FOUR = 0, 1, 2, 5
_MASK = (1 << 64) - 1


def varint(value: int) -> bytes:
    """``value`` (64 bits, a negative one in two's complement) seven bits at a time, least first."""
    value &= _MASK
    if value < 0x80:
        return bytes((value,))
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def number(field: int, value: int) -> bytes:
    """A field that holds an integer; nothing for 0, which is what a reader takes for one that is missing."""
    return varint(field << 3 | _VARINT) + varint(value) if value else b""


def chunk(field: int, data: bytes) -> bytes:
    """A field that holds a string or a message."""
    return varint(field << 3 | _BYTES) + varint(len(data)) + data


def packed(field: int, values: Iterable[int]) -> bytes:
    """A repeated field of integers."""
    return chunk(field, b"".join(map(varint, values)))


def fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Number and value of each field of a message.  Raises MalformedInput."""
    at = 0
    while at < len(data):
        key, at = _varint_at(data, at)
        kind = key & 7
        if kind == _VARINT:
            value, at = _varint_at(data, at)
            yield key >> 3, value
            continue
        if kind == _BYTES:
            size, at = _varint_at(data, at)
        elif kind in (_EIGHT, _FOUR):
            size = 8 if kind == _EIGHT else 4
        else:
            raise MalformedInput(f"a field of wire type {kind}")
        if size > len(data) - at:
            raise MalformedInput("a field that is longer than its message")
        yield key >> 3, data[at : at + size]
        at += size


def integers(value: int | bytes) -> Iterator[int]:
    """The values of a repeated field of integers, packed or one by one."""
    if isinstance(value, int):
        yield value
        return
    at = 0
    while at < len(value):
        one, at = _varint_at(value, at)
        yield one


def signed(value: int) -> int:
    """An int64 from its 64 bits."""
    return value - (1 << 64) if value >> 63 else value


def _varint_at(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if at >= len(data) or shift > 63:
            raise MalformedInput("a number without an end")
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & _MASK, at
        shift += 7
