# SPDX-License-Identifier: Apache-2.0
"""aiter e404860: latent decode, unified attention and norms."""

from __future__ import annotations

import torch
from tests.bench._standins import Modules, table_of

from archkey.reference import attention, mla
from archkey.reference import rmsnorm as reference

FP8 = torch.float8_e4m3fn


# fmt: off
def mla_decode_fwd(
    q, kv_buffer, o, qo_indptr, kv_indptr, kv_indices, kv_last_page_lens, max_seqlen_q,
    page_size=1, nhead_kv=1, sm_scale=None, logit_cap=0.0, num_kv_splits=None,
    num_kv_splits_indptr=None, work_meta_data=None, work_indptr=None, work_info_set=None,
    reduce_indptr=None, reduce_final_map=None, reduce_partial_map=None, q_scale=None,
    kv_scale=None, intra_batch_mode=False, return_logits=False, return_lse=False,
    g_kv_indptr=None, cp_world_size=1, cp_rank=0, causal=True,
):
    assert page_size == kv_buffer.shape[1] == nhead_kv == kv_buffer.shape[2] == 1
    assert bool((kv_last_page_lens == 1).all()) and o.dtype == torch.bfloat16
    assert kv_indices.dtype == kv_indptr.dtype == qo_indptr.dtype == torch.int32
    counts, table = kv_indptr.diff(), table_of(kv_indptr, kv_indices)
    out, lse = mla.mla_decode(
        q, kv_buffer.squeeze(2), table, counts.int(), qo_indptr, max_seqlen_q, table.shape[1],
        q_scale, kv_scale, sm_scale, o.shape[2], causal, -1)
    return o.copy_(out), lse if return_lse else None


def unified_attention(
    q, k, v, out, cu_seqlens_q, max_seqlen_q, seqused_k, max_seqlen_k, softmax_scale, causal,
    window_size, block_table, softcap, q_descale, k_descale, v_descale, q_scales=None,
    alibi_slopes=None, output_scale=None, qq_bias=None, sinks=None, shuffled_kv_cache=False,
    skip_reduce=False,
):
    assert causal and q_scales is None and not shuffled_kv_cache and not skip_reduce
    out.copy_(attention.unified_attention(
        q, k, v, cu_seqlens_q, seqused_k, block_table, max_seqlen_q, max_seqlen_k, q_descale,
        k_descale, v_descale, alibi_slopes, qq_bias, sinks, output_scale,
        softmax_scale=softmax_scale, window_left=window_size[0], softcap=softcap)[0])
    return out


def rmsnorm2d_fwd(input, weight, epsilon, use_model_sensitive_rmsnorm=0):
    return reference.rmsnorm(input, weight, epsilon)[0].to(input.dtype)


def rmsnorm2d_fwd_with_add(
    out, input, residual_in, residual_out, weight, epsilon, gemma_norm=False,
    use_model_sensitive_rmsnorm=0,
):
    assert not gemma_norm
    y, total = reference.fused_add_rmsnorm(input, residual_in, weight, epsilon)
    out.copy_(y), residual_out.copy_(total)


def fused_qk_rmsnorm(
    q_out_quantized=None, q_out_scale=None, q=None, q_weight=None, q_epsilon=1e-6,
    q_out_unquantized=None, k_out=None, q_res_out=None, k=None, k_weight=None, k_epsilon=None,
    q_residual=None, gemma_norm=False, quant_type="No", group_size=None, transpose_scale=False,
):
    assert q_out_scale is None and quant_type == "No"
    q_y, k_y = reference.fused_qk_rmsnorm(q, q_weight, q_epsilon, k, k_weight, k_epsilon)
    q_out_quantized.copy_(q_y), k_out.copy_(k_y)


def _quantised(quant, inp1, weight1, eps1, inp2, weight2, eps2, res1, full, **more):
    found = reference.rmsnorm_quant(
        inp1, weight1, eps1, quant, residual=res1, x2=inp2, x2_weight=weight2, x2_eps=eps2,
        **{"fp8_dtype": "float8_e4m3fn", "scale_mode": "fp32", "scale": None, "group_size": 128,
           "scale_layout": "row", "weight_bias": 0.0, **more})
    codes, scales, y, total, second = found
    return (
        (codes, scales), y.to(inp1.dtype) if full else None,
        None if inp2 is None else second.to(inp1.dtype),
        None if res1 is None else total.to(inp1.dtype),
    )


