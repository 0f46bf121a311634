"""Names as they are shown, kept on disk by file: demangling takes longer than all else that naming does."""

from __future__ import annotations

from .cache import Cache
from .codefile import CodeFile

_FEW = 200  # new names that are not worth the writing
_MOST = 50_000  # names of one file
_FORM = 1  # to be raised when names are shown in another way

Names = dict[tuple[int, int], str]
"""By ``CodeFile.key_of``."""


class KeptNames:
    """The names of functions in files with build ids; ``way`` is how they are shown.  Whatever is wrong with
    what was kept, it is as if nothing were there."""

    def __init__(self, cache: Cache | None, way: str) -> None:
        self._cache, self._way = cache, way
        self._names: dict[CodeFile, Names] = {}
        self._were: dict[CodeFile, int] = {}

    def names(self, file: CodeFile) -> Names:
        """The names known of ``file``, to be added to."""
        names = self._names.get(file)
        if names is None:
            names = self._names[file] = self._read(file)
            self._were[file] = len(names)
        return names

    def forget(self, file: CodeFile) -> None:
        """Other tables of ``file`` count now."""
        self._names.pop(file, None)

    def save(self) -> None:
        """Keep what has come since."""
        for file, names in self._names.items():
            key = self._key(file)
            if self._cache is not None and key and len(names) - self._were[file] >= _FEW:
                lines = (f"{table} {number} {name}" for (table, number), name in names.items() if table >= 0)
                self._cache.put(key, "\n".join(list(lines)[:_MOST]).encode("utf-8", "replace"))
        self._names.clear()

    def _read(self, file: CodeFile) -> Names:
        key = self._key(file)
        content = self._cache.get(key) if self._cache is not None and key else None
        names: Names = {}
        try:
            for line in (content or b"").decode().split("\n"):
                table, number, name = line.split(" ", 2)
                names[int(table), int(number)] = name
        except ValueError:
            return {}
        return names

    def _key(self, file: CodeFile) -> str:
        identity = file.identity
        what = f"{_FORM} {self._way} {identity}".encode()
        import hashlib  # late: it brings OpenSSL with it

        return f"names-{hashlib.sha256(what).hexdigest()}" if identity else ""
