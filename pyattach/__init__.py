"""pyattach: attach to a running Linux process and see where its CPU time goes."""

from __future__ import annotations

from .errors import PyattachError

__all__ = ["PyattachError", "__version__"]

__version__ = "0.1.0"
