"""Debug files that lie apart from the file that runs: by build id, by ``.gnu_debuglink``, or packed inside
it.

The names are those of gdb (Debugging with GDB, "Debugging Information in Separate Files") and of
MiniDebugInfo (``.gnu_debugdata``).  A file counts only if its build id, or its check sum, is the one that is
asked for."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator

from ..errors import MalformedInput
from .elf import ElfImage
from .files import PathOpener
from .summing import Summing

_DEBUG = "/usr/lib/debug"
_MOST_LINK = 4096  # bytes of the section
_MOST_PACKED, _MOST_UNPACKED = 32 << 20, 128 << 20  # bytes
_LZMA_MEMORY = 128 << 20  # bytes: xz -9 needs 65 MB


def embedded_debug(image: ElfImage) -> ElfImage | None:
    """What ``.gnu_debugdata`` holds: an ELF file with the functions that were stripped (Fedora, some
    Android). Raises MalformedInput."""
    found = image.section_content(b".gnu_debugdata", _MOST_PACKED)
    if found is None:
        return None
    import lzma  # late: few files have it

    try:
        unpacker = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_LZMA_MEMORY)
        data = unpacker.decompress(found[1], _MOST_UNPACKED)
    except (lzma.LZMAError, MemoryError) as error:
        raise MalformedInput(f"{image.path}: its .gnu_debugdata can't be unpacked: {error}") from error
    return ElfImage(data, f"{image.path} (.gnu_debugdata)")


def separate_debug(
    image: ElfImage, path: str, openers: list[PathOpener], summing: Summing
) -> ElfImage | None:
    """The debug file of ``image``, which is mapped from ``path``; None where none is found.  Raises
    MalformedInput for one that is broken."""
    link = _debug_link(image)
    for wanted, crc in _candidates(image, path, link):
        for open_path in openers:
            found = _opened(image, wanted, crc, open_path, summing)
            if found is not None:
                return found
    return None


def _candidates(image: ElfImage, path: str, link: tuple[str, int] | None) -> Iterator[tuple[str, int | None]]:
    """Paths, with the check sum to insist on where there is no build id to compare."""
    if image.build_id and len(image.build_id) > 1:
        name = image.build_id.hex()
        yield f"{_DEBUG}/.build-id/{name[:2]}/{name[2:]}.debug", None
    if link is not None:
        name, crc = link
        folder = posixpath.dirname(path)
        for place in (folder, f"{folder}/.debug", f"{_DEBUG}{folder}", f"{_DEBUG}/.dwz"):
            wanted = posixpath.join(place, name)
            if wanted != path:
                yield wanted, crc


def _debug_link(image: ElfImage) -> tuple[str, int] | None:
    """Name and CRC-32: a name with its null byte, filled up to four bytes, then the sum."""
    found = image.section_content(b".gnu_debuglink", _MOST_LINK)
    if found is None:
        return None
    name, _, _ = found[1].partition(b"\0")
    at = (len(name) + 4) // 4 * 4
    text = name.decode("utf-8", "surrogateescape")
    if not text or "/" in text or at + 4 > len(found[1]):
        return None
    order = "little" if image.endian == "<" else "big"
    return text, int.from_bytes(found[1][at : at + 4], order)  # type: ignore[arg-type]


def _opened(
    image: ElfImage, path: str, crc: int | None, open_path: PathOpener, summing: Summing
) -> ElfImage | None:
    stream = open_path(path)
    if stream is None:
        return None
    try:
        debug = ElfImage(stream, path)
    except MalformedInput:
        return None
    same = (
        debug.build_id == image.build_id if image.build_id else crc is not None and summing.crc_is(debug, crc)
    )
    if same and (debug.machine, debug.bits) == (image.machine, image.bits):
        return debug
    debug.close()
    return None
