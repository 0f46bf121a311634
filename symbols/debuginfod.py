"""Debug files from servers: ``GET URL/buildid/HEX/debuginfo`` (debuginfod(8)), where DEBUGINFOD_URLS names
some.

Only asked when the target has been left.  What was fetched is kept in the cache, and so is, for a while, that
a server has nothing.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import BinaryIO

from ..errors import MalformedInput
from .cache import Cache
from .elf import ElfImage

Say = Callable[[str], None]

_MOST_BYTES = 512 << 20
_CHUNK = 1 << 18
_SECONDS_A_STEP = 10.0
_NOTHING_FOR_S = 3600.0
_NOTHING = b"nothing"
_SPEAK_EVERY_S = 1.0
_LONGEST_REASON = 200  # characters: an error may hold a whole line of the server's


def urls() -> list[str]:
    """The servers, http and https only, in the order to be asked."""
    words = os.environ.get("DEBUGINFOD_URLS", "").split()
    return [word.rstrip("/") for word in words if word.startswith(("http://", "https://"))]


class _TooLarge(Exception):
    """The server has the file, and it is not to be had."""


class Debuginfod:
    """Asks ``servers`` until ``deadline`` (time.monotonic()), and ``say``s what it does."""

    def __init__(self, servers: list[str], cache: Cache, deadline: float, say: Say) -> None:
        self._servers, self._cache, self._deadline, self._say = servers, cache, deadline, say
        self._gone = False
        self.failures: list[str] = []
        """What to tell the user: servers that did not answer, files that took too long."""

    def fetch(self, build_id: bytes, name: str) -> ElfImage | None:
        """The debug file of the build; None where nobody has it, or not in time.  ``name`` is for
        messages."""
        key = f"debuginfo-{build_id.hex()}"
        content, fresh = self._cache.get(key), False
        if content is not None and content.startswith(_NOTHING):
            if float(content[len(_NOTHING) :] or 0) + _NOTHING_FOR_S > time.time():
                return None
            content = None
        if content is None:
            content, fresh = self._fetched(build_id, name), True
            if content is None:
                return None
        try:
            image = ElfImage(_file_of(content), f"{name} (debuginfod)")
        except MalformedInput as error:
            self.failures.append(str(error))
            return None
        if image.build_id != build_id:
            self.failures.append(f"{name} (debuginfod): it is of another build")
            image.close()
            return None
        if fresh:
            self._cache.put(key, content)
        return image

    def _fetched(self, build_id: bytes, name: str) -> bytes | None:
        from http.client import HTTPException  # late: with all it takes along, 60 ms
        from urllib.error import HTTPError

        answered = not self._gone  # of those that did not answer, nobody knows what they have
        for server in list(self._servers):
            if time.monotonic() >= self._deadline:
                self.failures.append(f"no time was left to ask debuginfod for {name}")
                return None
            try:
                return self._get(f"{server}/buildid/{build_id.hex()}/debuginfo", name)
            except HTTPError as error:
                error.close()
                answered = answered and error.code == 404
            except TimeoutError:
                self.failures.append(f"debuginfod took too long over {name}")
                return None
            except _TooLarge as error:
                self.failures.append(f"debuginfod: {server}: {error}")
                return None
            except (OSError, ValueError, HTTPException) as error:
                self._servers.remove(server)  # not again for every file
                self._gone = True
                self.failures.append(f"debuginfod: {server}: {str(error)[:_LONGEST_REASON]}")
                answered = False
        if answered:
            self._cache.put(f"debuginfo-{build_id.hex()}", _NOTHING + str(int(time.time())).encode())
        return None

    def _get(self, url: str, name: str) -> bytes:
        from urllib.request import Request, urlopen

        request = Request(url, headers={"User-Agent": "pyattach"})
        parts, size, spoken = [], 0, time.monotonic()
        self._say(f"debuginfod: asking {url.split('/')[2]} for {name}")
        with urlopen(request, timeout=self._left_s()) as reply:
            whole = int(reply.headers.get("Content-Length") or 0)
            if whole > _MOST_BYTES:
                raise _TooLarge(f"{name} has more than {_MOST_BYTES >> 20} MB")
            while chunk := reply.read1(_CHUNK):
                parts.append(chunk)
                size += len(chunk)
                if size > _MOST_BYTES:
                    raise _TooLarge(f"{name} has more than {_MOST_BYTES >> 20} MB")
                if time.monotonic() > self._deadline:
                    raise TimeoutError
                if time.monotonic() - spoken > _SPEAK_EVERY_S:
                    spoken = time.monotonic()
                    of = f" of {whole >> 20}" if whole else ""
                    self._say(f"debuginfod: {name}: {size >> 20}{of} MB")
        if whole and size != whole:
            raise ValueError(f"{name} was cut off at {size} of {whole} bytes")
        return b"".join(parts)

    def _left_s(self) -> float:
        return max(0.1, min(_SECONDS_A_STEP, self._deadline - time.monotonic()))


def _file_of(content: bytes) -> BinaryIO:
    """A file in memory: its lines are read by another process."""
    file = open(os.memfd_create("debuginfo"), "w+b")  # noqa: SIM115 - the image closes it
    file.write(content)
    file.flush()
    return file
