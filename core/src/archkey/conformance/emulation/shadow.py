# SPDX-License-Identifier: Apache-2.0
"""LDS of a workgroup, and of each byte: whether it was written, and by whom since the last barrier.

Two waves may do what they like to one byte between two barriers only if the order does not matter:
both read it, or both write the same. Everything else is a race, in whatever order they ran here. So
is what a wave reads of another's in the same interval.
Atomics are in nobody's way but that of plain reads and writes.

Waves whose numbers are equal modulo 8 are taken for one: their races are not found. Triton's usual
workgroups have 8 waves at most.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from archkey.conformance.emulation.faults import Fault

__all__ = ["Lds"]

Array = npt.NDArray[Any]

_DATA, _WRITTEN, _WRITERS, _READERS, _CLAIMS = range(5)
_STEPS = np.arange(16)[:, None]
_SIZES = (1, 2, 4, 8)
# numpy takes a constant faster as an array without axes than as a number.
_ODD = {size: np.array(size - 1) for size in _SIZES}
_SHIFT = {size: np.array(size.bit_length() - 1) for size in _SIZES}
_FULL = {size: np.array((1 << 8 * size) - 1, f"u{size}") for size in _SIZES}
_ONES = {size: int.from_bytes(bytes([1] * size), "little") for size in _SIZES}
"""A word with 1 in each byte."""
_MARKS = {
    size: [
        (np.array(ones << wave, f"u{size}"), np.array(ones * 255 ^ ones << wave, f"u{size}"))
        for wave in range(8)
    ]
    for size, ones in _ONES.items()
}
"""A wave's bit in each byte of a word, and those of all others."""


