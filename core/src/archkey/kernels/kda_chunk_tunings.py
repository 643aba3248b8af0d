# SPDX-License-Identifier: Apache-2.0
"""The numbers that the bodies of chunk_kda take; nothing here is imported from triton."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["KdaChunkTuning"]


@dataclass(frozen=True)
class KdaChunkTuning:
    """How the bodies of chunk_kda work.

    chunk_warps  warps of a program that prepares a chunk
    block        columns of q, k and v that it has in registers at once
    columns      columns of a state that a program walks with
    few          the same where sequences and heads are too few for `columns`; the most programs
                 are better than segments, which are walked twice
    walk_warps   warps of such a program
    stages       chunks that are on their way from memory
    map_stages   the same where only what a segment does to a state is wanted
    resident     walking programs that a compute unit holds at once: what is not filled by far is
                 filled with segments of sequences
    segment      fewest chunks of a segment; with batch_invariant, the chunks of every segment; 0:
                 no sequence is cut
    join         whether a launch of its own finds what segments start from: one pass over a
                 sequence's maps instead of one for each of its segments, which needs no launch
    """

    chunk_warps: int
    block: int
    columns: int
    few: int
    walk_warps: int
    stages: int
    map_stages: int
    resident: int = 1
    segment: int = 8
    join: bool = True

    def __post_init__(self) -> None:
        for name in ("chunk_warps", "block", "columns", "few", "walk_warps"):
            value = getattr(self, name)
            if value < 1 or value & (value - 1):
                raise ValueError(f"{name} must be a power of two, is {value}")
