# SPDX-License-Identifier: Apache-2.0
"""fla-core 0.6.0, FlashKDA 1ce47ea, vLLM 0.26.0 and SGLang 0.5.23: Kimi Delta Attention."""

from __future__ import annotations

import math

import torch
from tests.bench._standins import Modules
from torch import Tensor

from archkey.ops.kda_gate import chunk_layout
from archkey.reference import kda


def _chunks(cu_seqlens: Tensor, chunk_size: int, cu_seqlens_cpu: Tensor | None = None) -> Tensor:
    host = cu_seqlens.cpu() if cu_seqlens_cpu is None else cu_seqlens_cpu
    return chunk_layout(host, int(host[-1]), chunk_size)[0].to(cu_seqlens)


# fmt: off
def fla_chunk(
    q, k, v, g, beta, scale=None, initial_state=None, output_final_state=False,
    use_qk_l2norm_in_kernel=False, use_gate_in_kernel=False, use_beta_sigmoid_in_kernel=False,
    allow_neg_eigval=False, safe_gate=False, lower_bound=None, disable_recompute=False,
    return_intermediate_states=False, state_v_first=False, cu_seqlens=None, cu_seqlens_cpu=None,
    cp_context=None, use_graph=False, max_num_seqs=None, **kwargs,
):
    assert initial_state is None or initial_state.dtype == torch.float32
    assert cu_seqlens is None or cu_seqlens.dtype == torch.int64
    assert not set(kwargs) - {"A_log", "dt_bias", "chunk_size"}
    weights = {name: kwargs.get(name) for name in ("A_log", "dt_bias") if use_gate_in_kernel}
    o, final, *_ = kda.chunk_kda(
        q, k, v, g, beta, scale=scale, initial_state=initial_state, cu_seqlens=cu_seqlens,
        lower_bound=lower_bound, use_qk_l2norm_in_kernel=use_qk_l2norm_in_kernel,
        use_gate_in_kernel=use_gate_in_kernel, state_v_first=state_v_first,
        use_beta_sigmoid_in_kernel=use_beta_sigmoid_in_kernel, allow_neg_eigval=allow_neg_eigval,
        **weights,
    )
    return o.to(q.dtype), final if output_final_state else None


def fla_recurrent(
    q, k, v, g, beta, A_log=None, dt_bias=None, initial_state=None, scale=None,
    output_final_state=False, inplace_final_state=True, state_v_first=False, cu_seqlens=None,
    ssm_state_indices=None, num_accepted_tokens=None, use_qk_l2norm_in_kernel=False,
    use_gate_in_kernel=False, use_beta_sigmoid_in_kernel=False, allow_neg_eigval=False,
    lower_bound=None, out=None, **kwargs,
):
    assert not kwargs and out is not None and out.shape == v.shape
    for tensor in (q, k, v, g, beta):  # addressed as if they were
        assert tensor.is_contiguous()
    o, states = kda.fused_recurrent_kda(
        q, k, v, g, beta, A_log, dt_bias, initial_state, ssm_state_indices, num_accepted_tokens,
        cu_seqlens, scale, lower_bound, use_qk_l2norm_in_kernel, use_gate_in_kernel,
        use_beta_sigmoid_in_kernel, allow_neg_eigval, state_v_first, inplace_final_state,
    )
    out.copy_(o)
    if inplace_final_state:
        return out, initial_state.copy_(states)
    return out, states if output_final_state else None


def fla_gate(g, A_log=None, dt_bias=None, lower_bound=None, output_dtype=torch.float32):
    return kda.kda_gate(g, A_log, dt_bias, lower_bound)[0].to(output_dtype)


def fla_sums(
    g, A_log, chunk_size, scale=None, dt_bias=None, cu_seqlens=None, output_dtype=torch.float,
    chunk_indices=None, lower_bound=None, use_graph=False, **kwargs,
):
    assert not kwargs and (cu_seqlens is None or bool((chunk_indices >= 0).all()))
    sums = kda.kda_gate_chunk_cumsum(
        g, A_log, dt_bias, cu_seqlens, None, lower_bound, chunk_size)[0]
    return (sums * (1.0 if scale is None else scale)).to(output_dtype or g.dtype)


FLA: Modules = {
    "fla.ops.kda": {"chunk_kda": fla_chunk},
    "fla.ops.kda.fused_recurrent": {"fused_recurrent_kda_fwd": fla_recurrent},
    "fla.ops.kda.gate": {"fused_kda_gate": fla_gate, "kda_gate_chunk_cumsum": fla_sums},
    "fla.ops.utils": {"prepare_chunk_indices": _chunks},
    "fla.ops.utils.constant": {"RCP_LN2": 1 / math.log(2)},
}


