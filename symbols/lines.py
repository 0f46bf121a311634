"""Lines and inlined calls, from DWARF 2 to 5, for the addresses that were seen.

By the package ``symbolic``, which is optional (75 MB): per second it finds 45,000 addresses with their
inlined calls, llvm-symbolizer 7,500, addr2line 5,200, eu-addr2line 450, and pyelftools not one file of 100
MB.  It makes an index of the whole file first, which is kept in the cache.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from .cache import Cache
from .elf import ElfImage

_MOST_REPLY = 512 << 20  # bytes
_MOST_INLINED = 200
_ADDRESS_LIMIT = 2**64
_ABBREVIATIONS_LOOKED_AT = 1 << 20  # bytes
_DW_AT_DWO_NAME, _DW_AT_GNU_DWO_NAME, _DW_FORM_IMPLICIT_CONST = 0x76, 0x2130, 0x21

MISSING = "pip install 'pyattach[lines]'"
"""What to do where ``available`` says no."""


@dataclasses.dataclass(frozen=True, slots=True)
class InlinedCall:
    """A function that is part of another one's code there, and where in the source it is at."""

    function: str
    path: str
    line: int


@dataclasses.dataclass(frozen=True, slots=True)
class Line:
    """Where in the source an address is: of the function itself (0 and "" where that is not known), then of
    those inlined there, the outermost first.  All of it comes from the file and is untrusted."""

    function: str = ""
    path: str = ""
    line: int = 0
    inlined: tuple[InlinedCall, ...] = ()


FileLines = Sequence[Line]


def available() -> bool:
    """Whether the package that reads lines is installed."""
    return importlib.util.find_spec("symbolic") is not None


def missing_parts(image: ElfImage) -> str:
    """Why lines or inlined calls of ``image`` are not all there, in words; "" if they are.  Raises
    MalformedInput."""
    if image.has_section(b".gnu_debugaltlink"):
        return "a part of its debug information is in dwz's alternate file, which is not read"
    if not image.has_section(b".debug_info"):
        return ""
    if _is_split(image):
        return (
            "its debug information was split off (-gsplit-dwarf), inlined calls and their names are missing"
        )
    return ""


def _is_split(image: ElfImage) -> bool:
    """Whether the compilation units are skeletons of what is in files of their own."""
    found = image.section_content(b".debug_abbrev", 64 << 20)
    return found is not None and any(
        a in (_DW_AT_DWO_NAME, _DW_AT_GNU_DWO_NAME) for a in _attributes(found[1])
    )


def _attributes(data: bytes) -> Iterator[int]:
    """The attributes in ``.debug_abbrev`` (DWARF 5, 7.5.3): of the first ones, where a compilation unit's
    are."""
    data, at = data[:_ABBREVIATIONS_LOOKED_AT], 0

    def number() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = data[at]
            at += 1
            if shift < 64:  # of a longer one, only where it ends is of interest
                value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    with contextlib.suppress(IndexError):
        while at < len(data):
            if not number():
                continue  # the end of a unit's table
            number()
            at += 1
            while True:
                attribute, form = number(), number()
                if form == _DW_FORM_IMPLICIT_CONST:
                    number()
                if not attribute and not form:
                    break
                yield attribute


class LineReader:
    """Asks the helper process, file by file; ``deadline`` (time.monotonic()) is for all of them."""

    def __init__(self, cache: Cache | None, deadline: float, *, inlines: bool = True) -> None:
        self._cache, self._deadline, self._inlines = cache, deadline, inlines
        self.error = ""
        """Why the last ``read`` gave nothing."""

    def read(self, image: ElfImage, vaddrs: Sequence[int]) -> FileLines | None:
        """The lines of addresses before relocation; None, with ``error``, where they can't be had."""
        try:
            request = LineRequest(image, vaddrs, self._cache, inlines=self._inlines)
        except OSError as error:
            self.error = f"its line numbers can't be read ({error.strerror or error})"
            return None
        with request:
            lines = request.result(max(0.0, self._deadline - time.monotonic()))
            self.error = request.error
            return lines


