# SPDX-License-Identifier: Apache-2.0
"""flash-linear-attention: Kimi Delta Attention in Triton, the origin of these operators' names.

Read against fla-core 0.6.0. Where FlashKDA is installed FLA hands some calls to it; that is
switched off here, since FlashKDA is a peer of its own.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch

os.environ["FLA_FLASH_KDA"] = "0"  # FLA asks for it when it dispatches, and then once only

from fla.ops.kda import chunk_kda as fla_chunk_kda
from fla.ops.kda.fused_recurrent import fused_recurrent_kda_fwd
from fla.ops.kda.gate import fused_kda_gate
from fla.ops.kda.gate import kda_gate_chunk_cumsum as fla_gate_chunk_cumsum
from fla.ops.utils import prepare_chunk_indices
from fla.ops.utils.constant import RCP_LN2

from archkey.bench.entrant import Bound, only
from archkey.bench.peers._arguments import given
from archkey.bench.peers._kda import (
    TOKENS,
    States,
    check_tokens,
    copied,
    flat_slots,
    outputs,
    sequences,
)
from archkey.bench.peers._refusals import all_covered, require
from archkey.bench.peers._results import Last, joined

__all__ = ["chunk_kda", "fused_recurrent_kda", "kda_gate", "kda_gate_chunk_cumsum"]

FLAGS = (
    "scale", "use_qk_l2norm_in_kernel", "use_gate_in_kernel", "use_beta_sigmoid_in_kernel",
    "allow_neg_eigval", "lower_bound", "state_v_first", "A_log", "dt_bias",
)  # fmt: skip
"""Arguments that have FLA's names and meaning."""


def chunk_kda(inputs: Mapping[str, Any]) -> Bound:
    """Prefill. FLA makes its own chunk indices, once, and keeps those of its last calls."""
    only(
        inputs, *TOKENS, *FLAGS, "safe_gate", "chunk_size", "initial_state",
        "initial_state_indices", "output_final_state", "cu_seqlens", "cu_seqlens_cpu",
        "chunk_indices", "chunk_offsets",
    )  # fmt: skip
    check_tokens(inputs)
    states = States(inputs, torch.float32)
    bounds, host_bounds = sequences(inputs)
    options = given(inputs, *FLAGS, "safe_gate", "chunk_size")
    tokens = [inputs[name] for name in TOKENS]

    def run() -> Any:
        with torch.inference_mode():
            o, final = fla_chunk_kda(
                *tokens,
                initial_state=states.before(),
                output_final_state=states.wanted,
                cu_seqlens=bounds,
                cu_seqlens_cpu=host_bounds,
                **options,
            )
            return o, states.after(final)

    call = Last(run)
    how = joined("chunk indices made once, outside", copied(inputs), states.how)
    return Bound(call, lambda: outputs(call.result), how)


def fused_recurrent_kda(inputs: Mapping[str, Any]) -> Bound:
    """Decode and verification, through the entry that knows pools."""
    only(
        inputs, *TOKENS, *FLAGS, "safe_gate", "initial_state", "initial_state_indices",
        "ssm_state_indices", "num_accepted_tokens", "inplace_final_state", "output_final_state",
        "cu_seqlens", "cu_seqlens_cpu",
    )  # fmt: skip
    check_tokens(inputs)
    name = "initial_state_indices"
    slots = flat_slots(inputs, name)
    in_place = slots is not None
    if slots is None:
        name, in_place = "ssm_state_indices", bool(inputs.get("inplace_final_state"))
        slots = flat_slots(inputs, name)
    bounds, host_bounds = sequences(inputs)
    pool, accepted = inputs.get("initial_state"), inputs.get("num_accepted_tokens")
    if slots is not None:
        require(in_place, "slots to read, but not to write")
        longest = inputs["q"].shape[1]
        if host_bounds is not None:
            longest = int(host_bounds.diff().max())
        # A slot is read for each token; of a row without drafts there is one.
        require(slots.dim() == 2 or longest <= 1, "one slot for several tokens")
        slots = slots.contiguous()
    if accepted is not None:
        require(bool((accepted >= 1).all()), "no accepted token")
    require(pool is None or pool[0].is_contiguous(), "states with gaps inside")
    v = inputs["v"]
    out = torch.zeros_like(v, memory_format=torch.contiguous_format)
    options = given(inputs, *FLAGS)

    def run() -> Any:
        return fused_recurrent_kda_fwd(
            *(inputs[name].contiguous() for name in TOKENS),
            initial_state=pool,
            output_final_state=bool(inputs.get("output_final_state")),
            inplace_final_state=in_place,
            cu_seqlens=bounds,
            ssm_state_indices=slots,
            num_accepted_tokens=accepted,
            out=out,
            **options,
        )

    call = Last(run)
    return Bound(call, lambda: outputs(call.result), copied(inputs))


def kda_gate(inputs: Mapping[str, Any]) -> Bound:
    """The log gate."""
    only(inputs, "g", "A_log", "dt_bias", "lower_bound", "output_dtype")
    g = inputs["g"]
    require(g.is_contiguous(), "a gate with gaps")
    options = given(inputs, "A_log", "dt_bias", "lower_bound", "output_dtype")

    def run() -> Any:
        with torch.inference_mode():
            return fused_kda_gate(g, **options)

    call = Last(run)
    return Bound(call, lambda: {"out": call.result})


def kda_gate_chunk_cumsum(inputs: Mapping[str, Any]) -> Bound:
    """The gate summed inside chunks."""
    only(
        inputs, "g", "A_log", "chunk_size", "dt_bias", "lower_bound", "cu_seqlens",
        "chunk_indices", "unit", "output_dtype",
    )  # fmt: skip
    all_covered(inputs.get("cu_seqlens"), inputs["g"].shape[1])
    bounds, host_bounds = sequences(inputs)
    chunk_size = inputs.get("chunk_size", 64)
    chunks = None
    if bounds is not None:
        chunks = prepare_chunk_indices(bounds, chunk_size, cu_seqlens_cpu=host_bounds)
    scale = RCP_LN2 if inputs.get("unit") == "log2" else None
    options = given(inputs, "dt_bias", "lower_bound", "output_dtype")

    def run() -> Any:
        return fla_gate_chunk_cumsum(
            inputs["g"],
            inputs["A_log"],
            chunk_size,
            scale=scale,
            cu_seqlens=bounds,
            chunk_indices=chunks,
            **options,
        )

    call = Last(run)
    return Bound(call, lambda: {"out": call.result}, "chunk indices made once, outside")
