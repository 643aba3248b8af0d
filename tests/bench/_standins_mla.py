# SPDX-License-Identifier: Apache-2.0
"""FlashMLA 9241ae3, its copy in vLLM 0.26.0, and the attention of SGLang 0.5.23."""

from __future__ import annotations

import math

import torch
from tests.bench._standins import Modules, table_of
from torch import Tensor

from archkey.reference import attention, mla, sparse_mla


class Schedule:
    """FlashMLASchedMeta: filled by the first call, and for calls of that shape only."""

    shape: tuple[int, ...] | None = None


def _theirs(lse: Tensor) -> Tensor:
    """`[T, H]`, -inf for an empty row, as FlashMLA has it: +inf."""
    return lse.masked_fill(lse == -math.inf, math.inf)


def _check_pool(cache, indices, length, batch):
    """Strides and slots that the kernel takes: of what is outside it masks -1 alone."""
    slots = cache.shape[0] * cache.shape[1]
    assert cache.stride(1) == cache.shape[3] and max(cache.stride()) < 2**31
    assert indices.shape[-1] % 64 == 0 and cache.dtype == torch.uint8
    if length is not None:
        assert length.shape == (batch,) and length.is_contiguous()
        behind = torch.arange(indices.shape[-1]) >= length[:, None, None]
        indices = indices.masked_fill(behind, -1)
    assert bool(((indices >= -1) & (indices < slots)).all()) and slots > 0


# fmt: off
def with_kvcache(
    q, k_cache, block_table, cache_seqlens, head_dim_v, tile_scheduler_metadata, num_splits=None,
    softmax_scale=None, causal=False, is_fp8_kvcache=False, indices=None, attn_sink=None,
    extra_k_cache=None, extra_indices_in_kvcache=None, topk_length=None, extra_topk_length=None,
):
    assert num_splits is None and head_dim_v == 512 and k_cache.shape[2] == 1
    shape = (*q.shape, *k_cache.shape[1:])
    assert tile_scheduler_metadata.shape in (None, shape)
    tile_scheduler_metadata.shape = shape
    batch, queries, heads, _ = q.shape
    if indices is None:
        assert k_cache.shape[1] == 64 and k_cache.dtype == q.dtype and not is_fp8_kvcache
        out, lse = mla.mla_decode(
            q, k_cache.squeeze(2), block_table, cache_seqlens, None, queries,
            block_table.shape[1] * 64, None, None, softmax_scale, 512, causal, -1)
    else:
        assert is_fp8_kvcache and not causal and heads in (64, 128)
        kv_format = {656: "fp8_v32", 584: "fp8_model1"}[k_cache.shape[3]]
        _check_pool(k_cache, indices, topk_length, batch)
        if kv_format == "fp8_v32":  # what its kernel for Hopper asserts
            assert topk_length is None and extra_k_cache is None
        if extra_k_cache is None:
            assert extra_indices_in_kvcache is None and extra_topk_length is None
        else:
            _check_pool(extra_k_cache, extra_indices_in_kvcache, extra_topk_length, batch)
        extra = None if extra_k_cache is None else extra_k_cache.squeeze(2)
        out, lse = sparse_mla.sparse_mla_decode(
            q, k_cache.squeeze(2), indices, topk_length, attn_sink, extra,
            extra_indices_in_kvcache, extra_topk_length, softmax_scale, 512, kv_format)
    lse = _theirs(lse).reshape(batch, queries, heads).transpose(1, 2).contiguous()
    return out.to(q.dtype), lse


def sparse_fwd(q, kv, indices, sm_scale, d_v=512, attn_sink=None, topk_length=None):
    assert kv.shape[1] == indices.shape[1] == 1 and q.shape[1] in (64, 128)
    assert indices.shape[2] % 128 == 0 and kv.dim() == 3 and d_v == 512
    assert max(*q.stride(), *kv.stride()) < 2**31
    out, most, lse = sparse_mla.sparse_mla_prefill(
        q, kv, indices.squeeze(1), topk_length, attn_sink, sm_scale, d_v, "bf16")
    return out.to(q.dtype), most, _theirs(lse)


