"""From the addresses of a stack to the frames that are shown.

What the target supplies (paths, names, whole files) is untrusted: files are opened by a ``FileOpener``
that checks what it opens, names are cut and cleaned here before anyone sees them.
"""

from __future__ import annotations

import posixpath
import re

from . import demangle_helper
from .address import CodeAddress
from .cache import Cache
from .codefile import CodeFile
from .demangle import demangle, display_name
from .elf import ElfImage
from .files import VDSO, FileOpener, PathOpener, proc_opener
from .frame import Frame, FrameKind
from .jitfiles import JitNames
from .keptnames import KeptNames
from .kinds import kind_of_file
from .lines import FileLines, InlinedCall, Line
from .locator import Locator, holds_generated_code
from .maps import Mapping, Maps
from .place import Place
from .plt import PLT

__all__ = ["FileOpener", "Resolver", "proc_opener"]

_VSYSCALL = "[vsyscall]"
_LONGEST_NAME = 1000  # characters
_LONGEST_PATH = 400
_LONGEST_WARNING = 500
_MAX_WARNINGS = 100

# Controls, line and paragraph separators, marks that reorder text, and what can't be encoded.
_UNSHOWABLE = re.compile("[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")

Stack = tuple[Frame, ...]


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
        self._exe_path = exe_path.removesuffix(" (deleted)") if exe_path is not None else None
        self._demangled = demangle if full_names else display_name
        self._stacks: dict[Place, Stack] = {}
        self._of_symbol: dict[CodeFile, dict[tuple[int, int], Frame]] = {}
        self._kept = KeptNames(cache, "full" if full_names else "short")
        self._modules: dict[str, str] = {}
        self._nameless: set[Place] = set()
        self._first: dict[int, Place] = {}
        self._lines: dict[Place, Line] = {}
        self.hurried = False
        """No time for files whose tables take long to read: their functions have no names until
        ``take_time``."""
        self._put_off: set[CodeFile] = set()

    @property
    def maps(self) -> Maps:
        """The snapshot in use."""
        return self._locator.maps

    def update(self, maps: Maps, seen_ns: tuple[int, int] | None = None) -> None:
        """Go on with a newer snapshot; see ``Locator.update``."""
        self._locator.update(maps, seen_ns)

    def place(self, address: CodeAddress, clock_ns: int | None = None) -> Place:
        """Where the code at ``address`` is, or was at ``clock_ns`` (CLOCK_MONOTONIC).  Never raises for what
        it finds in the target."""
        return self._locator.place(address.address_for_lookup(), clock_ns)

    def is_settled(self, clock_ns: int) -> bool:
        """Whether what ran at ``clock_ns`` ran under the mappings of now: ``place`` has one answer."""
        return clock_ns >= self._locator.newer_from_ns

    def is_known(self, place: Place) -> bool:
        """Whether all is known of ``place`` that can be: a JIT compiler may tell its name later."""
        return not self._locator.is_nameless_code(place)

    def frames(self, place: Place) -> Stack:
        """The frames of a place: the function, then those inlined there, as far as they are known by now."""
        stack = self._stacks.get(place)
        if stack is None:
            in_file = place.vaddr is not None and place.other is None and place.mapping is not None
            named = self._in_file(place, place.mapping) if in_file else self._named(place)  # type: ignore[arg-type]
            stack = self._stacks[place] = named
        return stack

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
        return place not in self._nameless

    def refresh_jit(self) -> None:
        """Read what JIT compilers have told since the last time, also of places that had no name."""
        jit = self._locator.jit
        if jit is None:
            return
        if jit.refresh(self.maps, 1) if self.hurried else jit.refresh(self.maps):
            for place in self._locator.find_generated():
                self._nameless.discard(place)
                self._stacks.pop(place, None)

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

    def take_time(self) -> None:
        """Files with large tables are read from now on."""
        self.hurried = False
        for file in self._put_off:
            self.renamed(file)
        self._put_off.clear()

    def nameless_files(self) -> list[CodeFile]:
        """Files in which a function was looked for in vain, and that lack the table of all functions."""
        files = {place.file: None for place in self._nameless if place.file is not None}
        return [file for file in files if file.stripped]

    def places_by_file(self, *, without_lines: bool = False) -> dict[CodeFile, list[Place]]:
        """All places in files that were asked for, or those of which no lines were told yet."""
        out: dict[CodeFile, list[Place]] = {}
        for place in self._stacks:
            if without_lines and place in self._lines:
                continue
            if place.file is not None and place.vaddr is not None:
                out.setdefault(place.file, []).append(place)
        return out

    def renamed(self, file: CodeFile) -> None:
        """Forget the names of places in ``file``: more is known of it now."""
        self._kept.forget(file)
        for place in [place for place in self._stacks if place.file is file]:
            del self._stacks[place]
            self._nameless.discard(place)
            self._lines.pop(place, None)
        self._of_symbol.pop(file, None)

    def use_lines(self, file: CodeFile, places: list[Place], lines: FileLines) -> None:
        """Lines and inlined calls of places in ``file``; ``lines`` goes with ``places``."""
        for place, line in zip(places, lines, strict=True):
            self._lines[place] = line
            self._stacks.pop(place, None)

    def close(self) -> None:
        """Close all files, and keep the names found.  What was resolved stays; nothing else can be."""
        self._kept.save()
        self._locator.close()
        demangle_helper.close()

    def __enter__(self) -> Resolver:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    # Names.

    def _named(self, place: Place) -> Stack:
        mapping = place.mapping
        if mapping is None:
            return self._without_name(place, Frame(f"{place.address:#x}", "", FrameKind.UNKNOWN))
        if place.other is not None:
            module = " or ".join(_clean(posixpath.basename(m.file_path)) for m in (mapping, place.other))
            return self._without_name(place, Frame(f"{place.address:#x}", module, FrameKind.UNKNOWN))
        if mapping.path == _VSYSCALL:
            return (Frame(f"{_VSYSCALL}+{place.address - mapping.start:#x}", _VSYSCALL, FrameKind.KERNEL),)
        if place.file is None and holds_generated_code(mapping):
            return self._generated(place, mapping)
        if not (mapping.is_file or mapping.path == VDSO):
            return self._without_name(place, Frame(f"{place.address:#x}", "", FrameKind.UNKNOWN))
        return self._in_file(place, mapping)

    def _generated(self, place: Place, mapping: Mapping) -> Stack:
        module = _clean(posixpath.basename(mapping.file_path) if mapping.path else "[anon]")
        if place.jit is not None:
            name = _clean(self._demangled(place.jit.name))
            if name:
                return (Frame(name, module, FrameKind.JIT),)
        return self._without_name(place, Frame(f"{place.address:#x}", module, FrameKind.JIT))

    def _in_file(self, place: Place, mapping: Mapping) -> Stack:
        module = self._modules.get(mapping.path)
        if module is None:
            module = _clean(posixpath.basename(mapping.file_path)) or "[file]"
            self._modules[mapping.path] = module
        function = self._function(place, mapping, module)
        line = self._lines.get(place) if self._lines else None
        if function is None:
            if line is not None and line.function:
                function = Frame(self._shown(line.function), module, self._kind(mapping))
            else:
                vaddr = mapping.file_offset(place.address) if place.vaddr is None else place.vaddr
                where = f"+{vaddr:#x}"
                name = module[: _LONGEST_NAME - len(where)] + where
                return self._without_name(place, Frame(name, module, FrameKind.UNKNOWN))
        self._nameless.discard(place)
        return (function,) if line is None else tuple(self._with_line(function, line))

    def _function(self, place: Place, mapping: Mapping, module: str) -> Frame | None:
        if place.file is None or place.vaddr is None:
            return None
        if self.hurried and place.file.takes_long:
            self._put_off.add(place.file)
            return None
        key = place.file.key_of(place.vaddr)
        frames = self._of_symbol.get(place.file)
        if frames is None:
            frames = self._of_symbol[place.file] = {}
        frame = frames.get(key) if key is not None else None
        if frame is not None:
            return frame
        names = self._kept.names(place.file)
        name = names.get(key) if key is not None else None
        if not name:
            found = place.file.symbol(place.vaddr)
            if found is None:
                return None
            key, name = found[0], self._shown(found[1].name.decode("utf-8", "replace"))
            if not name:
                return None
            names[key] = name
        assert key is not None
        frame = frames[key] = Frame(name, module, self._kind(mapping))
        return frame

    def _with_line(self, function: Frame, line: Line) -> list[Frame]:
        """The function, called on some line, then the inlined ones, each with the line it is at."""
        frames = [Frame(function.name, function.module, function.kind, _where(line))]
        for call in line.inlined:
            name = f"{self._shown(call.function) or '[unnamed]'}{INLINED}"
            frames.append(Frame(name, function.module, function.kind, _where(call)))
        return frames

    def _shown(self, name: str) -> str:
        plain, stub, _ = name.partition(PLT)
        return _clean(self._demangled(plain)) + stub

    def _without_name(self, place: Place, frame: Frame) -> Stack:
        self._nameless.add(place)
        return (frame,)

    def _kind(self, mapping: Mapping) -> FrameKind:
        return kind_of_file(mapping.file_path, self._exe_path)

    def _warn(self, text: str) -> None:
        if len(self.warnings) < _MAX_WARNINGS:
            self.warnings.append(_escaped(text)[:_LONGEST_WARNING])


INLINED = " (inlined)"
"""Behind the name of a function that has no frame of its own on the stack."""


def _where(line: Line | InlinedCall) -> str:
    if not line.path:
        return ""
    path = _clean(line.path[-_LONGEST_PATH:])
    return f"{path}:{line.line}" if line.line else path


def _clean(name: str) -> str:
    return _UNSHOWABLE.sub("\ufffd", name[:_LONGEST_NAME])


def _escaped(text: str) -> str:
    return _UNSHOWABLE.sub(lambda match: f"\\u{ord(match[0]):04x}", text)
