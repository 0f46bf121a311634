"""The stub's stay in the target: brought in, armed, stopped, taken out."""

from __future__ import annotations

import contextlib
import mmap
import os
from collections.abc import Callable

from ..errors import InjectionFailed
from .borrow import Borrowed, Borrowing, error_text
from .image import StubImage, stub_image
from .layout import BOOT_SIZE, LOADER_SIZE, BootArgs, BootCommand, BootSegment, BootStep, Control
from .locks import LoaderCalls
from .region import PAGE, RegionPlan
from .tracee import HeldThread, Target

_STEPS: dict[int, str] = {
    BootStep.SHARED: "mapping the shared memory",
    BootStep.DLOPEN: "dlopen of the stub",
    BootStep.IMAGE: "mapping the stub",
    BootStep.CALL: "starting the stub",
    BootStep.UNLOAD: "unloading the stub",
}


def _check(target: Target, borrowed: Borrowed) -> None:
    error = borrowed.args.error
    if error:
        step = _STEPS.get(borrowed.args.step, "running the command")
        os.close(borrowed.memfd)
        raise InjectionFailed(f"pid {target.pid}: {step} failed there: {error_text(error)}")


class MappedStub:
    """The stub's image in one target: what is needed to call it and to take it out.  ``handle`` is that of
    dlopen, 0 where it was mapped without; ``held_ns``: how long threads were held for it; ``shared_address``:
    of its memory, 0 for a stub without a clock of the whole process."""

    def __init__(
        self,
        target: Target,
        image: StubImage,
        calls: LoaderCalls | None,
        base: int,
        handle: int,
        held_ns: list[int],
        shared_address: int = 0,
    ) -> None:
        self.target, self.image, self.calls = target, image, calls
        self.base, self.handle, self.held_ns = base, handle, held_ns
        self.shared_address = shared_address

    @property
    def by_dlopen(self) -> bool:
        return self.handle != 0

    @property
    def text_ranges(self) -> list[tuple[int, int]]:
        """Where a thread is inside the stub: absolute address ranges."""
        low, high = self.image.text
        return [(self.base + low, self.base + high)]

    @property
    def image_range(self) -> tuple[int, int]:
        return self.base, self.base + self.image.span

    def prepare_call(self, entry: str) -> Borrowing:
        """A borrowing that calls ``pa_arm`` or ``pa_stop``."""
        args = BootArgs(command=BootCommand.CALL, call=self.base + self.image.entries[entry])
        return Borrowing(self.target, args, process_timer=self._process_timer)

    def _process_timer(self) -> int:
        """The number plus 1 of the timer on the whole process's clock; 0: there is none."""
        if not self.shared_address:
            return 0
        at = self.shared_address + Control.stray_timer_plus_1.offset
        return int.from_bytes(self.target.read(at, 4), "little", signed=True)

    def prepare_unload(self) -> Borrowing:
        """A borrowing that takes shared memory and image out.  No thread may be inside the stub."""
        calls = self.calls
        args = BootArgs(
            command=BootCommand.UNLOAD_DLCLOSE if self.by_dlopen else BootCommand.UNLOAD_MAP,
            call=self.base + self.image.entries["pa_leave"],
            base=self.base,
            image_span=self.image.span,
            handle=self.handle,
            dlclose=calls.dlclose if calls else 0,
            errno_location=calls.errno_location if calls else 0,
        )
        return Borrowing(self.target, args)

    def run(self, borrowing: Borrowing, held: HeldThread) -> None:
        """Run a prepared borrowing; its time is added to ``held_ns``.  Raises InjectionFailed."""
        borrowed = borrowing.run(held)
        _check(self.target, borrowed)
        os.close(borrowed.memfd)
        self.held_ns.append(borrowed.held_ns)


