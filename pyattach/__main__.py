"""``python -m pyattach`` is the ``pyattach`` command."""

from __future__ import annotations

import sys

from .attacher.main import main

sys.exit(main())
