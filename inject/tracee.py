"""What injection needs of a target: the few things ``attacher`` provides, as protocols."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from ..symbols.maps import Maps
from .arch.x86_64 import Registers


class HeldThread(Protocol):
    """One thread of the target, stopped by ptrace.  All else of the target runs on."""

    @property
    def tid(self) -> int: ...

    @property
    def stopped_at_ns(self) -> int:
        """CLOCK_MONOTONIC of pyattach when the thread was asked to stop."""
        ...

    @property
    def registers(self) -> Registers: ...

    @property
    def signal_mask(self) -> int: ...

    def signal_pending(self) -> bool:
        """Whether a signal that the thread does not block waits for it."""
        ...

    def release(self, registers: Registers | None = None) -> None:
        """Let go of the thread, with other registers if given."""
        ...


class Target(Protocol):
    """The process, seen and changed from outside."""

    @property
    def pid(self) -> int: ...

    def read(self, address: int, size: int) -> bytes:
        """Exactly ``size`` bytes; OSError where not all can be read."""
        ...

    def write(self, address: int, data: bytes) -> None:
        """Write through page protections; all of it or OSError."""
        ...

    def maps(self) -> Maps: ...

    def threads(self) -> list[int]:
        """The threads that exist now; none once it is gone."""
        ...

    def open_fd(self, number: int, name: bytes) -> int:
        """The target's open file ``number``, the memfd called ``name``, opened read-write for us: a new
        descriptor here.  FileNotFoundError where it is not that."""
        ...

    def wait_outside(
        self,
        tids: Iterable[int],
        ranges: list[tuple[int, int]],
        deadline_s: float,
        *,
        handlers: bool = False,
    ) -> set[int]:
        """Wait until each thread was seen outside all address ``ranges``; returns those that weren't.

        ``handlers``: a thread in a signal's handler that was called there isn't outside.
        """
        ...
