"""From the addresses of a stack to the frames that are shown.

What the target supplies (paths, names, whole files) is untrusted: files are opened by a ``FileOpener``
that checks what it opens, names are cut and cleaned here before anyone sees them.
"""

from __future__ import annotations

import posixpath
import re

from ..errors import MalformedInput
from . import demangle_helper
from .address import CodeAddress
from .demangle import display_name
from .elf import ElfImage
from .files import VDSO, FileOpener, proc_opener
from .frame import Frame, FrameKind
from .maps import Mapping, Maps

__all__ = ["FileOpener", "Resolver", "proc_opener"]

_VSYSCALL = "[vsyscall]"
_LONGEST_NAME = 1000  # characters
_LONGEST_WARNING = 500
_MAX_WARNINGS = 100

_SYSTEM_DIRECTORIES = (
    "/lib/", "/lib32/", "/lib64/", "/libx32/",
    "/usr/lib/", "/usr/lib32/", "/usr/lib64/", "/usr/libx32/",
    "/usr/local/lib/", "/usr/local/lib64/",
    "/nix/store/", "/gnu/store/", "/snap/",
)  # fmt: skip

# Controls, line and paragraph separators, marks that reorder text, and what can't be encoded.
_UNSHOWABLE = re.compile("[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


class Resolver:
    """Names addresses of one process; each address and each file is looked at once.

    - In a file, covered by a function symbol: the demangled short name.  USER if the file is the
      executable at ``exe_path`` (as the target sees it), or lies outside of the system's directories for
      libraries (/lib, /usr/lib, /usr/local/lib, their 32 and 64 variants, /nix/store, /gnu/store, /snap);
      LIBRARY otherwise, and for the vdso.
    - In a file, not covered: ``BASENAME+0xVADDR``, UNKNOWN; the address is that before relocation, as
      addr2line wants it, or the offset in the file if the file can't be read.
    - In executable memory that is no ELF file: ``0xADDRESS``, JIT, module "[anon]" or the
      kernel's name for it.
    - Elsewhere: ``0xADDRESS``, UNKNOWN, module "".

    ``warnings`` has one line for each file that could not be read; ``unresolved`` the looked-up addresses
    that got no function's name.  Close it (``with``) to close the files.
    """

    def __init__(self, maps: Maps, open_mapping: FileOpener, exe_path: str | None = None) -> None:
        self.warnings: list[str] = []
        self.unresolved: set[CodeAddress] = set()
        self._maps = maps
        self._open_mapping = open_mapping
        self._exe_path = exe_path
        self._images: dict[tuple[str, int, str], ElfImage | None] = {}
        self._frames: dict[int, Frame] = {}
        self._unmapped: set[int] = set()

    def resolve(self, address: CodeAddress) -> Frame:
        """The frame of the code at ``address``.  Never raises for what it finds in the target."""
        lookup = address.address_for_lookup()
        frame = self._frames.get(lookup)
        if frame is None:
            frame = self._frames[lookup] = self._resolve(lookup)
        if frame.kind in (FrameKind.UNKNOWN, FrameKind.JIT):
            self.unresolved.add(address)
        return frame

    @property
    def maps(self) -> Maps:
        """The snapshot in use."""
        return self._maps

    def update(self, maps: Maps) -> None:
        """Go on with a newer snapshot.  Frames found so far stay; where nothing was mapped, look again."""
        self._maps = maps
        for address in self._unmapped:
            del self._frames[address]
        self.unresolved = {a for a in self.unresolved if a.address_for_lookup() not in self._unmapped}
        self._unmapped.clear()

    def image(self, mapping: Mapping) -> ElfImage | None:
        """The file behind ``mapping``, opened at most once; None if it is none or is not readable."""
        if not (mapping.is_file or mapping.path == VDSO):
            return None
        key = (mapping.device, mapping.inode, "" if mapping.inode else mapping.path)
        if key not in self._images:
            self._images[key] = self._open(mapping)
        return self._images[key]

    def function_start(self, address: int) -> int:
        """Where the function that ``address`` lies in starts, by its symbol; 0 where there is none."""
        mapping = self._maps.find(address)
        image = self.image(mapping) if mapping is not None else None
        if mapping is None or image is None:
            return 0
        vaddr = image.vaddr_of_offset(mapping.file_offset(address), executable=mapping.executable)
        symbol = image.function_symbols().lookup(vaddr) if vaddr is not None else None
        return address - vaddr + symbol.value if symbol is not None and vaddr is not None else 0

    def close(self) -> None:
        """Close all files.  What was resolved stays; nothing else can be."""
        for image in self._images.values():
            if image is not None:
                image.close()
        demangle_helper.close()

    def __enter__(self) -> Resolver:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def _resolve(self, address: int) -> Frame:
        mapping = self._maps.find(address)
        if mapping is None:
            self._unmapped.add(address)
            return Frame(f"{address:#x}", "", FrameKind.UNKNOWN)
        if mapping.path == _VSYSCALL:
            return Frame(f"{_VSYSCALL}+{address - mapping.start:#x}", _VSYSCALL, FrameKind.LIBRARY)
        image = self.image(mapping)
        if image is None and _holds_generated_code(mapping):
            module = mapping.file_path if mapping.path else "[anon]"
            return Frame(f"{address:#x}", _clean(posixpath.basename(module)), FrameKind.JIT)
        if not (mapping.is_file or mapping.path == VDSO):
            return Frame(f"{address:#x}", "", FrameKind.UNKNOWN)
        return self._frame_in_file(address, mapping, image)

    def _frame_in_file(self, address: int, mapping: Mapping, image: ElfImage | None) -> Frame:
        module = _clean(posixpath.basename(mapping.file_path)) or "[file]"
        offset = mapping.file_offset(address)
        vaddr = image.vaddr_of_offset(offset, executable=mapping.executable) if image else None
        name = self._function_name(image, vaddr) if image and vaddr is not None else ""
        if name:
            return Frame(name, module, self._kind(mapping))
        where = f"+{offset if vaddr is None else vaddr:#x}"
        return Frame(module[: _LONGEST_NAME - len(where)] + where, module, FrameKind.UNKNOWN)

    def _function_name(self, image: ElfImage, vaddr: int) -> str:
        symbol = image.function_symbols().lookup(vaddr)
        return _clean(display_name(symbol.name.decode("utf-8", "replace"))) if symbol else ""

    def _kind(self, mapping: Mapping) -> FrameKind:
        if self._exe_path is not None and mapping.file_path == self._exe_path.removesuffix(" (deleted)"):
            return FrameKind.USER
        of_system = mapping.path == VDSO or mapping.path.startswith(_SYSTEM_DIRECTORIES)
        return FrameKind.LIBRARY if of_system else FrameKind.USER

    def _open(self, mapping: Mapping) -> ElfImage | None:
        stream = self._open_mapping(mapping)
        if stream is None:
            self._warn(mapping, f"{mapping.path}: can't be opened; its functions have no names")
            return None
        try:
            image = ElfImage(stream, mapping.path)
            image.function_symbols()  # now, so that a broken table is known from the start
        except MalformedInput as error:
            stream.close()
            self._warn(mapping, f"{error}; its functions have no names")
            return None
        return image

    def _warn(self, mapping: Mapping, text: str) -> None:
        if _holds_generated_code(mapping) or len(self.warnings) >= _MAX_WARNINGS:
            return
        self.warnings.append(_escaped(text)[:_LONGEST_WARNING])


def _holds_generated_code(mapping: Mapping) -> bool:
    """Whether code here need not come from an ELF file: anonymous memory, or memory that only looks like a
    file, as compilers map it twice (once to write and once to run)."""
    of_memory = mapping.is_memfd or mapping.path.startswith(
        ("/dev/shm/", "/dev/zero", "/SYSV", "/anon_hugepage")
    )
    return mapping.executable and mapping.path != VDSO and (not mapping.is_file or of_memory)


def _clean(name: str) -> str:
    return _UNSHOWABLE.sub("\ufffd", name[:_LONGEST_NAME])


def _escaped(text: str) -> str:
    return _UNSHOWABLE.sub(lambda match: f"\\u{ord(match[0]):04x}", text)
