"""The file a program is started with: the stub as a preloaded library, and the shared memory behind it."""

from __future__ import annotations

import contextlib
import dataclasses
import mmap
import os
from collections.abc import Callable

from .borrow import MEMFD_PREFIX, forbid_shrinking, memfd_flags
from .chance import random_bits
from .image import preload_image
from .layout import PRELOAD_REGION, Control, State
from .region import RegionPlan


@dataclasses.dataclass
class PreloadedStub:
    """The memfd and its mapping here.  ``is_there`` tells whether the program still is the one that was
    started; it is set once there is one."""

    plan: RegionPlan
    memfd: int
    region: mmap.mmap
    is_there: Callable[[], bool] = lambda: True
    region_offset: int = PRELOAD_REGION
    clock_offset_ns: int = 0  # a child has its parent's clocks
    held_ns: list[int] = dataclasses.field(default_factory=list)

    @classmethod
    def create(cls, plan: RegionPlan, image: bytes | None = None) -> PreloadedStub:
        """Make and fill the file, with the sampler's image if none is given; the program's own pid is
        missing in it.  Raises OSError."""
        nonce = random_bits(64)
        control = plan.control(nonce, 0)
        control.state, control.post_seq, control.slots_used = State.IDLE, 1, 1
        control.spare_signal = 0  # until its C library is known
        memfd = os.memfd_create(f"{MEMFD_PREFIX.decode()}{nonce:016x}", memfd_flags() | os.MFD_CLOEXEC)
        try:
            os.ftruncate(memfd, PRELOAD_REGION + plan.size)
            forbid_shrinking(memfd)
            os.pwrite(memfd, image or preload_image(), 0)
            os.pwrite(memfd, bytes(control), PRELOAD_REGION)
            return cls(plan, memfd, mmap.mmap(memfd, plan.size, offset=PRELOAD_REGION))
        except BaseException:
            os.close(memfd)
            raise

    def environment(self, before: dict[bytes, bytes]) -> dict[bytes, bytes]:
        """``before`` with the library preloaded, in front of what is preloaded there."""
        ours = b"/proc/self/fd/%d" % self.memfd
        theirs = before.get(b"LD_PRELOAD")
        return {**before, b"LD_PRELOAD": ours if theirs is None else ours + b":" + theirs}

    def enter(self) -> None:
        """In the process that will be the program, just before it is: say that it is meant."""
        pid = os.getpid().to_bytes(4, "little")
        os.pwrite(self.memfd, pid, PRELOAD_REGION + Control.preload_pid.offset)
        os.set_inheritable(self.memfd, True)

    def read_in_target(self, offset: int, size: int) -> bytes:
        """Bytes of the shared memory, by its file; OSError once the program is another one."""
        if not self.is_there():
            raise ProcessLookupError("the program has replaced itself by another one")
        return os.pread(self.memfd, size, self.region_offset + offset)

    def close(self) -> None:
        """Close what is open here; may be said twice."""
        memfd, self.memfd = self.memfd, -1
        if memfd >= 0:
            with contextlib.suppress(BufferError):  # an exception's frames have views of it
                self.region.close()
            os.close(memfd)
