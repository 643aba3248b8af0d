# SPDX-License-Identifier: Apache-2.0
"""Which numbers of the shared bodies are worth trying, for `archkey tune`.

Not beside the numbers' own classes: a candidate more or less changes no kernel, and no kernel's
digest.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

from archkey.kernels.attention_tunings import AttentionTile, AttentionTuning
from archkey.kernels.kda_chunk_tunings import KdaChunkTuning
from archkey.kernels.kda_decode_tunings import KdaDecodeTuning
from archkey.kernels.kda_gate_tunings import KdaGateTuning
from archkey.kernels.linear_tunings import LinearTile, Mxfp4LinearTuning
from archkey.kernels.mla_decode_tunings import MlaDecodeTuning
from archkey.kernels.mla_prefill_tunings import MlaPrefillTile, MlaPrefillTuning
from archkey.kernels.sparse_mla_tunings import SparseMlaTuning
from archkey.kernels.tunings import RmsNormTuning
from archkey.tuning import Space

if TYPE_CHECKING:
    from archkey.capabilities import Capabilities

__all__ = [
    "ATTENTION",
    "KDA_CHUNK",
    "KDA_DECODE",
    "KDA_GATE",
    "MLA_DECODE",
    "MLA_PREFILL",
    "MXFP4_LINEAR",
    "MXFP4_LINEAR_SCALED",
    "RMSNORM",
    "SPARSE_MLA",
]

_THREADS = 1024
"""Most threads of a block on either vendor's hardware."""


def _rmsnorm(values: RmsNormTuning, capabilities: Capabilities) -> bool:
    """8 to 128 elements a thread: fewer are no 16-byte load, more do not stay in registers.

    16 to 32 are a good guess: enough loads in flight to keep the memory busy.
    """
    threads = values.num_warps * (capabilities.warp_size or 32)
    return threads <= _THREADS and 8 <= values.tile / threads <= 128


RMSNORM = Space(
    {"tile": (512, 1024, 2048, 4096, 8192, 16384), "num_warps": (1, 2, 4, 8, 16)}, _rmsnorm
)


def _mxfp4_linear(values: Mxfp4LinearTuning, capabilities: Capabilities, x_bits: int = 16) -> bool:
    """Sums in at most 128 registers a thread; what the loads on their way fill is there.

    A step reads bfloat16 x, and 4 bits a weight; two decoded operands take as much and more, which
    the compiled program shows.
    """
    room, lanes = 8 * (capabilities.shared_memory_bytes or 0), capabilities.warp_size or 32
    return all(
        tile.t * tile.n <= 128 * tile.num_warps * lanes
        and tile.k * (tile.t * x_bits + tile.n * 4) * tile.stages <= room
        for tile in values.tiles
    )


def _mxfp4_linear_scaled(values: Mxfp4LinearTuning, capabilities: Capabilities) -> bool:
    """The same with 4 bits of x."""
    return _mxfp4_linear(values, capabilities, 4)


def _tiles(
    *tiles: tuple[LinearTile | AttentionTile | MlaPrefillTile, ...],
) -> dict[str, tuple[Any, ...]]:
    """Those for few rows, for some, and for any number, each with each."""
    return {"tiles": tuple(itertools.product(*tiles))}


MXFP4_LINEAR = Space(
    _tiles(
        tuple(
            LinearTile(16, 16, n, k, stages, 4, fill)
            for n, k, stages in (
                (64, 128, 4),
                (64, 256, 3),
                (64, 256, 4),
                (128, 128, 4),
                (128, 256, 3),
            )
            for fill in (2, 4)
        ),
        tuple(
            LinearTile(rows, 64, n, k, 3, 4, fill)
            for rows in (64, 128, 256)
            for n, k in ((64, 128), (128, 64), (128, 128))
            for fill in (2, 3)
        ),
        tuple(
            LinearTile(0, t, n, k, stages, num_warps, 0)
            for t, n, num_warps in ((128, 128, 4), (128, 128, 8), (128, 256, 8), (256, 128, 8))
            for k, stages in ((64, 3), (64, 4), (128, 2), (128, 3))
        ),
    ),
    _mxfp4_linear,
)

MXFP4_LINEAR_SCALED = Space(
    _tiles(
        tuple(
            LinearTile(16, 16, 128, k, stages, 4, 2)
            for k, stages in ((256, 3), (256, 4), (512, 2), (512, 3))
        ),
        tuple(LinearTile(rows, 64, 128, 256, 3, 4, 2) for rows in (64, 256)),
        tuple(
            LinearTile(0, t, 128, k, stages, num_warps, 0)
            for t, num_warps in ((128, 4), (128, 8), (256, 8))
            for k, stages in ((128, 3), (128, 4), (256, 2), (256, 3))
        ),
    ),
    _mxfp4_linear_scaled,
)


