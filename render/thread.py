"""A thread, as profiles name it."""

from __future__ import annotations

from typing import NamedTuple


class Thread(NamedTuple):
    """A thread of the target: its kernel id and the name it had when last seen (untrusted)."""

    tid: int
    name: str
