# SPDX-License-Identifier: Apache-2.0
"""Which numbers of the shared bodies are worth trying, for `archkey tune`.

Not beside the numbers' own classes: a candidate more or less changes no kernel, and no kernel's
digest.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from archkey.kernels.tunings import RmsNormTuning
from archkey.tuning import Space

if TYPE_CHECKING:
    from archkey.capabilities import Capabilities

__all__ = ["RMSNORM"]

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