def _attention(values: AttentionTuning | MlaPrefillTuning, capabilities: Capabilities) -> bool:
    """Scores in at most 128 registers a thread; keys and values of 64 columns are the least."""
    room, lanes = capabilities.shared_memory_bytes or 0, capabilities.warp_size or 32
    return all(
        tile.rows * tile.keys <= 128 * tile.num_warps * lanes
        and tile.keys * 2 * 64 * 2 * tile.stages <= room
        for tile in values.tiles
    )


# Few rows and many are tried with each other: a dozen of each is what a night has time for.
ATTENTION = Space(
    _tiles(
        tuple(
            AttentionTile(rows, rows, keys, 4, stages, fill)
            for rows in (16, 64)
            for keys, stages in ((32, 3), (64, 2), (64, 3))
            for fill in (2, 3)
        ),
        (
            *(
                AttentionTile(0, rows, keys, num_warps, stages)
                for rows, num_warps in ((64, 4), (128, 4), (128, 8))
                for keys, stages in ((32, 3), (64, 2), (64, 3))
            ),
            AttentionTile(0, 128, 128, 8, 3),
            AttentionTile(0, 256, 64, 16, 3),
        ),
    ),
    _attention,
)


_LATENT = 512
_ROW_BYTES = _LATENT + 64
"""A row of the latent cache in FP8; one of 16 bits takes twice as much."""


def _mla_decode(values: MlaDecodeTuning, capabilities: Capabilities) -> bool:
    """Sums in at most 128 registers a thread; keys on their way, of all residents, in memory."""
    room, lanes = capabilities.shared_memory_bytes or 0, capabilities.warp_size or 32
    keys = values.keys * max(values.stages - 1, 1) * values.resident
    return values.rows * _LATENT <= 128 * values.num_warps * lanes and keys * _ROW_BYTES <= room


MLA_DECODE = Space(
    {
        "rows": (16, 32, 64),
        "keys": (16, 32, 64),
        "num_warps": (4, 8),
        "stages": (1, 2, 3),
        "resident": (1, 2),
    },
    _mla_decode,
)

_SPARSE_ROW_BYTES = 2 * _ROW_BYTES
"""A key's row as it is multiplied: packed ones are bfloat16 then."""


def _sparse_mla(values: SparseMlaTuning, capabilities: Capabilities) -> bool:
    """Sums in at most 128 registers a thread; a step's keys, of all residents, in memory.

    Of bfloat16 rows those on their way as well, which the compiled program shows.
    """
    room, lanes = capabilities.shared_memory_bytes or 0, capabilities.warp_size or 32
    keys = values.keys * values.resident
    return values.rows * _LATENT <= 128 * values.num_warps * lanes and (
        keys * _SPARSE_ROW_BYTES <= room
    )


SPARSE_MLA = Space(
    {
        "rows": (16, 32, 64, 128),
        "keys": (16, 32, 64),
        "num_warps": (4, 8),
        "stages": (1, 2, 3),
        "resident": (1, 2),
    },
    _sparse_mla,
)

MLA_PREFILL = Space(
    _tiles(
        tuple(MlaPrefillTile(64, 64, keys, 4, stages) for keys in (32, 64) for stages in (1, 2, 3)),
        tuple(
            MlaPrefillTile(0, rows, keys, num_warps, stages)
            for rows, num_warps in ((64, 4), (128, 4), (128, 8), (256, 8), (256, 16))
            for keys, stages in ((32, 1), (32, 2), (32, 3), (64, 1), (64, 2), (64, 3), (128, 2))
        ),
    ),
    _attention,
)


def _kda_decode(values: KdaDecodeTuning, capabilities: Capabilities) -> bool:
    """8 to 128 elements of a state of 128 rows a thread: a 16-byte load or two at least."""
    threads = values.num_warps * (capabilities.warp_size or 32)
    return 8 <= values.columns * 128 / threads <= 128


def _kda_chunk(values: KdaChunkTuning, capabilities: Capabilities) -> bool:
    """Fewer columns where there are few programs; a state in at most 128 registers a thread.

    Of K up to 128; what does not fit beside it, the compiled program shows.
    """
    threads = values.walk_warps * (capabilities.warp_size or 32)
    return values.few <= values.columns and values.columns <= threads <= _THREADS


KDA_CHUNK = Space(
    {
        "columns": (16, 32, 64),
        "few": (16, 32),
        "walk_warps": (4, 8),
        "stages": (1, 2, 3),
        "segment": (8, 16),
    },
    _kda_chunk,
)


KDA_DECODE = Space({"columns": (4, 8, 16, 32, 64), "num_warps": (1, 2, 4, 8)}, _kda_decode)


def _kda_gate(values: KdaGateTuning, capabilities: Capabilities) -> bool:
    """4 to 64 elements a thread, of `tokens` as of a chunk of 64."""
    threads = values.num_warps * (capabilities.warp_size or 32)
    tiles = (tokens * values.channels / threads for tokens in (values.tokens, 64))
    return all(4 <= tile <= 64 for tile in tiles)


KDA_GATE = Space(
    {"tokens": (8, 16, 32, 64), "channels": (32, 64, 128), "num_warps": (1, 2, 4, 8)}, _kda_gate
)
