"""speedscope's own format.

https://www.speedscope.app/file-format-schema.json : frames once, and "sampled" profiles of stacks (frame
numbers, root first) and weights.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from ..symbols.frame import Frame
from .facts import short_command
from .folded import thread_name
from .names import printable
from .profile import Profile, Stack
from .renderer import RenderOptions, encoded
from .tree import EMPTY


def render(profile: Profile, options: RenderOptions) -> Iterator[bytes]:
    """For speedscope: all threads together, or a profile for each with ``threads``."""
    return encoded([json.dumps(_document(profile, options), separators=(",", ":")) + "\n"])


def _document(profile: Profile, options: RenderOptions) -> dict[str, Any]:
    numbers: dict[tuple[str, str], int] = {}
    title = printable(options.title) or short_command(profile.meta)
    parts: list[tuple[str, Mapping[Stack, int]]] = [(title, profile.merged())]
    if options.threads:
        parts = [(printable(thread_name(thread)), stacks) for thread, stacks in profile.by_thread()]
    profiles = [_sampled(name, stacks, numbers, profile.meta.unit) for name, stacks in parts]
    frames = [{"name": name, "file": module} if module else {"name": name} for name, module in numbers]
    return {
        "$schema": "https://www.speedscope.app/file-format-schema.json",
        "name": title,
        "exporter": f"pyattach@{printable(profile.meta.version)}",
        "activeProfileIndex": 0,
        "shared": {"frames": frames},
        "profiles": profiles,
    }


def _sampled(
    name: str, stacks: Mapping[Stack, int], numbers: dict[tuple[str, str], int], unit: str
) -> dict[str, Any]:
    known: dict[int, int] = {}

    def number_of(frame: Frame) -> int:
        if id(frame) not in known:
            key = (printable(frame.name), printable(frame.module))
            known[id(frame)] = numbers.setdefault(key, len(numbers))
        return known[id(frame)]

    samples = [[number_of(frame) for frame in stack or (EMPTY,)] for stack in stacks]
    return {
        "type": "sampled",
        "name": name,
        "unit": "bytes" if unit == "bytes" else "none",  # a weight is a count of samples, no time
        "startValue": 0,
        "endValue": sum(stacks.values()),
        "samples": samples,
        "weights": list(stacks.values()),
    }
