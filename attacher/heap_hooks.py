"""The hooks of an attached heap profiler: which words of the target lead there, and whether any still do."""

from __future__ import annotations

import array
import bisect
import collections
import contextlib
import ctypes
import dataclasses
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence

from ..errors import UnsupportedTarget
from ..inject.arch import x86_64 as arch
from ..inject.got import LoadedModule, Slot, loaded_modules, search_order, slots
from ..inject.heap_layout import FUNCTIONS, PATCHES, Heap, Patch, PatchState, Sampled
from ..inject.loader import MappedStub
from ..symbols.elf import ElfImage, load_bias
from ..symbols.maps import Mapping, Maps
from ..symbols.resolver import Resolver
from . import procfs
from .heap_entries import Entries
from .heap_words import NEVER
from .pages import places_of, present
from .registers import registers_asleep, registers_running
from .target import Range, TargetProcess
from .unused_stack import unused_stacks

_NAMES = frozenset(FUNCTIONS)
_MOST_SCANNED = 4 << 30
_MOST_PLACES = 4096
_MOST_THREADS = 256
_STACK = 1 << 20
_INSIDE_S = 5.0
_AGAIN_S = 0.01
"""After so long a module that was not ready is looked at again; each time after twice as long."""
_READY_S = 1.0
"""So long it is believed of a module that the dynamic linker will still do what it has not: give words their
values, make pages read-only."""


@dataclasses.dataclass
class Coverage:
    """What was found and redirected.  ``elsewhere``: slots that lead to another function than the one that
    the dynamic linker's order of search gives, by address."""

    modules: set[str] = dataclasses.field(default_factory=set)
    without: set[str] = dataclasses.field(default_factory=set)
    kinds: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    elsewhere: set[int] = dataclasses.field(default_factory=set)


@dataclasses.dataclass
class _Look:
    """How the module was mapped that was looked at, and since when it is there; ``from_begin``: it
    was before pyattach; ``again_at``: when it is to be looked at again if nothing changes there."""

    mapped: tuple[tuple[int, int, str], ...]
    end: int
    since: float
    wait_s: float
    from_begin: bool
    again_at: float = math.inf

    def is_fresh(self) -> bool:
        """Whether it may be on its way still."""
        return time.monotonic() - self.since < _READY_S

    def later(self) -> None:
        """Not all of it could be had."""
        self.again_at = time.monotonic() + self.wait_s
        self.wait_s *= 2


