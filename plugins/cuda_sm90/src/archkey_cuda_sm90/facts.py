# SPDX-License-Identifier: Apache-2.0
"""What NVIDIA's Hopper can do: compute capability 9.0.

What differs from card to card comes from the probe.
"""

from __future__ import annotations

from archkey import Capability

# Sources: the CUDA programming guide and the PTX ISA reference of NVIDIA, and OCP's specifications.
_PDL = "CUDA programming guide, Programmatic Dependent Launch; PTX ISA, griddepcontrol"
_TMA = "PTX ISA, cp.async.bulk.tensor"
_CLUSTER = "CUDA programming guide, Thread Block Clusters"
_WGMMA = "PTX ISA, wgmma.mma_async"
_TCGEN05 = "PTX ISA, tcgen05.mma"
_LDMATRIX = "PTX ISA, ldmatrix"
_FP8 = "PTX ISA, wgmma.mma_async; OCP 8-bit floating point 1.0"
_GRAPHS = "CUDA programming guide, CUDA Graphs"
_SIMT = "CUDA programming guide, SIMT Architecture"
_LIMITS = "CUDA programming guide, Technical Specifications per Compute Capability (9.0)"

FACTS = (
    Capability("pdl", True, _PDL, "the next kernel may start early; griddepcontrol says when"),
    Capability("tma", True, _TMA, "one thread copies a tile of up to five dimensions"),
    Capability("cluster", True, _CLUSTER, "up to 8 blocks reach each other's shared memory"),
    Capability("wgmma", True, _WGMMA, "four warps multiply from shared memory; sm_90a code only"),
    Capability("tcgen05", False, _TCGEN05, "the sm_100 family has it; wgmma sums in registers"),
    Capability("mfma", False, _WGMMA, "AMD's instruction; here it is wgmma"),
    Capability("scaled_mfma", False, _WGMMA, "AMD's instruction; wgmma takes no block scales"),
    Capability("lds_transpose", False, _LDMATRIX, "AMD's instruction; here it is ldmatrix.trans"),
    Capability("bf16", True, _WGMMA, "products of .bf16, sums in float32"),
    Capability("tf32", True, _WGMMA, "products of .tf32, float32 with 10 bits of mantissa"),
    Capability("fp8", "e4m3fn", _FP8, "OCP's, up to 448; gfx942 reads the same bytes as half"),
    Capability("mxfp4", "emulated", _WGMMA, "decoded to bfloat16; 4 bits in memory only"),
    Capability("nvfp4", "emulated", _WGMMA, "decoded to bfloat16; 4 bits in memory only"),
    Capability("cuda_graph", True, _GRAPHS, "launches are captured from a stream and replayed"),
    Capability("warp_size", 32, _SIMT, "lanes of a warp"),
    Capability("shared_memory_bytes", 232448, _LIMITS, "227 KiB by opting in; an SM has 228"),
)
