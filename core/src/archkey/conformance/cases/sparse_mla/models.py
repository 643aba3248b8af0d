# SPDX-License-Identifier: Apache-2.0
"""Sparse MLA at the heads and top-k of DeepSeek-V3.2, GLM-5 and DeepSeek-V4.

Scales of packed caches are arbitrary float32 numbers wherever the format allows it: with powers
of two a kernel that rounds scales passes unseen (sglang#22723). Bytes of slots that nobody names,
slot 0 among them, decode to NaN. Lists hold -1, numbers far outside the cache, and duplicates.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from archkey.conformance.case import Case, Maker
from archkey.conformance.cases.mla.models import DEEPSEEK_SCALE, GLM_SCALE, paged_slots, small
from archkey.formats.sparse_kv import empty_cache, packed, store

__all__ = ["CASES"]

Inputs = Callable[[Maker], Mapping[str, Any]]

_INVALID = (-1, -123456, -(2**31), 2**31 - 1)


def _flavoured(make: Maker, kv_format: str) -> str:
    """The format's name for the device's FP8 flavour."""
    fnuz = kv_format != "bf16" and make.fp8 == torch.float8_e4m3fnuz
    return kv_format + "_fnuz" if fnuz else kv_format


def _latents(make: Maker, n: int, nope: int, rope: int) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Rows whose tiles differ in size by a factor of up to 20, so that their scales differ too."""
    size = torch.exp(3 * make.rand(n, nope // 64, 1))
    latent = small(make, n, nope // 64, 64, dtype=torch.float32) * size
    return latent.flatten(1).bfloat16(), small(make, n, rope) if rope else None


def _pool(make: Maker, kv_format: str, width: int, blocks: int, page: int) -> torch.Tensor:
    """A cache whose slots are filled but for slot 0 and the last block: those are NaN."""
    slots = torch.arange(1, (blocks - 1) * page, device=make.device)
    if kv_format == "bf16":
        cache = torch.full((blocks * page, width), torch.nan, device=make.device).bfloat16()
        cache[slots] = small(make, len(slots), width)
        return cache.view(blocks, page, width)
    layout = packed(kv_format)
    cache = empty_cache(layout, blocks, page, device=make.device).fill_(0xFF)
    rows = _latents(make, len(slots), layout.nope_dim, layout.rope_dim)
    store(cache, slots, *rows, layout, "pow2" if layout.planar else "fp32")
    return cache


def _lists(make: Maker, rows: int, k: int, blocks: int, page: int) -> torch.Tensor:
    """Index lists `[rows, k]`: random filled slots with duplicates, an invalid tail in each row.

    The tails take up to half of a row; row 0 has no valid entry at all.
    """
    indices = make.randint(1, (blocks - 1) * page, rows, k)
    column = torch.arange(k, device=make.device)
    tail = column >= k - make.randint(1, k // 2, rows, 1)
    tail[0] = True
    invalid = make.tensor((*_INVALID, blocks * page))
    return torch.where(tail, invalid[column % len(invalid)], indices)


def _prefill(
    heads: int, rows: int, k: int, kv_format: str = "bf16", *, scale: float, sink: bool = False
) -> Inputs:
    def inputs(make: Maker) -> Mapping[str, Any]:
        blocks, page = (66, 64) if kv_format != "bf16" else (4097, 1)
        name = _flavoured(make, kv_format)
        pool = _pool(make, name, 576, blocks, page)
        return {
            "q": small(make, rows, heads, 576),
            "kv": pool.unsqueeze(2) if page > 1 else pool,
            "indices": _lists(make, rows, k, blocks, page),
            "softmax_scale": scale,
            "topk_length": make.randint(k // 2, k + 1, rows),
            "attn_sink": _sinks(make, heads) if sink else None,
            "kv_format": name,
            "return_lse": True,
        }

    return inputs


def _sinks(make: Maker, heads: int) -> torch.Tensor:
    """One finite sink a head, but one of -inf and one of +inf."""
    sinks = make.randn(heads, dtype=torch.float32)
    sinks[0], sinks[1] = -torch.inf, torch.inf
    return sinks


def _decode(
    heads: int,
    batch: int,
    k: int,
    kv_format: str,
    *,
    width: int = 576,
    q_len: int = 1,
    page: int = 64,
    scale: float = DEEPSEEK_SCALE,
) -> Inputs:
    def inputs(make: Maker) -> Mapping[str, Any]:
        blocks = 2 + 4096 // page
        name = _flavoured(make, kv_format)
        return {
            "q": small(make, batch, q_len, heads, width),
            "kv_cache": _pool(make, name, width, blocks, page),
            "indices": _lists(make, batch * q_len, k, blocks, page).view(batch, q_len, k),
            "softmax_scale": scale,
            "kv_format": name,
            "return_lse": True,
        }

    return inputs


def _windowed(heads: int, batch: int, window: int, k: int) -> Inputs:
    """DeepSeek-V4: the window's cache first, the compressed keys' cache as the extra one."""
    nearby = _decode(heads, batch, window, "fp8_model1", width=512)

    def inputs(make: Maker) -> Mapping[str, Any]:
        base = nearby(make)
        return {
            **base,
            "topk_length": make.randint(window // 2, window + 1, batch),
            "attn_sink": _sinks(make, heads),
            "extra_kv_cache": _pool(make, base["kv_format"], 512, 34, 32),
            "extra_indices": _lists(make, batch, k, 34, 32).view(batch, 1, k),
            "extra_topk_length": make.randint(k // 2, k + 1, batch),
        }

    return inputs


def _quantize(tokens: int, kv_format: str, scale_mode: str, blocks: int, page: int) -> Inputs:
    def inputs(make: Maker) -> Mapping[str, Any]:
        name = _flavoured(make, kv_format)
        layout = packed(name)
        k_nope, k_rope = _latents(make, tokens, layout.nope_dim, layout.rope_dim)
        k_nope[0] = 0
        slots = make.permutation(blocks * page, dtype=torch.int64)[:tokens]
        slots[1] = -1  # padding of a captured graph
        return {
            "k_nope": k_nope,
            "k_rope": k_rope,
            "format": name,
            "scale_mode": scale_mode,
            "out": empty_cache(layout, blocks, page, device=make.device).fill_(0xFF),
            "slot_mapping": slots,
        }

    return inputs


def _dequantize(tokens: int, kv_format: str, blocks: int, page: int) -> Inputs:
    def inputs(make: Maker) -> Mapping[str, Any]:
        name = _flavoured(make, kv_format)
        slots = make.randint(1, (blocks - 1) * page, tokens)
        slots[0] = -1
        return {
            "kv_cache": _pool(make, name, 0, blocks, page),
            "format": name,
            "slot_mapping": slots,
        }

    return inputs


def _physical(batch: int, k: int, page: int) -> Inputs:
    def inputs(make: Maker) -> Mapping[str, Any]:
        table, _, _ = paged_slots(make, [4096 - 700 * b for b in range(batch)], page)
        indices = make.randint(-1, table.shape[1] * page + 5, batch, 2, k)
        return {"indices": indices, "block_table": table, "page_size": page}

    return inputs


CASES = (
    Case(
        "sparse_mla_prefill",
        "DeepSeek-V3.2 TP8",
        "T=12, S=4097, k=2048, H=16, bf16",
        _prefill(16, 12, 2048, scale=DEEPSEEK_SCALE),
    ),
    Case(
        "sparse_mla_prefill",
        "DeepSeek-V3.2 TP1",
        "T=4, S=4097, k=2048, H=128, bf16, sinks",
        _prefill(128, 4, 2048, scale=DEEPSEEK_SCALE, sink=True),
    ),
    Case(
        "sparse_mla_prefill",
        "GLM-5 TP8",
        "T=8, k=2048, H=8, fp8_v32, page 64",
        _prefill(8, 8, 2048, "fp8_v32", scale=GLM_SCALE),
    ),
    Case(
        "sparse_mla_decode",
        "DeepSeek-V3.2 TP1, MTP",
        "B=2, q_len=2, k=2048, H=128, fp8_v32, page 64",
        _decode(128, 2, 2048, "fp8_v32", q_len=2),
    ),
    Case(
        "sparse_mla_decode",
        "DeepSeek-V3.2 TP8",
        "B=6, k=2048, H=16, fp8_v32, page 64",
        _decode(16, 6, 2048, "fp8_v32"),
    ),
    Case(
        "sparse_mla_decode",
        "GLM-5 TP1",
        "B=4, k=2048, H=64, fp8_v32, page 64",
        _decode(64, 4, 2048, "fp8_v32", scale=GLM_SCALE),
    ),
    Case(
        "sparse_mla_decode",
        "GLM-5 TP8",
        "B=6, k=2048, H=8, bf16, page 1",
        _decode(8, 6, 2048, "bf16", page=1, scale=GLM_SCALE),
    ),
    Case(
        "sparse_mla_decode",
        "NoPE MLA",
        "B=4, k=2000, H=64, d=512, fp8_v32_nope, page 64",
        _decode(64, 4, 2000, "fp8_v32_nope", width=512),
    ),
    Case(
        "sparse_mla_decode",
        "DeepSeek-V4",
        "B=4, k=128 + 512, H=64, d=512, fp8_model1, pages 64 and 32, sinks",
        _windowed(64, 4, 128, 512),
    ),
    Case(
        "quantize_sparse_kv",
        "DeepSeek-V3.2",
        "T=1024, fp8_v32, fp32 scales, page 64",
        _quantize(1024, "fp8_v32", "fp32", 20, 64),
    ),
    Case(
        "quantize_sparse_kv",
        "DeepSeek-V4",
        "T=1024, fp8_model1, pow2 scales, page 64",
        _quantize(1024, "fp8_model1", "pow2", 20, 64),
    ),
    Case(
        "dequantize_sparse_kv",
        "DeepSeek-V3.2",
        "T=2048, fp8_v32, page 64",
        _dequantize(2048, "fp8_v32", 34, 64),
    ),
    Case(
        "logical_to_physical_indices",
        "DeepSeek-V3.2",
        "B=4, q_len=2, k=2048, page 64",
        _physical(4, 2048, 64),
    ),
)