class Hooks:
    """Slots of all modules, given to the stub when the dynamic linker is done with them.  ``real``: the
    allocator's functions, in the order of FUNCTIONS and behind them __errno_location; ``entries``: of
    ENTRY_MODES.

    Raises UnsupportedTarget where there is no allocator that is called through slots."""

    def __init__(self, target: TargetProcess, resolver: Resolver, entries: str) -> None:
        self._target, self._resolver, self._mode = target, resolver, entries
        self.coverage = Coverage()
        self._known: dict[int, Slot] = {}
        self._looks: dict[tuple[int, int], _Look] = {}
        self._at_begin = True
        modules = loaded_modules(resolver.maps, target.read)
        self.order = search_order(modules, target.read)
        names = (*FUNCTIONS, "__errno_location")
        real = {name: self._find(name) for name in names}
        if not (real["malloc"] or any(module.is_loader for module in modules)):
            real = self._own_functions(names)
        self.real = tuple(real.get(name, 0) for name in names)
        if not (real.get("malloc") and real.get("free")):
            raise UnsupportedTarget(f"process {target.pid}: no module defines malloc and free")
        self.entries = Entries(target, self.real[: len(FUNCTIONS)], entries)

    def _own_functions(self, names: Sequence[str]) -> dict[str, int]:
        """Those of a program without a dynamic linker, by its symbols."""
        if self._mode == NEVER:
            raise UnsupportedTarget(
                f"process {self._target.pid} has no dynamic linker: its calls of malloc can't be redirected",
                "pyattach heap --entries auto reaches them, if it is not stripped",
            )
        path = self._target.exe_path()
        mapping = next((m for m in self._resolver.maps.executable() if m.file_path == path), None)
        image = self._resolver.image(mapping) if mapping is not None else None
        if image is None or mapping is None or not image.has_symtab:
            raise UnsupportedTarget(
                f"process {self._target.pid} has no dynamic linker, and its executable no symbols: "
                "where its malloc is can't be told",
                "build it without -static, or don't strip it",
            )
        bias = load_bias(mapping, image)
        found = {name: _function(image, name) for name in names}
        return {name: value + bias for name, value in found.items() if value}

    def choose_entries(self) -> list[int]:
        """The functions whose own code has to lead to the hooks, as not all calls go through slots."""
        if self._mode == NEVER:
            return []
        maps = self._target.maps()
        definer = next((module.path for module, _ in self.definitions("malloc")), self._target.exe_path())
        modules = loaded_modules(maps, self._target.read)
        known = {slot.address for module in modules for slot in slots(module, _NAMES, self._target.read)}
        return self.entries.choose(maps, known, alone=definer == self._target.exe_path())

    def _find(self, name: str) -> int:
        return next((address for _module, address in self.definitions(name)), 0)

    def definitions(self, name: str) -> Iterator[tuple[LoadedModule, int]]:
        """Modules that define the function, first found first, and where."""
        for module in self.order:
            image = None if module.is_loader else self._resolver.image(module.mapping)
            symbol = image.dynamic_symbol(name.encode()) if image is not None else None
            if symbol is not None and symbol.value:
                yield module, symbol.value + module.bias

    def new_patches(self, hooks: dict[str, int]) -> list[Patch]:
        """For the slots of modules that have come, or were not ready before; ``hooks``: where each function's
        is."""
        maps = self._target.maps()
        out = []
        modules = loaded_modules(maps, self._target.read)
        for gone in self._looks.keys() - {_key(module) for module in modules}:
            del self._looks[gone]
        mappings = list(maps)
        starts = [mapping.start for mapping in mappings]
        for module in modules:
            if module.is_loader or module.mapping.is_memfd:
                continue
            first, last = (bisect.bisect_left(starts, at) for at in (module.mapping.start, module.end))
            look = self._look(module, mappings[first:last])
            if look is None:
                continue
            found = self._found(module, look, maps, hooks)
            for slot in found:
                if slot.address not in self._known:
                    self.coverage.kinds[slot.kind] += 1
                self._known[slot.address] = slot
                out.append(_patch(slot, hooks[slot.name], maps))
            (self.coverage.modules if found else self.coverage.without).add(module.path)
        self._at_begin = False
        return out

    def _look(self, module: LoadedModule, mappings: Sequence[Mapping]) -> _Look | None:
        """At a module that has come, is mapped otherwise than it was (as when it has gone and come again) or
        was not ready; None: there is nothing new."""
        mapped = tuple((m.start, min(m.end, module.end), m.permissions) for m in mappings)
        now, old = time.monotonic(), self._looks.get(_key(module))
        if old is None or old.mapped != mapped:
            since, first = (now, self._at_begin) if old is None else (old.since, old.from_begin)
            self._looks[_key(module)] = _Look(mapped, module.end, since, _AGAIN_S, first)
        elif now < old.again_at:
            return None
        return self._looks[_key(module)]

    def _found(self, module: LoadedModule, look: _Look, maps: Maps, hooks: dict[str, int]) -> list[Slot]:
        """The slots that are to be redirected now: of a module that comes all at once, as blocks that are
        seen allocated are to be seen freed."""
        out, ready = [], True
        for slot in slots(module, _NAMES - self.entries.made, self._target.read):
            if slot.value == hooks[slot.name]:
                continue
            if self._is_early(slot, module, look, maps):
                ready = False
            elif self._leads(slot, module):
                out.append(slot)
        look.again_at = math.inf
        if not ready:
            look.later()
        return out if ready or look.from_begin or not look.is_fresh() else []

    def _is_early(self, slot: Slot, module: LoadedModule, look: _Look, maps: Maps) -> bool:
        """Whether the dynamic linker has not done with it: it is not relocated, or its page is to be made
        read-only yet."""
        if not slot.value or (module.bias and slot.value < module.end - module.bias):
            return True
        mapping = maps.find(slot.address)
        in_relro = module.relro[0] <= slot.address < module.relro[1]
        still_open = in_relro and mapping is not None and mapping.writable
        return still_open and look.is_fresh()

    def is_due(self) -> bool:
        """Whether a module is to be looked at though nothing was mapped or unmapped."""
        return any(look.again_at <= time.monotonic() for look in self._looks.values())

    def look_again(self, addresses: Iterable[int]) -> None:
        """At the modules that have slots there: those could not be redirected."""
        left = sorted(addresses)
        for (start, _inode), look in self._looks.items():
            at = bisect.bisect_left(left, start)
            if at < len(left) and left[at] < look.end and look.again_at == math.inf:
                look.later()

    def _leads(self, slot: Slot, module: LoadedModule) -> bool:
        """To the allocator's function, or to where it is bound at the first call."""
        unbound = slot.kind == "JUMP_SLOT" and module.mapping.start <= slot.value < module.end
        if slot.value == self.real[FUNCTIONS.index(slot.name)] or unbound:
            self.coverage.elsewhere.discard(slot.address)
            return True
        self.coverage.elsewhere.add(slot.address)
        return False

    def facts(self, made: int) -> list[tuple[str, str]]:
        """For the report; ``made``: how many words were changed."""
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(self.coverage.kinds.items()))
        allocator = next((m.path for m, _ in self.definitions("malloc")), self._target.exe_path())
        calls = f"{made} calls in {len(self.coverage.modules)} modules ({kinds})" if made else "no slots"
        return [
            ("hooked", f"{calls} of {allocator}"),
            *self.entries.facts(),
            ("not hooked", self._not_reached()),
        ]

    def _not_reached(self) -> str:
        taken = "function pointers taken before, and dlsym"
        if self._mode == NEVER:
            taken += " (--entries auto reaches these)"
        parts = ["calls inside of the allocator's own library", taken]
        if self.entries.made:
            parts = ["what the allocator calls by other names"]
            others = {name for name, at in zip(FUNCTIONS, self.real, strict=False) if at} - self.entries.made
            if others:
                parts.append(f"function pointers taken before, and dlsym, of {', '.join(sorted(others))}")
        if self.coverage.elsewhere:
            parts.append(f"{len(self.coverage.elsewhere)} slots that lead to other functions")
        for name in ("_Znwm", "mallocx", "je_malloc", "tc_malloc", "mi_malloc"):
            definer = next(self.definitions(name), None)
            if definer is not None and (name != "_Znwm" or "c++" not in os.path.basename(definer[0].path)):  # noqa: PTH119
                what = "operator new" if name == "_Znwm" else name
                parts.append(f"{what} of {definer[0].path}")
        return "; ".join(parts)

    def may_be_held(self, hooks: dict[str, int], image: tuple[int, int]) -> str:
        """Why some thread may still go to a hook though no slot leads there; empty where none does.

        A program may have taken a function's address meanwhile (`callback = free`).  It is looked for in all
        private memory that can be written, and in the registers of threads: of all that run, and of those
        that sleep and are called from a module that reads its slots as data.  Where a stop would end their
        system call they can't be read.
        """
        maps = self._target.maps()
        wanted = set(hooks.values())
        places = self._in_memory(maps, wanted, image)
        if places is None:
            return "the program has too much memory to be looked through"
        if places:  # a signal's frame holds registers, and stays below the stack
            unused = list(unused_stacks(self._target, maps))
            if not all(any(low <= place < high for low, high in unused) for place in places):
                return "the program has taken the address of a function meanwhile"
        doubtful = self._doubtful_code(maps)
        tids = self._target.threads()
        if len(tids) > _MOST_THREADS:
            return f"{len(tids)} threads are too many to be looked at"
        for tid in tids:
            with contextlib.suppress(ProcessLookupError, FileNotFoundError):
                if self._thread_may_hold(tid, maps, wanted, doubtful):
                    return f"thread {tid} may hold the address of a function in a register"
        return ""

    def _in_memory(self, maps: Maps, wanted: set[int], image: tuple[int, int]) -> list[int] | None:
        """Where one of these words stands; None where that is too much to be looked through."""
        places: list[int] = []
        scanned = 0
        for mapping in maps:
            if not mapping.writable or mapping.shared or not mapping.readable or mapping.start == image[0]:
                continue
            if image[0] <= mapping.start < image[1] or mapping.path.startswith("[v"):
                continue
            for start, size in present(self._target.pid, mapping.start, mapping.end):
                scanned += size
                if scanned > _MOST_SCANNED or len(places) > _MOST_PLACES:
                    return None
                with contextlib.suppress(OSError):
                    found = places_of(self._target.read(start, size), wanted)
                    places += [start + at for at, _ in found]
        return places

    def _doubtful_code(self, maps: Maps) -> list[tuple[int, int]]:
        """Code of modules that may keep a function's address in a register: not only called by the PLT."""
        paths = set()
        for slot in self._known.values():
            mapping = maps.find(slot.address)
            if slot.kind != "JUMP_SLOT" and mapping is not None:
                paths.add(mapping.path)
        defining = {module.path for module, _ in self.definitions("malloc")}
        return [(m.start, m.end) for m in maps.executable() if m.path in paths - defining]

    def _thread_may_hold(
        self, tid: int, maps: Maps, wanted: set[int], doubtful: list[tuple[int, int]]
    ) -> bool:
        blocked = procfs.read_blocked(self._target.pid, tid)
        if blocked is None:
            registers = registers_running(tid)
            return registers is None or bool(wanted & set(registers.values()))
        mapping = maps.find(blocked.sp)
        if mapping is None:
            return True
        words = array.array("Q")
        words.frombytes(self._target.read(blocked.sp & ~7, min(mapping.end - (blocked.sp & ~7), _STACK)))
        if not any(low <= word < high for word in words for low, high in doubtful):
            return False
        registers = registers_asleep(self._target, tid) if blocked.syscall in arch.GOES_ON else None
        return registers is None or bool(wanted & set(registers.values()))


