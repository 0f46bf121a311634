"""Seldom cases of what is recorded: losses, refusals, and calls inside of others."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from heap_support import Site, blocks_of, sites_of
from support import Target, build_target
from support import spawn as start
from test_heap_attach import attached

from pyattach.attacher.heap_session import HeapOptions, HeapOutcome
from pyattach.inject import heap_region
from pyattach.inject.heap_layout import FIRST_ITEM

pytestmark = [
    pytest.mark.usefixtures("may_trace"),
    pytest.mark.parametrize("sample_bytes", [0, 1], ids=["exact", "sampled"]),
]


def outcome_of(command: str, sample_bytes: int, env: dict[str, str] | None = None) -> HeapOutcome:
    def script(target: Target) -> Iterator[bool]:
        target.tell(command)
        target.expect("done")
        yield False

    with start(build_target("heap_edges"), env=env) as target:
        outcome = attached(target, script, HeapOptions(sample_bytes=sample_bytes))
        target.finish()
    assert outcome.residue == ()
    assert outcome.result is not None
    return outcome


def test_a_lost_allocation_has_the_address_of_a_block_that_is_gone(
    monkeypatch: pytest.MonkeyPatch, sample_bytes: int
) -> None:
    """There is room for one site: of the second block nothing is known but that the first has gone."""
    monkeypatch.setattr(heap_region, "_SAMPLED_SITES" if sample_bytes else "_SITES", FIRST_ITEM + 1)
    outcome = outcome_of("again", sample_bytes)
    assert outcome.result is not None
    assert sites_of(outcome.result, {"make"}) == {"make": Site(1, 101, 0, 0)}
    assert blocks_of(outcome.result) == {}
    notes = " ".join(outcome.meta.notes)
    assert "1 blocks had been freed unseen when their address came again" in notes
    assert "1 calls were not recorded: no room for them" in notes


def test_a_block_stays_where_reallocarray_is_refused(sample_bytes: int) -> None:
    outcome = outcome_of("refused", sample_bytes)
    assert outcome.result is not None
    assert sites_of(outcome.result, {"make"}) == {"make": Site(1, 101, 1, 101)}
    assert list(blocks_of(outcome.result).values()) == [101]


def test_calls_inside_of_others_are_counted(sample_bytes: int) -> None:
    library = build_target("lib_heap_calloc", "-shared", "-fPIC", "-fno-builtin")
    outcome = outcome_of("calloc", sample_bytes, {"LD_PRELOAD": str(library)})
    (note,) = [note for note in outcome.meta.notes if "inside of others" in note]
    assert note.startswith("100 calls")
