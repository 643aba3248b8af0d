# SPDX-License-Identifier: Apache-2.0
"""FlashInfer 0.7.2, FlashAttention-3 and vLLM 0.26.0: attention."""

from __future__ import annotations

from enum import IntEnum
from math import log
from types import SimpleNamespace
from typing import Any

import torch
from tests.bench._standins import Modules, table_of

from archkey.reference import attention, mla

LN2 = log(2)


def paged(q, k, v, cu_q, lengths, table, scale, window=-1, softcap=0.0, **more):
    """Out and natural-log lse by token."""
    return attention.unified_attention(
        q, k, v, cu_q, lengths, table, softmax_scale=scale, window_left=window, softcap=softcap,
        **more,
    )  # fmt: skip


def latent(q, cache, cu_q, lengths, table, scale, causal=True):
    """Out and natural-log lse by token of absorbed MLA."""
    return mla.mla_decode(q, cache, table, lengths, cu_q, 0, 0, None, None, scale, 512, causal, -1)


# FlashInfer


def merge_state(v_a, s_a, v_b, s_b):
    """FlashInfer's: logarithms to base 2, by token."""
    out, lse = mla.merge_attn_states(v_a, s_a * LN2, v_b, s_b * LN2)
    return out.to(v_a.dtype), (lse / LN2).float()


def _give(out: Any, lse: Any, found: Any, return_lse: bool) -> Any:
    assert out.is_contiguous() and out.shape == found[0].shape
    out.copy_(found[0])
    if not return_lse:
        assert lse is None
        return out
    lse.copy_(found[1] / LN2)
    return out, lse


class MLAPlanMetadata(SimpleNamespace):
    @classmethod
    def csr(cls, qo_indptr, kv_indptr, kv_indices, kv_len_arr):
        for tensor in (qo_indptr, kv_indptr, kv_indices, kv_len_arr):
            assert tensor.dtype == torch.int32
        return cls(cu_q=qo_indptr, table=table_of(kv_indptr, kv_indices), lengths=kv_len_arr)


class BatchMLAPagedAttentionWrapper:
    def __init__(self, float_workspace_buffer, use_cuda_graph=False, backend="auto"):
        assert backend in ("fa2", "fa3")

    def plan(
        self, *, metadata, num_heads, head_dim_ckv, head_dim_kpe, page_size, causal, sm_scale,
        q_data_type, kv_data_type, query_layout="packed", kv_cache_layout="packed",
        lse_mode="none", scale_mode="default",
    ):  # fmt: skip
        assert query_layout == kv_cache_layout == "split" and scale_mode == "default"
        assert (head_dim_ckv, head_dim_kpe) == (512, 64) and q_data_type == kv_data_type
        self.of, self.how, self.lse_mode = metadata, (sm_scale, causal), lse_mode
        self.sizes = num_heads, page_size

    def run(self, *, query, kv_cache, out=None, lse=None, return_lse=False):
        assert return_lse == (self.lse_mode == "base2")
        q, cache = torch.cat(query, -1), torch.cat(kv_cache, -1)
        assert self.sizes == (q.shape[1], cache.shape[1])
        found = latent(q, cache, self.of.cu_q, self.of.lengths, self.of.table, *self.how)
        return _give(out, lse, found, return_lse)


class BatchPrefillWithRaggedKVCacheWrapper:
    def __init__(
        self, float_workspace_buffer, kv_layout="NHD", use_cuda_graph=False, backend="auto"
    ):
        assert (kv_layout, backend) == ("NHD", "fa3")

    def plan(
        self, qo_indptr, kv_indptr, num_qo_heads, num_kv_heads, head_dim_qk, head_dim_vo=None,
        causal=False, sm_scale=None, q_data_type="float16", kv_data_type=None, o_data_type=None,
    ):  # fmt: skip
        self.of, self.how = (qo_indptr, kv_indptr), (sm_scale, causal)
        self.sizes = num_qo_heads, num_kv_heads, head_dim_qk, head_dim_vo

    def run(self, q, k, v, *, out=None, lse=None, return_lse=False):
        assert self.sizes == (q.shape[1], k.shape[1], q.shape[2], v.shape[2])
        found = mla.mla_prefill(q, k, v, *self.of, 0, 0, None, None, None, *self.how)
        return _give(out, lse, found, return_lse)


class _Paged:
    def __init__(self, float_workspace_buffer, kv_layout="NHD", **more):
        self.layout, self.more = kv_layout, more

    def plan_(self, cu_q, indptr, indices, last, heads, kv_heads, head_dim, page_size, **more):
        self.sizes = heads, kv_heads, head_dim, page_size
        lengths = (indptr.diff() - 1) * page_size + last
        self.of = cu_q, lengths.int(), table_of(indptr, indices)
        self.how = more["sm_scale"], more["window_left"], more["logits_soft_cap"]
        self.kv_dtype = more["kv_data_type"]

    def run(
        self, q, paged_kv_cache, *, k_scale=None, v_scale=None, out=None, lse=None, return_lse=False
    ):
        k, v = paged_kv_cache
        assert k.dtype == self.kv_dtype
        if self.layout == "HND":
            k, v = k.transpose(1, 2), v.transpose(1, 2)
        assert self.sizes == (*q.shape[1:2], k.shape[2], q.shape[2], k.shape[1])
        scale, *how = self.how
        scale *= 1.0 if k_scale is None else k_scale
        found = paged(q, k.to(q.dtype), v.to(q.dtype), *self.of, scale, *how)
        factor = 1.0 if v_scale is None else v_scale
        return _give(out, lse, (found[0] * factor, found[1]), return_lse)


