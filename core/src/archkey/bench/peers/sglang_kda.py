# SPDX-License-Identifier: Apache-2.0
"""SGLang's Kimi Delta Attention: its Triton fork of FLA, and its packed decode in Triton and CUDA.

Read against SGLang 0.5.23. Its prefill reads and writes states in a pool of `[V, K]` states, and
leaves o in v's storage: v is cloned in every call, since its values are needed again.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from sglang.kernels.ops.attention.fla.fused_recurrent import fused_recurrent_kda_packed_decode
from sglang.kernels.ops.attention.fla.index import prepare_chunk_indices, prepare_chunk_offsets
from sglang.kernels.ops.attention.fla.kda import chunk_kda as sglang_chunk_kda

from archkey.bench.entrant import Bound, only
from archkey.bench.peers._kda import (
    TOKENS,
    check_tokens,
    copied,
    number_of_sequences,
    outputs,
    sequences,
    v_first_only,
    wants_states,
)
from archkey.bench.peers._refusals import require
from archkey.bench.peers._results import Last, joined

__all__ = ["chunk_kda", "kda_packed_decode", "kda_packed_decode_cuda"]


def chunk_kda(inputs: Mapping[str, Any]) -> Bound:
    """Prefill in Triton."""
    only(
        inputs, *TOKENS, "scale", "use_qk_l2norm_in_kernel", "use_gate_in_kernel",
        "use_beta_sigmoid_in_kernel", "safe_gate", "lower_bound", "A_log", "dt_bias",
        "initial_state", "initial_state_indices", "output_final_state", "state_v_first",
        "cu_seqlens", "cu_seqlens_cpu", "chunk_indices", "chunk_offsets", chunk_size=64,
    )  # fmt: skip
    check_tokens(inputs)
    q, v, state = inputs["q"], inputs["v"], inputs.get("initial_state")
    require(q.shape[2] == v.shape[2], "H = HV only")
    raw, lower_bound = bool(inputs.get("use_gate_in_kernel")), inputs.get("lower_bound")
    require(not raw or inputs.get("A_log") is not None, "a gate without A_log")
    if not raw and inputs.get("safe_gate"):  # the promise, as SGLang takes it
        lower_bound = -5.0 if lower_bound is None else lower_bound
    v_first_only(inputs)
    require(state is None or state[0].is_contiguous(), "states with gaps inside")
    bounds, _ = sequences(inputs)
    slots = inputs.get("initial_state_indices")
    pooled = slots is not None
    number, wanted = number_of_sequences(inputs), wants_states(inputs)
    if state is None:
        shape = number, *v.shape[2:], q.shape[3]
        state = torch.zeros(shape, dtype=torch.float32, device=v.device)
    if slots is None:
        slots = torch.arange(number, dtype=torch.int32, device=v.device)
    slots = slots.reshape(-1).contiguous()
    chunks = offsets = None
    if bounds is not None:
        chunks, offsets = prepare_chunk_indices(bounds, 64), prepare_chunk_offsets(bounds, 64)
    normed = bool(inputs.get("use_qk_l2norm_in_kernel"))
    given_beta = not inputs.get("use_beta_sigmoid_in_kernel")

    def run() -> Any:
        states = state if pooled else state.clone()  # they are updated in place
        o = sglang_chunk_kda(
            q if normed else q.contiguous(),
            inputs["k"] if normed else inputs["k"].contiguous(),
            v.clone(memory_format=torch.contiguous_format),
            inputs["g"],
            inputs["beta"],
            scale=inputs.get("scale"),
            initial_state=states,
            initial_state_indices=slots,
            use_qk_l2norm_in_kernel=normed,
            cu_seqlens=bounds,
            A_log=inputs["A_log"].reshape(-1) if raw else None,
            dt_bias=inputs.get("dt_bias") if raw else None,
            lower_bound=lower_bound,
            beta_is_raw=not given_beta,
            chunk_indices=chunks,
            chunk_offsets=offsets,
        )
        return o, states if wanted else None

    call = Last(run)
    cloned = "v cloned in the call" if pooled else "v and states cloned in the call"
    how = joined("chunk indices made once, outside", cloned, copied(inputs))
    return Bound(call, lambda: outputs(call.result), how)


def kda_packed_decode(inputs: Mapping[str, Any]) -> Bound:
    """Packed decode in Triton."""
    _check_packed(inputs)
    call, out, pool = _packed(inputs)

    def run() -> Any:
        fused_recurrent_kda_packed_decode(
            **call,
            use_qk_l2norm_in_kernel=inputs.get("use_qk_l2norm_in_kernel", True),
            lower_bound=inputs.get("lower_bound"),
        )

    return Bound(run, lambda: {"out": out, "initial_state": pool})


def kda_packed_decode_cuda(inputs: Mapping[str, Any]) -> Bound:
    """Packed decode in CUDA, compiled by the first call with the user's nvcc."""
    # Not at the top: it needs the compiler packages that the Triton routes do without.
    from sglang.kernels.ops.attention import kda_packed_decode as jit

    _check_packed(inputs)
    require(inputs.get("use_qk_l2norm_in_kernel", True), "always normalises q and k")
    call, out, pool = _packed(inputs)
    heads, v_dim, k_dim = pool.shape[-3:]
    q_heads = (call["mixed_qkv"].shape[1] - heads * v_dim) // (2 * k_dim)
    asked = {name: value for name, value in call.items() if name != "scale"}
    require(jit.covered(**asked, num_q_heads=q_heads), "not covered by the CUDA kernel")

    def run() -> Any:
        jit.kda_packed_decode(**call, num_q_heads=q_heads, lower_bound=inputs.get("lower_bound"))

    return Bound(run, lambda: {"out": out, "initial_state": pool})


def _check_packed(inputs: Mapping[str, Any]) -> None:
    only(
        inputs, "mixed_qkv", "a", "b", "A_log", "dt_bias", "scale", "initial_state",
        "ssm_state_indices", "out", "use_qk_l2norm_in_kernel", "lower_bound",
    )  # fmt: skip
    for name in ("A_log", "dt_bias"):
        require(inputs.get(name) is not None, f"a gate without {name}")
    require(inputs["initial_state"][0].is_contiguous(), "states with gaps inside")


def _packed(inputs: Mapping[str, Any]) -> tuple[dict[str, Any], torch.Tensor, torch.Tensor]:
    """The arguments that both kernels have, out and the pool."""
    mixed, pool = inputs["mixed_qkv"], inputs["initial_state"]
    heads, v_dim, k_dim = pool.shape[-3:]
    out, scale = inputs.get("out"), inputs.get("scale")
    if out is None:
        shape = len(mixed), 1, heads, v_dim
        out = torch.empty(shape, dtype=mixed.dtype, device=mixed.device)
    require(out.is_contiguous(), "out with gaps")
    call = {
        "mixed_qkv": mixed,
        "a": inputs["a"],
        "b": inputs["b"],
        "A_log": inputs["A_log"].reshape(-1),
        "dt_bias": inputs["dt_bias"].reshape(-1),
        "scale": k_dim**-0.5 if scale is None else scale,
        "initial_state": pool,
        "out": out,
        "ssm_state_indices": inputs["ssm_state_indices"].reshape(-1).contiguous(),
    }
    return call, out, pool
