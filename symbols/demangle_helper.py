"""libstdc++'s demangler, in this process or confined to a helper process.

``__cxa_demangle`` has no limit: 170 bytes of back references make it write 16 MB, and 300 bytes more than
any machine has.  Names that could do that go to a child with limits on memory and time; whatever happens
to it, they just stay mangled.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import subprocess

_SECONDS = 2.0
_MEMORY_BYTES = 256 * 1024 * 1024
_REPLY_BYTES = 65_536
_LIVES = 3  # helpers that may perish before heavy names are left alone

_PROGRAM = f"""
import resource, sys
sys.path.insert(0, sys.argv[1])
import cxxfilt
resource.setrlimit(resource.RLIMIT_AS, ({_MEMORY_BYTES}, {_MEMORY_BYTES}))
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
for line in sys.stdin.buffer:
    try:
        out = cxxfilt.demangleb(line.rstrip(b"\\n"))[:{_REPLY_BYTES}]
    except Exception:
        out = b""
    sys.stdout.buffer.write(out.replace(b"\\n", b" ") + b"\\n")
    sys.stdout.buffer.flush()
"""


def in_process(name: str) -> str | None:
    """The demangled form of ``name``, None if it has none or there is no demangler."""
    try:
        import cxxfilt  # late: its import runs a subprocess to find libstdc++
    except (ImportError, OSError):
        return None
    try:
        demangled: str = cxxfilt.demangle(name)
    except (cxxfilt.Error, ValueError, OSError):
        return None
    return demangled


def confined(name: str) -> str | None:
    """Like ``in_process``, in the helper, which is started at the first such name."""
    return _helper.ask(name)


def close() -> None:
    """End the helper process, if one runs; the next heavy name starts another."""
    _helper.close()


class _Helper:
    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._lives = _LIVES

    def ask(self, name: str) -> str | None:
        if self._lives <= 0:
            return None
        try:
            reply = self._exchange(name.encode("ascii"))
        except OSError:
            reply = None
        if reply is None:
            self._lives -= 1
            self.close()
            return None
        return reply.decode("utf-8", "replace") or None

    def close(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        with contextlib.suppress(OSError):
            process.communicate()

    def forget(self) -> None:
        """In a fork of this process: the helper is the other's."""
        self._process = None

    def _exchange(self, name: bytes) -> bytes | None:
        process = self._process = self._process or _start()
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(name + b"\n")
        process.stdin.flush()
        return _read_line(process.stdout.fileno(), time.monotonic() + _SECONDS)


def _start() -> subprocess.Popen[bytes]:
    import subprocess

    import cxxfilt

    home = os.path.dirname(os.path.dirname(cxxfilt.__file__))  # noqa: PTH120
    return subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", _PROGRAM, home],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # the user's ^C is not for it
    )


def _read_line(fd: int, deadline: float) -> bytes | None:
    import select

    line = b""
    while not line.endswith(b"\n"):
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([fd], [], [], left)[0]:
            return None
        data = os.read(fd, _REPLY_BYTES)
        if not data:
            return None
        line += data
    return line[:-1]


_helper = _Helper()
os.register_at_fork(after_in_child=_helper.forget)
