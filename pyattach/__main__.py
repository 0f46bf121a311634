"""``python -m pyattach`` is the ``pyattach`` command."""

from __future__ import annotations

import sys

from .attacher.cli import main

sys.exit(main())
