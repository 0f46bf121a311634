"""What a session needs once it samples, imported as soon as it does: nobody waits for it by then.

Not when it is used: hours later another version may lie where this one was; and where many threads are
watched no file may be left to be opened.
"""

from __future__ import annotations


def import_the_rest() -> None:
    """Names, the profile, and what is said of it."""
    import dataclasses  # noqa: F401

    from ..render import profile, text  # noqa: F401
    from ..symbols import completing, frame_names  # noqa: F401
