"""The check sums of debug files that are known by nothing else, within bounds: which files those are, how
large and how many, is the target's choice."""

from __future__ import annotations

import os
import time
import zlib
from collections.abc import Callable

from .elf import ElfImage
from .name_options import SUMMING_S

_MOST_BYTES = 2 << 30
_CHUNK = 1 << 20


class Summing:
    """Sums up the debug files of one program, for ``SUMMING_S`` in all; ``warn`` is told of those that are
    not summed up."""

    def __init__(self, warn: Callable[[str], None], clock_s: Callable[[], float] = time.monotonic) -> None:
        self._warn, self._clock_s, self._left_s = warn, clock_s, SUMMING_S

    def crc_is(self, image: ElfImage, wanted: int) -> bool:
        """Whether the whole file has that CRC-32; False also where it takes too long to tell."""
        begin_s = self._clock_s()
        try:
            crc = self._crc(image, begin_s + self._left_s)
        except OSError:
            return False
        finally:
            self._left_s -= self._clock_s() - begin_s
        if crc is None:
            self._warn(f"{image.path}: not used, it takes too long to see whether it is the right debug file")
        return crc == wanted

    def _crc(self, image: ElfImage, deadline_s: float) -> int | None:
        crc, read, stream = 0, 0, image.stream
        if stream.seek(0, os.SEEK_END) > _MOST_BYTES:
            return None
        stream.seek(0)
        # The size is not believed: some files of the kernel's say 0, and others grow.
        while self._clock_s() < deadline_s and read <= _MOST_BYTES:
            chunk = stream.read(_CHUNK)
            if not chunk:
                return crc
            crc, read = zlib.crc32(chunk, crc), read + len(chunk)
        return None
