# SPDX-License-Identifier: Apache-2.0
"""What NVIDIA's Blackwell for data centres can do: compute capability 10.0 and its family's 10.3.

Compute capability 12.0 (GeForce RTX 50) is another machine: no tcgen05, 99 KiB of shared memory.
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
_FP8 = "PTX ISA, tcgen05.mma; OCP 8-bit floating point 1.0"
_MXFP4 = "PTX ISA, tcgen05.mma; OCP microscaling formats 1.0"
_GRAPHS = "CUDA programming guide, CUDA Graphs"
_SIMT = "CUDA programming guide, SIMT Architecture"
_LIMITS = "CUDA programming guide, Technical Specifications per Compute Capability (10.0)"

FACTS = (
    Capability("pdl", True, _PDL, "the next kernel may start early; griddepcontrol says when"),
    Capability("tma", True, _TMA, "one thread copies a tile, or gathers four rows (tile::gather4)"),
    Capability("cluster", True, _CLUSTER, "up to 8 blocks reach each other's shared memory"),
    Capability("wgmma", False, _WGMMA, "sm_90a only; here it is tcgen05.mma"),
    Capability("tcgen05", True, _TCGEN05, "256 KiB of tensor memory an SM; sm_120 has none"),
    Capability("mfma", False, _TCGEN05, "AMD's instruction; here it is tcgen05.mma"),
    Capability("scaled_mfma", False, _TCGEN05, "AMD's instruction; tcgen05.mma takes block scales"),
    Capability("lds_transpose", False, _LDMATRIX, "AMD's instruction; here it is ldmatrix.trans"),
    Capability("bf16", True, _TCGEN05, "kind::f16 takes bfloat16 too, sums in float32"),
    Capability("tf32", True, _TCGEN05, "kind::tf32, float32 with 10 bits of mantissa"),
    Capability("fp8", "e4m3fn", _FP8, "OCP's, up to 448; gfx942 reads the same bytes as half"),
    Capability("mxfp4", "native", _MXFP4, "kind::mxf4: an E8M0 scale for 32 elements"),
    Capability("nvfp4", "native", _TCGEN05, "kind::mxf4nvf4: an E4M3 scale for 16 elements"),
    Capability("cuda_graph", True, _GRAPHS, "launches are captured from a stream and replayed"),
    Capability("warp_size", 32, _SIMT, "lanes of a warp"),
    Capability("shared_memory_bytes", 232448, _LIMITS, "227 KiB by opting in; an SM has 228"),
)