def _function(image: ElfImage, name: str) -> int:
    """Where a static program has it; 0: nowhere.  A function that only one file of its sources knows by that
    name may be any; but of a static PIE the linker makes many such, and glibc has names of its own."""
    known = image.full_symbols(name.encode())
    own = {symbol.value for symbol, _ in image.full_symbols(b"__libc_" + name.encode())}
    return next((s.value for s, is_global in known if is_global or s.value in own), 0)


def _key(module: LoadedModule) -> tuple[int, int]:
    return module.mapping.start, module.mapping.inode


def _patch(slot: Slot, hook: int, maps: Maps) -> Patch:
    return Patch(slot.address, slot.value, hook, _protection(slot.address, maps) or 0, PatchState.WANTED)


def _protection(address: int, maps: Maps) -> int | None:
    mapping = maps.find(address)
    if mapping is None:
        return None
    return sum(bit for bit, letter in zip((1, 2, 4), mapping.permissions, strict=False) if letter in "rwx")


def note_protections(patches: Iterable[Patch], maps: Maps) -> None:
    """What the patches' pages are to be given again: what they have now.  To be called just before the stub
    changes words: the dynamic linker makes pages read-only, and a program may."""
    for patch in patches:
        protection = _protection(patch.address, maps)
        if protection is not None and patch.state != PatchState.REFUSED:
            patch.protection = protection


