"""The profile as JSON: ``document`` describes it."""

from __future__ import annotations

import json
from collections.abc import Iterator

from .document import document_of
from .profile import Profile
from .renderer import RenderOptions, encoded
from .tree import build


def render(profile: Profile, options: RenderOptions) -> Iterator[bytes]:
    """All stacks, exactly, and all that was measured, for programs to read; threads are always kept."""
    document = document_of(profile, build(profile))
    return encoded([json.dumps(document, separators=(",", ":")) + "\n"])
