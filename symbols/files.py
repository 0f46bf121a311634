"""Opens the files behind a process's mappings, whatever its root, and also deleted ones.

The target decides what its paths lead to, so nothing but the regular file that is mapped is ever opened:
opening a device or a FIFO can have effects.
"""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Callable, Iterator
from typing import BinaryIO

from .maps import Mapping

FileOpener = Callable[[Mapping], BinaryIO | None]
"""Opens what is behind a mapping (the caller closes it); None if that can't be had."""

PathOpener = Callable[[str], BinaryIO | None]
"""Opens the regular file at an absolute path; None where there is none."""

VDSO = "[vdso]"
_MAX_VDSO = 1024 * 1024  # bytes; it has a few pages


def proc_opener(pid: int) -> FileOpener:
    """What opens the mappings of process ``pid`` through /proc: by ``map_files`` (which needs privilege), by
    ``exe``, or by the path inside the process's root; the vdso from the process's memory.

    The opener never raises OSError: it returns None.
    """

    def open_mapping(mapping: Mapping) -> BinaryIO | None:
        if mapping.path == VDSO:
            return _read_memory(pid, mapping)
        if not mapping.is_file:
            return None
        for path, inode in _candidates(pid, mapping):
            stream = _open_regular(path, inode)
            if stream is not None:
                return stream
        return None

    return open_mapping


def path_openers(pid: int) -> list[PathOpener]:
    """What opens other regular files by their absolute paths: as process ``pid`` sees them, then as we do.
    The openers never raise OSError."""
    return [lambda path: _open_regular(f"/proc/{pid}/root{path}", None), own_path_opener]


def own_path_opener(path: str) -> BinaryIO | None:
    """The regular file at ``path``."""
    return _open_regular(path, None)


def file_opener(mapping: Mapping) -> BinaryIO | None:
    """Opens what was mapped in a process that may be gone, where the path still leads to that file."""
    return _open_regular(mapping.path, mapping.inode) if mapping.is_file else None


def _candidates(pid: int, mapping: Mapping) -> Iterator[tuple[str, int | None]]:
    """Paths to try, each with the inode to insist on.

    ``map_files`` is the mapped file by its nature.  The others are compared by inode alone: on overlayfs and
    btrfs, stat() tells another device than the one in maps.
    """
    yield f"/proc/{pid}/map_files/{mapping.start:x}-{mapping.end:x}", None
    yield f"/proc/{pid}/exe", mapping.inode
    yield f"/proc/{pid}/root{mapping.path}", mapping.inode
    if mapping.deleted:
        yield f"/proc/{pid}/root{mapping.file_path}", mapping.inode


def _open_regular(path: str, inode: int | None) -> BinaryIO | None:
    try:
        handle = os.open(path, os.O_PATH | os.O_CLOEXEC)  # touches nothing: not yet opened for reading
    except (OSError, ValueError):
        return None
    try:
        found = os.fstat(handle)
        if not stat.S_ISREG(found.st_mode) or inode not in (None, found.st_ino):
            return None
        return open(f"/proc/self/fd/{handle}", "rb")
    except OSError:
        return None
    finally:
        os.close(handle)


def _read_memory(pid: int, mapping: Mapping) -> BinaryIO | None:
    size = min(mapping.end - mapping.start, _MAX_VDSO)
    try:
        handle = os.open(f"/proc/{pid}/mem", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        return io.BytesIO(os.pread(handle, size, mapping.start))
    except OSError:
        return None
    finally:
        os.close(handle)
