# SPDX-License-Identifier: Apache-2.0
"""The memory that a launch may touch: the storages of its tensors, and nothing else.

Addresses are real ones of this process, and each access is checked against the allocations first.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from archkey.conformance.emulation.faults import Fault

__all__ = ["Memory", "Room", "Stored"]

Array = npt.NDArray[Any]


class Room:
    """Bytes `start` to `end`, which may be read and written in elements of 1, 2, 4 or 8 bytes.

    flat  the bytes from `base` on, an address that is a multiple of 8 and not after `start`
    """

    def __init__(self, name: str, flat: Array, base: int, start: int) -> None:
        self.name, self.base, self.start, self.end = name, base, start, base + len(flat)
        self._origin, self._first = np.array(base, np.uint64), np.array(start, np.uint64)
        self._limits: dict[int, Array] = {}
        self._views = {n: flat[: len(flat) // n * n].view(f"u{n}") for n in (1, 2, 4, 8)}

    @classmethod
    def at(cls, name: str, start: int, size: int) -> Room:
        """Memory of this process, which its owner must keep alive."""
        base = start & ~7
        raw = (ctypes.c_ubyte * (start + size - base)).from_address(base)
        return cls(name, np.frombuffer(memoryview(raw), np.uint8), base, start)

    def holds(self, addresses: Array, span: int) -> bool:
        """Whether the `span` bytes from each address on lie inside."""
        if span not in self._limits:
            self._limits[span] = np.array(max(self.end - self.start - span, 0), np.uint64)
        if span > self.end - self.start:
            return False
        past = addresses.astype(np.uint64, copy=False) - self._first > self._limits[span]
        return not np.count_nonzero(past)

    def get(self, addresses: Array, size: int, count: int) -> Array:
        """`count` elements of `size` bytes from each address, which must lie inside."""
        offset = (addresses.astype(np.uint64, copy=False) - self._origin).view(np.int64)
        if size > 1 and np.count_nonzero(offset & _ODD[size]):
            raw = self._views[1][offset[:, None] + np.arange(size * count)]
            return raw.view(f"u{size}").T
        view = self._views[size]
        first = offset >> _SHIFT[size]
        if count == 1:
            return view.take(first)[None]
        return view.take(first + _STEPS[:count])

    def put(self, addresses: Array, values: Array) -> None:
        """The inverse of `get`; of two lanes at one address the later one stays."""
        size, count = values.dtype.itemsize, len(values)
        offset = (addresses.astype(np.uint64, copy=False) - self._origin).view(np.int64)
        if size > 1 and np.count_nonzero(offset & _ODD[size]):
            raw = np.ascontiguousarray(values.T).view(np.uint8)
            self._views[1][offset[:, None] + np.arange(size * count)] = raw
            return
        first = offset >> _SHIFT[size]
        self._views[size][first + _STEPS[:count]] = values


_STEPS = np.arange(16)[:, None]
# numpy takes a constant faster as an array without axes than as a number.
_ODD = {size: np.array(size - 1) for size in (1, 2, 4, 8)}
_SHIFT = {size: np.array(size.bit_length() - 1) for size in (1, 2, 4, 8)}


class Stored(NamedTuple):
    """One store of `values` [count, lanes] at addresses [lanes]; before: what was there."""

    addresses: Array
    values: Array
    before: Array
    label: int


class Memory:
    """All allocations of a launch.

    label  asked at each store that is recorded
    """

    def __init__(self, allocations: list[Room]) -> None:
        self.allocations = allocations
        self._last = allocations[0] if allocations else None
        self._journal: list[Stored] | None = None
        self.label: Callable[[], int] = lambda: 0

    def load(self, addresses: Array, size: int, count: int = 1) -> Array:
        """`count` elements of `size` bytes (1, 2, 4 or 8) from each address: [count, lanes]."""
        found = self._one(addresses, size * count)
        if found is not None:
            return found.get(addresses, size, count)
        out = np.empty((count, len(addresses)), f"u{size}")
        for where, allocation in self._split(addresses, size * count):
            out[:, where] = allocation.get(addresses[where], size, count)
        return out

    def store(self, addresses: Array, values: Array) -> None:
        """Write `values` [count, lanes], unsigned of 1, 2, 4 or 8 bytes, from each address on."""
        if self._journal is not None:
            before = self.load(addresses, values.dtype.itemsize, len(values))
            stored = Stored(addresses.copy(), values.copy(), before, self.label())
            self._journal.append(stored)
        self._put(addresses, values)

    def _put(self, addresses: Array, values: Array) -> None:
        span = values.dtype.itemsize * len(values)
        found = self._one(addresses, span)
        if found is not None:
            found.put(addresses, values)
            return
        for where, allocation in self._split(addresses, span):
            allocation.put(addresses[where], values[:, where])

    @contextmanager
    def recorded(self, kept: bool = True) -> Iterator[list[Stored]]:
        """All stores within it, in order. kept: they count for who records outside of it, too"""
        outer, found = self._journal, list[Stored]()
        self._journal = found
        try:
            yield found
        finally:
            self._journal = outer
            if outer is not None and kept:
                outer += found

    def peek(self, stored: Stored) -> Array:
        """What is now where something was stored."""
        return self.load(stored.addresses, stored.values.dtype.itemsize, len(stored.values))

    def undo(self, stores: list[Stored]) -> None:
        """Put back what was there before all of them."""
        for stored in reversed(stores):
            self._put(stored.addresses, stored.before)

    def redo(self, stores: list[Stored]) -> None:
        """Store all of it once more."""
        self.apply([(stored.addresses, stored.values) for stored in stores])

    def apply(self, stores: list[tuple[Array, Array]]) -> None:
        """Store values at addresses, one after the other, without recording it."""
        for addresses, values in stores:
            self._put(addresses, values)

    def scalar(self, address: int, words: int) -> list[int]:
        """`words` 32-bit words from `address` on, for a scalar load."""
        at = np.array([address], np.uint64)
        return [int(word) for word in self.load(at, 4, words)[:, 0]]

    def _one(self, addresses: Array, span: int) -> Room | None:
        """The one allocation that holds all accesses."""
        last = self._last
        if last is not None and last.holds(addresses, span):
            return last
        for allocation in self.allocations:
            if allocation.holds(addresses, span):
                self._last = allocation
                return allocation
        return None

    def _split(self, addresses: Array, span: int) -> list[tuple[Array, Room]]:
        """Which lanes go to which allocation. Fault for one that goes to none."""
        at = addresses.astype(object)  # Python's integers: no sum overflows
        left = np.ones(len(addresses), np.bool_)
        parts = []
        for allocation in self.allocations:
            inside = left & (at >= allocation.start) & (at + span <= allocation.end)
            inside = inside.astype(np.bool_)
            if inside.any():
                parts.append((inside, allocation))
                left &= ~inside
        if left.any():
            raise Fault(self._stray(int(addresses[left.argmax()]), span, int(left.sum())))
        return parts

    def _stray(self, address: int, span: int, count: int) -> str:
        said = f"{count} lanes access {span} bytes outside of every allocation, first {address:#x}"
        near = min(
            self.allocations,
            key=lambda a: max(a.start - address, address + span - a.end),
            default=None,
        )
        if near is None:
            return said
        before = near.start - address
        past = address + span - near.end
        where = f"{before} bytes before" if before > 0 else f"{past} bytes past the end of"
        return f"{said}: {where} {near.name} ({near.end - near.start} bytes)"
