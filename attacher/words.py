"""What the command line's options take: times, rates and shares, as numbers."""

from __future__ import annotations

import argparse
import math
import re

RATE_RANGE_HZ = (10.0, 1000.0)
"""Slower is refused, faster is warned of."""

CLOCKS = ("auto", "timer", "perf")
"""What can tick, see ``clock``."""


def duration_s(text: str) -> float:
    """Seconds from ``30``, ``1.5s``, ``500ms``, ``2m``, ``1h``.  Raises ArgumentTypeError."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|)", text.strip())
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r} is no duration: say 30, 1.5s, 500ms, 2m or 1h")
    value = float(found[1]) * {"ms": 0.001, "s": 1, "": 1, "m": 60, "h": 3600}[found[2]]
    if value <= 0:
        raise argparse.ArgumentTypeError("a duration must be longer than nothing")
    return value


def rate_hz(text: str) -> float:
    """A rate in Hz of at least 10.  Raises ArgumentTypeError."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of Hz: take 10 to 1000")
    if value < RATE_RANGE_HZ[0]:
        raise argparse.ArgumentTypeError(
            f"{text} Hz is too slow: take {RATE_RANGE_HZ[0]:.0f} to {RATE_RANGE_HZ[1]:.0f}"
        )
    if value > 100_000:
        raise argparse.ArgumentTypeError(f"{text} Hz is out of any timer's reach: take 10 to 1000")
    return value


def interval_hz(text: str) -> float:
    """The rate in Hz that goes with an interval: ``10ms``, ``2.5ms``, ``500us``, ``0.01s``.  Raises
    ArgumentTypeError."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(us|ms|s)", text.strip())
    interval_s = float(found[1]) * {"us": 1e-6, "ms": 1e-3, "s": 1.0}[found[2]] if found else 0.0
    if not interval_s:
        raise argparse.ArgumentTypeError(f"{text!r} is no interval: say 10ms, 2.5ms or 1000us")
    value = round(1 / interval_s, 6)
    if value < RATE_RANGE_HZ[0]:
        raise argparse.ArgumentTypeError(f"{text} is too long: take 1ms to 100ms")
    if value > 100_000:
        raise argparse.ArgumentTypeError(f"{text} is out of any timer's reach: take 1ms to 100ms")
    return value


def overhead_share(text: str) -> float:
    """A share from a percentage: 0.01 for ``1%``.  Raises ArgumentTypeError."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*%", text.strip())
    share = float(found[1]) / 100 if found else 0.0
    if not 0 < share <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no share of CPU time: say 1% or 0.5%")
    return share
