"""What kind of thing a block of another process holds: a C++ object with virtual functions, by its class; a
CPython object, by its type.  From the block's first words, over /proc/PID/mem; nothing there is believed."""

from __future__ import annotations

import bisect
import re
from collections.abc import Sequence

from ..symbols.demangle import demangle
from ..symbols.maps import Maps
from .target import TargetProcess

_MANGLED = re.compile(rb"\*?(?:[0-9NSTK][A-Za-z0-9_$.]{0,1000}|[a-z])")
_NAME = re.compile(r"[\w.<>\[\]$ -]{1,200}")
_MOST_KNOWN = 1 << 20

# PyTypeObject of CPython 3.8 to 3.13 (Include/cpython/object.h), offsets in bytes.
_OB_TYPE, _TP_NAME, _TP_BASICSIZE, _TP_FLAGS = 8, 24, 32, 168
_HAVE_GC, _TYPE_SUBCLASS, _READY = 1 << 14, 1 << 31, 1 << 12
_MANAGED_WEAKREF, _MANAGED_DICT = 1 << 3, 1 << 4
_GC_HEAD, _PRE_HEADER = 16, 16
_NO_TYPE = "", 0


class TypeReader:
    """``type_of_type`` is where CPython's ``PyType_Type`` lies, 0 where the process is none."""

    def __init__(self, target: TargetProcess, maps: Maps, type_of_type: int = 0) -> None:
        self._target, self._type_type = target, type_of_type
        files = [m for m in maps if m.inode and not m.is_memfd]
        self._starts = [m.start for m in files]
        self._ends = [m.end for m in files]
        self._code = [(m.start, m.end) for m in files if m.executable]
        data = [m for m in maps if m.writable and not m.path.startswith("[s")]
        self._lowest = min((m.start for m in data), default=0)
        self._highest = max((m.end for m in data), default=0)
        self._classes: dict[int, str] = {}
        self._python: dict[int, tuple[str, int]] = {}

    def name(self, words: Sequence[int]) -> str:
        """Of a block that begins with these six words; empty where it is not known."""
        first = words[0]
        if first and self._in_a_file(first):
            known = self._classes.get(first)
            if known is None:
                known = self._class_at(first)
                if len(self._classes) < _MOST_KNOWN:
                    self._classes[first] = known
            if known:
                return known
        return self.python_object(words, 0, len(words)) if self._type_type else ""

    def python_object(self, words: Sequence[int], first: int, count: int) -> str:
        """The type of the object in the block of ``count`` words that is words[first:]; empty where it is
        none.

        An object begins with its reference count and its type.  Before that lies what the collector needs,
        and since CPython 3.11 in some there are two words more."""
        for at in range(0, min(5, count - 1), 2):
            address = words[first + at + 1]
            known = self._python.get(address)
            if known is None:
                known = self._type_at(address) if self._may_be_type(address) else _NO_TYPE
                if len(self._python) < _MOST_KNOWN:
                    self._python[address] = known
            if known[0] and known[1] == 8 * at and words[first + at]:
                return known[0]
        return ""

    def _may_be_type(self, address: int) -> bool:
        return address % 8 == 0 and self._lowest <= address < self._highest

    def _type_at(self, address: int) -> tuple[str, int]:
        if not self._is_type(address):
            return _NO_TYPE
        flags = self._word(address + _TP_FLAGS)
        name = self._text(self._word(address + _TP_NAME)).decode("utf-8", "replace")
        if not flags & _READY or not _NAME.fullmatch(name) or self._word(address + _TP_BASICSIZE) > 1 << 20:
            return _NO_TYPE
        before = _GC_HEAD if flags & _HAVE_GC else 0
        if flags & (_MANAGED_DICT | _MANAGED_WEAKREF):
            before += _PRE_HEADER
        return name, before

    def _is_type(self, address: int) -> bool:
        """Its own type is ``type``, or one that is derived from it."""
        meta = self._word(address + _OB_TYPE)
        if meta == self._type_type:
            return True
        is_meta = self._word(meta + _OB_TYPE) == self._type_type if meta and meta % 8 == 0 else False
        return is_meta and bool(self._word(meta + _TP_FLAGS) & _TYPE_SUBCLASS)

    def _class_at(self, table: int) -> str:
        """The class of a table of virtual functions (Itanium C++ ABI, 2.5.2, 2.9): before the functions
        there are the offset to the object's begin, 0 here, and the type's description, whose second word is
        its name."""
        if table % 8 or self._word(table - 16):
            return ""
        info = self._word(table - 8)
        function = self._word(table)
        if not self._in_a_file(info) or not any(low <= function < high for low, high in self._code):
            return ""
        if not self._in_a_file(self._word(info)):
            return ""
        name = self._text(self._word(info + 8))
        if not _MANGLED.fullmatch(name):
            return ""
        mangled = "_ZTS" + name.removeprefix(b"*").decode("ascii")
        readable = demangle(mangled)
        return readable.removeprefix("typeinfo name for ") if readable != mangled else ""

    def _in_a_file(self, address: int) -> bool:
        i = bisect.bisect_right(self._starts, address) - 1
        return i >= 0 and address < self._ends[i]

    def _word(self, address: int) -> int:
        return int.from_bytes(self._read(address, 8), "little")

    def _text(self, address: int) -> bytes:
        """Up to its zero byte."""
        return self._read(address, 256).partition(b"\0")[0]

    def _read(self, address: int, size: int) -> bytes:
        if not 0 < address < 1 << 47:
            return b""
        for length in (size, min(size, -address % 4096 or 4096)):
            try:
                return self._target.read(address, length)
            except ProcessLookupError:
                raise
            except OSError:
                continue
        return b""
