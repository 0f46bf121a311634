"""How many stacks are complete?  Programs as they are distributed, nothing rebuilt, sampled at work.

A stack is complete when the walk ended at the thread's first function.  "at root" is stricter: the share of
stacks whose outermost function is one that threads are known to begin in, by name.  For what is missing,
the reasons and the functions where the walks ended are listed.  Where ``perf`` may be used, it samples the
same process at the same time with ``--call-graph dwarf``, and the shares of the functions that ran are
compared: the total variation distance, beside what two equally large samples of the same would differ by.
"""

from __future__ import annotations

import argparse
import array
import collections
import contextlib
import dataclasses
import random
import re
import shutil
import signal
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

from common import machine, table
from programs import PROGRAMS, NotHere

from pyattach.attacher.contract import Options
from pyattach.attacher.samples import SampleStore
from pyattach.attacher.sampling import Session
from pyattach.attacher.target import TargetProcess
from pyattach.errors import PyattachError
from pyattach.inject.layout import End
from pyattach.symbols.address import InstructionPointer, ReturnAddress
from pyattach.symbols.frame import TRUNCATED, FrameKind
from pyattach.symbols.maps import Maps

GOAL_PERCENT = 99.5
SHUFFLES = 20
NOISE_FACTOR = 2.0
RATE_HZ = 997.0
WARM_UP_S = 0.7
ROOTS = re.compile(
    r"\[(entry|clone)\]|(_start|(__)?clone3?|start_thread|thread_start|runtime\.(goexit|mstart|mcall|rt0_go|clone)|_rt0_amd64_linux)\b.*"
)
"""Functions that a thread, or a goroutine, begins in.  The program's entry point, and libc's code that calls
a thread's function and then exits, have names only where there are symbols."""
THREAD_EXITS = bytes.fromhex("89c7b83c0000000f05")
"""mov %eax,%edi; mov $SYS_exit,%eax; syscall: behind the call in glibc's clone and clone3, or with %rax."""


# Sampling.


class Ends(SampleStore):
    """Keeps, besides, how each incomplete stack ended and where, and the addresses that ran."""

    def __init__(self, store: SampleStore, target: TargetProcess) -> None:
        super().__init__(store.resolver)
        self.cut: collections.Counter[tuple[int, tuple[int, ...]]] = collections.Counter()
        self.leaves: collections.Counter[int] = collections.Counter()
        self.target, self.entry = target, entry_point(target.pid)
        self.outermost: collections.Counter[int] = collections.Counter()

    def add(
        self, samples: Iterable[tuple[int, int, int, tuple[int, ...]]], clocks_ns: Iterable[int] | None = None
    ) -> None:
        samples = list(samples)
        clocks_ns = None if clocks_ns is None else list(clocks_ns)
        for _tid, end, weight, frames in samples:
            if frames:
                self.leaves[frames[0]] += weight
            if frames and end != End.ROOT:
                self.cut[end, frames] += weight
            elif frames:
                self.outermost[frames[-1]] += weight
        super().add(samples, clocks_ns)

    def names(self, addresses: Iterable[tuple[int, int]]) -> collections.Counter[str]:
        """Ticks by function, for addresses that ran."""
        out: collections.Counter[str] = collections.Counter()
        for address, weight in addresses:
            frame = self.resolver.resolve(InstructionPointer(address))
            # One bin for all code of a file, or made at run time, that has no names.
            nameless = frame.kind in (FrameKind.JIT, FrameKind.UNKNOWN)
            out[frame.module if nameless else f"{frame.name} ({frame.module})"] += weight
        return out

    def at(self, address: int, size: int) -> bytes:
        with contextlib.suppress(OSError):
            return self.target.read(address, size)
        return b""

    def roots(self) -> collections.Counter[str]:
        """Outermost functions of the complete stacks."""
        out: collections.Counter[str] = collections.Counter()
        for address, weight in self.outermost.items():
            # A stripped program's entry point has no name; its code, up to the call, is 40 bytes or so.
            if 0 < address - self.entry <= 64:
                out["[entry]"] += weight
            elif self.at(address, 10).removeprefix(b"\x48").startswith(THREAD_EXITS):
                out["[clone]"] += weight
            else:
                frame = self.resolver.resolve(ReturnAddress(address))
                out[frame.module if frame.kind is FrameKind.JIT else frame.name] += weight
        return out

    def where_cut(self) -> collections.Counter[str]:
        """Reason, and the outermost functions found, of incomplete stacks."""
        out: collections.Counter[str] = collections.Counter()
        for (end, frames), weight in self.cut.items():
            at: list[InstructionPointer | ReturnAddress] = [InstructionPointer(frames[0])]
            at += map(ReturnAddress, frames[1:])
            outer = " < ".join(self.resolver.resolve(a).name[:50] for a in reversed(at[-3:]))
            out[f"{End(end).name}: {outer}{' (leaf)' if len(frames) == 1 else ''}"] += weight
        return out


