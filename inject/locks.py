"""Where code lies that holds the loader's or an allocator's locks, and how to call the loader.

dlopen takes both.  A thread that holds one of them and is made to call dlopen waits for itself for ever.
"""

from __future__ import annotations

import array
import re
from collections.abc import Callable, Iterable
from typing import BinaryIO, NamedTuple

from ..errors import MalformedInput
from ..symbols.elf import ElfImage, load_bias
from ..symbols.maps import Mapping, Maps

Range = tuple[int, int]

_LOADER = re.compile(r"/(ld-linux[^/]*|ld-musl[^/]*|ld-[0-9.]+\.so|ld\.so[^/]*)$")
_LIBC = re.compile(r"/(libc\.so\.6|libc-[0-9.]+\.so)$")
_C_LIBRARY = re.compile(r"/(libc|libdl|ld-musl)[^/]*$")
_WHOLE = re.compile(r"/(libdl[.-]|libjemalloc|libtcmalloc|libmimalloc|libasan|libtsan|libefence)")
_HOLDS_LOCKS = re.compile(
    rb"^(malloc|calloc|realloc|free|cfree|memalign|aligned_alloc|valloc|pvalloc|posix_memalign|reallocarray"
    rb"|malloc_.*|mallinfo2?|mallopt|__libc_(malloc|calloc|realloc|free|memalign|valloc|pvalloc|mallopt|fork)"
    rb"|__libc_freeres|__malloc_.*|__libc_dl.*|dl[a-z_].*|_dl_.*|fork|_Fork|__fork|vfork)$"
)
_SIGRETURN = bytes.fromhex("48c7c00f0000000f05")  # mov $15, %rax; syscall: __restore_rt

LIMIT_BYTES = 256 * 1024
_MOST_CODE = 64 << 20
"""Bytes of a C library's code; the largest there are have 2 MB.  A file's name promises nothing."""


def _blocks(image: ElfImage, bias: int, end: int) -> list[Range]:
    """From the end of the exported function before a named one to the start of the next one behind it:
    what lies between, static functions of the same source file, may hold the lock too."""
    ends, marked = image.exported_ranges(_HOLDS_LOCKS.match)
    starts = sorted(ends)
    out: list[Range] = []
    for index, value in enumerate(starts):
        if value in marked:
            low = min(ends[starts[index - 1]], value) if index else value
            # A symbol may stand inside the function: the next one behind it counts.
            high = next((start for start in starts[index + 1 :] if start >= ends[value]), end - bias)
            out.append((low + bias, high + bias))
    return out


def _merge(ranges: Iterable[Range]) -> list[Range]:
    out: list[Range] = []
    for low, high in sorted(ranges):
        if out and low <= out[-1][1]:
            out[-1] = (out[-1][0], max(high, out[-1][1]))
        else:
            out.append((low, high))
    return out


class LockZones(NamedTuple):
    """Address ranges a thread must not be in when it calls dlopen; sorted, disjoint."""

    ranges: list[Range]

    def holds(self, stack: bytes, ip: int) -> int | None:
        """The first word of ``stack`` (or ``ip``) that lies in a zone, or None when there is none."""
        words = array.array("Q")
        words.frombytes(stack[: len(stack) // 8 * 8])
        if not self.ranges:
            return None
        low, high = self.ranges[0][0], self.ranges[-1][1]
        for word in [ip, *[w for w in words if low <= w < high]]:
            if any(start <= word < end for start, end in self.ranges):
                return word
        return None

    def on_stack(self, frames: Iterable[int]) -> int | None:
        """The first of a walked stack's frames that lies in a zone, or None.  The first frame is an
        instruction pointer, the others are return addresses: the call stands before them."""
        for number, frame in enumerate(frames):
            address = frame - (number > 0)
            if any(start <= address < end for start, end in self.ranges):
                return frame
        return None


class LoaderCalls(NamedTuple):
    """Addresses in the target: dlopen, dlclose, __errno_location (0 where unknown), and dlopen's flags."""

    dlopen: int
    dlclose: int
    errno_location: int
    flags: int


def survey(
    maps: Maps, opener: Callable[[Mapping], BinaryIO | None], read: Callable[[int, int], bytes]
) -> tuple[LockZones, LoaderCalls | None]:
    """Look over the executable mappings: where locks may be held, and how to call the loader.

    No LoaderCalls means: no dynamic loader that we know how to call (static executables, for one).
    """
    zones: list[Range] = []
    found: dict[str, int] = {}
    for mapping in maps.executable():
        if _LOADER.search(mapping.file_path) or _WHOLE.search(mapping.file_path):
            zones.append((mapping.start, mapping.end))
        if not mapping.is_file:
            continue
        file = opener(mapping)
        if file is None:
            continue
        try:
            with ElfImage(file, mapping.path) as image:
                if not _C_LIBRARY.search(mapping.file_path):
                    if _has_an_allocator(image):
                        zones.append((mapping.start, mapping.end))
                    continue
                bias = load_bias(mapping, image)
                _note_calls(image, bias, found)
                if _LIBC.search(mapping.file_path):
                    zones += _blocks(image, bias, mapping.end)
                    zones += _signal_returns(mapping, read)
        except MalformedInput:  # without its symbols nothing in it can be shown to be safe
            zones.append((mapping.start, mapping.end))
    return LockZones(_merge(zones)), _loader_calls(found)


def _has_an_allocator(image: ElfImage) -> bool:
    """Whether this file, which is not the C library, has a malloc that others call: jemalloc, tcmalloc and
    their like under any name, or in the executable.  Where its parts lie nobody says: all of it counts."""
    symbol = image.dynamic_symbol(b"malloc")
    return symbol is not None and bool(symbol.value)


def _signal_returns(mapping: Mapping, read: Callable[[int, int], bytes]) -> list[Range]:
    if mapping.end - mapping.start > _MOST_CODE:
        return [(mapping.start, mapping.end)]
    code = read(mapping.start, mapping.end - mapping.start)
    at = code.find(_SIGRETURN)
    return [(mapping.start + at, mapping.start + at + len(_SIGRETURN))] if at >= 0 else []


def _note_calls(image: ElfImage, bias: int, found: dict[str, int]) -> None:
    for name in ("dlopen", "dlclose", "__errno_location", "__libc_dlopen_mode", "__libc_dlclose"):
        symbol = image.dynamic_symbol(name.encode())
        if symbol is not None and symbol.value:
            found.setdefault(name, symbol.value + bias)


def _loader_calls(found: dict[str, int]) -> LoaderCalls | None:
    errno_at = found.get("__errno_location", 0)
    if "dlopen" in found and "dlclose" in found:
        return LoaderCalls(found["dlopen"], found["dlclose"], errno_at, 2)  # RTLD_NOW
    if "__libc_dlopen_mode" in found and "__libc_dlclose" in found:
        # glibc before 2.34 without libdl; __RTLD_DLOPEN marks the call as dlopen's own.
        return LoaderCalls(found["__libc_dlopen_mode"], found["__libc_dlclose"], errno_at, 0x80000002)
    return None
