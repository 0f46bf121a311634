"""Turns addresses into names: maps, ELF tables, demangling."""