@dataclasses.dataclass
class Measured:
    samples: int
    complete_percent: float
    root_percent: float
    ends: dict[str, int]
    handler_ns: float | None
    hit_percent: float
    mean_depth: float
    cut: collections.Counter[str]
    other_roots: collections.Counter[str]
    distance: str
    apart: str


class Perf:
    """``perf record`` on the same process, if it is allowed here."""

    def __init__(self, pid: int, folder: Path) -> None:
        self.data, self.why_not, self._child = folder / "perf.data", "", None
        perf = shutil.which("perf")
        if perf is None:
            self.why_not = "perf is not installed"
            return
        command = [perf, "record", "-q", "-e", "cpu-clock", "-F", "250", "--call-graph", "dwarf,4096"]
        self._child = subprocess.Popen(
            [*command, "-p", str(pid), "-o", str(self.data)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )

    def stop(self) -> None:
        if self._child is not None:
            self._child.send_signal(signal.SIGINT)
            errors = self._child.communicate(timeout=60)[1].decode(errors="replace").strip()
            if not self.data.exists():
                self.why_not = f"perf can't: {errors.splitlines()[0] if errors else 'it wrote nothing'}"

    def leaves(self, maps: Maps) -> collections.Counter[int]:
        """Where it found the program in its own code; not the kernel's, and not in our handler."""
        out: collections.Counter[int] = collections.Counter()
        command = ["perf", "script", "-i", str(self.data), "-F", "ip,dso", "--no-inline", "--max-stack", "64"]
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        ) as script:
            assert script.stdout is not None
            seen = False
            for line in script.stdout:
                word, _, place = line.strip().partition(" ")
                if not word:
                    seen = False
                elif not seen and int(word, 16) < 1 << 47:
                    seen = True
                    address = address_of(int(word, 16), place[1:-1], maps)
                    if address is not None:
                        out[address] += 1
        return out


def address_of(number: int, place: str, maps: Maps) -> int | None:
    """perf shows offsets where it knows the file; None for what is not, or no longer, of the program."""
    for mapping in maps.executable():
        if mapping.path == place and mapping.offset <= number < mapping.offset + mapping.end - mapping.start:
            return mapping.start + number - mapping.offset
    found = maps.find(number)
    return number if found is not None and found.executable else None


def apart(counts: list[int], others: list[int]) -> float:
    n, m = sum(counts), sum(others)
    return sum(abs(a / n - b / m) for a, b in zip(counts, others, strict=True)) / 2


def distance(ours: collections.Counter[str], theirs: collections.Counter[str]) -> tuple[str, str]:
    """Total variation distance, and how far two samples of the same are apart: all samples are dealt out
    again by chance, to two hands of the same sizes, a number of times."""
    n, m = sum(ours.values()), sum(theirs.values())
    if not n or not m:
        return "no samples", ""
    names = list(ours | theirs)
    deck = [index for index, name in enumerate(names) for _ in range(ours[name] + theirs[name])]
    picks, chance = random.Random(1), []
    for _ in range(SHUFFLES):
        picks.shuffle(deck)
        hands = [collections.Counter(hand) for hand in (deck[:n], deck[n:])]
        chance.append(apart(*([hand[index] for index in range(len(names))] for hand in hands)))
    found = apart([ours[name] for name in names], [theirs[name] for name in names])
    by_size = sorted(names, key=lambda name: -abs(ours[name] / n - theirs[name] / m))
    worst = ", ".join(f"{name} {ours[name] / n:.1%} {theirs[name] / m:.1%}" for name in by_size[:4])
    noise = statistics.mean(chance)
    verdict = "agrees" if found < NOISE_FACTOR * noise else "DIFFERS"
    return f"{found:.3f} ({noise:.3f}; {m:,}) {verdict}", worst


def entry_point(pid: int) -> int:
    """AT_ENTRY of the auxiliary vector (getauxval(3)); 0 when there is none."""
    words = array.array("Q", Path(f"/proc/{pid}/auxv").read_bytes())
    return dict(zip(words[::2], words[1::2], strict=True)).get(9, 0)


def is_root(name: str) -> bool:
    return ROOTS.fullmatch(name) is not None


