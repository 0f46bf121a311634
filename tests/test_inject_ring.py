"""The ring: many writers at once in C against the reader in Python, and the reader against rubbish."""

from __future__ import annotations

import ctypes
import mmap
import re
import struct
import subprocess
from collections import defaultdict
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from native.drivers import build_driver
from support import hostile

from pyattach.attacher.ring import STUCK_READS, RawSample, RingReader
from pyattach.inject.layout import Control
from pyattach.inject.region import RegionPlan

HEAD_WORDS = 4
MASK = (1 << 64) - 1


def plan_of(ring_words: int) -> RegionPlan:
    return RegionPlan(period_ns=1, slot_count=1, max_depth=1, ring_words=ring_words, signal=27)


def mix(x: int) -> int:
    """As in ring_driver.c."""
    x = ((x ^ (x >> 31)) * 0x9E3779B97F4A7C15) & MASK
    return x ^ (x >> 29)


def expected(thread: int, sequence: int, max_depth: int) -> RawSample:
    depth = 1 + mix(sequence) % max_depth
    return RawSample(
        clock_ns=thread << 32 | sequence,
        tid=thread,
        end=sequence % 9,
        weight=sequence + 1,
        frames=tuple(thread << 48 | sequence << 16 | i for i in range(depth)),
    )


def collect(reader: RingReader, control: Control, driver: subprocess.Popen[str]) -> list[RawSample]:
    """Drain until the writers have ended, telling them how far it was read."""
    out: list[RawSample] = []
    while driver.poll() is None:
        out += reader.drain()
        control.tail = reader.tail
    return out + reader.drain(final=True)


@pytest.mark.parametrize("max_depth", [1, 11, 60])
@pytest.mark.parametrize("way", ["wait", "drop"])
def test_nothing_is_lost_or_torn(tmp_path: Path, way: str, max_depth: int) -> None:
    """A ring of 256 words is run around hundreds of times, so that records lie over its end again and
    again; what is written is read whole and once, and written + dropped is what was attempted."""
    threads, records = 4, 2000
    plan = plan_of(256)
    file = tmp_path / "region"
    file.write_bytes(bytes(plan.control(nonce=1, lease_until_ns=0)).ljust(plan.size, b"\0"))
    command = [build_driver("ring_driver"), file, plan.size, threads, records, max_depth, way]
    with open(file, "r+b") as opened, mmap.mmap(opened.fileno(), plan.size) as region:
        control = Control.from_buffer(region)
        reader = RingReader(plan, lambda offset, size: region[offset : offset + size])
        with subprocess.Popen([str(word) for word in command], stdout=subprocess.PIPE, text=True) as driver:
            samples = collect(reader, control, driver)
            out = driver.communicate()[0]
        head = int(control.head)
        del control
    assert driver.returncode == 0
    told = re.findall(r"thread (\d+) written (\d+) dropped (\d+)", out)
    by_thread = defaultdict(list)
    for sample in samples:
        by_thread[sample.tid].append(sample)
    assert len(told) == threads
    for number, written, dropped in ((int(a), int(b), int(c)) for a, b, c in told):
        sequences = [s.clock_ns & 0xFFFFFFFF for s in by_thread[number]]
        assert sequences == sorted(set(sequences))
        assert by_thread[number] == [expected(number, sequence, max_depth) for sequence in sequences]
        assert len(sequences) == written == records - dropped
        assert way == "drop" or dropped == 0
    assert reader.lost_words == 0
    assert reader.tail == head == sum(HEAD_WORDS + len(s.frames) for s in samples)


class Ring:
    """The writer's side in Python, for one record at a time."""

    def __init__(self, words: int = 256, start: int = 0) -> None:
        self.plan = plan_of(words)
        self.words = [0] * words
        self.head = self.tail = start
        self.reader = RingReader(self.plan, self.read, patience_s=0)
        self.reader.tail = start
        self.read_sizes: list[int] = []

    def read(self, offset: int, size: int) -> bytes:
        self.read_sizes.append(size)
        if offset == Control.head.offset:
            assert size == 8
            return (self.head & MASK).to_bytes(8, "little")
        start = offset - self.plan.ring_offset
        assert 0 <= start <= start + size <= len(self.words) * 8, "outside of the ring"
        return struct.pack(f"<{len(self.words)}Q", *self.words)[start : start + size]

    def put(self, position: int, word: int) -> None:
        self.words[position % len(self.words)] = word & MASK

    def reserve(self, frames: tuple[int, ...]) -> int:
        position = self.head
        self.head += HEAD_WORDS + len(frames)
        return position

    def fill(self, position: int, frames: tuple[int, ...], *, commit: bool = True) -> None:
        head = struct.pack("<QIHBBII", position, 7, len(frames), 0, 0, 1, 3)
        for i, word in enumerate((*struct.unpack("<3Q", head), *frames)):
            self.put(position + 1 + i, word)
        if commit:
            self.put(position, position << 16 | HEAD_WORDS + len(frames))

    def write(self, frames: tuple[int, ...]) -> RawSample:
        position = self.reserve(frames)
        self.fill(position, frames)
        return RawSample(position, 7, 0, 1, frames)


