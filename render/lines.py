"""Source lines where functions are shown as wholes: of each the line with the most samples."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from ..symbols.frame import Frame
from .profile import Stack


def hottest_lines(stacks: Iterable[tuple[Stack, int]]) -> dict[tuple[str, str], str]:
    """By name and module: the ``path:line`` that most ticks have, of stacks and their ticks.  Empty where no
    frame has a line."""
    ticks_of: dict[int, int] = {}
    frames: dict[int, Frame] = {}
    for stack, ticks in stacks:
        for frame in stack:
            if frame.line:
                frames[id(frame)] = frame
                ticks_of[id(frame)] = ticks_of.get(id(frame), 0) + ticks
    sums: dict[tuple[str, str], dict[str, int]] = {}
    for key, frame in frames.items():
        of_function = sums.setdefault((frame.name, frame.module), {})
        of_function[frame.line] = of_function.get(frame.line, 0) + ticks_of[key]
    return {name: min(lines, key=lambda line: (-lines[line], line)) for name, lines in sums.items()}


def with_line(frame: Frame, lines: dict[tuple[str, str], str]) -> Frame:
    """``frame`` with the line that ``hottest_lines`` has found for its function."""
    line = lines.get((frame.name, frame.module), "")
    return frame if frame.line == line else dataclasses.replace(frame, line=line)