def measure(pid: int, samples: int, most_s: float, folder: Path) -> Measured:
    """Sample the process as ``pyattach PID`` does, but keep what that throws away."""
    with contextlib.ExitStack() as undo:
        target = undo.enter_context(TargetProcess(pid))
        before = target.maps()
        session = Session(target, Options(rate_hz=RATE_HZ, duration_s=most_s))
        undo.callback(session.close)
        store = session.store = Ends(session.store, target)
        perf = Perf(pid, folder)
        undo.callback(perf.stop)
        session.load()
        try:
            session.sample(lambda: store.samples >= samples, lambda progress: None)
            perf.stop()
            comparison = perf.why_not, ""
            if not perf.why_not:
                # The maps as they were before the stub came: what perf saw in the stub is left out.
                theirs = perf.leaves(before)
                comparison = distance(store.names(store.leaves.items()), store.names(theirs.items()))
        finally:
            session.detach()
        return result(session, store, comparison)


def result(session: Session, store: Ends, comparison: tuple[str, str]) -> Measured:
    profile = session.profile()
    slots = session.threads.used(session.shared.slots)
    hits, misses = sum(int(s.hits) for s in slots), sum(int(s.misses) for s in slots)
    merged = profile.merged()
    whole = sum(weight for stack, weight in merged.items() if stack[0] != TRUNCATED)
    frames = sum(weight * len(stack) for stack, weight in merged.items())
    roots = store.roots()
    rooted = sum(weight for name, weight in roots.items() if is_root(name))
    others = collections.Counter({name: weight for name, weight in roots.items() if not is_root(name)})
    total = max(1, store.samples)
    ends = {End(end).name: count for end, count in store.ends.most_common() if end != End.ROOT}
    unbelievable = total - whole - sum(ends.values())
    if unbelievable > 0:
        ends["NOT_CODE"] = unbelievable
    return Measured(
        samples=store.samples,
        complete_percent=100 * whole / total,
        root_percent=100 * rooted / total,
        ends=ends,
        handler_ns=profile.meta.handler_ns_per_sample,
        hit_percent=100 * hits / max(1, hits + misses),
        mean_depth=frames / total,
        cut=store.where_cut(),
        other_roots=others,
        distance=comparison[0],
        apart=comparison[1],
    )


def row(name: str, m: Measured) -> list[str]:
    cells = [
        name,
        f"{m.samples:,}",
        f"{m.complete_percent:.2f}",
        f"{m.root_percent:.2f}",
        f"{m.mean_depth:.1f}",
    ]
    cells.append("-" if m.handler_ns is None else f"{m.handler_ns:,.0f}")
    cells += [f"{m.hit_percent:.2f}", "met" if m.complete_percent >= GOAL_PERCENT else "NOT MET", m.distance]
    return cells


def details(name: str, m: Measured) -> None:
    if m.ends:
        reasons = ", ".join(f"{reason} {count}" for reason, count in m.ends.items())
        print(f"\n{name}: {reasons}")
        for place, count in m.cut.most_common(6):
            print(f"  {count:6}  {place}")
    if m.apart:
        print(f"\n{name}, furthest apart, ours and perf's: {m.apart}")
    if m.other_roots:
        roots = ", ".join(f"{place} {count}" for place, count in m.other_roots.most_common(5))
        print(f"\n{name}, complete but outermost in: {roots}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="500 samples each: to see that it works")
    parser.add_argument("--samples", type=int, metavar="N", help="so many of each program")
    parser.add_argument("programs", nargs="*", metavar="PROGRAM", help=f"some of: {', '.join(PROGRAMS)}")
    chosen = parser.parse_args()
    samples, most_s = (500, 15.0) if chosen.quick else (10_000, 180.0)
    samples = chosen.samples or samples
    print(machine())
    rows, found = [], {}
    for name in chosen.programs or PROGRAMS:
        with contextlib.ExitStack() as undo:
            folder = Path(undo.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True)))
            try:
                pid = undo.enter_context(PROGRAMS[name](folder))
                time.sleep(WARM_UP_S)
                found[name] = measure(pid, samples, most_s, folder)
            except (NotHere, PyattachError, subprocess.CalledProcessError) as error:
                print(f"{name}: left out: {error}")
                continue
            rows.append(row(name, found[name]))
            print(f"{name}: {found[name].complete_percent:.2f}%", flush=True)
    print(
        f"\ncomplete and at root: percent of samples; goal {GOAL_PERCENT:g}% complete.  handler: ns a sample."
        "\nhits: of the rules' cache, percent.  perf: distance of functions' shares (noise; perf's samples),"
        f"\nand whether it is below {NOISE_FACTOR:g} times the noise\n"
    )
    head = ["program", "samples", "complete", "at root", "depth", "handler", "hits", "goal", "perf"]
    table(head, rows)
    for name, measured in found.items():
        details(name, measured)


if __name__ == "__main__":
    main()
