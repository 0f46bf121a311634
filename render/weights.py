"""Ticks by thread and stack as two columns: a mapping that hashes its keys only when one is looked up."""

from __future__ import annotations

from collections.abc import ItemsView, Iterator, Mapping, ValuesView

from .profile import Stack

Key = tuple[int, Stack]


class StackWeights(Mapping[Key, int]):
    """What ``Profile.weights`` may be where stacks come in by the million and are known to be distinct:
    hashing a stack means to hash all its frames."""

    def __init__(self, keys: list[Key], ticks: list[int]) -> None:
        self.key_column, self.tick_column = keys, ticks
        self._table: dict[Key, int] | None = None

    def __len__(self) -> int:
        return len(self.key_column)

    def __iter__(self) -> Iterator[Key]:
        return iter(self.key_column)

    def __getitem__(self, key: Key) -> int:
        if self._table is None:
            self._table = dict(zip(self.key_column, self.tick_column, strict=True))
        return self._table[key]

    def items(self) -> ItemsView[Key, int]:
        return _Items(self)

    def values(self) -> ValuesView[int]:
        return _Values(self)


class _Items(ItemsView[Key, int]):
    _mapping: StackWeights

    def __iter__(self) -> Iterator[tuple[Key, int]]:
        return zip(self._mapping.key_column, self._mapping.tick_column, strict=True)


class _Values(ValuesView[int]):
    _mapping: StackWeights

    def __iter__(self) -> Iterator[int]:
        return iter(self._mapping.tick_column)
