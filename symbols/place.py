"""A place of code: what remains of an address once libraries come and go, and what a name is found for
later."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .codefile import CodeFile
    from .jit import JitSymbol
    from .maps import Mapping


class Place:
    """One place of code; the same object for the same place, so that places compare by identity.

    ``file`` and ``vaddr`` (before relocation) where an ELF file is mapped; ``jit`` what a JIT compiler says
    of it; ``other`` is the mapping that may have been there instead, where that can't be told.
    """

    __slots__ = ("address", "file", "jit", "mapping", "other", "vaddr")

    def __init__(
        self, address: int, mapping: Mapping | None, file: CodeFile | None = None, vaddr: int | None = None
    ) -> None:
        self.address, self.mapping = address, mapping
        self.file, self.vaddr = file, vaddr
        self.jit: JitSymbol | None = None
        self.other: Mapping | None = None

    @property
    def executable(self) -> bool:
        """Whether there can be code; where nothing is mapped, a library may have gone."""
        return self.mapping is None or self.mapping.executable

    def __repr__(self) -> str:
        return f"<Place {self.address:#x} {self.mapping.path if self.mapping else ''}>"
