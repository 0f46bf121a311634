"""The documents: the tour works as it stands, links lead somewhere, options exist."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from support import requires
from test_attach_programs import free_port

from pyattach.attacher.cli_options import parser as attach_parser
from pyattach.attacher.heap_cli import parser as heap_parser
from pyattach.attacher.report_cli import diff_parser, report_parser
from pyattach.attacher.run_cli import parser as run_parser

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = [
    ROOT / "README.md",
    ROOT / "ARCHITECTURE.md",
    ROOT / "CONTRIBUTING.md",
    *(ROOT / "docs").glob("*.md"),
]


def test_the_tour_from_top_to_bottom(tmp_path: Path) -> None:
    """Pasted into one shell, command by command; each has to work."""
    requires("redis-server")
    blocks = re.findall(r"^```sh\n(.*?)^```$", (ROOT / "docs/tour.md").read_text(), re.MULTILINE | re.DOTALL)
    assert len(blocks) >= 8
    blocks = [re.sub(r"--duration \d\b", "--duration 2", block) for block in blocks]  # less to wait for
    port = str(free_port())
    blocks = [re.sub(r"\b6399\b", port, block) for block in blocks]
    command = tmp_path / "pyattach"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m pyattach "$@"\n')
    command.chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "HOME": str(tmp_path)}
    done = subprocess.run(
        ["bash", "-e", "-o", "pipefail", "-c", "\n".join(blocks)],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    if (tmp_path / "redis.pid").exists():
        subprocess.run(["kill", (tmp_path / "redis.pid").read_text().strip()], check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    for name in ("redis.svg", "after.svg", "diff.svg", "wall.svg", "heap.svg", "sort.svg"):
        assert (tmp_path / name).read_bytes().startswith(b"<?xml"), name
    assert "will work" in done.stdout
    assert "main;" in (tmp_path / "redis.folded").read_text()
    assert "temporary" in (tmp_path / "heap.txt").read_text()
    sorted_text = (tmp_path / "sort.txt").read_text()
    assert "md5" in sorted_text or "sort+0x" in sorted_text


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document: Path) -> None:
    for link in re.findall(r"\]\(([^)#]+)[^)]*\)", document.read_text()):
        if "://" not in link:
            assert (document.parent / link).exists(), link


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_options_exist(document: Path) -> None:
    """Of commands in the text that begin with ``pyattach``."""
    parsers = {"heap": heap_parser(), "run": run_parser(), "report": report_parser(), "diff": diff_parser()}
    for words in re.findall(r"(?:^ {4}|`|-- )(pyattach [^`\n]*)", document.read_text(), re.MULTILINE):
        command, _, _ = words.partition("  #")
        _, first, *rest = [*command.split(), ""]
        known = set(parsers.get(first, attach_parser())._option_string_actions)
        for word in [first, *rest]:
            if word == "--":
                break
            if word.startswith("-") and word != "-":
                assert word.rstrip(",.;:").split("=")[0] in known | {"--version"}, f"{words}: {word}"
