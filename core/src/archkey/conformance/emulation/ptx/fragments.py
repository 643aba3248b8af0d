# SPDX-License-Identifier: Apache-2.0
"""Matrices whose elements are spread over the registers of a warp or of four.

Lane l is (g, c) = (l / 4, l % 4). Of A and of the accumulator it holds rows g and g + 8, of B
column g; along the other side it holds 32 bits at c, and the next ones at c + 4.
Source: PTX ISA, mma.m16n8k16 and wgmma.mma_async: register fragments.
"""

from __future__ import annotations

import numpy as np

from archkey.conformance.emulation.ptx.elements import values
from archkey.conformance.emulation.wave import Array

__all__ = ["apart", "left", "packed", "right", "spread", "whole"]


def _bytes(registers: list[Array]) -> Array:
    """[registers, warps, 8, 4, 4 bytes, or 8 of float64]."""
    stacked = np.stack(registers)
    return stacked.view(np.uint8).reshape(len(registers), -1, 8, 4, stacked.dtype.itemsize)


def left(registers: list[Array], kind: str) -> Array:
    """A of each warp: [warps, 16, K] float64. registers: by K half, and in it by row half."""
    data = values(_bytes(registers), kind)  # [register, warp, g, c, element]
    halves = data.reshape(-1, 2, *data.shape[1:])  # [K half, row half, warp, g, c, element]
    return halves.transpose(2, 1, 3, 0, 4, 5).reshape(halves.shape[2], 16, -1)


def right(registers: list[Array], kind: str) -> Array:
    """B of each warp: [warps, K, 8] float64."""
    data = values(_bytes(registers), kind)  # [K half, warp, g, c, element]
    return data.transpose(1, 0, 3, 4, 2).reshape(data.shape[1], -1, 8)


def whole(registers: Array, rows: int) -> Array:
    """Accumulators [N / 2 (or * 16 / rows), threads] to matrices [warps * 16 / rows, rows, N]."""
    n = len(registers) // 4
    apart = registers.reshape(n, 2, 2, -1, 8, 4)  # [n8, row half, element, warp, g, c]
    return apart.transpose(3, 1, 4, 0, 5, 2).reshape(-1, rows, 8 * n)


def spread(matrices: Array) -> Array:
    """The inverse of `whole`: [.., rows, N] to [registers, threads]."""
    n = matrices.shape[-1] // 8
    apart = matrices.reshape(-1, 2, 8, n, 4, 2)  # [warp, row half, g, n8, c, element]
    return np.ascontiguousarray(apart.transpose(3, 1, 5, 0, 2, 4)).reshape(4 * n, -1)


def apart(registers: list[Array], kind: str) -> Array:
    """Accumulators as `kind`: two of float16 share a register. [registers or twice, threads]."""
    stacked = np.stack(registers)
    if kind != "f2":
        return stacked.view(kind)
    pairs = stacked.view(np.float16).reshape(*stacked.shape, 2)
    return pairs.transpose(0, 2, 1).reshape(-1, stacked.shape[1])


def packed(accumulators: Array) -> Array:
    """The inverse of `apart`; what is not float16 stays as it is."""
    if accumulators.dtype != np.float16:
        return accumulators
    pairs = accumulators.reshape(-1, 2, accumulators.shape[1]).transpose(0, 2, 1)
    return np.ascontiguousarray(pairs).view(np.uint32)[..., 0]
