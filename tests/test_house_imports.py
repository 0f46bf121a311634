"""Who may import whom: DIRECTIONS, and nothing else; and no circle among modules.

Every import statement counts, also inside functions and under TYPE_CHECKING.
"""

from __future__ import annotations

import ast
import graphlib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

DIRECTIONS = {
    "symbols": set(),
    "inject": {"symbols"},
    "render": {"symbols"},
    "attacher": {"inject", "symbols", "render"},
}

FOR_ALL = {"pyattach.errors"}


def module_files() -> dict[str, Path]:
    """All of our modules by dotted name; a package goes by its own name."""
    files = {}
    for path in [
        *ROOT.glob("pyattach/*.py"),
        *(p for name in DIRECTIONS for p in (ROOT / name).rglob("*.py")),
    ]:
        parts = path.relative_to(ROOT).with_suffix("").parts
        if parts[0] != "pyattach":
            parts = ("pyattach", *parts)
        files[".".join(parts).removesuffix(".__init__")] = path
    return files


FILES = module_files()


def imports_of(module: str, source: str, *, is_package: bool) -> Iterator[str]:
    """The modules of ours that ``source`` imports, as far down as they are modules."""
    package = module.split(".") if is_package else module.split(".")[:-1]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            # `from .x import y`: y may be a module, or a name in x.
            names = [
                f"{base}.{alias.name}" if f"{base}.{alias.name}" in FILES else base for alias in node.names
            ]
        else:
            continue
        yield from (name for name in names if name.split(".")[0] == "pyattach" and name != module)


def imports(module: str) -> set[str]:
    path = FILES[module]
    return set(imports_of(module, path.read_text(encoding="utf-8"), is_package=path.name == "__init__.py"))


def part_of(module: str) -> str:
    """The part of the house: ``pyattach.symbols.maps`` -> ``symbols``; "" for pyattach's own modules."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in DIRECTIONS else ""


@pytest.mark.parametrize("module", sorted(module for module in FILES if part_of(module)))
def test_imports_only_in_the_permitted_directions(module: str) -> None:
    own = part_of(module)
    for imported in imports(module) - FOR_ALL:
        part = part_of(imported)
        if part:
            assert part == own or part in DIRECTIONS[own], f"{module} imports {imported}"
        else:
            # `from .. import __version__` is for the one on top; the others need nothing of it.
            assert own == "attacher", f"{module} imports {imported}: only pyattach.errors is for all"


def test_no_circles() -> None:
    graph = {module: imports(module) for module in FILES}
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        pytest.fail(f"a circle of imports: {' -> '.join(error.args[1])}", pytrace=False)


def test_errors_imports_nothing_of_ours() -> None:
    assert imports("pyattach.errors") == set()


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("from ..symbols import frame", {"pyattach.symbols.frame"}),
        ("from ..symbols.frame import Frame", {"pyattach.symbols.frame"}),
        ("from .. import symbols", {"pyattach.symbols"}),
        ("import pyattach.symbols.frame as f", {"pyattach.symbols.frame"}),
        ("from pyattach import errors", {"pyattach.errors"}),
        ("def f():\n    from ..errors import PyattachError", {"pyattach.errors"}),
        ("import os, rich.table", set()),
    ],
)
def test_every_form_of_import_is_seen(source: str, expected: set[str]) -> None:
    assert set(imports_of("pyattach.render.some", source, is_package=False)) == expected
