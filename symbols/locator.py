"""Addresses to places of code, by the mappings of their own time."""

from __future__ import annotations

from ..errors import MalformedInput
from .cache import Cache
from .codefile import CodeFile, Warn
from .elf import ElfImage, load_bias
from .files import VDSO, FileOpener, PathOpener
from .jitfiles import JitNames
from .maps import Mapping, Maps
from .place import Place
from .summing import Summing

_FileKey = tuple[str, int, str, int]
"""Device, inode, path, and which file of that number it is: once a file is gone, its number is used again."""


class Locator:
    """Keeps the mappings by generation, and opens each file once, while it is there.

    ``openers`` open other files by path (for debug files), ``jit`` knows generated code.  ``warn`` is told of
    what can't be read.
    """

    def __init__(
        self,
        maps: Maps,
        open_mapping: FileOpener,
        openers: list[PathOpener],
        cache: Cache | None,
        jit: JitNames | None,
        warn: Warn,
    ) -> None:
        self._open_mapping, self._openers, self._cache, self._warn = open_mapping, openers, cache, warn
        self._summing = Summing(warn)
        self.jit = jit
        self.maps = maps
        self._older = Maps()
        self._older_until_ns = self.newer_from_ns = 0
        self._numbers: dict[tuple[str, int, str], int] = {}
        self._files: dict[_FileKey, CodeFile | None] = {}
        self._bias: dict[tuple[_FileKey, int, int], int | None] = {}
        self._here: dict[int, Place] = {}
        self._places: dict[object, Place] = {}
        # By a mapping's identity, which it has while it is here: its file, and what is to be taken off.
        self._in_files: dict[int, tuple[CodeFile, int, Mapping]] = {}
        self._generated: set[Place] = set()  # without a name so far
        self.version = 0
        """Another number where an address may be another place than before."""

    def update(self, maps: Maps, seen_ns: tuple[int, int] | None = None) -> None:
        """Go on with newer mappings.

        ``seen_ns`` (CLOCK_MONOTONIC): until when the older ones are known to have held, and from when on the
        newer ones.  What ran between the two can have run under either; see ``place``.
        """
        before = {_number_key(mapping) for mapping in self.maps}
        for key in {_number_key(mapping) for mapping in maps} - before:
            self._numbers[key] = self._numbers.get(key, -1) + 1
        self._older, (self._older_until_ns, self.newer_from_ns) = self.maps, seen_ns or (0, 0)
        if maps.executable() != self.maps.executable():
            self._here.clear()
            self._in_files.clear()
        self.maps = maps
        self.version += 1

    def place(self, address: int, clock_ns: int | None = None) -> Place:
        """Where ``address`` was at ``clock_ns`` (not given: now)."""
        if clock_ns is not None and clock_ns < self.newer_from_ns:
            return self._place_before(address, clock_ns > self._older_until_ns)
        place = self._here.get(address)
        if place is None or (place.file is None and self.is_nameless_code(place)):
            place = self._here[address] = self._place(address, self.maps.find(address))
        return place

    def file(self, mapping: Mapping) -> CodeFile | None:
        """The file behind ``mapping``, opened at most once; None if it is none or is not readable."""
        if not (mapping.is_file or mapping.path == VDSO):
            return None
        key = self._key(mapping)
        if key not in self._files:
            file = self._open(mapping)
            before = self._files.get((*key[:3], key[3] - 1))
            if file is not None and before is not None and _same_file(file.image, before.image):
                file.close()
                file = before
            self._files[key] = file
        return self._files[key]

    def files(self) -> list[CodeFile]:
        """All that were opened."""
        return list({file: None for file in self._files.values() if file is not None})

    def find_generated(self) -> list[Place]:
        """Look for the names of generated code that had none; those that have one now.  Where other code has
        been made since, it is another place from now on."""
        jit = self.jit
        if jit is None:
            return []
        named = [(address, place) for address, place in self._here.items() if place.jit is not None]
        for address in [address for address, place in named if place.jit is not jit.find(address)]:
            del self._here[address]
            self.version += 1
        found = []
        for place in self._generated:
            place.jit = jit.find(place.address)
            if place.jit is not None:
                found.append(place)
        self._generated.difference_update(found)
        return found

    def close(self) -> None:
        """Close all files."""
        for file in self.files():
            file.close()

    def _place_before(self, address: int, either: bool) -> Place:
        older, newer = self._older.find(address), self.maps.find(address)
        if older == newer or not either:
            return self._place(address, older)
        if older is None or not older.executable:
            return self._place(address, newer if newer is not None else older)
        if newer is None or not newer.executable:
            return self._place(address, older)
        one, other = self._place(address, older), self._place(address, newer)
        if one is other:
            return one
        place = self._places.setdefault((one, other), Place(address, older))
        place.other = newer
        return place

    def _place(self, address: int, mapping: Mapping | None) -> Place:
        known = self._in_files.get(id(mapping))
        if known is not None:
            return self._place_in(known[0], address - known[1], address, known[2])
        file = self.file(mapping) if mapping is not None else None
        if mapping is None or (file is None and not holds_generated_code(mapping)):
            told = mapping is not None and (mapping.is_file or mapping.executable)
            return self._kept((address, mapping if told else None), address, mapping)
        if file is None:
            jit = self.jit.find(address) if self.jit is not None else None
            place = self._kept((address, jit), address, mapping)
            place.jit = jit
            if self.is_nameless_code(place):
                self._generated.add(place)
            return place
        bias = self._bias_of(mapping, file.image)
        if bias is not None:
            self._in_files[id(mapping)] = (file, bias, mapping)
            return self._place_in(file, address - bias, address, mapping)
        offset = mapping.file_offset(address)
        vaddr = file.image.vaddr_of_offset(offset)
        place = self._kept((file, vaddr, offset), address, mapping)
        place.file, place.vaddr = file, vaddr
        return place

    def _place_in(self, file: CodeFile, vaddr: int, address: int, mapping: Mapping) -> Place:
        key = (file, vaddr)
        place = self._places.get(key)
        if place is None:
            place = self._places[key] = Place(address, mapping, file, vaddr)
        return place

    def _kept(self, key: object, address: int, mapping: Mapping | None) -> Place:
        place = self._places.get(key)
        if place is None:
            place = self._places[key] = Place(address, mapping)
        return place

    def is_nameless_code(self, place: Place) -> bool:
        """Whether a JIT compiler may have made what is at ``place``, and has not told its name."""
        unknown = place.jit is None and place.file is None and place.mapping is not None
        return self.jit is not None and unknown and holds_generated_code(place.mapping)  # type: ignore[arg-type]

    def _key(self, mapping: Mapping) -> _FileKey:
        key = _number_key(mapping)
        return (*key, self._numbers.setdefault(key, 0))

    def _bias_of(self, mapping: Mapping, image: ElfImage) -> int | None:
        key = (self._key(mapping), mapping.start, mapping.offset)
        if key not in self._bias:
            try:
                self._bias[key] = load_bias(mapping, image)
            except MalformedInput:
                self._bias[key] = None
        return self._bias[key]

    def _open(self, mapping: Mapping) -> CodeFile | None:
        stream = self._open_mapping(mapping)
        if stream is None:
            if not holds_generated_code(mapping):
                self._warn(f"{mapping.path}: can't be opened; its functions have no names")
            return None
        try:
            image = ElfImage(stream, mapping.path)
        except MalformedInput as error:
            stream.close()
            if not holds_generated_code(mapping):
                self._warn(f"{error}; its functions have no names")
            return None
        return CodeFile(image, mapping.file_path, self._openers, self._cache, self._warn, self._summing)


def _same_file(one: ElfImage, other: ElfImage) -> bool:
    """Whether two open files are one, and nobody has written to it."""
    return one.version is not None and one.version == other.version


def _number_key(mapping: Mapping) -> tuple[str, int, str]:
    return (mapping.device, mapping.inode, mapping.file_path if mapping.inode or mapping.path == VDSO else "")


def holds_generated_code(mapping: Mapping) -> bool:
    """Whether code here need not come from an ELF file: anonymous memory, or memory that only looks like a
    file, as compilers map it twice (once to write and once to run)."""
    of_memory = mapping.is_memfd or mapping.path.startswith(
        ("/dev/shm/", "/dev/zero", "/SYSV", "/anon_hugepage")
    )
    named = mapping.path in (VDSO, "[vsyscall]")
    return mapping.executable and not named and (not mapping.is_file or of_memory)
