"""What a wheel holds: one import package, the compiled stub, and nothing bare in site-packages."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

PARTS = ("attacher", "inject", "render", "symbols")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy of the sources: neither uses nor leaves anything in the checkout."""
    source = tmp_path_factory.mktemp("source")
    (source / "docs").mkdir()
    for name in ("pyproject.toml", "setup.py", "MANIFEST.in", "LICENSE", "README.md", "docs/pyattach.1"):
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, source / name)
    built = shutil.ignore_patterns("__pycache__", "*.so", "*.bin", *PARTS)
    shutil.copytree(ROOT / "pyattach", source / "pyattach", ignore=built)
    for name in PARTS:
        shutil.copytree(
            ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__", "*.so", "*.bin")
        )
    # Without isolation: with the setuptools that is installed here, nothing is downloaded.
    command = [sys.executable, "-m", "pip", "wheel", "--no-build-isolation", "--no-deps", "--no-index"]
    command += ["--wheel-dir", str(source / "dist"), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = (source / "dist").glob("*.whl")
    return path


def test_only_pyattach_lands_in_site_packages(wheel: Path) -> None:
    top = {name.split("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert {name for name in top if not name.endswith((".dist-info", ".data"))} == {"pyattach"}


def test_the_manual_is_inside(wheel: Path) -> None:
    data = [name for name in zipfile.ZipFile(wheel).namelist() if ".data/" in name]
    assert [name.partition(".data/")[2] for name in data] == ["data/share/man/man1/pyattach.1"]


def test_every_part_is_inside(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    for part in PARTS:
        expected = {f"pyattach/{path.relative_to(ROOT)}" for path in (ROOT / part).rglob("*.py")}
        assert expected <= names, "add the missing package to tool.setuptools.packages"


def test_the_compiled_stub_is_inside(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    for artifact in ("_stub.so", "_preload.so", "_boot.bin", "_loader.bin", "_unwind.so"):
        assert f"pyattach/inject/{artifact}" in names


def test_any_python_3_of_this_platform_takes_it(wheel: Path) -> None:
    assert "-py3-none-manylinux1_x86_64.manylinux_2_5_x86_64.musllinux_1_1_x86_64" in wheel.name


def test_auditwheel_agrees(wheel: Path) -> None:
    """Needing no library at all is also what makes it right for musl."""
    command = [sys.executable, "-m", "auditwheel", "show", str(wheel)]
    said = " ".join(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())
    assert 'following platform tag: "manylinux_2_5_x86_64"' in said
    assert (
        "references no external versioned symbols" in said and "requires no external shared libraries" in said
    )
