# SPDX-License-Identifier: Apache-2.0
"""Real calls of models, by those who examine the operators: with numbers in them, small."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from archkey.conformance.cases.attention.inputs import Attention
from archkey.conformance.cases.kda.inputs import ChunkKda, RecurrentKda
from archkey.conformance.cases.kda.inputs_decode import Packed
from archkey.conformance.cases.mla.inputs import Decode, Merge, Prefill
from archkey.conformance.cases.rmsnorm.inputs import AddNorm, Norm, QkNorm
from archkey.conformance.cases.sparse_mla.inputs import SparseDecode, SparsePrefill

__all__ = ["FP8_CACHE", "LISTED"]

Calls = list[tuple[str, Callable[..., Mapping[str, Any]]]]


def norms(width: int) -> Calls:
    return [("rmsnorm", Norm(3, width)), ("fused_add_rmsnorm", AddNorm(5, width))]


def prefill(heads: int, widths: tuple[int, int] = (192, 128)) -> Calls:
    given: dict[str, Any] = {"widths": widths, "projection": True}
    return [
        ("mla_prefill", Prefill(heads, (3, 2), (3, 2), lse="", **given)),
        ("mla_prefill", Prefill(heads, (3, 2), (3, 2), **given)),
        ("mla_prefill", Prefill(heads, (3, 2), (5, 6), causal=False, **given)),
        ("merge_attn_states", Merge(3, heads, widths[1])),
    ]


DEEPSEEK: Calls = [
    *norms(7168),
    ("fused_qk_rmsnorm", QkNorm(3, (0, 1536), (0, 512), row=True)),
    ("mla_decode", Decode(16, (5, 70), lse="")),
    ("mla_decode", Decode(16, (5, 70), 4, lse="")),
    *prefill(16),
]
FP8_CACHE: dict[str, Any] = {"cache": "fp8", "kv_descale": 0.5, "tensors": "kv", "lse": ""}
DEEPSEEK_FP8: Calls = [
    *DEEPSEEK[:3],
    ("mla_decode", Decode(16, (5, 70), **FP8_CACHE)),
    ("mla_decode", Decode(16, (5, 70), 4, **FP8_CACHE)),
    *prefill(16),
]
SPARSE: Calls = [
    *norms(7168),
    ("fused_qk_rmsnorm", QkNorm(3, (0, 1536), (0, 512), row=True)),
    ("sparse_mla_decode", SparseDecode(16, 2, 2048, "bf16", form="nhd", lse="")),
    ("sparse_mla_decode", SparseDecode(16, 2, 2048, "bf16", 4, form="nhd", lse="")),
    ("sparse_mla_prefill", SparsePrefill(16, 3, 2048, page=64, form="paged", lse="", blocks=3)),
    *prefill(16),
]
_TOKENS: dict[str, Any] = {
    "g_dtype": "bf16",
    "beta_dtype": "bf16",
    "gate": "raw",
    "beta": "raw",
    "l2norm": "unit",
    "v_first": True,
    "state": "fp32",
    "heads": (4, 4),
}
KIMI: Calls = [
    *norms(2304),
    ("fused_qk_rmsnorm", QkNorm(3, (0, 0), (0, 512), row=True)),
    ("mla_decode", Decode(4, (5, 70), lse="")),
    ("mla_decode", Decode(4, (5, 70), 4, lse="")),
    *prefill(4),
    ("kda_packed_decode", Packed(2, (4, 4))),
    ("chunk_kda", ChunkKda((5, 70), slots="one", **_TOKENS)),
    ("chunk_kda", ChunkKda((64 * 70,), slots="one", **_TOKENS)),
    (
        "fused_recurrent_kda",
        RecurrentKda((4, 4), slots="tokens", in_place=True, accepted="all", **_TOKENS),
    ),
]


def attention(heads: tuple[int, int], width: int, **more: Any) -> Calls:
    given = {"heads": heads, "dims": (width, width), "page": 64, "lse": "", **more}
    return [
        ("unified_attention", Attention(lengths, **given))
        for lengths in (((1, 5), (1, 9)), ((4, 5), (4, 9)), ((20, 20), (1, 70)))
    ]


def heads_of_a_row(make: Any) -> dict[str, Any]:
    """Four heads of q in a row with one of k and one of v."""
    row = make.randn(3, 6 * 256)
    return {"x": row[:, : 4 * 256].view(3, 4, 256), "weight": make.randn(256)}


QWEN: Calls = [
    *norms(4096),
    ("rmsnorm", heads_of_a_row),
    ("rmsnorm", Norm(3, 256, 4)),
    *attention((4, 1), 256),
]
_DESCALES: dict[str, Any] = {
    "cache": "fp8",
    "descales": (None, 0.5, 0.5),
    "kinds": ("number", "tensor", "tensor"),
}
GPT_OSS: Calls = [
    *norms(2880),
    *attention((8, 1), 64, sinks="bf16"),
    *attention((8, 1), 64, sinks="bf16", window=128),
]
GPT_OSS_FP8: Calls = [
    *norms(2880),
    *(
        call
        for window in (0, 128)
        for call in attention(
            (8, 1),
            64,
            sinks="bf16",
            window=window,
            **_DESCALES,
        )
    ),
]

LISTED: dict[str, tuple[dict[str, Any], Calls]] = {
    "deepseek-v3": ({}, DEEPSEEK),
    "deepseek-v3 fp8": ({"kv_dtype": "fp8"}, DEEPSEEK_FP8),
    "deepseek-v3.2": ({}, SPARSE),
    "kimi-linear-48b": ({}, KIMI),
    "qwen3.5-397b": ({}, QWEN),
    "gpt-oss-120b": ({}, GPT_OSS),
    "gpt-oss-120b fp8": ({"kv_dtype": "fp8"}, GPT_OSS_FP8),
}
"""Model -> options of `problems_for` with tp=8 and q_len=4, and the calls of one rank."""
