# SPDX-License-Identifier: Apache-2.0
"""What our four plugins list: every model's problem gets a kernel, every row can be launched."""

from __future__ import annotations

import pytest

import archkey
from archkey.ops import OPERATORS

TARGETS = ("cuda_sm90", "cuda_sm100", "rocm_gfx942", "rocm_gfx950")
SHARED = (
    *("rmsnorm", "fused_add_rmsnorm", "fused_qk_rmsnorm", "rmsnorm_quant"),
    *("unified_attention", "ragged_kv_indices_to_page_table", "req_to_token_to_page_table"),
    *("mla_decode", "mla_prefill", "merge_attn_states"),
    *("quantize_sparse_kv", "dequantize_sparse_kv", "logical_to_physical_indices"),
    *("sparse_mla_prefill", "sparse_mla_decode"),
    *("fused_recurrent_kda", "kda_packed_decode", "kda_gate", "kda_gate_chunk_cumsum"),
)
OWN = {
    ("cuda_sm90", operator): {"wgmma"}
    for operator in ("mla_decode", "sparse_mla_prefill", "sparse_mla_decode")
}
"""Names of bodies of a plugin's own, which take what they can before the shared one."""


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("operator", SHARED)
def test_examples_get_the_shared_body(target: str, operator: str) -> None:
    session = archkey.open(target)
    for label, problem in OPERATORS[operator].examples.items():
        decision = session.decide(problem)
        assert decision.chosen is not None, label
        assert decision.chosen.plugin == target, label
        assert decision.chosen.name in {"triton", *OWN.get((target, operator), ())}, label
        assert not decision.degraded


@pytest.mark.parametrize("target", TARGETS)
def test_a_row_fits_the_machine_and_says_where_it_comes_from(target: str) -> None:
    session = archkey.open(target)
    tables = [k.tuning for plugin in session.plugins for k in plugin.kernels if k.tuning]
    assert tables
    for row in [row for table in tables for row in table.rows]:
        # A block has at most 1024 threads on either vendor's hardware.
        for program in getattr(row.values, "tiles", (row.values,)):
            fields = program._asdict() if hasattr(program, "_asdict") else vars(program)
            warps = max(value for name, value in fields.items() if name.endswith("warps"))
            assert warps * session.capabilities.warp_size <= 1024, row
        assert "triton" in str(row.measured) or str(row.measured).startswith("not measured: ")
