"""The ring as the reader sees it: whatever lies there, nothing is believed that does not prove itself."""

from __future__ import annotations

import struct

from hypothesis import given
from hypothesis import strategies as st

from pyattach.attacher.ring import STUCK_READS, RawSample, RingReader
from pyattach.inject.layout import Control
from pyattach.inject.region import RegionPlan

PLAN = RegionPlan(period_ns=1, slot_count=4, max_depth=16, ring_words=64, signal=27)
HEAD = Control.head.offset


class Region:
    """A shared region written to as the stub does it."""

    def __init__(self, position: int = 0) -> None:
        self.data = bytearray(PLAN.size)
        self.head = position
        self.data[HEAD : HEAD + 8] = struct.pack("<Q", position)

    def word(self, position: int, value: int) -> None:
        at = PLAN.ring_offset + (position % PLAN.ring_words) * 8
        self.data[at : at + 8] = struct.pack("<Q", value & 0xFFFF_FFFF_FFFF_FFFF)

    def write(self, frames: tuple[int, ...], *, tid: int = 7, commit: bool = True) -> None:
        position, length = self.head, 4 + len(frames)
        self.head += length
        self.data[HEAD : HEAD + 8] = struct.pack("<Q", self.head)
        head = struct.pack("<QIHBBII", 123, tid, len(frames), 0, 0, 2, 1)
        for i, value in enumerate([*struct.unpack("<3Q", head), *frames]):
            self.word(position + 1 + i, value)
        if commit:
            self.word(position, position << 16 | length)

    def read(self, offset: int, size: int) -> bytes:
        return bytes(self.data[offset : offset + size])


def reader_of(region: Region) -> RingReader:
    reader = RingReader(PLAN, region.read)
    reader.tail = region.head
    return reader


def sample(frames: tuple[int, ...], tid: int = 7) -> RawSample:
    return RawSample(clock_ns=123, tid=tid, end=0, weight=2, frames=frames)


@given(
    start=st.integers(0, 1 << 40),
    stacks=st.lists(st.lists(st.integers(0, (1 << 64) - 1), max_size=9).map(tuple), max_size=4),
)
def test_what_is_written_is_read(start: int, stacks: list[tuple[int, ...]]) -> None:
    """Also over the ring's end, at any position."""
    region = Region(start)
    reader = reader_of(region)
    stacks = [(1, *stack) for stack in stacks]
    for stack in stacks:
        region.write(stack)
    assert reader.drain() == [sample(stack) for stack in stacks]
    assert reader.tail == region.head
    assert reader.drain() == []


def test_an_uncommitted_record_is_waited_for() -> None:
    region = Region(5)
    reader = reader_of(region)
    region.write((1, 2), commit=False)
    region.write((3,))
    assert reader.drain() == []
    region.word(5, 5 << 16 | 6)
    assert reader.drain() == [sample((1, 2)), sample((3,))]


def test_a_dead_writer_is_given_up() -> None:
    region = Region(0)
    reader = reader_of(region)
    region.write((1, 2), commit=False)
    region.write((3,))
    for _ in range(STUCK_READS):
        assert reader.drain() == []
    assert reader.drain() == [sample((3,))]
    assert reader.lost_words == 6


def test_at_the_end_nothing_is_waited_for() -> None:
    region = Region(0)
    reader = reader_of(region)
    region.write((1, 2), commit=False)
    region.write((3,))
    assert reader.drain(final=True) == [sample((3,))]


def test_records_of_an_earlier_lap_are_not_taken() -> None:
    region = Region(0)
    reader = reader_of(region)
    for lap in range(20):
        region.write((lap, lap))
        assert reader.drain() == [sample((lap, lap))]
    position = region.head
    region.head += 6
    region.data[HEAD : HEAD + 8] = struct.pack("<Q", region.head)
    assert reader.drain() == []
    assert reader.tail == position


@given(st.binary(min_size=PLAN.ring_words * 8, max_size=PLAN.ring_words * 8), st.integers(0, (1 << 64) - 1))
def test_rubbish_is_survived(content: bytes, head: int) -> None:
    region = Region(0)
    region.data[PLAN.ring_offset : PLAN.ring_offset + len(content)] = content
    region.data[HEAD : HEAD + 8] = struct.pack("<Q", head)
    reader = RingReader(PLAN, region.read)
    for final in (False, True):
        for found in reader.drain(final=final):
            assert len(found.frames) <= PLAN.ring_words
    assert reader.tail in (0, head)
