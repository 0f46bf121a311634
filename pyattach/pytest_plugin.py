"""Fixtures for tests of native services; ``pytest_plugins = ["pyattach.pytest_plugin"]`` in a conftest.py.

    def test_requests_leave_nothing_behind(server, heap_of):
        with heap_of(server.pid, leaks=True) as session:
            ask(server, times=1000)
        assert session.profile.leaked_bytes(module="libfoo") == 0

Where a test fails its report says where the pictures of what it recorded are.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from .api import Attachment, HeapProfile, Profile, Result, attach, attach_heap
from .errors import PyattachError


@pytest.fixture
def heap_of(
    request: pytest.FixtureRequest, tmp_path: Path
) -> Callable[..., AbstractContextManager[Attachment[HeapProfile]]]:
    """``pyattach.attach_heap``, with the picture kept beside the test's other files."""
    return _keeping(attach_heap, "heap", request, tmp_path)


@pytest.fixture
def profile_of(
    request: pytest.FixtureRequest, tmp_path: Path
) -> Callable[..., AbstractContextManager[Attachment[Profile]]]:
    """``pyattach.attach``, with the picture kept beside the test's other files."""
    return _keeping(attach, "profile", request, tmp_path)


def _keeping(
    attaching: Callable[..., Attachment[Result]], name: str, request: pytest.FixtureRequest, folder: Path
) -> Callable[..., AbstractContextManager[Attachment[Result]]]:
    @contextlib.contextmanager
    def of(pid: int, **options: Any) -> Iterator[Attachment[Result]]:
        session = attaching(pid, **options)
        try:
            with session:
                yield session
        finally:
            with contextlib.suppress(PyattachError):  # there is none
                _keep(session.profile, request, folder, f"{name}-{pid}")

    return of


def _keep(profile: Profile, request: pytest.FixtureRequest, folder: Path, name: str) -> None:
    path = folder / f"{name}.svg"
    number = 1
    while path.exists():
        number += 1
        path = folder / f"{name}-{number}.svg"
    profile.save(path)
    request.node.add_report_section("call", "pyattach", f"{profile!r}: {path}")
