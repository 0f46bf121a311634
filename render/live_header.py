"""What a live view shows of a session beside its functions."""

from __future__ import annotations

import dataclasses

from .facts import hertz, small_share
from .names import printable


@dataclasses.dataclass(frozen=True, slots=True)
class LiveHeader:
    """The state of a running session.  ``None`` means: not known yet, or without end.

    ``overhead_share`` is a share (0.01 is 1%) of the target's CPU time; ``command`` is untrusted.
    """

    pid: int
    command: str
    rate_asked_hz: float
    rate_reached_hz: float | None
    threads: int
    samples: int
    dropped: int
    overhead_share: float | None
    elapsed_s: float
    remaining_s: float | None
    note: str = ""
    beside: str = ""
    mode: str = "cpu"


def figures(header: LiveHeader) -> list[str]:
    """What was measured, the most important first: a narrow terminal shows only as many as fit."""
    rate = f"{hertz(header.rate_asked_hz)} asked"
    if header.rate_reached_hz is not None:
        rate += f", {header.rate_reached_hz:.1f} reached"
    if header.mode != "cpu":
        rate = f"{printable(header.mode)} · {rate}"
    parts = [rate, f"{header.samples:,} samples", f"{header.dropped:,} dropped"]
    if header.overhead_share is not None:
        parts.append(f"{small_share(header.overhead_share)} overhead")
    parts.append(f"{header.threads:,} thread{'s' * (header.threads != 1)}")
    # A note is news: it goes before what is always there, so that it is not the first to be left out.
    return [*(printable(text) for text in (header.note, header.beside) if text), *parts]
