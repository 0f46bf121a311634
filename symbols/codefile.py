"""One mapped ELF file, and all that is known of its functions: its own tables, its debug files, its PLT."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, TypeVar

from ..errors import MalformedInput
from .cache import Cache
from .elf import ElfImage
from .files import PathOpener
from .summing import Summing

if TYPE_CHECKING:
    from .headers import Section
    from .plt import PltTable
    from .table import Symbol, SymbolTable

_T = TypeVar("_T")
Warn = Callable[[str], None]

_MANY_SYMBOLS = 8 << 20  # bytes: a third of a million symbols, half a second
_MUCH_PACKED = 1 << 20  # bytes


class CodeFile:
    """``image`` and what belongs to it; further files are looked for when the first address asks for them.

    ``path`` is where it is mapped from, as the target sees it, and ``openers`` open other paths there.
    ``warn`` is told of what is broken.  ``summing`` is one for all files of a program.
    """

    def __init__(
        self,
        image: ElfImage,
        path: str,
        openers: list[PathOpener],
        cache: Cache | None,
        warn: Warn,
        summing: Summing,
    ) -> None:
        self._summing = summing
        self.image, self._path, self._openers, self._cache, self._warn = image, path, openers, cache, warn
        self._debug: ElfImage | None = None
        self._embedded: ElfImage | None = None
        self._tables: list[SymbolTable] | None = None
        self._plt: PltTable | None = None
        self._searched = False

    def close(self) -> None:
        """Close all files."""
        for image in (self.image, self._debug, self._embedded):
            if image is not None:
                image.close()

    @property
    def debug(self) -> ElfImage | None:
        """Its separate debug file."""
        if not self._searched:
            from .separate import separate_debug

            self._searched = True
            self._debug = self._found(
                lambda: separate_debug(self.image, self._path, self._openers, self._summing)
            )
        return self._debug

    @property
    def identity(self) -> str:
        """The same for a file of the same content with the same debug file; "" where that can't be told."""
        if self.image.has_symtab:
            return self.image.identity
        debug = self.debug.identity if self.debug is not None else "none"
        return f"{self.image.identity} {debug}" if self.image.identity and debug else ""

    @property
    def takes_long(self) -> bool:
        """Whether reading its function tables for the first time takes more than a moment."""
        if self._tables is not None:
            return False
        if self.image.has_symtab:
            return self.image.symbols_size > _MANY_SYMBOLS
        if self.image.build_id is None and self._section(self.image, b".gnu_debuglink") is not None:
            return not self._searched  # the whole debug file is summed up
        packed = self._section(self.image, b".gnu_debugdata")
        if packed is not None and packed.size > _MUCH_PACKED:
            return True
        return self.debug is not None and self.debug.symbols_size > _MANY_SYMBOLS

    @property
    def stripped(self) -> bool:
        """Whether neither it nor a debug file of it has the table of all functions."""
        return not self.image.has_symtab and (self.debug is None or not self.debug.has_symtab)

    @property
    def with_lines(self) -> ElfImage | None:
        """The file that has its line numbers: itself or its debug file."""
        for image in (self.image, self.debug):
            if image is not None and self._section(image, b".debug_info") is not None:
                return image
        return None

    def use_debug(self, image: ElfImage) -> None:
        """A debug file that was fetched elsewhere, from now on.  Raises MalformedInput where it is
        another's."""
        if image.build_id != self.image.build_id:
            raise MalformedInput(f"{image.path}: it is of another build than {self.image.path}")
        self._searched, self._debug, self._tables = True, image, None

    def symbol(self, vaddr: int) -> tuple[tuple[int, int], Symbol] | None:
        """The function at ``vaddr`` (before relocation), and a key that tells it from the file's others."""
        if self._tables is None:
            self._tables = list(self._function_tables())
        for number, table in enumerate(self._tables):
            position = table.find(vaddr)
            if position >= 0:
                return (number, position), table.symbol(position, vaddr)
        symbol = self._plt_table().lookup(vaddr)
        return ((-1, symbol.value), symbol) if symbol is not None else None

    def key_of(self, vaddr: int) -> tuple[int, int] | None:
        """The key alone, without reading the name; None where only ``symbol`` can tell."""
        if self._tables is None:
            self._tables = list(self._function_tables())
        number = 0
        for table in self._tables:
            position = table.find(vaddr)
            if position >= 0:
                return number, position
            number += 1  # noqa: SIM113 - nearly always the first it is
        return None

    def _function_tables(self) -> Iterator[SymbolTable]:
        if not self.image.has_symtab:
            if self.debug is None and self._embedded is None:
                from .separate import embedded_debug

                self._embedded = self._found(lambda: embedded_debug(self.image))
            for image in (self.debug, self._embedded):
                table = self._found(lambda image=image: image and image.function_symbols(self._cache))  # type: ignore[misc]
                if table is not None:
                    yield table
        table = self._found(lambda: self.image.function_symbols(self._cache))
        if table is not None:
            yield table

    def _plt_table(self) -> PltTable:
        if self._plt is None:
            from .plt import PltTable, read_plt

            self._plt = self._found(lambda: read_plt(self.image)) or PltTable()
        return self._plt

    def _section(self, image: ElfImage, name: bytes) -> Section | None:
        return self._found(lambda: image.section(name))

    def _found(self, read: Callable[[], _T | None]) -> _T | None:
        try:
            return read()
        except MalformedInput as error:
            self._warn(str(error))
            return None
