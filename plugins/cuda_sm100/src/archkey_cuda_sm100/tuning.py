# SPDX-License-Identifier: Apache-2.0
"""Numbers for the shared bodies on cuda_sm100, special rows first.

Rule of thumb behind the guesses: a thread holds 16 to 32 elements, which are enough 16-byte loads
in flight to keep the memory busy and few enough to stay in registers. A warp has 32 lanes.
"""

from __future__ import annotations

from archkey.conditions import at_most
from archkey.kernels.tunings import RmsNormTuning
from archkey.tuning import Row, Table

_GUESS = "not measured: 16 to 32 elements a thread"

RMSNORM = Table(
    (
        Row(RmsNormTuning(tile=2048, num_warps=2), (at_most("width", 1024),), measured=_GUESS),
        Row(RmsNormTuning(tile=4096, num_warps=4), (at_most("width", 4096),), measured=_GUESS),
        Row(RmsNormTuning(tile=8192, num_warps=8), (at_most("width", 8192),), measured=_GUESS),
        Row(RmsNormTuning(tile=16384, num_warps=16), measured=_GUESS),
    )
)

QK_RMSNORM = Table(
    (
        Row(RmsNormTuning(tile=2048, num_warps=4), (at_most("q_width", 2048),), measured=_GUESS),
        Row(RmsNormTuning(tile=8192, num_warps=8), measured=_GUESS),
    )
)
