# SPDX-License-Identifier: Apache-2.0
"""MLA at the heads and widths of DeepSeek-V3, Kimi-K2.5, Kimi-Linear and GLM-5.

Values are normal with a standard deviation of 0.1, cut at 1: dot products of 576 terms of unit
variance would make the softmax one-hot and hide errors (FlashMLA's tests do the same). All that a
kernel must not read is poisoned: slots past a sequence's end and unused pages are NaN, and the
unused tail of the block table names pages that do not exist. The longer a sequence, the smaller
its output; so that no row drowns in another's, lengths of a case are alike, or 0.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from archkey.conformance.case import Case, Maker

__all__ = ["CASES", "NO_PAGE", "paged_slots", "small"]

Inputs = Callable[[Maker], Mapping[str, Any]]

NO_PAGE = 2147480000
"""What stands in unused entries of a block table; times a page size it overflows 32 bits."""

DEEPSEEK_SCALE = (128 + 64) ** -0.5
GLM_SCALE = (192 + 64) ** -0.5


def small(make: Maker, *shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    """Normal numbers of standard deviation 0.1, cut at 1, rounded once."""
    return (make.randn(*shape, dtype=torch.float32) / 10).clamp(-1, 1).to(dtype)


def paged_slots(
    make: Maker, lengths: Sequence[int], page: int
) -> tuple[torch.Tensor, list[torch.Tensor], int]:
    """Block table `[B, n]`, the slots of each sequence's tokens, and the number of blocks.

    Pages are shuffled; two blocks more than needed exist, and the table is one entry wider.
    """
    counts = [-(-length // page) for length in lengths]
    blocks = sum(counts) + 2
    order = make.permutation(blocks)
    table = torch.full((len(lengths), max(counts) + 1), NO_PAGE, dtype=torch.int32)
    table = table.to(make.device)
    slots, start = [], 0
    for b, (length, count) in enumerate(zip(lengths, counts, strict=True)):
        table[b, :count] = order[start : start + count]
        start += count
        position = torch.arange(length, device=make.device)
        slots.append(table[b, position // page].long() * page + position % page)
    return table, slots, blocks


def _decode(
    heads: int,
    lengths: Sequence[int],
    *,
    q_len: int = 1,
    page: int = 64,
    width: int = 576,
    fp8_cache: bool = False,
    fp8_q: bool = False,
) -> Inputs:
    def inputs(make: Maker) -> Mapping[str, Any]:
        table, slots, blocks = paged_slots(make, lengths, page)
        cache = torch.full((blocks * page, width), torch.nan, device=make.device)
        for rows in slots:
            cache[rows] = small(make, len(rows), width, dtype=torch.float32)
        q = small(make, len(lengths), q_len, heads, width, dtype=torch.float32)
        # FP8 holds values near 1 best; the factors bring them back to 0.1.
        cache_dtype = make.fp8 if fp8_cache else torch.bfloat16
        q_dtype = make.fp8 if fp8_q else torch.bfloat16
        return {
            "q": (q * (10 if fp8_q else 1)).to(q_dtype),
            "kv_cache": (cache * (10 if fp8_cache else 1)).to(cache_dtype).view(blocks, page, -1),
            "block_table": table,
            "cache_seqlens": make.tensor(lengths),
            "softmax_scale": DEEPSEEK_SCALE,
            "q_descale": 0.1 if fp8_q else None,
            "kv_descale": torch.full((1,), 0.1, device=make.device) if fp8_cache else None,
            "return_lse": True,
        }

    return inputs


def _ragged_decode(heads: int, lengths: Sequence[int], q_lens: Sequence[int], page: int) -> Inputs:
    uniform = _decode(heads, lengths, page=page)

    def inputs(make: Maker) -> Mapping[str, Any]:
        starts = [sum(q_lens[:b]) for b in range(len(q_lens) + 1)]
        ragged = {
            "q": small(make, starts[-1], heads, 576),
            "cu_seqlens_q": make.tensor(starts),
            "max_seqlen_q": max(q_lens),
        }
        return {**uniform(make), **ragged}

    return inputs


def _prefill(
    heads: int,
    q_lens: Sequence[int],
    k_lens: Sequence[int],
    widths: tuple[int, int],
    *,
    scale: float,
    causal: bool = True,
    fp8: bool = False,
) -> Inputs:
    def inputs(make: Maker) -> Mapping[str, Any]:
        d, dv = widths
        dtype = make.fp8 if fp8 else torch.bfloat16
        factor = 10 if fp8 else 1

        def rows(tokens: int, width: int) -> torch.Tensor:
            return (small(make, tokens, heads, width, dtype=torch.float32) * factor).to(dtype)

        descale = {f"{name}_descale": 0.1 for name in "qkv"} if fp8 else {}
        return {
            "q": rows(sum(q_lens), d),
            "k": rows(sum(k_lens), d),
            # V is the second half of each head of one projection [k_nope | v].
            "v": rows(sum(k_lens), 2 * dv)[..., dv:],
            "cu_seqlens_q": make.tensor([sum(q_lens[:b]) for b in range(len(q_lens) + 1)]),
            "cu_seqlens_k": make.tensor([sum(k_lens[:b]) for b in range(len(k_lens) + 1)]),
            "max_seqlen_q": max(q_lens),
            "max_seqlen_k": max(k_lens),
            "softmax_scale": scale,
            "causal": causal,
            "return_lse": True,
            **descale,
        }

    return inputs


def _merge(tokens: int, heads: int, width: int) -> Inputs:
    def inputs(make: Maker) -> Mapping[str, Any]:
        outs = [small(make, tokens, heads, width) for _ in range(2)]
        lses = [make.randn(tokens, heads, dtype=torch.float32) * 4 for _ in range(2)]
        # Rows 0..2 lack a prefix, rows 2..4 a suffix; what was never computed was never written.
        outs[0][:3], lses[0][:3] = torch.nan, -torch.inf
        outs[1][2:5], lses[1][2:5] = torch.nan, torch.inf
        return {"out_a": outs[0], "lse_a": lses[0], "out_b": outs[1], "lse_b": lses[1]}

    return inputs


CASES = (
    Case(
        "mla_decode",
        "DeepSeek-V3 TP8",
        "B=4, kv 0 and 1000-2048, H=16, page 64, bf16",
        _decode(16, (2048, 1000, 1217, 0)),
    ),
    Case(
        "mla_decode",
        "DeepSeek-V3 TP1, MTP verify",
        "B=2, q_len=4, kv 577 and 777, H=128, page 64, bf16",
        _decode(128, (777, 577), q_len=4),
    ),
    Case(
        "mla_decode",
        "DeepSeek-V3 TP8, first tokens",
        "B=6, q_len=4, kv 0-7, H=16, page 64, bf16: rows without keys",
        _decode(16, (0, 1, 2, 3, 4, 7), q_len=4),
    ),
    Case(
        "mla_decode",
        "Kimi-K2.5 TP8",
        "B=4, kv 800-1500, H=8, page 1, bf16",
        _decode(8, (1500, 1023, 800, 1111), page=1),
    ),
    Case(
        "mla_decode",
        "Kimi-Linear-48B TP1",
        "B=3, ragged q_len 1, 0, 3, kv 333-900, H=32, page 16, bf16",
        _ragged_decode(32, (900, 500, 333), (1, 0, 3), page=16),
    ),
    Case(
        "mla_decode",
        "DeepSeek-V3 TP8 FP8",
        "B=4, kv 0 and 705-1500, H=16, page 64, fp8 q and cache",
        _decode(16, (1500, 1000, 705, 0), fp8_cache=True, fp8_q=True),
    ),
    Case(
        "mla_decode",
        "DeepSeek-V3 TP1 FP8 cache",
        "B=2, kv 500 and 1024, H=128, page 64, bf16 q, fp8 cache",
        _decode(128, (500, 1024), fp8_cache=True),
    ),
    Case(
        "mla_decode",
        "NoPE MLA",
        "B=3, kv 641-1200, H=64, d=512, page 32, bf16",
        _decode(64, (1200, 1023, 641), page=32, width=512),
    ),
    Case(
        "mla_prefill",
        "DeepSeek-V3 TP8",
        "q 256, 0, 77 over kv 800, 40, 700, H=16, 192/128, bf16",
        _prefill(16, (256, 0, 77), (800, 40, 700), (192, 128), scale=DEEPSEEK_SCALE),
    ),
    Case(
        "mla_prefill",
        "GLM-5 TP8",
        "q 200 and 60 over kv 200 and 50, H=8, 256/256, bf16",
        _prefill(8, (200, 60), (200, 50), (256, 256), scale=GLM_SCALE),
    ),
    Case(
        "mla_prefill",
        "Kimi-K2.5 TP8, prefix chunk",
        "q 128 and 33 over kv 0 and 512, H=8, 192/128, fp8, not causal",
        _prefill(8, (128, 33), (0, 512), (192, 128), scale=DEEPSEEK_SCALE, causal=False, fp8=True),
    ),
    Case(
        "merge_attn_states",
        "DeepSeek-V3 TP8",
        "T=512, H=16, dv=128, bf16, empty parts",
        _merge(512, 16, 128),
    ),
    Case(
        "merge_attn_states",
        "GLM-5 TP8",
        "T=256, H=8, dv=256, bf16, empty parts",
        _merge(256, 8, 256),
    ),
)
