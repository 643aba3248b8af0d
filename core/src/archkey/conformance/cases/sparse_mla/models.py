# SPDX-License-Identifier: Apache-2.0
"""Sparse MLA at the heads and top-k of DeepSeek-V3.2, GLM-5 and DeepSeek-V4."""

from __future__ import annotations

from archkey.conformance.case import Case
from archkey.conformance.cases.mla.values import GLM_SCALE
from archkey.conformance.cases.sparse_mla.inputs import SparseDecode, SparsePrefill
from archkey.conformance.cases.sparse_mla.rows import Dequantize, Logical, Quantize

__all__ = ["CASES"]

CASES = (
    Case(
        "sparse_mla_prefill",
        "DeepSeek-V3.2 TP8",
        "T=12, S=4097, k=2048, H=16, bf16",
        SparsePrefill(16, 12, 2048, blocks=4097, lists="tail", length=True),
    ),
    Case(
        "sparse_mla_prefill",
        "DeepSeek-V3.2 TP1",
        "T=4, S=4097, k=2048, H=128, bf16, sinks",
        SparsePrefill(128, 4, 2048, blocks=4097, lists="tail", length=True, sink="inf"),
    ),
    Case(
        "sparse_mla_prefill",
        "GLM-5 TP8",
        "T=8, k=2048, H=8, fp8_v32, page 64",
        SparsePrefill(
            *(8, 8, 2048, "fp8_v32"),
            blocks=66,
            page=64,
            form="paged",
            lists="tail",
            length=True,
            scale=GLM_SCALE,
        ),
    ),
    Case(
        "sparse_mla_decode",
        "DeepSeek-V3.2 TP1, MTP",
        "B=2, q_len=2, k=2048, H=128, fp8_v32, page 64",
        SparseDecode(128, 2, 2048, q_len=2, blocks=66, lists="tail"),
    ),
    Case(
        "sparse_mla_decode",
        "DeepSeek-V3.2 TP8",
        "B=6, k=2048, H=16, fp8_v32, page 64",
        SparseDecode(16, 6, 2048, blocks=66, lists="tail"),
    ),
    Case(
        "sparse_mla_decode",
        "GLM-5 TP1",
        "B=4, k=2048, H=64, fp8_v32, page 64",
        SparseDecode(64, 4, 2048, blocks=66, lists="tail", scale=GLM_SCALE),
    ),
    Case(
        "sparse_mla_decode",
        "GLM-5 TP8",
        "B=6, k=2048, H=8, bf16, page 1",
        SparseDecode(8, 6, 2048, "bf16", blocks=4098, page=1, lists="tail", scale=GLM_SCALE),
    ),
    Case(
        "sparse_mla_decode",
        "NoPE MLA",
        "B=4, k=2000, H=64, d=512, fp8_v32_nope, page 64",
        SparseDecode(64, 4, 2000, "fp8_v32_nope", width=512, blocks=66, lists="tail"),
    ),
    Case(
        "sparse_mla_decode",
        "DeepSeek-V4",
        "B=4, k=128 + 512, H=64, d=512, fp8_model1, pages 64 and 32, sinks",
        SparseDecode(
            *(64, 4, 128, "fp8_model1"),
            width=512,
            blocks=66,
            lists="tail",
            length="batch",
            sink="inf",
            extra_k=512,
            extra_blocks=34,
            extra_length="batch",
        ),
    ),
    Case(
        "quantize_sparse_kv",
        "DeepSeek-V3.2",
        "T=1024, fp8_v32, fp32 scales, page 64",
        Quantize(1024, blocks=20, page=64),
    ),
    Case(
        "quantize_sparse_kv",
        "DeepSeek-V4",
        "T=1024, fp8_model1, pow2 scales, page 64",
        Quantize(1024, "fp8_model1", "pow2", blocks=20, page=64),
    ),
    Case(
        "dequantize_sparse_kv",
        "DeepSeek-V3.2",
        "T=2048, fp8_v32, page 64",
        Dequantize(2048, blocks=34, page=64),
    ),
    Case(
        "logical_to_physical_indices",
        "DeepSeek-V3.2",
        "B=4, q_len=2, k=2048, page 64",
        Logical((4096, 3396, 2696, 1996), 2048, q_len=2),
    ),
)