def flash_fwd(
    q, k, v, g, beta, scale, out, A_log, dt_bias, lower_bound,
    initial_state=None, final_state=None, cu_seqlens=None,
):
    for tensor in (q, k, v, g, beta, out, A_log, dt_bias):
        assert tensor.is_contiguous()
    assert initial_state is None or final_state is None or initial_state.dtype == final_state.dtype
    assert cu_seqlens is None or cu_seqlens.dtype == torch.int64
    assert dt_bias.shape == (q.shape[2], 128) and A_log.shape == (q.shape[2],)
    o, states, *_ = kda.chunk_kda(
        q, k, v, g, beta, A_log, dt_bias, initial_state, scale=scale, lower_bound=lower_bound,
        cu_seqlens=cu_seqlens, use_qk_l2norm_in_kernel=True, use_gate_in_kernel=True,
        use_beta_sigmoid_in_kernel=True, state_v_first=True,
    )
    out.copy_(o)
    if final_state is not None:
        final_state.copy_(states)


FLASH_KDA: Modules = {"flash_kda": {"fwd": flash_fwd}}


def vllm_chunk(
    q, k, v, g, beta, scale=None, initial_state=None, output_final_state=False,
    use_qk_l2norm_in_kernel=False, cu_seqlens=None, **kwargs,
):
    assert not kwargs and initial_state is not None
    o, states, *_ = kda.chunk_kda(
        q, k, v, g, beta, scale=scale, initial_state=initial_state, cu_seqlens=cu_seqlens,
        use_qk_l2norm_in_kernel=use_qk_l2norm_in_kernel, state_v_first=True,
    )
    return v.copy_(o), states if output_final_state else None


def vllm_fused_gate(
    q, k, v, raw_g, beta, A_log, g_bias, scale=None, initial_state=None, output_final_state=False,
    use_qk_l2norm_in_kernel=False, cu_seqlens=None, **kwargs,
):
    gate = kda.kda_gate(raw_g, A_log, g_bias)[0]
    return vllm_chunk(
        q, k, v, gate, beta, scale, initial_state, output_final_state, use_qk_l2norm_in_kernel,
        cu_seqlens, **kwargs,
    )


VLLM_KDA: Modules = {
    "vllm.third_party.flash_linear_attention.ops.kda": {
        "chunk_kda": vllm_chunk, "chunk_kda_with_fused_gate": vllm_fused_gate,
    },
}


def sglang_chunk(
    q, k, v, g, beta, scale=None, initial_state=None, initial_state_indices=None,
    use_qk_l2norm_in_kernel=False, cu_seqlens=None, A_log=None, dt_bias=None, lower_bound=None,
    output_intermediate_states=False, track_state=None, track_chunk_idx=None, beta_is_raw=False,
    chunk_indices=None, chunk_offsets=None, **kwargs,
):
    assert not kwargs and initial_state is not None and initial_state_indices is not None
    assert (cu_seqlens is None) == (chunk_indices is None) == (chunk_offsets is None)
    o, states, *_ = kda.chunk_kda(
        q, k, v, g, beta, A_log, dt_bias, initial_state, initial_state_indices, cu_seqlens,
        scale=scale, lower_bound=lower_bound, use_qk_l2norm_in_kernel=use_qk_l2norm_in_kernel,
        use_gate_in_kernel=A_log is not None, use_beta_sigmoid_in_kernel=beta_is_raw,
        state_v_first=True,
    )
    initial_state.copy_(states)
    return v.contiguous().copy_(o)


def sglang_packed(
    mixed_qkv, a, b, A_log, dt_bias, scale, initial_state, out, ssm_state_indices,
    use_qk_l2norm_in_kernel=False, lower_bound=None,
):
    assert A_log.ndim == dt_bias.ndim == ssm_state_indices.ndim == 1 and out.is_contiguous()
    o, pool = kda.kda_packed_decode(
        mixed_qkv, a, b, A_log, dt_bias, initial_state, ssm_state_indices, scale, lower_bound,
        use_qk_l2norm_in_kernel,
    )
    initial_state.copy_(pool)
    return out.copy_(o), initial_state


def sglang_covered(
    mixed_qkv, a, b, A_log, dt_bias, initial_state, out, ssm_state_indices, num_q_heads,
):
    return initial_state.shape[1] == num_q_heads and initial_state.dtype == torch.float32


def sglang_packed_cuda(
    mixed_qkv, a, b, A_log, dt_bias, scale, initial_state, out, ssm_state_indices, num_q_heads,
    lower_bound=None,
):
    sglang_packed(
        mixed_qkv, a, b, A_log, dt_bias, scale, initial_state, out, ssm_state_indices, True,
        lower_bound,
    )


_ATTENTION = "sglang.kernels.ops.attention."
SGLANG_KDA: Modules = {
    f"{_ATTENTION}fla.kda": {"chunk_kda": sglang_chunk},
    f"{_ATTENTION}fla.fused_recurrent": {"fused_recurrent_kda_packed_decode": sglang_packed},
    f"{_ATTENTION}fla.index": {
        "prepare_chunk_indices": _chunks,
        "prepare_chunk_offsets": lambda x, size: chunk_layout(x, int(x[-1]), size)[1],
    },
    f"{_ATTENTION}kda_packed_decode": {
        "covered": sglang_covered, "kda_packed_decode": sglang_packed_cuda,
    },
}

KDA: Modules = {**FLA, **FLASH_KDA, **VLLM_KDA, **SGLANG_KDA}
