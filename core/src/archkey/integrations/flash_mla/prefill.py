# SPDX-License-Identifier: Apache-2.0
"""FlashMLA's prefill functions, on `sparse_mla_prefill` and `mla_prefill`."""

from __future__ import annotations

import torch

import archkey
from archkey.errors import ArgumentValueError
from archkey.integrations.flash_mla.decode import with_inf

__all__ = [
    "flash_attn_varlen_func",
    "flash_attn_varlen_kvpacked_func",
    "flash_attn_varlen_qkvpacked_func",
    "flash_mla_sparse_fwd",
]


def flash_mla_sparse_fwd(
    q: torch.Tensor,
    kv: torch.Tensor,
    indices: torch.Tensor,
    sm_scale: float,
    d_v: int = 512,
    attn_sink: torch.Tensor | None = None,
    topk_length: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Sparse prefill over a flat pool.

    q            `[T, H, d]` bfloat16; kv `[S, 1, d]` bfloat16
    indices      `[T, 1, k]` int32: rows of kv; what names none is ignored
    attn_sink    `[H]` float32; topk_length `[T]` int32

    Returns out `[T, H, d_v]`, max_logits `[T, H]` and lse `[T, H]`; of a row without keys they are
    0, -inf and +inf.
    """
    out, max_logits, lse = archkey.sparse_mla_prefill(
        q,
        kv,
        indices,
        softmax_scale=sm_scale,
        head_dim_v=d_v,
        attn_sink=attn_sink,
        topk_length=topk_length,
        return_lse=True,
    )
    return out, max_logits, with_inf(lse)


def flash_attn_varlen_func(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cu_seqlens_qo: torch.Tensor,
    cu_seqlens_kv: torch.Tensor,
    max_seqlen_qo: int,
    max_seqlen_kv: int,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    deterministic: bool = False,
    is_varlen: bool = True,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Dense un-absorbed prefill, forward only.

    q              `[Tq, H, dqk]`, k `[Tk, Hk, dqk]`, v `[Tk, Hk, dv]`: the widths of `mla_prefill`
    cu_seqlens_*   `[B + 1]` int32; max_seqlen_*  the longest sequence of each
    softmax_scale  default `dqk ** -0.5`
    deterministic, is_varlen  change nothing: results are the same to the bit each time, and equal
                   lengths are a case of any lengths

    Returns out `[Tq, H, dv]` and lse `[Tq, H]`, whose columns are contiguous; of a row without keys
    they are 0 and -inf, as in FlashMLA's own kernel for it.
    """
    if dropout_p != 0.0:
        raise ArgumentValueError(
            f"flash_attn_varlen_func: dropout_p must be 0.0, found {dropout_p}: inference only"
        )
    lse = torch.empty((q.shape[1], q.shape[0]), dtype=torch.float32, device=q.device).T
    out = archkey.mla_prefill(
        q,
        k,
        v,
        cu_seqlens_qo,
        cu_seqlens_kv,
        max_seqlen_qo,
        max_seqlen_kv,
        softmax_scale=q.shape[-1] ** -0.5 if softmax_scale is None else softmax_scale,
        causal=causal,
        lse=lse,
    )
    return out, lse  # type: ignore[return-value]


def flash_attn_varlen_qkvpacked_func(
    qkv: torch.Tensor,
    cu_seqlens: torch.Tensor,
    max_seqlen: int,
    head_dim_qk: int,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    deterministic: bool = False,
    is_varlen: bool = True,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The same of one tensor `[T, H, 2 head_dim_qk + dv]`."""
    both = 2 * head_dim_qk
    q, k, v = qkv[..., :head_dim_qk], qkv[..., head_dim_qk:both], qkv[..., both:]
    return flash_attn_varlen_func(
        q, k, v, cu_seqlens, cu_seqlens, max_seqlen, max_seqlen,
        dropout_p, softmax_scale, causal, deterministic, is_varlen,
    )  # fmt: skip


def flash_attn_varlen_kvpacked_func(
    q: torch.Tensor,
    kv: torch.Tensor,
    cu_seqlens_qo: torch.Tensor,
    cu_seqlens_kv: torch.Tensor,
    max_seqlen_qo: int,
    max_seqlen_kv: int,
    head_dim_qk: int,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    deterministic: bool = False,
    is_varlen: bool = True,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The same of q and one tensor `[Tk, Hk, head_dim_qk + dv]`."""
    return flash_attn_varlen_func(
        q, kv[..., :head_dim_qk], kv[..., head_dim_qk:],
        cu_seqlens_qo, cu_seqlens_kv, max_seqlen_qo, max_seqlen_kv,
        dropout_p, softmax_scale, causal, deterministic, is_varlen,
    )  # fmt: skip
