# SPDX-License-Identifier: Apache-2.0
"""What the Kestrel K1 can do."""

from __future__ import annotations

from archkey import Capability

_MANUAL = "Kestrel K1 manual, chapter 2"

FACTS = (
    Capability("pdl", False, _MANUAL, "programs run one after the other"),
    Capability("bf16", False, _MANUAL, "a vector machine; it has no matrix instructions"),
    Capability("tf32", False, _MANUAL, "a vector machine; it has no matrix instructions"),
    Capability("fp8", "e4m3fn", _MANUAL, "decoded by the load unit"),
    Capability("mxfp4", "emulated", _MANUAL, "decoded to float32 by the torch reference"),
    Capability("nvfp4", "emulated", _MANUAL, "decoded to float32 by the torch reference"),
    Capability("cuda_graph", False, _MANUAL, "a launch is a call of the runtime"),
    Capability("warp_size", 64, _MANUAL, "lanes of the vector unit"),
    Capability("kestrel:scratchpad_bytes", 65536, _MANUAL, "a tile has to fit, as float32"),
)
