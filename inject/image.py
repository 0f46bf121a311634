"""The stub's image, as it lies in the package, checked against the layout this code knows."""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path
from typing import NamedTuple

from ..errors import PyattachError
from ..symbols.elf import ElfImage
from .layout import (
    BOOT_DATA_SIZE,
    LOADER_SIZE,
    MAGIC,
    PRELOAD_REGION,
    VERSION,
    Abi,
    Control,
    RecordHead,
    Slot,
)

_HERE = Path(__file__).parent
_PAGE = 4096


class Segment(NamedTuple):
    """A PT_LOAD of the stub: offsets and sizes in bytes, ``prot`` as for mmap."""

    offset: int
    vaddr: int
    file_bytes: int
    memory_bytes: int
    prot: int


class StubImage(NamedTuple):
    """``_stub.so``: its bytes, segments, and where its entry points lie (offsets from its base)."""

    data: bytes
    segments: tuple[Segment, ...]
    entries: dict[str, int]

    @property
    def span(self) -> int:
        """Bytes of address space from the first segment's start to the last one's end, whole pages."""
        end = max(s.vaddr + s.memory_bytes for s in self.segments)
        return (end + _PAGE - 1) // _PAGE * _PAGE

    @property
    def text(self) -> tuple[int, int]:
        """Start and end of the executable segment, from the base, whole pages."""
        text = self._executable
        return text.vaddr // _PAGE * _PAGE, -(-(text.vaddr + text.memory_bytes) // _PAGE) * _PAGE

    @property
    def _executable(self) -> Segment:
        return next(s for s in self.segments if s.prot & 4)

    @property
    def code(self) -> tuple[int, bytes]:
        """The executable segment as it is in memory: where it begins, from the base, and its bytes."""
        text = self._executable
        return text.vaddr, self.data[text.offset : text.offset + text.file_bytes]


def preload_path() -> Path:
    """The library for LD_PRELOAD, with which a program samples itself."""
    return (_HERE / "_preload.so").resolve()


def _artifact(name: str) -> bytes:
    path = _HERE / name
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise PyattachError(
            f"pyattach is not built: {path} is missing",
            "install it (pip install .), or in a checkout: python inject/build_stub.py",
        ) from error
    except OSError as error:
        raise PyattachError(
            f"a file of pyattach's own can't be read: {path}: {error.strerror}",
            "install it where the user who runs it may read it",
        ) from error


def _fitting(name: str, room: int) -> bytes:
    """The file; there must be no more of it than there is room for."""
    data = _artifact(name)
    if len(data) > room:
        raise PyattachError(f"{name} has {len(data)} bytes, more than the {room} there is room for")
    return data


@functools.cache
def boot_code() -> bytes:
    """``_boot.bin`` without its data block."""
    return _artifact("_boot.bin")[BOOT_DATA_SIZE:]


@functools.cache
def loader_code() -> bytes:
    """``_loader.bin``: position-independent bytes, entered at the first."""
    return _fitting("_loader.bin", LOADER_SIZE)


@functools.cache
def preload_image() -> bytes:
    """``_preload.so``, which checks the layout itself when it meets the shared memory."""
    return _fitting("_preload.so", PRELOAD_REGION)


@functools.cache
def heap_preload_image() -> bytes:
    """``_heap_preload.so``, as far as it is loaded: what is there for debuggers takes memory as well."""
    return _loaded_part(_fitting("_heap_preload.so", PRELOAD_REGION))


def _loaded_part(data: bytes) -> bytes:
    """The file up to its last segment's end, and no word of sections (Elf64_Ehdr in <elf.h>)."""
    image = ElfImage(data, "_heap_preload.so")
    end = max(segment.offset + segment.file_size for segment in image.segments)
    head = bytearray(data[:64])
    head[40:48] = bytes(8)  # e_shoff
    head[60:64] = bytes(4)  # e_shnum, e_shstrndx
    return bytes(head) + data[64:end]


_ENTRIES = ("pa_init", "pa_arm", "pa_stop", "pa_leave")


@functools.cache
def stub_image() -> StubImage:
    """The stub, parsed once.  Raises PyattachError when it was built for another layout."""
    return _parsed("_stub.so", _ENTRIES)


@functools.cache
def heap_image() -> StubImage:
    """The heap profiler's stub, whose hooks are entries, too.  Raises PyattachError as ``stub_image``."""
    from .heap_layout import FUNCTIONS

    hooks = (f"pa_{kind}_{name}" for kind in ("hook", "entry") for name in FUNCTIONS)
    return _parsed("_heap.so", (*_ENTRIES, "pa_forget", "pa_passing", *hooks))


def _parsed(file: str, exports: tuple[str, ...]) -> StubImage:
    data = _artifact(file)
    image = ElfImage(data, file)
    # PF_R 4, PF_W 2, PF_X 1 in the file; PROT_READ 1, PROT_WRITE 2, PROT_EXEC 4 for mmap.
    segments = tuple(
        Segment(
            s.offset,
            s.vaddr,
            s.file_size,
            s.memory_size,
            (s.flags >> 2 & 1) | (s.flags & 2) | (s.flags & 1) << 2,
        )
        for s in image.segments
    )
    entries = {name: _export(image, name) for name in exports}
    at = _export(image, "pyattach_abi")
    abi = Abi.from_buffer_copy(data, at)  # .rodata: file offset and address agree, see the build flags
    known = (MAGIC, VERSION, ctypes.sizeof(Control), ctypes.sizeof(Slot), ctypes.sizeof(RecordHead))
    if (abi.magic, abi.version, abi.control_size, abi.slot_size, abi.record_size) != known:
        raise PyattachError(f"{file} was built from other sources", "build it again: pip install .")
    return StubImage(data, segments, entries)


def _export(image: ElfImage, name: str) -> int:
    symbol = image.dynamic_symbol(name.encode())
    if symbol is None:
        raise PyattachError(f"the stub exports no {name}", "build it again: pip install .")
    return int(symbol.value)
