# SPDX-License-Identifier: Apache-2.0
"""vLLM's Kimi Delta Attention: its Triton fork of FLA, for prefill with the unbounded gate.

Read against vLLM 0.26.0. States have V before K; o is left in v's storage, so that v is cloned in
every call, since its values are needed again.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from vllm.third_party.flash_linear_attention.ops.kda import (
    chunk_kda as vllm_chunk_kda,
)
from vllm.third_party.flash_linear_attention.ops.kda import (
    chunk_kda_with_fused_gate,
)

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


def chunk_kda(inputs: Mapping[str, Any]) -> Bound:
    """Prefill. vLLM makes its own chunk indices, once, and keeps those of its last calls."""
    only(
        inputs, *TOKENS, "scale", "use_qk_l2norm_in_kernel", "use_gate_in_kernel",
        "use_beta_sigmoid_in_kernel", "A_log", "dt_bias", "initial_state",
        "initial_state_indices", "output_final_state", "state_v_first", "cu_seqlens",
        "cu_seqlens_cpu", "chunk_indices", "chunk_offsets", chunk_size=64,
    )  # fmt: skip
    check_tokens(inputs)
    q, v = inputs["q"], inputs["v"]
    require(q.shape[2] == v.shape[2], "H = HV only")
    v_first_only(inputs)
    states = States(inputs)
    raw, rate = bool(inputs.get("use_gate_in_kernel")), inputs.get("A_log")
    require(not raw or rate is not None, "a gate without A_log")
    bounds, host = sequences(inputs)
    require(host is None or bool((host.diff() > 0).all()), "a sequence without tokens")
    number = number_of_sequences(inputs)
    zeros = torch.zeros(number, *v.shape[2:], q.shape[3], dtype=torch.float32, device=v.device)
    squash = bool(inputs.get("use_beta_sigmoid_in_kernel"))
    options = {
        "scale": inputs.get("scale"),
        "output_final_state": states.wanted,
        "use_qk_l2norm_in_kernel": bool(inputs.get("use_qk_l2norm_in_kernel")),
        "cu_seqlens": bounds,
    }

    def run() -> Any:
        before = states.before()
        tokens = {
            "q": q.contiguous(),
            "k": inputs["k"].contiguous(),
            "v": v.clone(memory_format=torch.contiguous_format),
            "beta": inputs["beta"].float().sigmoid() if squash else inputs["beta"],
            "initial_state": zeros if before is None else before,
        }
        if raw:
            gate = {"raw_g": inputs["g"], "A_log": rate, "g_bias": inputs.get("dt_bias")}
            o, final = chunk_kda_with_fused_gate(**tokens, **gate, **options)
        else:
            o, final = vllm_chunk_kda(**tokens, g=inputs["g"], **options)
        return o, states.after(final)

    call = Last(run)
    squashed = "sigmoid of beta apart" if squash else ""
    how = joined(
        "chunk indices made once, outside", "v cloned in the call", squashed, copied(inputs),
        states.how,
    )  # fmt: skip
    return Bound(call, lambda: outputs(call.result), how)
