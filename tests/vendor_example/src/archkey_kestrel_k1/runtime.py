# SPDX-License-Identifier: Apache-2.0
"""The K1's runtime, simulated: tiles of rows go through a scratchpad, in float32.

A program sees one tile of each operand at a time and gives one tile of each result. What it reads
is complete before anything is written, so an output may be an operand.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

__all__ = ["SCRATCHPAD_BYTES", "heads", "stream"]

SCRATCHPAD_BYTES = 65536


def stream(
    program: Callable[..., Sequence[torch.Tensor]],
    operands: Sequence[torch.Tensor],
    results: Sequence[torch.Tensor],
    tile_rows: int,
) -> None:
    """Run `program(*tiles)` over the rows of the operands; `[T, N]` each, N their own.

    MemoryError if a tile of the operands is larger than the scratchpad.
    """
    rows = operands[0].shape[0]
    taken = 4 * tile_rows * sum(operand.shape[1] for operand in operands)
    if taken > SCRATCHPAD_BYTES:
        raise MemoryError(f"a tile of {taken} bytes; the scratchpad has {SCRATCHPAD_BYTES}")
    for start in range(0, rows, tile_rows):
        tile = slice(start, start + tile_rows)
        tiles = program(*(operand[tile].to(torch.float32, copy=True) for operand in operands))
        for result, values in zip(results, tiles, strict=True):
            result[tile].copy_(values)


def heads(*tensors: torch.Tensor) -> list[tuple[torch.Tensor, ...]]:
    """`[T, N]` as it is, `[T, h, N]` a head at a time: strides are free."""
    if tensors[0].dim() == 2:
        return [tensors]
    return [tuple(t[:, head] for t in tensors) for head in range(tensors[0].shape[1])]
