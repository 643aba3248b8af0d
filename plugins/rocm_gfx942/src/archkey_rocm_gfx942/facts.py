# SPDX-License-Identifier: Apache-2.0
"""What AMD's CDNA3 can do: gfx942.

What differs from card to card comes from the probe.
"""

from __future__ import annotations

from archkey import Capability

# Sources: AMD's instruction set references and HIP documentation, and OCP's specifications.
_ISA = "AMD Instinct MI300 (CDNA3) ISA reference"
_LAUNCH = "HIP runtime API of ROCm 7.2, launch attributes"
_LOADS = f"{_ISA}, memory instructions"
_LDS = f"{_ISA}, local data share"
_MFMA = f"{_ISA}, matrix arithmetic instructions"
_GRAPHS = "HIP documentation, HIP graphs"
_WAVES = f"{_ISA}, wavefronts"

FACTS = (
    Capability("pdl", False, _LAUNCH, "HIP launches none so; enable_pdl is accepted and ignored"),
    Capability("tma", False, _LOADS, "loads go to registers, or to LDS by 4 bytes a lane"),
    Capability("cluster", False, _LDS, "a workgroup cannot reach the LDS of another"),
    Capability("wgmma", False, _MFMA, "NVIDIA's instruction; here it is MFMA"),
    Capability("tcgen05", False, _MFMA, "NVIDIA's instruction; MFMA sums in vector registers"),
    Capability("mfma", True, _MFMA, "one wavefront multiplies tiles from registers"),
    Capability("scaled_mfma", False, _MFMA, "gfx950 has it; here scales are applied in registers"),
    Capability("lds_transpose", False, _LDS, "gfx950 has it; here tiles turn in registers"),
    Capability("bf16", True, _MFMA, "V_MFMA_F32_32X32X8_BF16 and its kin, sums in float32"),
    Capability("tf32", True, _MFMA, "V_MFMA_F32_16X16X8_XF32 and its kin; gfx950 has none"),
    Capability("fp8", "e4m3fnuz", _MFMA, "up to 240; bytes written as e4m3fn read as half here"),
    Capability("mxfp4", "emulated", _MFMA, "decoded to bfloat16; 4 bits in memory only"),
    Capability("nvfp4", "emulated", _MFMA, "decoded to bfloat16; 4 bits in memory only"),
    Capability("cuda_graph", True, _GRAPHS, "HIP graphs, which torch calls CUDA graphs"),
    Capability("warp_size", 64, _WAVES, "lanes of a wavefront"),
    Capability("shared_memory_bytes", 65536, _LDS, "64 KiB, all the LDS of a compute unit"),
)
