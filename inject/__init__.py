"""Brings code into the target and out of it again; ``stub/`` is the C that runs there."""
