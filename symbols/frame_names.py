"""From the places of a stack to the frames that are shown: names, kinds, lines.

What the target supplies (paths, names, whole files) is untrusted: names are cut and cleaned here before
anyone sees them.
"""

from __future__ import annotations

import posixpath
from typing import TYPE_CHECKING

from .cache import Cache
from .clean import LONGEST_NAME, clean
from .codefile import CodeFile
from .demangle import demangle, display_name
from .files import VDSO
from .frame import Frame, FrameKind
from .keptnames import KeptNames
from .kinds import kind_of_file
from .locator import holds_generated_code
from .maps import Mapping
from .place import Place
from .plt import PLT

if TYPE_CHECKING:
    from .lines import FileLines, InlinedCall, Line

_VSYSCALL = "[vsyscall]"
_LONGEST_PATH = 400

Stack = tuple[Frame, ...]

INLINED = " (inlined)"
"""Behind the name of a function that has no frame of its own on the stack."""


class FrameNames:
    """The frames of places; each is named once.  ``exe_path`` is what the process runs."""

    def __init__(self, cache: Cache | None, exe_path: str | None, *, full_names: bool, hurried: bool) -> None:
        self._exe_path = exe_path.removesuffix(" (deleted)") if exe_path is not None else None
        self._demangled = demangle if full_names else display_name
        self._stacks: dict[Place, Stack] = {}
        self._of_symbol: dict[CodeFile, dict[tuple[int, int], Frame]] = {}
        self._kept = KeptNames(cache, "full" if full_names else "short")
        self._modules: dict[str, str] = {}
        self._nameless: set[Place] = set()
        self._lines: dict[Place, Line] = {}
        self.hurried = hurried
        """See ``Resolver.hurried``."""
        self._put_off: set[CodeFile] = set()

    def frames(self, place: Place) -> Stack:
        """The frames of a place: the function, then those inlined there, as far as they are known by now."""
        stack = self._stacks.get(place)
        if stack is None:
            in_file = place.vaddr is not None and place.other is None and place.mapping is not None
            named = self._in_file(place, place.mapping) if in_file else self._named(place)  # type: ignore[arg-type]
            stack = self._stacks[place] = named
        return stack

    def has_name(self, place: Place) -> bool:
        """Whether ``frames`` has found a function there."""
        return place not in self._nameless

    def forget(self, place: Place) -> None:
        """It is named anew when it is asked for the next time."""
        self._nameless.discard(place)
        self._stacks.pop(place, None)

    def take_time(self) -> bool:
        """Files with large tables are read from now on; whether any was put off so far."""
        self.hurried = False
        any_put_off = bool(self._put_off)
        for file in self._put_off:
            self.renamed(file)
        self._put_off.clear()
        return any_put_off

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

    def save(self) -> None:
        """Keep the names found."""
        self._kept.save()

    def _named(self, place: Place) -> Stack:
        mapping = place.mapping
        if mapping is None:
            return self._without_name(place, Frame(f"{place.address:#x}", "", FrameKind.UNKNOWN))
        if place.other is not None:
            module = " or ".join(clean(posixpath.basename(m.file_path)) for m in (mapping, place.other))
            return self._without_name(place, Frame(f"{place.address:#x}", module, FrameKind.UNKNOWN))
        if mapping.path == _VSYSCALL:
            return (Frame(f"{_VSYSCALL}+{place.address - mapping.start:#x}", _VSYSCALL, FrameKind.KERNEL),)
        if place.file is None and holds_generated_code(mapping):
            return self._generated(place, mapping)
        if not (mapping.is_file or mapping.path == VDSO):
            return self._without_name(place, Frame(f"{place.address:#x}", "", FrameKind.UNKNOWN))
        return self._in_file(place, mapping)

    def _generated(self, place: Place, mapping: Mapping) -> Stack:
        module = clean(posixpath.basename(mapping.file_path) if mapping.path else "[anon]")
        if place.jit is not None:
            name = clean(self._demangled(place.jit.name))
            if name:
                return (Frame(name, module, FrameKind.JIT),)
        return self._without_name(place, Frame(f"{place.address:#x}", module, FrameKind.JIT))

    def _in_file(self, place: Place, mapping: Mapping) -> Stack:
        module = self._modules.get(mapping.path)
        if module is None:
            module = clean(posixpath.basename(mapping.file_path)) or "[file]"
            self._modules[mapping.path] = module
        function = self._function(place, mapping, module)
        line = self._lines.get(place) if self._lines else None
        if function is None:
            if line is not None and line.function:
                function = Frame(self._shown(line.function), module, self._kind(mapping))
            else:
                vaddr = mapping.file_offset(place.address) if place.vaddr is None else place.vaddr
                where = f"+{vaddr:#x}"
                name = module[: LONGEST_NAME - len(where)] + where
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
        return clean(self._demangled(plain)) + stub

    def _without_name(self, place: Place, frame: Frame) -> Stack:
        self._nameless.add(place)
        return (frame,)

    def _kind(self, mapping: Mapping) -> FrameKind:
        return kind_of_file(mapping.file_path, self._exe_path)


def _where(line: Line | InlinedCall) -> str:
    if not line.path:
        return ""
    path = clean(line.path[-_LONGEST_PATH:])
    return f"{path}:{line.line}" if line.line else path
