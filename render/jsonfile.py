"""The profile as JSON: ``document`` describes it."""

from __future__ import annotations

import json
from collections.abc import Iterator

from .document import document_of
from .profile import Profile
from .renderer import RenderOptions, encoded
from .tree import build


class JsonRenderer:
    """All stacks, exactly, and all that was measured, for programs to read; threads are always kept."""

    name = "json"
    suffixes = (".json",)

    def render(self, profile: Profile, options: RenderOptions) -> Iterator[bytes]:
        """The file, in one piece."""
        document = document_of(profile, build(profile))
        return encoded([json.dumps(document, separators=(",", ":")) + "\n"])