STACKS = st.lists(st.lists(st.integers(0, MASK), min_size=1, max_size=20).map(tuple), max_size=10)


@given(start=st.integers(0, 1 << 40), stacks=STACKS)
def test_what_is_written_is_read_wherever_the_ring_begins(start: int, stacks: list[tuple[int, ...]]) -> None:
    ring = Ring(start=start)
    assert ring.reader.drain() == []
    written = [ring.write(frames) for frames in stacks]
    assert ring.reader.drain() == written
    assert (ring.reader.tail, ring.reader.lost_words) == (ring.head, 0)
    assert ring.reader.drain() == []


@pytest.mark.parametrize("before_the_end", range(9))
def test_a_record_over_the_end_of_the_ring(before_the_end: int) -> None:
    ring = Ring(words=16, start=32 - before_the_end)
    written = [ring.write((11, 22, 33)), ring.write((44,))]
    assert ring.reader.drain() == written


def test_a_full_ring_is_read_whole() -> None:
    ring = Ring(words=16, start=5)
    written = [ring.write((1, 2, 3, 4)), ring.write((5, 6, 7, 8))]
    assert ring.head - ring.tail == 16
    assert ring.reader.drain() == written


def test_an_uncommitted_record_holds_up_those_behind_it_until_it_is_there() -> None:
    ring = Ring()
    first = ring.write((1,))
    late = ring.reserve((2, 3))
    ring.fill(late, (2, 3), commit=False)
    behind = ring.write((4,))
    assert ring.reader.drain() == [first]
    assert ring.reader.tail == late
    assert ring.reader.drain() == []
    ring.fill(late, (2, 3))
    assert ring.reader.drain() == [RawSample(late, 7, 0, 1, (2, 3)), behind]
    assert ring.reader.lost_words == 0


def test_a_writer_that_died_is_given_up_after_a_while() -> None:
    ring = Ring()
    hole = ring.reserve((2, 3))
    behind = ring.write((4,))
    for _ in range(STUCK_READS):
        assert ring.reader.drain() == []
        assert ring.reader.tail == hole
    assert ring.reader.drain() == [behind]
    assert (ring.reader.tail, ring.reader.lost_words) == (ring.head, HEAD_WORDS + 2)


def test_a_writer_that_waits_for_a_processor_is_waited_for() -> None:
    """However often it is looked at meanwhile."""
    ring = Ring()
    ring.reader = RingReader(ring.plan, ring.read)
    hole = ring.reserve((2, 3))
    ring.write((4,))
    for _ in range(5 * STUCK_READS):
        assert ring.reader.drain() == []
    ring.fill(hole, (2, 3))
    assert len(ring.reader.drain()) == 2


def test_patience_begins_anew_behind_what_was_read() -> None:
    ring = Ring()
    for _ in range(3):
        ring.write((1,))
        ring.reserve((2,))
        for _ in range(STUCK_READS):
            ring.reader.drain()
        assert ring.reader.lost_words == 0
        ring.fill(ring.head - 5, (2,))
        assert len(ring.reader.drain()) == 1


def test_giving_up_one_record_is_not_giving_up_the_next() -> None:
    ring = Ring()
    ring.reserve((2, 3))
    between = ring.write((4,))
    late = ring.reserve((5,))
    for _ in range(STUCK_READS):
        ring.reader.drain()
    assert ring.reader.drain() == [between]
    ring.fill(late, (5,))
    assert ring.reader.drain() == [RawSample(late, 7, 0, 1, (5,))]


def test_at_the_end_nothing_is_waited_for() -> None:
    ring = Ring()
    ring.reserve((2, 3))
    between = ring.write((4,))
    ring.reserve((5,))
    last = ring.write((6,))
    assert ring.reader.drain(final=True) == [between, last]
    assert (ring.reader.tail, ring.reader.lost_words) == (ring.head, HEAD_WORDS * 2 + 3)
    assert ring.reader.finished


