# SPDX-License-Identifier: Apache-2.0
"""The sparse MLA operators as data: their Problems, and what their kernels are called with."""

from __future__ import annotations

from types import MappingProxyType
from typing import NamedTuple

from archkey.ops._contract import Operator


class SparseMlaPrefillProblem(NamedTuple):
    """Attention of each query row to the keys that its own index list names.

    kv_format    "bf16", or a packed layout of which each row holds row_bytes bytes
    topk         entries of an index list
    page_size    1 for a flat pool of keys
    topk_length  whether entries from a row's length on are ignored
    attn_sink    whether a sink per head takes a share of the softmax
    aligned      q, kv and out: pointers and strides are multiples of 16 bytes, those within a
                 block of packed rows aside
    batch_invariant  a row's bits follow from its own list alone
    """

    dtype: str
    out_dtype: str
    kv_format: str
    heads: int
    topk: int
    head_dim: int = 576
    head_dim_v: int = 512
    page_size: int = 1
    topk_length: bool = False
    attn_sink: bool = False
    return_lse: bool = False
    return_max_logits: bool = False
    aligned: bool = True
    pdl: bool = False
    batch_invariant: bool = False
    operator: str = "sparse_mla_prefill"

    @property
    def caches(self) -> str:
        """The format of the one cache, as SparseMlaDecodeProblem says it."""
        return self.kv_format


class SparseMlaDecodeProblem(NamedTuple):
    """Sparse attention of a few query tokens a sequence, over one or two paged caches.

    The fields of SparseMlaPrefillProblem, and extra_topk and extra_page_size of the second cache,
    0 where there is none. A topk_length holds one number a sequence or one a query row.
    """

    dtype: str
    out_dtype: str
    kv_format: str
    heads: int
    topk: int
    head_dim: int = 576
    head_dim_v: int = 512
    page_size: int = 64
    topk_length: bool = False
    attn_sink: bool = False
    extra_topk: int = 0
    extra_page_size: int = 0
    extra_topk_length: bool = False
    return_lse: bool = False
    aligned: bool = True
    pdl: bool = False
    batch_invariant: bool = False
    operator: str = "sparse_mla_decode"

    @property
    def caches(self) -> str:
        """The format of each cache: "fp8_model1", or "fp8_model1 + fp8_model1" for two."""
        return f"{self.kv_format} + {self.kv_format}" if self.extra_topk else self.kv_format


class QuantizeSparseKvProblem(NamedTuple):
    """Latent and rope rows into the slots of a packed FP8 cache.

    slot_dtype  "none" (token t goes to slot t), "int32" or "int64"
    aligned     k_nope, k_rope and the cache: pointers and strides are multiples of 16 bytes
    """

    dtype: str
    kv_format: str
    scale_mode: str = "fp32"
    page_size: int = 64
    slot_dtype: str = "int64"
    aligned: bool = True
    pdl: bool = False
    operator: str = "quantize_sparse_kv"


class DequantizeSparseKvProblem(NamedTuple):
    """Rows of a packed FP8 cache as 16-bit floats.

    slot_dtype  "none" (every slot in order), "int32" or "int64"
    aligned     the cache and out: pointers and strides are multiples of 16 bytes
    """

    out_dtype: str
    kv_format: str
    page_size: int = 64
    slot_dtype: str = "none"
    aligned: bool = True
    pdl: bool = False
    operator: str = "dequantize_sparse_kv"


class LogicalToPhysicalIndicesProblem(NamedTuple):
    """Positions in a sequence to slots of a paged cache, through its block table."""

    page_size: int
    topk: int
    operator: str = "logical_to_physical_indices"


_BF16 = ("bfloat16", "bfloat16")

