# SPDX-License-Identifier: Apache-2.0
"""Matrices in shared memory, as wgmma and tcgen05 are told of them by 64 bits.

A matrix is made of chunks of 16 bytes: eight rows of them are a core matrix. A swizzle exchanges
chunks by the address that they lie at. Source: PTX ISA, Asynchronous Warpgroup Level Matrix
Instructions: Matrix Descriptor, Strides; tcgen05: Shared memory descriptor, Canonical layouts.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np

from archkey.conformance.emulation.faults import UnknownInstruction
from archkey.conformance.emulation.ptx.shared import CHUNK
from archkey.conformance.emulation.wave import Array

__all__ = ["Layout", "addresses", "blackwell", "hopper", "swizzled"]


class Layout(NamedTuple):
    """Where a matrix begins, two strides, and the bytes of a swizzle's row: 128, 64, 32 or 16."""

    start: int
    leading: int
    stride: int
    row: int


_HOPPER = {0: 16, 1: 128, 2: 64, 3: 32}
_BLACKWELL = {0: 16, 2: 128, 4: 64, 6: 32}


def _fields(descriptor: int) -> tuple[int, int, int]:
    return tuple((descriptor >> at & 0x3FFF) << 4 for at in (0, 16, 32))  # type: ignore[return-value]


def hopper(descriptor: int) -> Layout:
    """Of wgmma: the swizzle stands in bits 62 and 63."""
    if descriptor >> 49 & 7:
        raise UnknownInstruction("a matrix descriptor with a base offset")
    return Layout(*_fields(descriptor), _HOPPER[descriptor >> 62])


def blackwell(descriptor: int) -> Layout:
    """Of tcgen05: the swizzle stands in bits 61 to 63, and bit 46 is set."""
    if descriptor >> 46 & 7 != 1:
        raise UnknownInstruction("a matrix descriptor of tcgen05 whose bits 46 to 48 are not 1")
    kind = descriptor >> 61
    # The offset of a pattern's start means nothing without a pattern.
    if (descriptor >> 49 & 7 and kind) or descriptor >> 52 & 1 or kind not in _BLACKWELL:
        raise UnknownInstruction(f"a matrix descriptor {descriptor:#x}")
    return Layout(*_fields(descriptor), _BLACKWELL[kind])


def swizzled(at: Array, row: int) -> Array:
    """Addresses after the exchange of chunks within `row` bytes."""
    bits = {128: 7, 64: 3, 32: 1, 16: 0}[row]
    return at ^ ((at >> 3) & (bits << 4))


@functools.lru_cache(512)
def _offsets(rows: int, columns: int, bits: int, layout: Layout, turned: bool) -> Array:
    """Before the swizzle, from the start on: [rows, chunks of a row], turned [columns, chunks]."""
    row, leading, stride = layout.row, layout.leading, layout.stride
    if not turned:  # what lies together is a row of K
        r, c = np.arange(rows)[:, None], np.arange(columns * bits // 8 // CHUNK)[None]
        along = c * leading if row == CHUNK else c * CHUNK
        return r % 8 * row + r // 8 * stride + along
    k, q = np.arange(columns)[:, None], np.arange(rows * bits // 8 // CHUNK)[None]
    if row == CHUNK:
        return q * stride + k % 8 * CHUNK + k // 8 * leading
    across = row // CHUNK
    return q % across * CHUNK + q // across * leading + k % 8 * row + k // 8 * stride


def addresses(layout: Layout, rows: int, columns: int, bits: int, turned: bool) -> Array:
    """Of the chunks of a matrix [rows, columns] of elements of `bits`.

    [rows, chunks of a row]; turned (the rows' index lies together): [columns, chunks of a column]
    """
    found = _offsets(rows, columns, bits, layout._replace(start=0), turned)
    return swizzled(found + layout.start, layout.row)
