"""What the shell completes, in a shell."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest
import support

from pyattach.attacher.completion_cli import COMMANDS, script, whole_parser
from pyattach.attacher.main import main

COMPLETE = """\
source "$1"; shift
function=$(complete -p pyattach | sed 's/.*-F \\([^ ]*\\).*/\\1/')
COMP_WORDS=("$@"); COMP_CWORD=$(( $# - 1 ))
compopt() { :; }
"$function"
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture(scope="module")
def bash(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("completion") / "pyattach.bash"
    path.write_text(script("bash"))
    return path


def completed(bash: Path, *words: str, folder: Path | None = None) -> set[str]:
    """What the last of ``words``, after pyattach, may become."""
    command = ["bash", "-c", COMPLETE, "bash", str(bash), "pyattach", *words]
    return set(subprocess.run(command, capture_output=True, text=True, check=True, cwd=folder).stdout.split())


def test_commands_and_pids(bash: Path) -> None:
    assert set(COMMANDS) | {str(os.getpid())} <= completed(bash, "")
    assert completed(bash, "do") == {"doctor"}
    for words in (["-p"], ["heap"], ["doctor"]):
        assert str(os.getpid()) in completed(bash, *words, str(os.getpid())[:-1])


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_every_option(bash: Path, command: str) -> None:
    made = COMMANDS[command]() if command else whole_parser()
    wanted = {option for action in made._actions for option in action.option_strings} - {"-h", "--help"}
    assert len(wanted) > (0 if command == "doctor" else 3)
    assert {o for o in wanted if o.startswith("--")} <= completed(bash, *([command] if command else []), "--")


def test_choices_and_files(bash: Path, tmp_path: Path) -> None:
    assert completed(bash, "heap", "--kind", "le") == {"leaked"}
    assert completed(bash, "--mode", "") == {"cpu", "wall"}
    (tmp_path / "profile.svg").touch()
    assert completed(bash, "report", "prof", folder=tmp_path) == {"profile.svg"}


def test_the_manual_knows_every_option() -> None:
    page = (Path(__file__).resolve().parent.parent / "docs" / "pyattach.1").read_text().replace("\\-", "-")
    for made in (whole_parser(), *(make() for make in COMMANDS.values())):
        for action in made._actions:
            for option in action.option_strings:
                assert re.search(rf"(?<![\w-]){re.escape(option)}(?![\w-])", page), option
    known = {
        o for make in (whole_parser, *COMMANDS.values()) for a in make()._actions for o in a.option_strings
    }
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", page)) <= known


def test_the_manual_is_well_formed() -> None:
    groff = support.requires("groff")
    page = Path(__file__).resolve().parent.parent / "docs" / "pyattach.1"
    done = subprocess.run(
        [groff, "-man", "-Tutf8", "-ww", str(page)], capture_output=True, text=True, check=True
    )
    assert not done.stderr and len(done.stdout) > 5000


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "zsh"]) == 0
    assert capsys.readouterr().out.startswith("#compdef pyattach")
    with pytest.raises(SystemExit):
        main(["completion", "tcl"])
