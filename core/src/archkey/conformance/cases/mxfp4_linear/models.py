# SPDX-License-Identifier: Apache-2.0
"""Projections of DeepSeek-R1, Qwen3.5 and GPT-OSS with MXFP4 weights, for a batch and a prompt."""

from __future__ import annotations

from archkey.conformance.case import Case
from archkey.conformance.cases.mxfp4_linear.inputs import PACKED, Linear

__all__ = ["CASES"]

CASES = tuple(
    Case("mxfp4_linear", model, label, inputs)
    for model, label, inputs in (
        ("DeepSeek-R1 q_b TP8", "T=8, 1536 to 3072, W4A16", Linear((8,), 1536, 3072)),
        (
            "DeepSeek-R1 q_b TP8",
            "T=500, 1536 to 3072, W4A4 shuffled",
            Linear((500,), 1536, 3072, PACKED, "shuffled_gfx950"),
        ),
        ("DeepSeek-R1 o TP8", "T=1, 2048 to 7168, W4A16", Linear((1,), 2048, 7168)),
        (
            "DeepSeek-R1 gate and up TP8",
            "T=70, 7168 to 4608, W4A4",
            Linear((70,), 7168, 4608, PACKED),
        ),
        (
            "Qwen3.5-397B q and gate TP4",
            "T=130, 4096 to 4096, W4A16",
            Linear((130,), 4096, 4096),
        ),
        (
            "GPT-OSS-120B gate and up",
            "T=200, 2880 to 5760, W4A16, bias",
            Linear((200,), 2880, 5760, bias="bf16"),
        ),
        (
            "GPT-OSS-120B down",
            "T=64, 2880 to 2880, W4A4, bias",
            Linear((64,), 2880, 2880, PACKED, bias="bf16"),
        ),
    )
)