def test_what_an_earlier_lap_left_is_not_taken_for_new() -> None:
    ring = Ring(words=16)
    ring.write((1, 2, 3, 4))
    ring.write((5, 6, 7, 8))
    assert len(ring.reader.drain()) == 2
    again = ring.reserve((9, 9, 9, 9))
    assert ring.reader.drain() == []
    assert ring.reader.tail == again
    assert ring.reader.drain(final=True) == []


@pytest.mark.parametrize("depth", [2, 17, 0xFFFF])
def test_a_depth_beyond_the_record_brings_no_frames_of_the_next(depth: int) -> None:
    ring = Ring()
    ring.write((1,))
    ring.words[2] = struct.unpack("<Q", struct.pack("<IHBB", 7, depth, 0, 0))[0]
    behind = ring.write((2,))
    first, second = ring.reader.drain()
    assert first.frames == (1,)
    assert second == behind


@pytest.mark.parametrize("length", [0, 1, 4, 6, 0xFFFF])
def test_a_length_that_does_not_fit_is_no_record(length: int) -> None:
    """Four words would have no frame; six are more than were reserved."""
    ring = Ring()
    ring.write((1,))
    ring.words[0] = length
    assert ring.reader.drain() == []
    assert ring.reader.drain(final=True) == []
    assert ring.reader.lost_words == 5


@pytest.mark.parametrize("jump", [-1, 257, 1 << 40, MASK])
def test_a_head_no_handler_writes_is_followed_without_a_sample(jump: int) -> None:
    ring = Ring(start=1000)
    ring.head = (1000 + jump) & MASK
    assert ring.reader.drain() == []
    assert ring.reader.tail == ring.head
    assert ring.reader.lost_words == 256
    ctypes.c_uint64(ring.reader.tail)
    if ring.head < 1 << 47:
        written = ring.write((5,))
        assert ring.reader.drain() == [written]


def check_bounds(ring: Ring, before: int, samples: list[RawSample]) -> None:
    assert all(len(s.frames) <= len(ring.words) for s in samples)
    assert sum(HEAD_WORDS + len(s.frames) for s in samples) <= len(ring.words)
    assert sum(ring.read_sizes) <= 8 + 8 * len(ring.words)
    assert 0 <= ring.reader.tail <= MASK
    assert ring.reader.tail == ring.head or before <= ring.reader.tail <= ring.head
    ring.read_sizes.clear()


@hostile()
@given(
    content=st.lists(st.integers(0, MASK), min_size=16, max_size=16),
    heads=st.lists(st.one_of(st.integers(0, MASK), st.integers(0, 40)), min_size=1, max_size=STUCK_READS + 5),
    final=st.booleans(),
)
def test_rubbish_is_survived(content: list[int], heads: list[int], final: bool) -> None:
    ring = Ring(words=16)
    ring.words = content
    for head in heads:
        before, ring.head = ring.reader.tail, head
        check_bounds(ring, before, ring.reader.drain())
    if final:
        ring.reader.drain(final=True)
        assert ring.reader.tail == ring.head


@hostile(300)
@given(data=st.data(), stacks=STACKS.filter(bool))
def test_a_damaged_ring_costs_what_was_damaged(data: st.DataObject, stacks: list[tuple[int, ...]]) -> None:
    """Words overwritten at random: records that none of them hit are still read, and nothing is raised."""
    ring = Ring()
    written = [ring.write(frames) for frames in stacks]
    # Frames and damage that name the very position they lie at are lies that nobody can see through.
    starts = {s.clock_ns for s in written}
    assume(not any(ring.words[at] >> 16 == at for at in range(ring.head) if at not in starts))
    hit = data.draw(st.dictionaries(st.integers(0, ring.head - 1), st.integers(0, MASK), max_size=5))
    for at, word in hit.items():
        ring.put(at, word)
    assume(not any(word >> 16 & ((1 << 48) - 1) == at for at, word in hit.items()))
    # Nor is a record one of the others because its time was overwritten by theirs.
    assume(not any(at - 1 in starts and word in starts for at, word in hit.items()))
    samples = ring.reader.drain(final=True)
    check_bounds(ring, 0, samples)
    assert ring.reader.tail == ring.head
    spans = {s: range(s.clock_ns, s.clock_ns + HEAD_WORDS + len(s.frames)) for s in written}
    whole = [s for s in written if not hit.keys() & set(spans[s])]
    assert [s for s in samples if s in whole] == whole