def with_dynamicquant(
    out, input, yscale, weight, epsilon, use_model_sensitive_rmsnorm=0, group_size=0,
    shuffle_scale=False,
):
    assert group_size == 0 and not shuffle_scale
    (codes, scales), *_ = _quantised(
        "fp8_token", input, weight, epsilon, None, None, None, None, False)
    out.copy_(codes), yscale.copy_(scales)


def with_add_dynamicquant(
    out, input, residual_in, residual_out, yscale, weight, epsilon,
    use_model_sensitive_rmsnorm=0, group_size=0, shuffle_scale=False,
):
    assert group_size == 0 and not shuffle_scale
    (codes, scales), _, _, total = _quantised(
        "fp8_token", input, weight, epsilon, None, None, None, residual_in, False)
    out.copy_(codes), yscale.copy_(scales), residual_out.copy_(total)


def tensor_quant(
    inp1, inp1_weight, inp1_epsilon, inp1_scale, inp2=None, inp2_weight=None, inp2_epsilon=None,
    dtype_quant=FP8, res1=None, output_unquantized_inp1=False, rmsnorm_convert_to_inp1_type=False,
):
    (codes, _), *others = _quantised(
        "fp8_tensor", inp1, inp1_weight, inp1_epsilon, inp2, inp2_weight, inp2_epsilon, res1,
        output_unquantized_inp1, scale=inp1_scale, scale_mode=None)
    return codes, *others


def group_quant(
    inp1, inp1_weight, inp1_epsilon, inp2=None, inp2_weight=None, inp2_epsilon=None,
    group_size=128, dtype_quant=FP8, res1=None, output_unquantized_inp1=False,
    transpose_scale=False, is_x_scale_strided=False,
):
    assert transpose_scale == is_x_scale_strided  # else rows of a buffer that holds columns
    return _quantised(
        "fp8_group", inp1, inp1_weight, inp1_epsilon, inp2, inp2_weight, inp2_epsilon, res1,
        output_unquantized_inp1, group_size=group_size,
        scale_layout="col" if transpose_scale else "row")


def mxfp4_quant(
    x1, x1_weight, x1_epsilon, x2=None, x2_weight=None, x2_epsilon=0.0, res1=None, shuffle=False,
    scale_shuffle_padding=False, output_unquantized_inp1=False, inargs="auto",
):
    assert shuffle == scale_shuffle_padding
    return _quantised(
        "mxfp4", x1, x1_weight, x1_epsilon, x2, x2_weight, x2_epsilon, res1,
        output_unquantized_inp1, fp8_dtype=None, scale_mode="even", group_size=32,
        scale_layout="shuffled_gfx950" if shuffle else "row")


AITER: Modules = {
    "aiter.mla": {"mla_decode_fwd": mla_decode_fwd},
    "aiter.ops.triton.attention.unified_attention": {"unified_attention": unified_attention},
    "aiter.ops.fused_qk_rmsnorm_group_quant": {"fused_qk_rmsnorm": fused_qk_rmsnorm},
    "aiter.ops.rmsnorm": {
        "rmsnorm2d_fwd": rmsnorm2d_fwd,
        "rmsnorm2d_fwd_with_add": rmsnorm2d_fwd_with_add,
        "rmsnorm2d_fwd_with_add_dynamicquant": with_add_dynamicquant,
        "rmsnorm2d_fwd_with_dynamicquant": with_dynamicquant,
    },
    "aiter.ops.triton.quant": {
        "fused_rms_fp8_group_quant": group_quant,
        "fused_rms_fp8_per_tensor_static_quant": tensor_quant,
        "fused_rms_mxfp4_quant": mxfp4_quant,
    },
    "aiter.utility.dtypes": {"fp8": FP8},
}
