# SPDX-License-Identifier: Apache-2.0
"""Numbers for the shared bodies on cuda_sm90, special rows first.

The rows were chosen from a sweep over tiles and warps at 64, 1024 and 16384 rows
(`python tests/device/rmsnorm.py --sweep`): each is within 5 % of the best setting of every problem
it serves, and 5 % is what two runs of one setting differ by.
"""

from __future__ import annotations

from archkey.conditions import at_most, is_
from archkey.kernels.tunings import RmsNormTuning
from archkey.tuning import Row, Table

_H200 = "H200, triton 3.6.0, torch 2.11.0+cu130, 2026-11-20"
_GUESS = "not measured: the widest measured row is 7168"

RMSNORM = Table(
    (
        Row(RmsNormTuning(tile=2048, num_warps=4), (at_most("width", 256),), measured=_H200),
        Row(RmsNormTuning(tile=1024, num_warps=4), (at_most("width", 1024),), measured=_H200),
        Row(RmsNormTuning(tile=4096, num_warps=4), (at_most("width", 4096),), measured=_H200),
        Row(RmsNormTuning(tile=8192, num_warps=8), (at_most("width", 8192),), measured=_H200),
        Row(RmsNormTuning(tile=16384, num_warps=16), measured=_GUESS),
    )
)

QK_RMSNORM = Table(
    (
        Row(RmsNormTuning(tile=1024, num_warps=4), (is_("q_width", 0),), measured=_H200),
        Row(RmsNormTuning(tile=2048, num_warps=4), (at_most("q_width", 2048),), measured=_H200),
        Row(RmsNormTuning(tile=8192, num_warps=8), measured=_GUESS),
    )
)
