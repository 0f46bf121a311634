"""What took long to make, kept on disk: symbol tables, debug files that were fetched, indices of lines.

In ``$XDG_CACHE_HOME/pyattach`` or ``~/.cache/pyattach``, bounded in size; the least lately used goes first.
Nothing is believed because it lies there: the folder and each file must be ours and nobody else's to write,
and each file ends with a check sum of all that is before it.  A file is written under another name and then
renamed, so that any number of processes may read and write at once.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
import struct
import zlib
from pathlib import Path

MOST_BYTES = 1 << 30
_MOST_ENTRY = 512 << 20  # bytes of one file
_HEAD = struct.Struct("<8sQII")  # magic, bytes of content, CRC-32 of content, of the head before it
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
_MAGIC = b"pyattach"
_KEY = re.compile(r"[a-z]+-[0-9a-f]{8,128}\Z")


def cache_folder() -> Path | None:
    """Where the cache lies, by the environment; None where there is no such place."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    if not base.startswith("/"):  # a relative one is to be ignored (XDG Base Directory Specification)
        home = os.environ.get("HOME", "")
        base = f"{home}/.cache" if home.startswith("/") else ""
    return Path(base, "pyattach") if base else None


class Cache:
    """A folder of files by key (a word, "-", hexadecimal digits).  Whatever goes wrong with it, it is as if
    nothing were there."""

    def __init__(self, folder: Path | None, most_bytes: int = MOST_BYTES) -> None:
        self._folder, self._most_bytes = folder, most_bytes

    def get(self, key: str) -> bytes | None:
        """The content kept for ``key``; None if there is none that is whole."""
        path = self._path(key)
        if path is None:
            return None
        try:
            with open(
                os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK), "rb"
            ) as file:
                found = os.fstat(file.fileno())
                if not _is_ours(found, stat.S_IFREG) or found.st_size > _MOST_ENTRY + _HEAD.size:
                    return None
                content = _checked(file.read(_MOST_ENTRY + _HEAD.size))
                if content is not None:
                    os.utime(file.fileno())  # lately used
        except OSError:
            return None
        return content

    def put(self, key: str, content: bytes) -> None:
        """Keep ``content`` for ``key``, and no more in all than there is room for."""
        path = self._path(key, make=True)
        if path is None or len(content) > min(_MOST_ENTRY, self._most_bytes // 2):
            return
        head = _HEAD.pack(_MAGIC, len(content), zlib.crc32(content), 0)
        head = head[:-4] + struct.pack("<I", zlib.crc32(head[:-4]))
        scratch = path.parent / f".new-{os.urandom(8).hex()}"
        try:
            with open(os.open(scratch, _NEW, 0o600), "wb") as file:
                file.write(head)
                file.write(content)
            scratch.replace(path)
            self._make_room(path.parent)
        except OSError:
            with contextlib.suppress(OSError):
                scratch.unlink()

    def _path(self, key: str, *, make: bool = False) -> Path | None:
        if self._folder is None or not _KEY.match(key):
            return None
        try:
            if make:
                self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            ours = _is_ours(os.lstat(self._folder), stat.S_IFDIR)
        except OSError:
            return None
        return self._folder / key if ours else None

    def _make_room(self, folder: Path) -> None:
        """Others may be at the same: what is gone already is no error."""
        files = []
        with os.scandir(folder) as entries:
            for entry in entries:
                with contextlib.suppress(OSError):
                    found = entry.stat(follow_symlinks=False)
                    files.append((found.st_mtime_ns, found.st_size, entry.path))
        room = self._most_bytes
        for _, size, path in sorted(files, reverse=True):
            room -= size
            if room < 0:
                with contextlib.suppress(OSError):
                    os.unlink(path)  # noqa: PTH108


def _is_ours(found: os.stat_result, kind: int) -> bool:
    return stat.S_IFMT(found.st_mode) == kind and found.st_uid == os.geteuid() and not found.st_mode & 0o022


def _checked(data: bytes) -> bytes | None:
    if len(data) < _HEAD.size:
        return None
    magic, size, crc, head_crc = _HEAD.unpack_from(data)
    if magic != _MAGIC or zlib.crc32(data[: _HEAD.size - 4]) != head_crc or size != len(data) - _HEAD.size:
        return None
    content = memoryview(data)[_HEAD.size :]
    return bytes(content) if zlib.crc32(content) == crc else None