class BatchPrefillWithPagedKVCacheWrapper(_Paged):
    def plan(self, qo_indptr, *table_and_sizes, head_dim_vo=None, causal=False, **more):
        assert causal and head_dim_vo and self.more["backend"] in ("fa2", "fa3")
        self.plan_(qo_indptr, *table_and_sizes, **more)


class BatchDecodeWithPagedKVCacheWrapper(_Paged):
    def plan(self, indptr, *more, **options):
        assert self.more == {"use_tensor_cores": True, "backend": "fa2"}
        self.plan_(torch.arange(len(indptr), dtype=torch.int32), indptr, *more, **options)


# FlashAttention-3


def get_scheduler_metadata(
    batch_size, max_seqlen_q, max_seqlen_k, num_heads_q, num_heads_kv, headdim, cache_seqlens,
    qkv_dtype=torch.bfloat16, headdim_v=None, cu_seqlens_q=None, cu_seqlens_k_new=None,
    cache_leftpad=None, page_size=None, max_seqlen_k_new=0, causal=False, window_size=(-1, -1),
    has_softcap=False, num_splits=0, pack_gqa=None, sm_margin=0,
):  # fmt: skip
    assert max_seqlen_k >= int(cache_seqlens.max()) and len(cache_seqlens) == batch_size
    assert len(cu_seqlens_q) == batch_size + 1 and max_seqlen_q >= int(cu_seqlens_q.diff().max())
    return num_heads_q, num_heads_kv, headdim, headdim_v, page_size, causal, window_size


def _flash(q, k, v, qv, cu_q, lengths, table, scale, causal, window, softcap, planned):
    """(out, lse `[H, T]`)."""
    heads = q.shape[1], k.shape[2], q.shape[2], v.shape[3]
    assert planned == (*heads, k.shape[1], causal, window)
    if qv is None:
        assert causal and window[1] == (0 if window[0] >= 0 else -1)
        out, lse = paged(q, k, v, cu_q, lengths, table, scale, window[0], softcap)
    else:
        cache = torch.cat([v, k], -1).squeeze(2)
        out, lse = latent(torch.cat([qv, q], -1), cache, cu_q, lengths, table, scale, causal)
    return out.to(q.dtype), lse.T.contiguous()


def flash_attn_varlen_func_of_vllm(
    q, k, v, max_seqlen_q, cu_seqlens_q, max_seqlen_k, cu_seqlens_k=None, seqused_k=None, q_v=None,
    dropout_p=0.0, softmax_scale=None, causal=False, window_size=None, softcap=0.0,
    alibi_slopes=None, deterministic=False, return_attn_probs=False, block_table=None,
    return_softmax_lse=False, out=None, scheduler_metadata=None, q_descale=None, k_descale=None,
    v_descale=None, num_splits=0, output_scale=None, fa_version=2, s_aux=None,
):  # fmt: skip
    assert fa_version == 3 and return_softmax_lse
    if block_table is None:
        o, lse = _ragged(q, k, v, cu_seqlens_q, cu_seqlens_k, softmax_scale, causal)
    else:
        o, lse = _flash(
            q, k, v, q_v, cu_seqlens_q, seqused_k, block_table, softmax_scale, causal, window_size,
            softcap, scheduler_metadata,
        )  # fmt: skip
    return out.copy_(o), lse


def _ragged(q, k, v, cu_q, cu_k, scale, causal):
    o, lse = mla.mla_prefill(q, k, v, cu_q, cu_k, 0, 0, None, None, None, scale, causal)
    return o.to(q.dtype), lse.T.contiguous()


def flash_attn_varlen_func(
    q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, seqused_q=None,
    seqused_k=None, softmax_scale=None, causal=False, qv=None, q_descale=None, k_descale=None,
    v_descale=None, window_size=(-1, -1), attention_chunk=0, softcap=0.0, num_splits=1,
    pack_gqa=None, deterministic=False, sm_margin=0, return_attn_probs=False,
):  # fmt: skip
    assert return_attn_probs
    return _ragged(q, k, v, cu_seqlens_q, cu_seqlens_k, softmax_scale, causal)


