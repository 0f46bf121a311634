"""Turns a profile into what people look at: folded stacks, SVG, text, the live view."""
