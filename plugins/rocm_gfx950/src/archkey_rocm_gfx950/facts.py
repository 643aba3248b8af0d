# SPDX-License-Identifier: Apache-2.0
"""What AMD's CDNA4 can do: gfx950.

What differs from card to card comes from the probe.
"""

from __future__ import annotations

from archkey import Capability

# Sources: AMD's instruction set references and HIP documentation, and OCP's specifications.
_ISA = "AMD Instinct CDNA4 ISA reference"
_LAUNCH = "HIP runtime API of ROCm 7.2, launch attributes"
_LOADS = f"{_ISA}, memory instructions"
_LDS = f"{_ISA}, local data share"
_MFMA = f"{_ISA}, matrix arithmetic instructions"
_FP8 = f"{_MFMA}; OCP 8-bit floating point 1.0"
_MXFP4 = f"{_MFMA}; OCP microscaling formats 1.0"
_GRAPHS = "HIP documentation, HIP graphs"
_WAVES = f"{_ISA}, wavefronts"

FACTS = (
    Capability("pdl", False, _LAUNCH, "HIP launches none so; enable_pdl is accepted and ignored"),
    Capability("tma", False, _LOADS, "loads go to registers, or to LDS by 16 bytes a lane"),
    Capability("cluster", False, _LDS, "a workgroup cannot reach the LDS of another"),
    Capability("wgmma", False, _MFMA, "NVIDIA's instruction; here it is MFMA"),
    Capability("tcgen05", False, _MFMA, "NVIDIA's instruction; MFMA sums in vector registers"),
    Capability("mfma", True, _MFMA, "one wavefront multiplies tiles from registers"),
    Capability("scaled_mfma", True, _MFMA, "V_MFMA_SCALE_F32_16X16X128_F8F6F4 and 32X32X64"),
    Capability("lds_transpose", True, _LDS, "DS_READ_B64_TR_B16 and its kin"),
    Capability("bf16", True, _MFMA, "V_MFMA_F32_32X32X16_BF16 and its kin, sums in float32"),
    Capability("tf32", False, _MFMA, "gfx942's XF32 is gone: multiply bfloat16 or float32"),
    Capability("fp8", "e4m3fn", _FP8, "OCP's, up to 448; gfx942 reads the same bytes as half"),
    Capability("mxfp4", "native", _MXFP4, "scaled MFMA: an E8M0 scale for 32 elements"),
    Capability("nvfp4", "emulated", _MFMA, "decoded to bfloat16: scaled MFMA has no E4M3 scales"),
    Capability("cuda_graph", True, _GRAPHS, "HIP graphs, which torch calls CUDA graphs"),
    Capability("warp_size", 64, _WAVES, "lanes of a wavefront"),
    Capability("shared_memory_bytes", 163840, _LDS, "160 KiB, all the LDS of a compute unit"),
)
