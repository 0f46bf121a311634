"""Random numbers that nobody can guess."""

from __future__ import annotations

import os


def random_bits(count: int) -> int:
    """A number of up to ``count`` bits; ``secrets`` has the same, and brings OpenSSL with it: 5 ms."""
    return int.from_bytes(os.urandom((count + 7) // 8), "little") >> -count % 8
