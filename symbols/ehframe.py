"""Call frame information: where a file's search table lies, or one made for it.

The table (``.eh_frame_hdr``: Linux Standard Base core, 10.6.2) is what the stub searches.  Static glibc
executables have ``.eh_frame`` but no table; for those the FDEs are listed here, by the same format.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from ..errors import MalformedInput
from .elf import ElfImage

LIMIT_BYTES = 64 << 20
_MOST_AUGMENTATION, _MOST_LEB = 64, 10  # bytes; unbounded, each of a million CIEs could take all the rest
_SEARCHABLE = 0x3B  # DW_EH_PE_datarel | DW_EH_PE_sdata4, the only one that can be searched in place


class SearchTable(NamedTuple):
    """``.eh_frame_hdr`` in the file: address before relocation, and bytes."""

    vaddr: int
    size: int


def search_table(image: ElfImage, read: bytes) -> SearchTable | None:
    """The file's own table, if it has one that can be searched.  ``read``: its first four bytes."""
    header = image.eh_frame_hdr
    if header is None or len(read) < 4 or read[0] != 1 or read[3] != _SEARCHABLE:
        return None
    return SearchTable(header.vaddr, header.memory_size)


_FIXED = {
    0x02: ("<H", 2),
    0x03: ("<I", 4),
    0x04: ("<Q", 8),
    0x0A: ("<h", 2),
    0x0B: ("<i", 4),
    0x0C: ("<q", 8),
}
_FIXED[0x00] = _FIXED[0x04]


def list_fdes(image: ElfImage) -> list[tuple[int, int]]:
    """(start of code, address of its FDE), before relocation, sorted; empty without ``.eh_frame``.

    Entries in encodings that a linker does not write are left out.  Raises MalformedInput.
    """
    found = image.section_content(b".eh_frame", LIMIT_BYTES)
    if found is None:
        return []
    try:
        return sorted(_walk(*found))
    except (struct.error, IndexError, ValueError) as error:
        raise MalformedInput(f"{image.path}: malformed .eh_frame: {error}") from error


def _walk(vaddr: int, data: bytes) -> list[tuple[int, int]]:
    out: list[tuple[int, int]] = []
    encodings: dict[int, int | None] = {}
    at = 0
    while at + 4 <= len(data):
        content, end, width = _extent(data, at)
        if end == content:  # the terminator; the linker may put more behind it
            at = content
            continue
        if end > len(data):
            break
        (pointer,) = struct.unpack_from("<I" if width == 4 else "<Q", data, content)
        if pointer:
            cie = content - pointer
            if cie not in encodings:
                encodings[cie] = _pointer_encoding(data, cie) if 0 <= cie < len(data) else None
            start = _pointer(data, content + width, vaddr, encodings[cie])
            if start is not None:
                out.append((start, vaddr + at))
        at = end
    return out


def _extent(data: bytes, at: int) -> tuple[int, int, int]:
    """Where an entry's content begins and ends, and the width of its offsets."""
    (length,) = struct.unpack_from("<I", data, at)
    if length == 0xFFFFFFFF:
        (length,) = struct.unpack_from("<Q", data, at + 4)
        return at + 12, at + 12 + length, 8
    return at + 4, at + 4 + length, 4


def _skip_leb(data: bytes, at: int) -> int:
    for end in range(at, at + _MOST_LEB):
        if data[end] < 0x80:
            return end + 1
    raise ValueError("a number without an end")


def _pointer_encoding(data: bytes, cie: int) -> int | None:
    """The encoding of code addresses in the FDEs of that CIE; None when it can't be told."""
    content, _end, width = _extent(data, cie)
    at = content + width
    version = data[at]
    stop = data.index(b"\0", at + 1, at + 1 + _MOST_AUGMENTATION)
    augmentation = data[at + 1 : stop]
    at = stop + 1 + (2 if version == 4 else 0)
    at = _skip_leb(data, _skip_leb(data, at))  # code and data alignment
    at = at + 1 if version == 1 else _skip_leb(data, at)  # return register
    if not augmentation.startswith(b"z"):
        return None if augmentation else 0
    at = _skip_leb(data, at)
    for letter in augmentation[1:]:
        if letter == ord("R"):
            return data[at]
        if letter == ord("L"):
            at += 1
        elif letter == ord("P"):
            fixed = _FIXED.get(data[at] & 0x0F)
            if fixed is None:
                return None
            at += 1 + fixed[1]
    return 0


def _pointer(data: bytes, at: int, vaddr: int, encoding: int | None) -> int | None:
    fixed = None if encoding is None else _FIXED.get(encoding & 0x0F)
    if encoding is None or fixed is None:
        return None
    (value,) = struct.unpack_from(fixed[0], data, at)
    base = {0x00: 0, 0x10: vaddr + at}.get(encoding & 0xF0)
    return None if base is None else (value + base) & 0xFFFF_FFFF_FFFF_FFFF
