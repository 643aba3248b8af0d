# SPDX-License-Identifier: Apache-2.0
"""The MLA operators as data: their Problems, and what their kernels are called with."""

from __future__ import annotations

from types import MappingProxyType
from typing import NamedTuple

from archkey.ops._contract import Operator


class MlaDecodeProblem(NamedTuple):
    """Absorbed MLA over a paged latent cache.

    q_len     query tokens of a sequence at most, rounded up to a power of two; 0: any number, with
              batch_invariant, which must not depend on it
    ragged    q is `[T, H, d]` with cu_seqlens_q
    causal    False where q_len is 1: a lone query sees every key either way
    window    whether keys left of a window are masked
    *_descale  "none", "number" or "tensor" (one float32 element on the device)
    aligned   q, cache and out: pointers and strides are multiples of 16 bytes
    batch_invariant  a row's bits follow from its own sequence alone
    """

    dtype: str
    kv_dtype: str
    out_dtype: str
    heads: int
    head_dim: int = 576
    head_dim_v: int = 512
    page_size: int = 64
    q_len: int = 1
    ragged: bool = False
    causal: bool = False
    window: bool = False
    q_descale: str = "none"
    kv_descale: str = "none"
    return_lse: bool = False
    aligned: bool = True
    pdl: bool = False
    batch_invariant: bool = False
    operator: str = "mla_decode"

    @property
    def rows(self) -> int:
        """Query rows of a sequence that share its keys: heads of all its query tokens."""
        return self.heads * max(self.q_len, 1)

    @property
    def one_dtype(self) -> bool:
        """Whether queries, cache and output have the same dtype."""
        return self.dtype == self.kv_dtype == self.out_dtype


class MlaPrefillProblem(NamedTuple):
    """Un-absorbed MLA: ragged attention with query/key width and value width apart.

    *_descale  "none", "number" or "tensor" (one float32 element on the device)
    aligned   q, k, v and out: pointers and strides are multiples of 16 bytes
    batch_invariant  a row's bits follow from its own sequence alone
    """

    dtype: str
    out_dtype: str
    heads: int
    kv_heads: int
    head_dim: int = 192
    head_dim_v: int = 128
    causal: bool = True
    q_descale: str = "none"
    k_descale: str = "none"
    v_descale: str = "none"
    return_lse: bool = False
    aligned: bool = True
    pdl: bool = False
    batch_invariant: bool = False
    operator: str = "mla_prefill"


class MergeAttnStatesProblem(NamedTuple):
    """Attention over the union of two disjoint key sets, from its two halves.

    aligned: pointers and strides of the three outputs are multiples of 16 bytes
    """

    dtype: str
    out_dtype: str
    heads: int
    head_dim_v: int
    aligned: bool = True
    pdl: bool = False
    operator: str = "merge_attn_states"


_BF16 = ("bfloat16", "bfloat16", "bfloat16")
_FP8 = ("float8_e4m3fn", "float8_e4m3fn", "bfloat16")

OPERATORS = (
    Operator(
        name="mla_decode",
        family="mla",
        problem=MlaDecodeProblem,
        inputs=(
            "q",
            "kv_cache",
            "block_table",
            "cache_seqlens",
            "cu_seqlens_q",
            "max_seqlen_q",
            "max_seqlen_k",
            "q_descale",
            "kv_descale",
            "softmax_scale",
            "head_dim_v",
            "causal",
            "window_left",
            "num_splits",
            "batch_invariant",
        ),
        outputs=("out", "lse"),
        reference="archkey.reference.mla:mla_decode",
        function="archkey.ops.mla:mla_decode",
        cases="archkey.conformance.cases.mla",
        workloads="archkey.bench.workloads.mla",
        examples=MappingProxyType(
            {
                "DeepSeek-V3 TP1": MlaDecodeProblem(*_BF16, 128),
                "DeepSeek-V3 TP8": MlaDecodeProblem(*_BF16, 16),
                "DeepSeek-V3 TP8 page 1": MlaDecodeProblem(*_BF16, 16, page_size=1),
                "DeepSeek-V3 MTP verify": MlaDecodeProblem(*_BF16, 128, q_len=4, causal=True),
                "Kimi-K2.5 TP8": MlaDecodeProblem(*_BF16, 8),
                "Kimi-Linear TP1": MlaDecodeProblem(*_BF16, 32),
                "DeepSeek-V3 FP8": MlaDecodeProblem(
                    *_FP8, 128, q_descale="tensor", kv_descale="tensor"
                ),
                "DeepSeek-V3 FP8 cache": MlaDecodeProblem(
                    "bfloat16", "float8_e4m3fn", "bfloat16", 128, kv_descale="number"
                ),
                "DeepSeek-V3 TP8, batch invariant": MlaDecodeProblem(
                    *_BF16, 16, q_len=0, causal=True, batch_invariant=True
                ),
            }
        ),
    ),
    Operator(
        name="mla_prefill",
        family="mla",
        problem=MlaPrefillProblem,
        inputs=(
            "q",
            "k",
            "v",
            "cu_seqlens_q",
            "cu_seqlens_k",
            "max_seqlen_q",
            "max_seqlen_k",
            "q_descale",
            "k_descale",
            "v_descale",
            "softmax_scale",
            "causal",
            "batch_invariant",
        ),
        outputs=("out", "lse"),
        reference="archkey.reference.mla:mla_prefill",
        function="archkey.ops.mla:mla_prefill",
        cases="archkey.conformance.cases.mla",
        workloads="archkey.bench.workloads.mla",
        examples=MappingProxyType(
            {
                "DeepSeek-V3 TP8": MlaPrefillProblem("bfloat16", "bfloat16", 16, 16),
                "DeepSeek-V3 TP8 prefix": MlaPrefillProblem(
                    "bfloat16", "bfloat16", 16, 16, causal=False, return_lse=True
                ),
                "GLM-5 TP8": MlaPrefillProblem("bfloat16", "bfloat16", 8, 8, 256, 256),
                "Kimi-K2.5 TP8 FP8": MlaPrefillProblem("float8_e4m3fn", "bfloat16", 8, 8),
            }
        ),
    ),
    Operator(
        name="merge_attn_states",
        family="mla",
        problem=MergeAttnStatesProblem,
        inputs=("out_a", "lse_a", "out_b", "lse_b"),
        outputs=("out", "lse"),
        reference="archkey.reference.mla:merge_attn_states",
        function="archkey.ops.mla:merge_attn_states",
        cases="archkey.conformance.cases.mla",
        workloads="archkey.bench.workloads.mla",
        examples=MappingProxyType(
            {
                "DeepSeek-V3 TP8": MergeAttnStatesProblem("bfloat16", "bfloat16", 16, 128),
                "GLM-5 TP8": MergeAttnStatesProblem("bfloat16", "bfloat16", 8, 256),
            }
        ),
    ),
)