class Lds:
    """LDS of one workgroup.

    size       bytes
    shared     whether several waves use it, so that they can disturb one another
    fill       of each byte that nobody wrote
    unwritten  whether such bytes were read
    """

    def __init__(self, size: int, shared: bool, fill: int = 0xFF) -> None:
        self.size, self._shared, self._touched, self.unwritten = size, shared, False, False
        whole = np.zeros((5 if shared else 2, (size + 7) // 8 * 8), np.uint8)
        whole[_DATA] = fill
        # The usual accesses look at all planes but that of atomics, until there are some.
        self._planes = {n: whole[:_CLAIMS].view(f"u{n}") for n in _SIZES}
        self._claims = {n: whole[_CLAIMS:].view(f"u{n}").reshape(-1) for n in _SIZES}
        self._claimed = False

    def barrier(self) -> None:
        """All waves have met: what each did is behind all others."""
        if self._shared and self._touched:
            self._planes[8][_WRITERS:] = 0
            self._claims[8][:] = 0
            self._touched = self._claimed = False

    def read(self, wave: int, at: Array, size: int, count: int) -> Array:
        """`count` elements of `size` bytes from each byte address: [count, lanes]."""
        self._check(at, size * count)
        if size > 1 and np.count_nonzero(at & _ODD[size]):
            return self.read(wave, at, 1, size * count).T.copy().view(f"u{size}").T
        index, planes = (at >> _SHIFT[size]) + _STEPS[:count], self._planes[size]
        found = planes.take(index, axis=1)  # several times as fast as planes[:, index]
        if np.count_nonzero(found[_WRITTEN] != _FULL[size]):
            self.unwritten = True
        if self._shared:
            self._touched, (own, others) = True, _MARKS[size][wave % 8]
            if np.count_nonzero(found[_WRITERS] & others):
                self._racing(wave, found[_WRITERS], index * size, reading=True)
            if self._claimed:
                self._against_atomics(wave, index, size)
            planes[_READERS][index] = found[_READERS] | own
        data: Array = found[_DATA]
        return data

    def write(self, wave: int, at: Array, values: Array) -> None:
        """`values` [count, lanes], unsigned, from each byte address; of two lanes the later one."""
        size, count = values.dtype.itemsize, len(values)
        self._check(at, size * count)
        if size > 1 and np.count_nonzero(at & _ODD[size]):
            raw = np.ascontiguousarray(values.T).view(np.uint8).reshape(len(at), -1)
            self.write(wave, at, raw.T)
            return
        index, planes = (at >> _SHIFT[size]) + _STEPS[:count], self._planes[size]
        if self._shared:
            self._touched, (own, others) = True, _MARKS[size][wave % 8]
            before = planes.take(index, axis=1)
            foes = (before[_WRITERS] | before[_READERS]) & others
            if np.count_nonzero(foes):
                changed = (before[_DATA] ^ values) | ~before[_WRITTEN]
                self._racing(wave, _where(changed, foes), index * size, reading=False)
            if self._claimed:
                self._against_atomics(wave, index, size)
            planes[_WRITERS][index] = before[_WRITERS] | own
        planes[_DATA][index] = values
        planes[_WRITTEN][index] = _FULL[size]

    def claim(self, wave: int, at: Array, words: int) -> None:
        """Before atomics on `words` words from each address: they do not race with one another."""
        self._check(at, 4 * words)
        if np.count_nonzero(at & (4 * words - 1)):
            raise Fault("an atomic on LDS that is not aligned")
        index, planes = (at >> _SHIFT[4]) + _STEPS[:words], self._planes[4]
        found = planes.take(index, axis=1)
        if np.count_nonzero(found[_WRITTEN] != _FULL[4]):
            self.unwritten = True
        if self._shared:
            self._touched, (own, others) = True, _MARKS[4][wave % 8]
            self._claimed = True
            foes = (found[_WRITERS] | found[_READERS]) & others
            if np.count_nonzero(foes):
                self._racing(wave, foes, index * 4, reading=False)
            self._claims[4][index] = self._claims[4].take(index) | own

    def peek(self, at: Array, size: int, count: int) -> Array:
        """What is there, for an atomic that has claimed it."""
        return self._planes[size][_DATA].take((at >> _SHIFT[size]) + _STEPS[:count])

    def poke(self, at: Array, values: Array) -> None:
        """Write for such an atomic."""
        size = values.dtype.itemsize
        self._planes[size][_DATA][(at >> _SHIFT[size]) + _STEPS[: len(values)]] = values

    def _against_atomics(self, wave: int, index: Array, size: int) -> None:
        foes = self._claims[size].take(index) & _MARKS[size][wave % 8][1]
        if np.count_nonzero(foes):
            self._racing(wave, foes, index * size, reading=False)

    def _check(self, at: Array, span: int) -> None:
        """Fault past the end."""
        last = int(at.max()) + span
        if last > self.size:
            raise Fault(f"access to byte {last - 1} of an LDS of {self.size} bytes")

    def _racing(self, wave: int, masks: Array, at: Array, reading: bool) -> None:
        """Fault if other waves stand in `masks` of a byte, and for a read not this one too."""
        own = 1 << wave % 8
        each = _bytes(masks)
        hit = (each & (0xFF ^ own)) != 0
        hit &= (each & own) == 0 if reading else True
        if hit.any():
            lane = hit.any(-1)
            other = int(each[hit][0]) & (0xFF ^ own)
            raise Fault(
                f"wave {wave} {'reads' if reading else 'changes'} {int(hit.sum())} bytes of LDS, "
                f"near {at[lane].min()}, that wave {other.bit_length() - 1} "
                f"{'writes' if reading else 'uses'} between the same barriers"
            )


def _bytes(words: Array) -> Array:
    """[..., bytes of a word]"""
    return np.ascontiguousarray(words)[..., None].view(np.uint8)


def _where(changed: Array, masks: Array) -> Array:
    """`masks`, of the bytes that `changed`, others 0."""
    kept = np.where(_bytes(changed) != 0, _bytes(masks), np.uint8(0))
    return kept.view(masks.dtype)[..., 0]
