"""Builds the stub with the package; everything else is in pyproject.toml."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import ClassVar

from setuptools import Command, Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build import build
from setuptools.errors import CompileError

ROOT = Path(__file__).resolve().parent

_spec = importlib.util.spec_from_file_location("build_stub", ROOT / "inject" / "build_stub.py")
assert _spec is not None and _spec.loader is not None
build_stub = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(build_stub)


class BuildStub(Command):
    """Compiles the stub: beside its Python modules when editable, into the wheel otherwise.

    The attributes and methods are those of setuptools.command.build.SubCommand.
    """

    description = "compile the stub that runs in the target"
    user_options: ClassVar = [("build-lib=", "d", "where the package is put together")]

    def initialize_options(self) -> None:
        self.build_lib: str | None = None  # unset: taken from build_py
        self.editable_mode = False

    def finalize_options(self) -> None:
        self.set_undefined_options("build_py", ("build_lib", "build_lib"))

    def run(self) -> None:
        try:
            build_stub.build(ROOT / "inject" / "stub", self._output_dir())
        except build_stub.BuildError as error:
            raise CompileError(str(error)) from error

    def get_source_files(self) -> list[str]:
        stub = ROOT / "inject" / "stub"
        return [
            str(path.relative_to(ROOT))
            for path in stub.rglob("*")
            if path.suffix in build_stub.SOURCE_SUFFIXES
        ]

    def get_outputs(self) -> list[str]:
        return [str(self._output_dir() / name) for name in build_stub.ARTIFACTS]

    def get_output_mapping(self) -> dict[str, str]:
        return {}  # nothing is copied from the source tree as it is

    def _output_dir(self) -> Path:
        return ROOT / "inject" if self.editable_mode else Path(self.build_lib or ".") / "pyattach" / "inject"


class Build(build):
    # After build_py, which copies artifacts of an earlier editable install if it finds some.
    sub_commands: ClassVar = [*build.sub_commands, ("build_stub", None)]


# As auditwheel finds (a test asks it); musl is as good where no library is needed at all.
PLATFORMS = {"linux_x86_64": "manylinux1_x86_64.manylinux_2_5_x86_64.musllinux_1_1_x86_64"}


class BdistWheel(bdist_wheel):
    def get_tag(self) -> tuple[str, str, str]:
        """``py3-none-<platform>``: the stub never touches Python, so any interpreter will do; nor any
        library, so any C library will."""
        platform = super().get_tag()[2]
        return ("py3", "none", PLATFORMS.get(platform, platform))


class MachineCode(Distribution):
    def has_ext_modules(self) -> bool:
        """True although none is a Python extension: the wheel belongs to one platform."""
        return True


setup(distclass=MachineCode, cmdclass={"build": Build, "build_stub": BuildStub, "bdist_wheel": BdistWheel})