class LineRequest:
    """The lines of addresses (before relocation) of one file, asked for; nothing here waits for the answer
    but ``result``.  Use with ``with``: the helper does not outlive it.  Raises OSError."""

    def __init__(
        self, image: ElfImage, vaddrs: Sequence[int], cache: Cache | None, *, inlines: bool = True
    ) -> None:
        self._count, self._cache, self._inlines = len(vaddrs), cache, inlines
        self.error = ""
        """Why there is no result."""
        self._key = _cache_key(image) if cache is not None else ""
        with contextlib.ExitStack() as undo:
            self._index, self._reply, asked = (
                undo.enter_context(open(os.memfd_create(name), "r+b"))
                for name in ("index", "reply", "request")
            )
            kept = cache.get(self._key) if cache is not None and self._key else None
            self._index.write(kept or b"")
            self._index.flush()
            self._is_kept = kept is not None
            self._process = self._start(image, vaddrs, asked)
            asked.close()
            undo.callback(self._process.wait)
            undo.callback(self._process.kill)
            self._undo = undo.pop_all()

    def _start(self, image: ElfImage, vaddrs: Sequence[int], asked: BinaryIO) -> subprocess.Popen[bytes]:
        base = image.segments[0].vaddr if image.segments else 0
        addresses = [vaddr - base if 0 <= vaddr - base < _ADDRESS_LIMIT else 0 for vaddr in vaddrs]
        try:
            file = image.stream.fileno()
        except OSError:  # unpacked, or from memory
            raise OSError("they are not in a file") from None
        index = self._index.fileno()
        request = {"fd": file, "index": index, "addresses": addresses}
        asked.write(json.dumps(request).encode() + b"\n")
        asked.seek(0)
        return subprocess.Popen(
            [sys.executable, "-I", str(Path(__file__).with_name("lines_helper.py"))],
            stdin=asked,
            stdout=self._reply,
            stderr=subprocess.DEVNULL,
            pass_fds=(file, index),
            start_new_session=True,  # the user's ^C is not for it
        )

    def __enter__(self) -> LineRequest:
        return self

    def __exit__(self, *_exc: object) -> None:
        self._undo.close()

    def done(self) -> bool:
        """Whether the answer is there, or will never be."""
        return self._process.poll() is not None

    def result(self, timeout_s: float) -> FileLines | None:
        """The lines in the order of the addresses; None, with ``error``, where they can't be had."""
        self.error = "its line numbers can't be read"
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.error = "reading its line numbers took too long"
            return None
        size = os.fstat(self._reply.fileno()).st_size
        try:
            self._reply.seek(0)
            reply = json.loads(self._reply.read(_MOST_REPLY)) if size <= _MOST_REPLY else None
            if isinstance(reply, dict):
                self.error = f"its line numbers can't be read ({reply.get('error')})"
            if not isinstance(reply, list) or len(reply) != self._count:
                return None
            lines = [self._line(found) for found in reply]
        except (TypeError, ValueError, KeyError, IndexError):
            return None
        if not self._is_kept and self._cache is not None and self._key:
            self._index.seek(0)
            self._cache.put(self._key, self._index.read())
        self.error = ""
        return lines

    def _line(self, found: list[list[str | int]]) -> Line:
        if not found:
            return Line()
        calls = [InlinedCall(str(f), str(p), int(n)) for f, p, n in found[: _MOST_INLINED + 1]]
        *inlined, whole = calls
        shown = tuple(reversed(inlined)) if self._inlines else ()
        return Line(whole.function, whole.path, whole.line, shown)


def _cache_key(image: ElfImage) -> str:
    if image.build_id is None:
        return ""
    import hashlib  # late: it brings OpenSSL with it
    from importlib.metadata import version

    what = repr((version("symbolic"), image.build_id, image.sections)).encode()  # its indices are its own

    return f"lines-{hashlib.sha256(what).hexdigest()}"
