"""Two profiles side by side: what must hold for that, and the picture of what has changed."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Iterator

from ..errors import UsageError
from ..symbols.frame import Frame
from .profile import Profile, Stack
from .renderer import RenderOptions, encoded
from .svg import svg


def diff_svg(
    before: Profile, after: Profile, options: RenderOptions, *, different_modes: bool = False
) -> Iterator[bytes]:
    """The flame graph of ``after``, coloured by how the share of each frame has changed since ``before``.

    Raises UsageError where the modes differ (time on a processor, time in all) and that is not wanted.
    """
    modes = [profile.meta.mode for profile in (before, after)]
    if "" not in modes and modes[0] != modes[1] and not different_modes:
        raise UsageError(
            f"the first profile is of mode {modes[0]!r}, the second of {modes[1]!r}: their shares mean "
            "different things",
            "say --different-modes to compare them all the same",
        )
    kinds = [f"{profile.meta.unit} {profile.meta.kind}" for profile in (before, after)]
    if modes == ["heap", "heap"] and kinds[0] != kinds[1] and not different_modes:
        raise UsageError(
            f"the first profile is of {kinds[0]}, the second of {kinds[1]}: their shares mean different "
            "things",
            "say --different-modes to compare them all the same",
        )
    before, after = _with_like_modules(before, after)
    if _has_pids(before) and _has_pids(after):
        before, after = _without_pids(before), _without_pids(after)
    return encoded(svg(after, options, before))


def _with_like_modules(before: Profile, after: Profile) -> tuple[Profile, Profile]:
    """Folded stacks name no modules: then those of the other profile would make all frames new."""
    if _has_modules(before) != _has_modules(after):
        return _without_modules(before), _without_modules(after)
    return before, after


def _has_modules(profile: Profile) -> bool:
    return any(frame.module for _, stack in profile.weights for frame in stack)


_PROCESS = re.compile(r"\d+ (?=\S)")


def _has_pids(profile: Profile) -> bool:
    """Whether each stack stands on its process (``-s``)."""
    return all(stack and _PROCESS.match(stack[0].name) for _, stack in profile.weights)


def _without_pids(profile: Profile) -> Profile:
    """Pids are others in each run: they would make all frames new."""

    @functools.cache
    def bare(frame: Frame) -> Frame:
        return dataclasses.replace(frame, name=_PROCESS.sub("", frame.name, count=1))

    return _with_stacks(profile, lambda stack: (bare(stack[0]), *stack[1:]))


def _without_modules(profile: Profile) -> Profile:
    @functools.cache
    def bare(frame: Frame) -> Frame:
        return Frame(frame.name, "", frame.kind)

    return _with_stacks(profile, lambda stack: tuple(map(bare, stack)))


def _with_stacks(profile: Profile, changed: Callable[[Stack], Stack]) -> Profile:
    """Those that are the same once they are changed are one."""
    weights: dict[tuple[int, Stack], int] = {}
    for (tid, stack), ticks in profile.weights.items():
        key = (tid, changed(stack))
        weights[key] = weights.get(key, 0) + ticks
    return dataclasses.replace(profile, weights=weights, timeline=None)
