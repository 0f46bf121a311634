"""What is mapped where in the target: ``/proc/PID/maps`` (proc_pid_maps(5)) as values."""

from __future__ import annotations

import bisect
import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from ..errors import MalformedInput

_LINE = re.compile(
    rb"([0-9a-f]{1,16})-([0-9a-f]{1,16}) "
    rb"([r-][w-][x-][ps]) "
    rb"([0-9a-f]{1,16}) "
    rb"([0-9a-f]{1,8}:[0-9a-f]{1,8}) "
    rb"([0-9]{1,20})"
    rb"(?: +(.*))?"
)
_DELETED = " (deleted)"


class Mapping(NamedTuple):
    """One line of ``/proc/PID/maps``: the bytes ``start <= address < end``, all of them one file's or
    nobody's.

    ``offset`` is where ``start`` lies in the file, in bytes.  ``path`` is what the kernel wrote there, a
    newline in it unescaped, bytes that are not UTF-8 as surrogates; it is untrusted.
    """

    start: int
    end: int
    permissions: str
    offset: int
    device: str
    inode: int
    path: str

    @property
    def readable(self) -> bool:
        return self.permissions[0] == "r"

    @property
    def writable(self) -> bool:
        return self.permissions[1] == "w"

    @property
    def executable(self) -> bool:
        return self.permissions[2] == "x"

    @property
    def shared(self) -> bool:
        return self.permissions[3] == "s"

    @property
    def deleted(self) -> bool:
        """The file had lost its name (or the name merely ends like that: the kernel does not tell)."""
        return self.path.endswith(_DELETED)

    @property
    def file_path(self) -> str:
        """The path as it was before the file was deleted."""
        return self.path.removesuffix(_DELETED)

    @property
    def is_file(self) -> bool:
        """Something stands behind the bytes: a file, or a memfd (shown as ``/memfd:NAME (deleted)``)."""
        return self.path.startswith("/") and self.inode != 0

    @property
    def is_memfd(self) -> bool:
        return self.path.startswith("/memfd:") and self.deleted

    def file_offset(self, address: int) -> int:
        """Where the byte at ``address`` lies in the file."""
        return self.offset + (address - self.start)


def parse_maps(text: bytes) -> list[Mapping]:
    """The mappings in the order of the text, which is the contents of a ``/proc/PID/maps``.

    Raises MalformedInput for a line of another form or a range that ends before it starts.
    """
    return [_parse_line(line) for line in text.split(b"\n") if line]


def _parse_line(line: bytes) -> Mapping:
    match = _LINE.fullmatch(line)
    if match is None:
        raise MalformedInput(f"not a line of /proc/PID/maps: {line[:200]!r}")
    start, end, permissions, offset, device, inode, path = match.groups(b"")
    # The kernel escapes newlines and nothing else (seq_file_path(m, file, "\n")).
    name = path.replace(b"\\012", b"\n").decode("utf-8", "surrogateescape")
    mapping = Mapping(
        int(start, 16), int(end, 16), permissions.decode(), int(offset, 16), device.decode(), int(inode), name
    )
    if mapping.start >= mapping.end:
        raise MalformedInput(f"a mapping that ends before it starts: {line[:200]!r}")
    return mapping


class Maps:
    """A snapshot of the mappings of one process, in order of address.  Immutable; equal by content."""

    __slots__ = ("_mappings", "_starts")

    def __init__(self, mappings: Iterable[Mapping] = ()) -> None:
        self._mappings = tuple(sorted(mappings, key=lambda mapping: (mapping.start, mapping.end)))
        self._starts = [mapping.start for mapping in self._mappings]

    @classmethod
    def parse(cls, text: bytes) -> Maps:
        """From the contents of ``/proc/PID/maps``.  Raises MalformedInput."""
        return cls(parse_maps(text))

    def find(self, address: int) -> Mapping | None:
        """The mapping that holds ``address``."""
        index = bisect.bisect_right(self._starts, address) - 1
        if index >= 0 and address < self._mappings[index].end:
            return self._mappings[index]
        return None

    def executable(self) -> tuple[Mapping, ...]:
        """Those that may be executed, in order of address."""
        return tuple(mapping for mapping in self._mappings if mapping.executable)

    def __iter__(self) -> Iterator[Mapping]:
        return iter(self._mappings)

    def __len__(self) -> int:
        return len(self._mappings)

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        return self._mappings == other._mappings if isinstance(other, Maps) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._mappings)

    def __repr__(self) -> str:
        return f"<Maps of {len(self)} mappings>"
