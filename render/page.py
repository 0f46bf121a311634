"""The page in a picture: its scripts and their styles, packed; and the style of the picture itself."""

from __future__ import annotations

import functools
import importlib.resources
import json
import re

from .packing import gzip_base64

_SCRIPTS = ("page_model.js", "page_layout.js", "page_draw.js", "page_table.js", "page_keys.js")
# A script that unpacks another and runs it as one of the same picture's.
_START = """(async (own) => {{
const bytes = Uint8Array.from(atob("{packed}"), (c) => c.charCodeAt(0));
const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
const script = document.createElementNS("http://www.w3.org/2000/svg", "script");
script.textContent = await new Response(stream).text();
own.after(script);
}})(document.currentScript);"""


@functools.cache
def page_script() -> str:
    """The script of every picture: all of the page, packed by gzip, and what unpacks it."""
    style = f"const STYLE = {json.dumps(_style('page.css'))};\n"
    scripts = "".join(map(_script, _SCRIPTS))
    page = f'(() => {{\n"use strict";\n{style}{scripts}}})();\n'
    return _START.format(packed=gzip_base64(page.encode()))


@functools.cache
def still_style() -> str:
    """The style of the picture where no script runs."""
    return _style("still.css")


def _script(name: str) -> str:
    """Without indentation and lines of comment."""
    lines = (line.strip() for line in _text(name).splitlines())
    return "".join(f"{line}\n" for line in lines if line and not line.startswith("//"))


def _style(name: str) -> str:
    """Without comments, and without blanks that mean nothing in rules as they are written there."""
    text = re.sub(r"/\*.*?\*/", "", _text(name), flags=re.DOTALL)
    return re.sub(r"\s*([{};,]|:(?= ))\s*", r"\1", text).strip()


def _text(name: str) -> str:
    return importlib.resources.files(__package__).joinpath(name).read_text(encoding="utf-8")
