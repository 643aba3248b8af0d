# SPDX-License-Identifier: Apache-2.0
"""FlashKDA: Kimi Delta Attention on CUTLASS, for prefill with the bounded gate of Kimi-K3.

Read against MoonshotAI/FlashKDA 1ce47ea. It fuses gate, norm and sigmoid, so it takes raw inputs
only, and its states have V before K.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from flash_kda import fwd

from archkey.bench.entrant import Bound, only
from archkey.bench.peers._kda import (
    TOKENS,
    States,
    check_tokens,
    copied,
    number_of_sequences,
    outputs,
    sequences,
    v_first_only,
)
from archkey.bench.peers._refusals import require
from archkey.bench.peers._results import Last, joined

__all__ = ["chunk_kda"]

RAW = ("use_qk_l2norm_in_kernel", "use_gate_in_kernel", "use_beta_sigmoid_in_kernel")


def chunk_kda(inputs: Mapping[str, Any]) -> Bound:
    """Prefill; outputs and final states go to buffers made once."""
    only(
        inputs, *TOKENS, *RAW, "scale", "safe_gate", "lower_bound", "A_log", "dt_bias",
        "initial_state", "initial_state_indices", "output_final_state", "state_v_first",
        "cu_seqlens", "cu_seqlens_cpu", "chunk_size", "chunk_indices", "chunk_offsets",
    )  # fmt: skip
    check_tokens(inputs)
    for name in RAW:
        require(bool(inputs.get(name)), f"{name} only")
    v, lower_bound = inputs["v"], inputs.get("lower_bound")
    require(lower_bound is not None and -5 <= lower_bound <= 0, "lower_bound in [-5, 0] only")
    require(inputs["q"].shape[2:] == v.shape[2:] and v.shape[3] == 128, "K = V = 128, H = HV only")
    for name in TOKENS:
        require(inputs[name].dtype == torch.bfloat16, "bfloat16 tokens only")
    rate, bias = inputs.get("A_log"), inputs.get("dt_bias")
    for weight in (rate, bias):
        require(weight is not None and weight.dtype == torch.float32, "float32 A_log and dt_bias")
    v_first_only(inputs)
    states, state = States(inputs), inputs.get("initial_state")
    bounds, _ = sequences(inputs)
    out = torch.empty_like(v, memory_format=torch.contiguous_format)
    final = None
    if states.wanted:
        number = number_of_sequences(inputs)
        dtype = torch.float32 if state is None else state.dtype
        final = torch.empty(number, *v.shape[2:], 128, dtype=dtype, device=v.device)
    scale = inputs.get("scale")
    scale = 128**-0.5 if scale is None else scale
    rate, bias = inputs["A_log"].reshape(-1), inputs["dt_bias"].reshape(-1, 128)

    def run() -> Any:
        fwd(
            *(inputs[name].contiguous() for name in TOKENS),
            scale,
            out,
            rate,
            bias,
            lower_bound,
            initial_state=states.before(),
            final_state=final,
            cu_seqlens=bounds,
        )
        return out, states.after(final)

    call = Last(run)
    how = joined("cu_seqlens made int64 outside", copied(inputs), states.how)
    return Bound(call, lambda: outputs(call.result), how)
