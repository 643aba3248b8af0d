# SPDX-License-Identifier: Apache-2.0
"""Which numbers of the shared bodies are worth trying, for `archkey tune`.

Not beside the numbers' own classes: a candidate more or less changes no kernel, and no kernel's
digest.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from archkey.kernels.linear_tunings import Mxfp4LinearTuning
from archkey.kernels.tunings import RmsNormTuning
from archkey.tuning import Space

if TYPE_CHECKING:
    from archkey.capabilities import Capabilities

__all__ = ["MXFP4_LINEAR", "MXFP4_LINEAR_SCALED", "RMSNORM"]

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
    threads = values.num_warps * (capabilities.warp_size or 32)
    few = values.few_k * (values.few_t * x_bits + values.few_n * 4) * values.few_stages
    tile = values.tile_k * (values.tile_t * x_bits + values.tile_n * 4) * values.stages
    room = 8 * (capabilities.shared_memory_bytes or 0)
    return values.tile_t * values.tile_n <= 128 * threads and max(few, tile) <= room


def _mxfp4_linear_scaled(values: Mxfp4LinearTuning, capabilities: Capabilities) -> bool:
    """The same with 4 bits of x."""
    return _mxfp4_linear(values, capabilities, 4)


MXFP4_LINEAR = Space(
    {
        "few_t": (16, 32, 64),
        "few_k": (128, 256),
        "tile_t": (128, 256),
        "tile_k": (64, 128),
        "stages": (2, 3),
        "num_warps": (4, 8),
    },
    _mxfp4_linear,
)

MXFP4_LINEAR_SCALED = Space(
    {
        "few_t": (16, 32, 64),
        "few_k": (256, 512),
        "tile_t": (128, 256),
        "tile_k": (128, 256),
        "stages": (2, 3, 4),
        "num_warps": (4, 8),
    },
    _mxfp4_linear_scaled,
)