OPERATORS = (
    Operator(
        name="sparse_mla_prefill",
        family="sparse_mla",
        problem=SparseMlaPrefillProblem,
        inputs=(
            "q",
            "kv",
            "indices",
            "topk_length",
            "attn_sink",
            "softmax_scale",
            "head_dim_v",
            "kv_format",
            "batch_invariant",
        ),
        outputs=("out", "max_logits", "lse"),
        reference="archkey.reference.sparse_mla:sparse_mla_prefill",
        function="archkey.ops.sparse_mla:sparse_mla_prefill",
        cases="archkey.conformance.cases.sparse_mla",
        workloads="archkey.bench.workloads.sparse_mla",
        examples=MappingProxyType(
            {
                "DeepSeek-V3.2 TP1": SparseMlaPrefillProblem(*_BF16, "bf16", 128, 2048),
                "DeepSeek-V3.2 TP8": SparseMlaPrefillProblem(*_BF16, "bf16", 16, 2048),
                "GLM-5 TP1": SparseMlaPrefillProblem(*_BF16, "bf16", 64, 2048),
                "DeepSeek-V3.2 TP8 FP8": SparseMlaPrefillProblem(
                    *_BF16, "fp8_v32", 16, 2048, page_size=64
                ),
                "DeepSeek-V3.2 TP8, batch invariant": SparseMlaPrefillProblem(
                    *_BF16, "bf16", 16, 2048, batch_invariant=True
                ),
            }
        ),
    ),
    Operator(
        name="sparse_mla_decode",
        family="sparse_mla",
        problem=SparseMlaDecodeProblem,
        inputs=(
            "q",
            "kv_cache",
            "indices",
            "topk_length",
            "attn_sink",
            "extra_kv_cache",
            "extra_indices",
            "extra_topk_length",
            "softmax_scale",
            "head_dim_v",
            "kv_format",
            "batch_invariant",
        ),
        outputs=("out", "lse"),
        reference="archkey.reference.sparse_mla:sparse_mla_decode",
        function="archkey.ops.sparse_mla:sparse_mla_decode",
        cases="archkey.conformance.cases.sparse_mla",
        workloads="archkey.bench.workloads.sparse_mla",
        examples=MappingProxyType(
            {
                "DeepSeek-V3.2 TP1": SparseMlaDecodeProblem(*_BF16, "fp8_v32", 128, 2048),
                "DeepSeek-V3.2 TP8": SparseMlaDecodeProblem(*_BF16, "fp8_v32", 16, 2048),
                "GLM-5 TP1": SparseMlaDecodeProblem(*_BF16, "fp8_v32", 64, 2048),
                "GLM-5 TP8 bf16": SparseMlaDecodeProblem(*_BF16, "bf16", 8, 2048),
                "DeepSeek-V3.2 TP8, batch invariant": SparseMlaDecodeProblem(
                    *_BF16, "fp8_v32", 16, 2048, batch_invariant=True
                ),
                "NoPE MLA": SparseMlaDecodeProblem(*_BF16, "fp8_v32_nope", 64, 2048, 512),
                "DeepSeek-V4 with window": SparseMlaDecodeProblem(
                    *_BF16,
                    "fp8_model1",
                    64,
                    128,
                    512,
                    topk_length=True,
                    attn_sink=True,
                    extra_topk=512,
                    extra_page_size=64,
                    extra_topk_length=True,
                ),
            }
        ),
    ),
    Operator(
        name="quantize_sparse_kv",
        family="sparse_mla",
        problem=QuantizeSparseKvProblem,
        inputs=("k_nope", "k_rope", "slot_mapping", "kv_cache", "format", "scale_mode"),
        outputs=("out",),
        reference="archkey.reference.sparse_mla:quantize_sparse_kv",
        function="archkey.ops.sparse_kv:quantize_sparse_kv",
        cases="archkey.conformance.cases.sparse_mla",
        workloads="archkey.bench.workloads.sparse_mla",
        examples=MappingProxyType(
            {
                "DeepSeek-V3.2": QuantizeSparseKvProblem("bfloat16", "fp8_v32"),
                "GLM-5 new pool": QuantizeSparseKvProblem(
                    "bfloat16", "fp8_v32", page_size=1, slot_dtype="none"
                ),
                "DeepSeek-V4": QuantizeSparseKvProblem("bfloat16", "fp8_model1", "pow2"),
            }
        ),
    ),
    Operator(
        name="dequantize_sparse_kv",
        family="sparse_mla",
        problem=DequantizeSparseKvProblem,
        inputs=("kv_cache", "slot_mapping", "format"),
        outputs=("out",),
        reference="archkey.reference.sparse_mla:dequantize_sparse_kv",
        function="archkey.ops.sparse_kv:dequantize_sparse_kv",
        cases="archkey.conformance.cases.sparse_mla",
        workloads="archkey.bench.workloads.sparse_mla",
        examples=MappingProxyType(
            {
                "DeepSeek-V3.2 prefix": DequantizeSparseKvProblem(
                    "bfloat16", "fp8_v32", slot_dtype="int32"
                ),
                "DeepSeek-V4 prefix": DequantizeSparseKvProblem(
                    "bfloat16", "fp8_model1", slot_dtype="int32"
                ),
            }
        ),
    ),
    Operator(
        name="logical_to_physical_indices",
        family="sparse_mla",
        problem=LogicalToPhysicalIndicesProblem,
        inputs=("indices", "block_table", "page_size"),
        outputs=("out",),
        reference="archkey.reference.sparse_mla:logical_to_physical_indices",
        function="archkey.ops.sparse_kv:logical_to_physical_indices",
        cases="archkey.conformance.cases.sparse_mla",
        workloads="archkey.bench.workloads.sparse_mla",
        examples=MappingProxyType(
            {
                "DeepSeek-V3.2 page 64": LogicalToPhysicalIndicesProblem(64, 2048),
                "GLM-5 page 1": LogicalToPhysicalIndicesProblem(1, 2048),
            }
        ),
    ),
)