INTERFACE = {
    "flash_mla_with_kvcache": with_kvcache,
    "flash_mla_sparse_fwd": sparse_fwd,
    "get_mla_metadata": lambda *args, **kwargs: (Schedule(), None),
}
FLASH_MLA: Modules = {"flash_mla": INTERFACE}
VLLM_FLASHMLA: Modules = {
    "vllm._flashmla_extension_C": {},
    "vllm.third_party.flashmla.flash_mla_interface": INTERFACE,
}


def get_mla_decoding_metadata_dense_fp8(seqlens_k, num_heads_per_head_k, num_heads_k):
    assert num_heads_k == 1
    return [torch.tensor([num_heads_per_head_k]), torch.zeros(len(seqlens_k) + 1)]


def fwd_kvcache_mla_fp8(
    q, kcache, head_size_v, seqlens_k, block_table, softmax_scale, is_causal,
    tile_scheduler_metadata, num_splits, descale_q, descale_k,
):
    batch, queries, heads, _ = q.shape
    assert tile_scheduler_metadata.tolist() == [queries * heads] and len(num_splits) == batch + 1
    assert descale_q.shape == descale_k.shape == (1,)
    out, lse = mla.mla_decode(
        q, kcache.squeeze(2), block_table, seqlens_k, None, queries, block_table.shape[1] * 64,
        descale_q, descale_k, softmax_scale, head_size_v, is_causal, -1)
    lse = _theirs(lse).reshape(batch, queries, heads).transpose(1, 2).contiguous()
    return [out.bfloat16(), lse]


EXTENSION = (
    (
        "get_mla_decoding_metadata_dense_fp8(Tensor seqlens_k, int num_heads_per_head_k,"
        " int num_heads_k) -> Tensor[]",
        get_mla_decoding_metadata_dense_fp8,
    ),
    (
        "fwd_kvcache_mla_fp8(Tensor q, Tensor kcache, int head_size_v, Tensor seqlens_k,"
        " Tensor block_table, float softmax_scale, bool is_causal, Tensor tile_scheduler_metadata,"
        " Tensor num_splits, Tensor? descale_q, Tensor? descale_k) -> Tensor[]",
        fwd_kvcache_mla_fp8,
    ),
)
"""What `_flashmla_extension_C` declares, and does."""


class Splits:
    """get_num_kv_splits_triton: a kernel, which is launched with a grid in brackets."""

    def __getitem__(self, grid):
        assert grid == (1,)
        return self

    def __call__(
        self, num_kv_splits_ptr, seq_lens_ptr, num_seq, num_group, num_head, num_kv_head,
        max_kv_splits, device_core_count, MAX_NUM_SEQ, uneven_batch_ptr=None,
    ):
        assert num_seq * num_group == len(num_kv_splits_ptr) <= MAX_NUM_SEQ
        assert num_head % num_kv_head == 0 and MAX_NUM_SEQ & (MAX_NUM_SEQ - 1) == 0
        num_kv_splits_ptr.fill_(min(max_kv_splits, device_core_count))


def _one_by_one(q, k, v, starts, indptr, indices, scale, softcap, sinks, window=-1):
    """Attention over keys that are named one by one: pages of one key."""
    counts, table = indptr.diff(), table_of(indptr, indices)
    return attention.unified_attention(
        q, k.unsqueeze(1), v.unsqueeze(1), starts, counts.int(), table, sinks=sinks,
        softmax_scale=scale, window_left=window, softcap=softcap)[0]


