"""pyattach: attach to a running Linux process and see where its CPU time goes; see ``pyattach.api``."""

from __future__ import annotations

import importlib

from .errors import PyattachError

__all__ = ["PyattachError", "__version__", "attach", "attach_heap", "read"]

__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    """The Python API is imported when it is first used: the command has no need of it."""
    if name in __all__:
        return getattr(importlib.import_module(".api", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