class LoadedStub(MappedStub):
    """One that this pyattach has brought in.  ``memfd`` holds image and shared memory and outlives the
    target; ``region`` maps the shared memory here, for the words that pyattach writes."""

    def __init__(
        self, target: Target, image: StubImage, calls: LoaderCalls | None, *, base: int, handle: int,
        held_ns: list[int], plan: RegionPlan, shared_address: int, memfd: int, region_offset: int,
        region: mmap.mmap, clock_offset_ns: int,
    ) -> None:  # fmt: skip
        super().__init__(target, image, calls, base, handle, held_ns, shared_address)
        self.plan, self.memfd = plan, memfd
        self.region_offset, self.region, self.clock_offset_ns = region_offset, region, clock_offset_ns

    def read_in_target(self, offset: int, size: int) -> bytes:
        """Bytes of the shared memory through the target's own mapping; OSError where it is gone."""
        return self.target.read(self.shared_address + offset, size)

    def close(self) -> None:
        """Close what pyattach has open; the target is not touched."""
        with contextlib.suppress(BufferError):  # an exception's frames have views of it: it goes with them
            self.region.close()
        os.close(self.memfd)


class Loading:
    """Bringing the stub in: all that can be done beforehand is done before a thread is stopped."""

    def __init__(
        self,
        target: Target,
        plan: RegionPlan,
        calls: LoaderCalls | None,
        control: Control,
        slots: bytes,
        modules: tuple[bytes, bytes],
        *,
        by_dlopen: bool,
        image: StubImage | None = None,
        more: tuple[tuple[int, bytes], ...] = (),
        shared_at: int = 0,
    ) -> None:
        """``slots`` is the slot table's first contents, ``modules`` those of the module table and of the
        index area, ``more`` what else there is, by offset.  ``by_dlopen`` needs ``calls``.  ``image``: the
        sampler's, if none is given.  ``shared_at``: where the shared memory would be best."""
        if by_dlopen and calls is None:
            raise ValueError("dlopen needs the addresses of the loader's calls")
        self._target, self._plan, self._calls, self._by_dlopen = target, plan, calls, by_dlopen
        self._image = image = image or stub_image()
        front = image.data.ljust(-(-len(image.data) // PAGE) * PAGE, b"\0")
        self._region_offset = len(front) + BOOT_SIZE + LOADER_SIZE
        args = BootArgs(
            command=BootCommand.LOAD_DLOPEN if by_dlopen else BootCommand.LOAD_MAP,
            call=image.entries["pa_init"],
            image_span=image.span,
            shared_offset=self._region_offset,
            shared_size=plan.size,
            shared=shared_at,
            segment_count=len(image.segments),
            segments=tuple(
                BootSegment(s.offset, s.vaddr, s.file_bytes, s.memory_bytes, s.prot) for s in image.segments
            ),
        )
        if calls is not None:
            args.dlopen, args.dlclose = calls.dlopen, calls.dlclose
            args.errno_location, args.dlopen_flags = calls.errno_location, calls.flags
        behind: tuple[tuple[int, bytes], ...] = ((0, bytes(control)), (plan.slots_offset, slots))
        behind += ((plan.modules_offset, modules[0]), (plan.index_offset, modules[1]))
        self._borrowing = Borrowing(target, args, front, behind + more, plan.size)

    def run(self, held: HeldThread, loaded: Callable[[LoadedStub], None] = lambda _stub: None) -> LoadedStub:
        """Load on ``held``; ``loaded`` is told at once, the stub is returned when the thread has left.
        Raises InjectionFailed; the target is then as it was."""
        stubs: list[LoadedStub] = []

        def done(borrowed: Borrowed) -> None:
            _check(self._target, borrowed)
            stubs.append(self._stub_of(borrowed))
            loaded(stubs[0])

        self._borrowing.run(held, done)
        return stubs[0]

    def _stub_of(self, borrowed: Borrowed) -> LoadedStub:
        args = borrowed.args
        return LoadedStub(
            target=self._target,
            image=self._image,
            plan=self._plan,
            calls=self._calls,
            base=args.base,
            handle=args.handle if self._by_dlopen else 0,
            shared_address=args.shared,
            memfd=borrowed.memfd,
            region_offset=self._region_offset,
            region=mmap.mmap(borrowed.memfd, self._plan.size, offset=self._region_offset),
            held_ns=[borrowed.held_ns],
            clock_offset_ns=borrowed.clock_offset_ns,
        )
