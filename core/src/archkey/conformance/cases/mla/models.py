# SPDX-License-Identifier: Apache-2.0
"""MLA at the heads and widths of DeepSeek-V3, Kimi-K2.5, Kimi-Linear and GLM-5."""

from __future__ import annotations

from math import inf

from archkey.conformance.case import Case
from archkey.conformance.cases.mla.inputs import Decode, Merge, Prefill
from archkey.conformance.cases.mla.values import GLM_SCALE

__all__ = ["CASES"]

# Rows without a prefix, without a suffix, without either, and rows that have both.
_PARTS = ((-inf, 0.0), (0.0, inf), (-inf, inf), (0.0, 0.0), (3.0, -3.0))

CASES = (
    Case(
        "mla_decode",
        "DeepSeek-V3 TP8",
        "B=4, kv 0 and 1000-2048, H=16, page 64, bf16",
        Decode(16, (2048, 1000, 1217, 0)),
    ),
    Case(
        "mla_decode",
        "DeepSeek-V3 TP1, MTP verify",
        "B=2, q_len=4, kv 577 and 777, H=128, page 64, bf16",
        Decode(128, (777, 577), 4),
    ),
    Case(
        "mla_decode",
        "DeepSeek-V3 TP8, first tokens",
        "B=6, q_len=4, kv 0-7, H=16, page 64, bf16: rows without keys",
        Decode(16, (0, 1, 2, 3, 4, 7), 4),
    ),
    Case(
        "mla_decode",
        "Kimi-K2.5 TP8",
        "B=4, kv 800-1500, H=8, page 1, bf16",
        Decode(8, (1500, 1023, 800, 1111), page=1),
    ),
    Case(
        "mla_decode",
        "Kimi-Linear-48B TP1",
        "B=3, ragged q_len 1, 0, 3, kv 333-900, H=32, page 16, bf16",
        Decode(32, (900, 500, 333), (1, 0, 3), page=16),
    ),
    Case(
        "mla_decode",
        "DeepSeek-V3 TP8 FP8",
        "B=4, kv 0 and 705-1500, H=16, page 64, fp8 q and cache",
        Decode(16, (1500, 1000, 705, 0), dtype="fp8", q_descale=3, kv_descale=0.1, tensors="kv"),
    ),
    Case(
        "mla_decode",
        "DeepSeek-V3 TP1 FP8 cache",
        "B=2, kv 500 and 1024, H=128, page 64, bf16 q, fp8 cache",
        Decode(128, (500, 1024), cache="fp8", kv_descale=0.1, tensors="kv"),
    ),
    Case(
        "mla_decode",
        "NoPE MLA",
        "B=3, kv 641-1200, H=64, d=512, page 32, bf16",
        Decode(64, (1200, 1023, 641), page=32, width=512),
    ),
    Case(
        "mla_prefill",
        "DeepSeek-V3 TP8",
        "q 256, 0, 77 over kv 800, 40, 700, H=16, 192/128, bf16",
        Prefill(16, (256, 0, 77), (800, 40, 700), projection=True),
    ),
    Case(
        "mla_prefill",
        "GLM-5 TP8",
        "q 200 and 60 over kv 200 and 50, H=8, 256/256, bf16",
        Prefill(8, (200, 60), (200, 50), (256, 256), scale=GLM_SCALE, projection=True),
    ),
    Case(
        "mla_prefill",
        "Kimi-K2.5 TP8, prefix chunk",
        "q 128 and 33 over kv 0 and 512, H=8, 192/128, fp8, not causal",
        Prefill(
            8,
            (128, 33),
            (0, 512),
            dtype="fp8",
            q_descale=3.0,
            k_descale=0.1,
            v_descale=0.1,
            causal=False,
            projection=True,
        ),
    ),
    Case(
        "merge_attn_states",
        "DeepSeek-V3 TP8",
        "T=512, H=16, dv=128, bf16, empty parts",
        Merge(512, 16, 128, _PARTS),
    ),
    Case(
        "merge_attn_states",
        "GLM-5 TP8",
        "T=256, H=8, dv=256, bf16, empty parts",
        Merge(256, 8, 256, _PARTS),
    ),
)
