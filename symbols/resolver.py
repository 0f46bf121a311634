"""From the addresses of a stack to places of code, and from these to the frames that are shown.

What the target supplies is untrusted: files are opened by a ``FileOpener`` that checks what it opens.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import demangle_helper
from .clean import escaped
from .files import FileOpener, PathOpener, proc_opener
from .locator import Locator

if TYPE_CHECKING:
    from .address import CodeAddress
    from .cache import Cache
    from .codefile import CodeFile
    from .elf import ElfImage
    from .frame import Frame
    from .frame_names import FrameNames, Stack
    from .jitfiles import JitNames
    from .lines import FileLines
    from .maps import Mapping, Maps
    from .place import Place

__all__ = ["FileOpener", "Resolver", "proc_opener"]

_MAX_WARNINGS = 100


class Resolver:
    """Names the code of one process; each place and each file is looked at once.

    - In a file, covered by a function symbol: the demangled name, short unless ``full_names``; of the kind
      that ``kind_of_file`` gives the file.  So is the vdso; the vsyscall page is KERNEL, too.
    - In a file, not covered: ``BASENAME+0xVADDR``, UNKNOWN; the address is that before relocation, as
      addr2line wants it, or the offset in the file if the file can't be read.
    - In executable memory that is no ELF file: the name that the JIT compiler has told, else
      ``0xADDRESS``; JIT, module "[anon]" or the kernel's name for it.
    - Elsewhere: ``0xADDRESS``, UNKNOWN, module "".  So too where one file was mapped after another so soon
      that it can't be told which of them ran.

    Where code lies has to be known to begin with sampling, what it is called has not: that half, with the
    demanglers, is imported when the first name is asked for.

    ``warnings`` has one line for each file that could not be read.  Close it (``with``) to close the files.
    """

    def __init__(
        self,
        maps: Maps,
        open_mapping: FileOpener,
        exe_path: str | None = None,
        *,
        path_openers: list[PathOpener] | None = None,
        cache: Cache | None = None,
        jit: JitNames | None = None,
        full_names: bool = False,
    ) -> None:
        self.warnings: list[str] = []
        self._locator = Locator(maps, open_mapping, path_openers or [], cache, jit, self._warn)
        self._cache, self._exe_path, self._full_names = cache, exe_path, full_names
        self._made_names: FrameNames | None = None
        self._first: dict[int, Place] = {}
        self._hurried = False

    @property
    def maps(self) -> Maps:
        """The snapshot in use."""
        return self._locator.maps

    @property
    def hurried(self) -> bool:
        """No time for files whose tables take long to read: their functions have no names until
        ``take_time``."""
        return self._hurried

    @hurried.setter
    def hurried(self, value: bool) -> None:
        self._hurried = value
        if self._made_names is not None:
            self._made_names.hurried = value

    @property
    def _names(self) -> FrameNames:
        if self._made_names is None:
            from .frame_names import FrameNames

            self._made_names = FrameNames(
                self._cache, self._exe_path, full_names=self._full_names, hurried=self._hurried
            )
        return self._made_names

    def update(self, maps: Maps, seen_ns: tuple[int, int] | None = None) -> None:
        """Go on with a newer snapshot; see ``Locator.update``."""
        self._locator.update(maps, seen_ns)

    def place(self, address: CodeAddress, clock_ns: int | None = None) -> Place:
        """Where the code at ``address`` is, or was at ``clock_ns`` (CLOCK_MONOTONIC).  Never raises for what
        it finds in the target."""
        return self._locator.place(address.address_for_lookup(), clock_ns)

    @property
    def version(self) -> int:
        """Another number where an address may be another place than before."""
        return self._locator.version

    def is_settled(self, clock_ns: int) -> bool:
        """Whether what ran at ``clock_ns`` ran under the mappings of now: ``place`` has one answer."""
        return clock_ns >= self._locator.newer_from_ns

    def is_known(self, place: Place) -> bool:
        """Whether all is known of ``place`` that can be: a JIT compiler may tell its name later."""
        return not self._locator.is_nameless_code(place)

    def frames(self, place: Place) -> Stack:
        """The frames of a place: the function, then those inlined there, as far as they are known by now."""
        return self._names.frames(place)

    def resolve(self, address: CodeAddress) -> Frame:
        """The innermost frame of the code that is at ``address`` now."""
        return self.frames(self._locator.place(address.address_for_lookup()))[-1]

    def resolve_first(self, address: CodeAddress) -> Frame:
        """The innermost frame of what was at ``address`` when it was first asked for here, whatever is there
        by now; where nothing was, it is looked again."""
        lookup = address.address_for_lookup()
        place = self._first.get(lookup)
        if place is None or place.mapping is None:
            place = self._first[lookup] = self._locator.place(lookup)
        return self.frames(place)[-1]

    def has_name(self, place: Place) -> bool:
        """Whether ``frames`` has found a function there."""
        return self._names.has_name(place)

    def refresh_jit(self) -> None:
        """Read what JIT compilers have told since the last time, also of places that had no name."""
        jit = self._locator.jit
        if jit is None:
            return
        if jit.refresh(self.maps, 1) if self.hurried else jit.refresh(self.maps):
            for place in self._locator.find_generated():
                self._names.forget(place)

    def left_out(self) -> list[str]:
        """What JIT compilers have told and was not taken, in words."""
        return list(self._locator.jit.left_out()) if self._locator.jit is not None else []

    def image(self, mapping: Mapping) -> ElfImage | None:
        """The file behind ``mapping``, opened at most once; None if it is none or is not readable."""
        file = self._locator.file(mapping)
        return None if file is None else file.image

    def function_start(self, address: int) -> int:
        """Where the function that ``address`` lies in starts, by its symbol; 0 where there is none."""
        place = self._locator.place(address)
        if place.file is None or place.vaddr is None or (self.hurried and place.file.takes_long):
            return 0
        found = place.file.symbol(place.vaddr)
        return address - place.vaddr + found[1].value if found is not None else 0

    # When the target has been left, and there is time.

    def take_time(self) -> bool:
        """Files with large tables are read from now on; whether any was put off: what was named so far is to
        be asked for again."""
        self._hurried = False
        return self._names.take_time()

    def nameless_files(self) -> list[CodeFile]:
        """Files in which a function was looked for in vain, and that lack the table of all functions."""
        return self._names.nameless_files()

    def places_by_file(self, *, without_lines: bool = False) -> dict[CodeFile, list[Place]]:
        """All places in files that were asked for, or those of which no lines were told yet."""
        return self._names.places_by_file(without_lines=without_lines)

    def renamed(self, file: CodeFile) -> None:
        """Forget the names of places in ``file``: more is known of it now."""
        self._names.renamed(file)

    def use_lines(self, file: CodeFile, places: list[Place], lines: FileLines) -> None:
        """Lines and inlined calls of places in ``file``; ``lines`` goes with ``places``."""
        self._names.use_lines(file, places, lines)

    def close(self) -> None:
        """Close all files, and keep the names found.  What was resolved stays; nothing else can be."""
        if self._made_names is not None:
            self._made_names.save()
        self._locator.close()
        demangle_helper.close()

    def __enter__(self) -> Resolver:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def _warn(self, text: str) -> None:
        if len(self.warnings) < _MAX_WARNINGS:
            self.warnings.append(escaped(text))
