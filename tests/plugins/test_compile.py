# SPDX-License-Identifier: Apache-2.0
"""Every plugin's kernels become machine code for its target on a machine without a GPU.

The same call that warms an engine up, `session.prepare(problems)`, is what is tested.
"""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

# e_machine of an ELF header, and the architecture in its flags: EF_CUDA_SM in bits 8 to 15 (new
# ABI) or 0 to 7, EF_AMDGPU_MACH in bits 0 to 7 (LLVM, AMDGPU usage: 0x4c gfx942, 0x4f gfx950).
CUDA, AMDGPU = 190, 224
TARGETS = {
    "cuda_sm90": (CUDA, 90),
    "cuda_sm100": (CUDA, 100),
    "cuda_sm103": (CUDA, 103),  # served by the plugin of its family
    "rocm_gfx942": (AMDGPU, 0x4C),
    "rocm_gfx950": (AMDGPU, 0x4F),
}

_PREPARE = """
import json, struct
import archkey
session = archkey.open({target!r}, strict=True)
rows = []
for operator in session.operators.values():
    # One of each kind of body; `archkey check TARGET -l compiled` takes minutes for the rest.
    few = operator.name == "unified_attention" or operator.family in ("mla", "sparse_mla")
    problems = {{
        label: problem._replace(pdl=session.pdl) if "pdl" in problem._fields else problem
        for label, problem in operator.examples.items()
        if session._candidates[operator.name][0].kernel.plugin != "cpu"
        and (not few or label in {few!r})
    }}
    for label, plan in zip(problems, session.prepare(problems.values())):
        for compiled in plan.compiled:
            machine, = struct.unpack_from("<H", compiled.binary, 18)
            flags, = struct.unpack_from("<I", compiled.binary, 48)
            rows.append([operator.name, label, plan.decision.chosen.id, compiled.binary[:4].hex(),
                         machine, flags, compiled.shared_memory_bytes])
print(json.dumps([session.capabilities.shared_memory_bytes, rows]))
"""
FEW = (
    *("GPT-OSS decode", "GPT-OSS prefill", "GQA 32/4, batch invariant"),
    *("DeepSeek-V3 TP1", "DeepSeek-V3 TP8", "DeepSeek-V3 FP8 cache", "GLM-5 TP8"),
    *("DeepSeek-V3.2", "DeepSeek-V4 prefix", "DeepSeek-V3.2 page 64"),
    *("DeepSeek-V3.2 TP8 FP8", "GLM-5 TP8 bf16"),
)


@pytest.mark.parametrize("target", TARGETS)
def test_examples_become_machine_code(target: str, run_python: Callable[..., str]) -> None:
    machine, arch = TARGETS[target]
    code = _PREPARE.format(target=target, few=FEW)
    limit, rows = json.loads(run_python(code, TRITON_INTERPRET="0"))
    family = {"rmsnorm", "fused_add_rmsnorm", "fused_qk_rmsnorm", "rmsnorm_quant"}
    tables = {"ragged_kv_indices_to_page_table", "req_to_token_to_page_table"}
    mla = {"mla_decode", "mla_prefill", "merge_attn_states"}
    sparse = {"quantize_sparse_kv", "dequantize_sparse_kv", "logical_to_physical_indices"}
    sparse |= {"sparse_mla_prefill", "sparse_mla_decode"}
    kda = {"fused_recurrent_kda", "kda_packed_decode", "kda_gate", "kda_gate_chunk_cumsum"}
    others = {"mxfp4_linear", "unified_attention"}
    assert {row[0] for row in rows} >= {*family, *others, *tables, *mla, *sparse, *kda}
    for operator, label, kernel, magic, found, flags, shared in rows:
        where = f"{operator}, {label}"
        assert not kernel.startswith("cpu:"), where
        assert magic == b"\x7fELF".hex(), where
        assert found == machine, where
        assert arch in (flags & 0xFF, flags >> 8 & 0xFF), (where, hex(flags))
        assert shared <= limit, where


def test_unquantised_path_takes_the_fused_kernel_on_both_amd_targets() -> None:
    """sglang#23186: `use_aiter and not gfx95` sent gfx950 to the slow fallback."""
    import archkey

    for target in ("rocm_gfx942", "rocm_gfx950"):
        session = archkey.open(target)
        for problem in session.operators["fused_qk_rmsnorm"].examples.values():
            decision = session.decide(problem)
            assert decision.chosen is not None
            assert decision.chosen.id == f"{target}:triton"
            assert not decision.degraded