def flash_attn_with_kvcache(
    q, k_cache, v_cache, k=None, v=None, qv=None, rotary_cos=None, rotary_sin=None,
    cache_seqlens=None, cache_batch_idx=None, cache_leftpad=None, page_table=None,
    cu_seqlens_q=None, cu_seqlens_k_new=None, max_seqlen_q=None, rotary_seqlens=None,
    q_descale=None, k_descale=None, v_descale=None, softmax_scale=None, causal=False,
    window_size=(-1, -1), attention_chunk=0, softcap=0.0, rotary_interleaved=True,
    scheduler_metadata=None, num_splits=0, pack_gqa=None, sm_margin=0, return_softmax_lse=False,
):  # fmt: skip
    assert return_softmax_lse and k is None and v is None
    return *_flash(
        q, k_cache, v_cache, qv, cu_seqlens_q, cache_seqlens, page_table, softmax_scale, causal,
        window_size, softcap, scheduler_metadata,
    ), None, None  # fmt: skip


# vLLM


class KVQuantMode(IntEnum):
    NONE = 0
    FP8_PER_TENSOR = 1


def decode_attention_fwd(
    q, k_buffer, v_buffer, o, lse, req_to_token, b_seq_len, attn_logits, num_kv_splits, sm_scale,
    page_size=1, logit_cap=0.0, k_scale=None, v_scale=None, is_mla=False,
):  # fmt: skip
    assert num_kv_splits == attn_logits.shape[2] and attn_logits.shape[3] == 513
    assert is_mla and k_scale is not None and k_scale.device == q.device
    assert k_buffer.shape[1:3] == (page_size, 1) and v_buffer.shape[-1] == o.shape[-1] == 512
    cu_q = torch.arange(len(q) + 1, dtype=torch.int32)
    cache = (k_buffer.squeeze(2).float() * k_scale).to(q.dtype)
    out, found = latent(q, cache, cu_q, b_seq_len, req_to_token, sm_scale)
    o.copy_(out)
    lse.copy_(found)


def unified_attention(
    q, k, v, out, cu_seqlens_q, max_seqlen_q, seqused_k, max_seqlen_k, softmax_scale, causal,
    window_size, block_table, softcap, q_descale, k_descale, v_descale, seq_threshold_3D=None,
    num_par_softmax_segments=None, softmax_segm_output=None, softmax_segm_max=None,
    softmax_segm_expsum=None, alibi_slopes=None, output_scale=None, qq_bias=None, sinks=None,
    kv_quant_mode=KVQuantMode.NONE,
):  # fmt: skip
    assert causal and num_par_softmax_segments == softmax_segm_max.shape[2]
    assert softmax_segm_output.shape[:3] == softmax_segm_max.shape == softmax_segm_expsum.shape
    assert softmax_segm_output.shape[0] == seq_threshold_3D and softmax_segm_output.is_contiguous()
    if (kv_quant_mode == KVQuantMode.FP8_PER_TENSOR) != ("float8" in str(k.dtype)):
        raise AssertionError("the mode of the cache")
    if kv_quant_mode and "float8" not in str(q.dtype):
        assert q_descale is None
        k, v = ((x.float() * s).to(q.dtype) for x, s in ((k, k_descale), (v, v_descale)))
        k_descale = v_descale = None
    found, _ = paged(
        q, k, v, cu_seqlens_q, seqused_k, block_table, softmax_scale, window_size[0], softcap,
        q_descale=q_descale, k_descale=k_descale, v_descale=v_descale, alibi_slopes=alibi_slopes,
        output_scale=output_scale, qq_bias=qq_bias, sinks=sinks,
    )  # fmt: skip
    out.copy_(found)


_OPS = "vllm.v1.attention.ops"
ATTENTION: Modules = {
    "flashinfer.cascade": {"merge_state": merge_state},
    "flashinfer.mla": {
        "BatchMLAPagedAttentionWrapper": BatchMLAPagedAttentionWrapper,
        "MLAPlanMetadata": MLAPlanMetadata,
    },
    "flashinfer.decode": {"BatchDecodeWithPagedKVCacheWrapper": BatchDecodeWithPagedKVCacheWrapper},
    "flashinfer.prefill": {
        "BatchPrefillWithPagedKVCacheWrapper": BatchPrefillWithPagedKVCacheWrapper,
        "BatchPrefillWithRaggedKVCacheWrapper": BatchPrefillWithRaggedKVCacheWrapper,
    },
    f"{_OPS}.triton_decode_attention": {"decode_attention_fwd": decode_attention_fwd},
    f"{_OPS}.triton_unified_attention": {
        "unified_attention": unified_attention,
        "KVQuantMode": KVQuantMode,
    },
    "vllm.vllm_flash_attn.flash_attn_interface": {
        "flash_attn_varlen_func": flash_attn_varlen_func_of_vllm,
        "get_scheduler_metadata": get_scheduler_metadata,
    },
}
AUTHORS: Modules = {
    "flash_attn_interface": {
        "flash_attn_varlen_func": flash_attn_varlen_func,
        "flash_attn_with_kvcache": flash_attn_with_kvcache,
        "get_scheduler_metadata": get_scheduler_metadata,
    },
}
