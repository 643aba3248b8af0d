# SPDX-License-Identifier: Apache-2.0
"""Runs small programs of AMD's assembly, as LLVM frames them, on one array."""

from __future__ import annotations

import numpy as np

from archkey.conformance.emulation.counters import Counters, counting
from archkey.conformance.emulation.execute import Resources, execute
from archkey.conformance.emulation.memory import Memory, Room
from archkey.conformance.emulation.program import load

DIRECTIVES = {
    "private_segment_fixed_size": 0,
    "kernarg_size": 16,
    "user_sgpr_count": 2,
    "user_sgpr_kernarg_segment_ptr": 1,
    "system_sgpr_workgroup_id_x": 1,
    "system_sgpr_workgroup_id_y": 1,
    "system_sgpr_workgroup_id_z": 0,
    "next_free_vgpr": 16,
    "accum_offset": 16,
    "float_denorm_mode_32": 3,
}


def program(*lines: str, **directives: int) -> str:
    """The text of a kernel as LLVM frames it."""
    body = "\n".join(line if line.endswith(":") else f"\t{line}" for line in lines)
    said = {**DIRECTIVES, **directives}
    settings = "\n".join(f"\t\t.amdhsa_{name} {value}" for name, value in said.items())
    return f"""\t.amdgcn_target "amdgcn-amd-amdhsa--gfx942"
\t.text
body:                                   ; @body
{body}
\ts_endpgm
\t.amdhsa_kernel body
{settings}
\t.end_amdhsa_kernel
\t.amdgpu_metadata
---
amdhsa.kernels:
  - .agpr_count:     0
    .args:
      - .address_space:  global
        .offset:         0
        .size:           8
        .value_kind:     global_buffer
      - .offset:         8
        .size:           4
        .value_kind:     by_value
    .group_segment_fixed_size: 0
...
\t.end_amdgpu_metadata
"""


DATA = np.zeros(128, np.uint32)

STORE_V1 = (
    "s_load_dwordx2 s[4:5], s[0:1], 0x0",
    "v_lshlrev_b32_e32 v2, 2, v0",
    "global_store_dword v2, v1, s[4:5]",
)
"""DATA[lane] = v1"""


def start(
    text: str, grid: tuple[int, int, int] = (1, 1, 1), waves: int = 1, lds: int = 0, sample: int = 0
) -> Counters:
    """Run it with DATA, 128 numbers, as its one argument; what was counted."""
    kernarg = np.array([DATA.ctypes.data, 5], np.uint64)
    own = Room.at("arguments", kernarg.ctypes.data, kernarg.nbytes)
    memory = Memory([own, Room.at("data", DATA.ctypes.data, DATA.nbytes)])
    with counting(sample) as counters:
        execute(load(text), grid, memory, Resources(own, waves, lds))
    return counters