def decode_fwd(
    q, k_buffer, v_buffer, o, kv_indptr, kv_indices, attn_logits, attn_lse, num_kv_splits,
    max_kv_splits, sm_scale, k_scale, v_scale, logit_cap=0.0, sinks=None, xai_temperature_len=-1,
    has_mla=False, use_pdl=False, page_size=1, score_mod=None, aux_tensors=None, enable_lean=None,
    lean_Mp=None, lean_Lp=None, lean_Op=None, lean_locks=None, uneven_batch=None,
):
    assert max_kv_splits == attn_logits.shape[2] and attn_lse.shape == attn_logits.shape[:3]
    assert len(num_kv_splits) == len(q) and k_scale == v_scale == page_size == 1
    starts = torch.arange(len(q) + 1, dtype=torch.int32)
    o.copy_(_one_by_one(
        q, k_buffer, v_buffer, starts, kv_indptr, kv_indices, sm_scale, logit_cap, sinks))


def extend_fwd(
    q, o, k_buffer, v_buffer, k_scale, v_scale, qo_indptr, kv_indptr, kv_indices, prefix_lens,
    max_len_extend, custom_mask=None, mask_indptr=None, sm_scale=None, logit_cap=0.0,
    is_causal=True, sliding_window_size=-1, sinks=None, window_start_pos=None,
    xai_temperature_len=-1, page_size=1, score_mod=None, aux_tensors=None,
):
    assert is_causal and k_scale == v_scale == page_size == 1
    assert torch.equal(prefix_lens, kv_indptr.diff() - qo_indptr.diff())
    assert max_len_extend >= int(qo_indptr.diff().max())
    o.copy_(_one_by_one(
        q, k_buffer, v_buffer, qo_indptr, kv_indptr, kv_indices, sm_scale, logit_cap, sinks,
        sliding_window_size))


def merge(prefix_output, prefix_lse, suffix_output, suffix_lse, output=None, output_lse=None):
    out, lse = mla.merge_attn_states(prefix_output, prefix_lse, suffix_output, suffix_lse)
    if output is None:
        output = torch.empty_like(prefix_output)
    if output_lse is None:
        output_lse = torch.empty_like(prefix_lse)
    return output.copy_(out), output_lse.copy_(lse)


def sparse_prefill(
    q, kv, indices, sm_scale, d_v=512, *, topk_length=None, out=None, union=0, config=None,
    union_config=None, int64_indexing=None,
):
    assert kv.dtype == torch.bfloat16 and union == 0
    pool, lists = kv.reshape(len(kv), 1, -1), indices.reshape(len(indices), -1)
    return sparse_mla.sparse_mla_prefill(
        q, pool, lists, topk_length, None, sm_scale, d_v, "bf16")[0].bfloat16()


def sparse_split_q(q_nope, q_rope, kv, indices, sm_scale, d_v=512):
    assert q_nope.shape[-1] == d_v and indices.shape[1] == kv.shape[1] == 1
    q = torch.cat([q_nope, q_rope], -1)
    return sparse_prefill(q, kv, indices, sm_scale, d_v).unsqueeze(0)


_ATTENTION = "sglang.kernels.ops.attention."
SGLANG: Modules = {
    f"{_ATTENTION}decode_attention": {"decode_attention_fwd": decode_fwd},
    f"{_ATTENTION}extend_attention": {"extend_attention_fwd_unified": extend_fwd},
    f"{_ATTENTION}merge_state": {"merge_state_triton": merge},
    f"{_ATTENTION}metadata": {"get_num_kv_splits_triton": Splits()},
    f"{_ATTENTION}dsa.triton_sparse_mla": {"triton_sparse_mla_fwd": sparse_split_q},
    f"{_ATTENTION}dsa.triton_sparse_mla_decode": {"triton_sparse_mla_decode": sparse_split_q},
    f"{_ATTENTION}dsa.triton_sparse_mla_prefill": {"sparse_mla_prefill": sparse_prefill},
}

MLA: Modules = {**FLASH_MLA, **VLLM_FLASHMLA, **SGLANG}