def still_lead(target: TargetProcess, patches: Iterable[Patch]) -> int:
    """How many slots lead to a hook still."""
    count = 0
    for patch in patches:
        with contextlib.suppress(OSError):  # its library has gone
            count += int.from_bytes(target.read(patch.address, 8), "little") == patch.after
    return count


def sampled_guarded(target: TargetProcess, heap: Heap) -> bool:
    """Whether a thread is in a hook where allocations are sampled: the stub's private memory says so.  What
    can't be read may be in use."""
    if not heap.sample_bytes:
        return False
    try:
        own = Sampled.from_buffer_copy(target.read(int(heap.private_at), ctypes.sizeof(Sampled)))
    except OSError:
        return True
    return any(thread.guard for places in (own.near, own.far) for thread in places)


def wait_until_left(
    target: TargetProcess, stub: MappedStub, guarded: Callable[[], bool], more: list[Range] | None = None
) -> bool:
    """Whether no thread is in a hook (``guarded``) any more, nor in code of ours without being in one;
    ``more`` is what leads there.  Those on the way there have to be in one first, to be seen in it, as
    they may go on to the allocator and return."""
    ranges = stub.text_ranges + (more or [])
    if target.wait_outside(target.threads(), ranges, _INSIDE_S, handlers=True):
        return False
    deadline = time.monotonic() + _INSIDE_S
    while guarded() or passing(target, stub):
        if time.monotonic() > deadline:
            return False
        target.pause(0.001)
    if target.wait_outside(target.threads(), ranges, _INSIDE_S, handlers=True):
        return False
    return not (guarded() or passing(target, stub))


def passing(target: TargetProcess, stub: MappedStub) -> int:
    """Threads that have passed on and will be back in a hook."""
    return int.from_bytes(target.read(stub.base + stub.image.entries["pa_passing"], 4), "little")


def patch_table(region: object, offset: int) -> ctypes.Array[Patch]:
    """The patches in the shared memory."""
    return (Patch * PATCHES).from_buffer(region, offset)  # type: ignore[arg-type]
