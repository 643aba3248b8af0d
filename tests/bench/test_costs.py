# SPDX-License-Identifier: Apache-2.0
"""Costs of workloads, against numbers worked out by hand. Tensors that only count are `meta`."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from archkey.bench.workload import Cost, cost_of
from archkey.ops import OPERATORS

BF16, F32, FP8, U8 = torch.bfloat16, torch.float32, torch.float8_e4m3fn, torch.uint8


def room(*shape: int, dtype: torch.dtype = BF16) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def ints(*values: Any, dtype: torch.dtype = torch.int32) -> torch.Tensor:
    return torch.tensor(values, dtype=dtype)


def cost(operator: str, **inputs: Any) -> Cost:
    return cost_of(OPERATORS[operator], inputs)


# ---- MLA


@pytest.mark.parametrize(
    ("q_len", "pairs_of_one"), [(1, 8192), (2, 8191 + 8192)], ids=["one query", "two"]
)
def test_mla_decode(q_len: int, pairs_of_one: int) -> None:
    found = cost(
        "mla_decode",
        q=room(128, q_len, 128, 576),
        kv_cache=room(16400, 64, 576),
        cache_seqlens=torch.full((128,), 8192),
    )
    queries = 128 * q_len * 128
    assert found.flops == 2 * 128 * pairs_of_one * 128 * 1088
    assert found.bytes == 128 * 8192 * 1152 + queries * 576 * 2 + queries * 512 * 2
    assert found.rate == "bfloat16"


def test_mla_decode_in_fp8_with_lse() -> None:
    found = cost(
        "mla_decode",
        q=room(2, 1, 16, 576, dtype=FP8),
        kv_cache=room(9, 64, 1, 576, dtype=FP8),
        cache_seqlens=ints(100, 50),
        return_lse=True,
    )
    assert found == Cost(
        2 * 150 * 16 * 1088, 150 * 576 + 32 * 576 + 32 * 512 * 2 + 32 * 4, "float8"
    )


def test_mla_decode_of_a_ragged_batch_with_a_window() -> None:
    found = cost(
        "mla_decode",
        q=room(3, 8, 576),
        kv_cache=room(9, 64, 576, dtype=FP8),
        cache_seqlens=ints(100, 5, 7),
        cu_seqlens_q=ints(0, 1, 1, 3),
        window_left=3,
    )
    # Four keys of the first; the second has no query; of the third keys 2 .. 5 and 3 .. 6.
    assert found.flops == 2 * (4 + 8) * 8 * 1088
    assert found.bytes == (4 + 5) * 576 + 3 * 8 * (576 + 512) * 2
    assert found.rate == "bfloat16"


def test_mla_prefill() -> None:
    tokens, heads = 4096, 16
    found = cost(
        "mla_prefill",
        q=room(tokens, heads, 192),
        k=room(tokens, heads, 192),
        v=room(tokens, heads, 128),
        cu_seqlens_q=ints(0, tokens),
        cu_seqlens_k=ints(0, tokens),
    )
    assert found.flops == heads * tokens * (tokens + 1) * 320  # half of the square, and diagonal
    assert found.bytes == tokens * heads * (192 + 192 + 128 + 128) * 2


def test_mla_prefill_of_a_prefix() -> None:
    found = cost(
        "mla_prefill",
        q=room(5, 2, 192),
        k=room(30, 2, 192),
        v=room(30, 2, 128),
        cu_seqlens_q=ints(0, 3, 3, 5),
        cu_seqlens_k=ints(0, 10, 20, 30),
        causal=False,
        return_lse=True,
    )
    assert found.flops == 2 * (30 + 20) * 2 * 320
    assert found.bytes == 5 * 2 * (192 + 128) * 2 + 20 * 2 * 320 * 2 + 5 * 2 * 4


def test_merge_attn_states() -> None:
    parts = {"out_a": room(3, 2, 128), "out_b": room(3, 2, 128)}
    lse = {"lse_a": room(3, 2, dtype=F32), "lse_b": room(3, 2, dtype=F32)}
    assert cost("merge_attn_states", **parts, **lse) == Cost(0, 3 * (3 * 2 * 256 + 3 * 2 * 4))


# ---- sparse MLA


def test_sparse_mla_decode() -> None:
    call: dict[str, Any] = {
        "q": room(2, 1, 64, 576),
        "kv_cache": room(2, 4, 656, dtype=U8),
        "indices": ints([[0, 5, -1, 5]], [[5, 7, 9, 2]]),
    }
    found = cost("sparse_mla_decode", **call)
    # Six entries are slots of the cache, four of them different.
    assert found.flops == 2 * 6 * 64 * 1088
    assert found.bytes == 4 * 656 + 6 * 4 + 128 * (576 + 512) * 2
    assert found.rate == "bfloat16"
    shorter = cost("sparse_mla_decode", **call, topk_length=ints(2, 1), return_lse=True)
    assert shorter.flops == 2 * 3 * 64 * 1088
    assert shorter.bytes == 2 * 656 + 3 * 4 + 128 * (576 + 512) * 2 + 128 * 4


def test_sparse_mla_decode_over_two_caches() -> None:
    found = cost(
        "sparse_mla_decode",
        q=room(1, 1, 64, 512),
        kv_cache=room(1, 4, 584, dtype=U8),
        indices=ints([[0, 1]]),
        extra_kv_cache=room(3, 2, 584, dtype=U8),
        extra_indices=ints([[5, 5, 4]]),
        extra_topk_length=ints(2),
    )
    assert found == Cost(2 * 4 * 64 * 1024, (2 + 1) * 584 + 4 * 4 + 64 * 1024 * 2)


def test_sparse_mla_prefill() -> None:
    found = cost(
        "sparse_mla_prefill",
        q=room(2, 128, 576),
        kv=room(8, 576),
        indices=ints([1, 2, 3], [3, -1, 8]),
        return_lse=True,
    )
    rows = 2 * 128
    assert found == Cost(2 * 4 * 128 * 1088, 3 * 1152 + 4 * 4 + rows * 1088 * 2 + 2 * rows * 4)


def test_quantize_and_dequantize_sparse_kv() -> None:
    cache = room(1, 8, 656, dtype=U8)
    rows = {"k_nope": room(3, 512), "k_rope": room(3, 64), "out": cache, "format": "fp8_v32"}
    kept = ints(0, -1, 5, dtype=torch.int64)
    found = cost("quantize_sparse_kv", **rows, slot_mapping=kept)
    assert found == Cost(0, 3 * 8 + 2 * (1024 + 128 + 656))
    found = cost(
        "dequantize_sparse_kv", kv_cache=cache, format="fp8_v32", slot_mapping=ints(1, 1, 3)
    )
    assert found == Cost(0, 2 * 656 + 3 * 4 + 3 * 1152)


def test_logical_to_physical_indices() -> None:
    found = cost(
        "logical_to_physical_indices",
        indices=ints([[0, 3, 4]], [[15, -1, 16]]),
        block_table=ints([0, 1, 2, 3], [4, 5, 6, 7]),
        page_size=4,
    )
    assert found == Cost(0, 2 * 6 * 4 + 3 * 4)


# ---- norms


def test_rmsnorm() -> None:
    x = room(16384, 7168)
    assert cost("rmsnorm", x=x, weight=room(7168)) == Cost(0, 2 * 16384 * 14336 + 14336)
    found = cost("fused_add_rmsnorm", x=x, residual=room(16384, 7168, dtype=F32), weight=room(7168))
    assert found == Cost(0, 2 * 16384 * (14336 + 28672) + 14336)


def test_latents_count_without_the_rest_of_their_row() -> None:
    q, k, _ = room(64, 2112).split([1536, 512, 64], dim=1)
    weights = {"q_weight": room(1536), "k_weight": room(512)}
    assert cost("fused_qk_rmsnorm", q=q, k=k, **weights) == Cost(0, 2 * 64 * 4096 + 4096)
    alone = cost("fused_qk_rmsnorm", q=None, q_weight=None, k=k, k_weight=room(512))
    assert alone == Cost(0, 2 * 64 * 1024 + 1024)


@pytest.mark.parametrize(
    ("quant", "written"),
    [
        ("fp8_token", 7168 + 4),
        ("fp8_group", 7168 + 56 * 4),
        ("mxfp4", 3584 + 224),
        ("nvfp4", 3584 + 448),
    ],
)
def test_rmsnorm_quant(quant: str, written: int) -> None:
    found = cost("rmsnorm_quant", x=room(10, 7168), weight=room(7168), quant=quant)
    assert found == Cost(0, 10 * 14336 + 14336 + 10 * written)


def test_rmsnorm_quant_with_all_that_goes_along() -> None:
    found = cost(
        "rmsnorm_quant",
        x=room(10, 128),
        weight=room(128),
        quant="fp8_tensor",
        scale=room(1, dtype=F32),
        residual=room(10, 128),
        unquantized_out=room(10, 128, dtype=F32),
        x2=room(10, 64),
        x2_weight=room(64),
    )
    rows_in, rows_out = 256 + 256 + 128, 128 + 256 + 512 + 128
    assert found == Cost(0, 10 * (rows_in + rows_out) + 256 + 128 + 4)


# ---- linear


def test_mxfp4_linear() -> None:
    call = {"weight": room(24, 48, dtype=U8), "weight_scale": room(24, 3, dtype=U8)}
    read = 24 * 48 + 24 * 3
    found = cost("mxfp4_linear", x=room(2, 5, 96), **call, bias=room(24))
    assert found == Cost(2 * 10 * 24 * 96, read + 10 * (96 + 24) * 2 + 48, "bfloat16")
    found = cost("mxfp4_linear", x=room(10, 96, dtype=F32), **call, out_dtype=BF16)
    assert found.bytes == read + 10 * (96 * 4 + 24 * 2)
    packed = {"x": room(10, 48, dtype=U8), "x_scale": room(10, 3, dtype=U8)}
    found = cost("mxfp4_linear", **packed, **call)
    assert found == Cost(2 * 10 * 24 * 96, read + 10 * (48 + 3 + 24 * 2), "float8")
    assert cost("mxfp4_linear", **packed, **call, out=room(10, 24, dtype=F32)).bytes == (
        read + 10 * (48 + 3 + 24 * 4)
    )


# ---- attention


def attention(window_left: int = -1, **more: Any) -> Cost:
    """Two queries at the end of four keys, and one at the end of three; two heads on one."""
    return cost(
        "unified_attention",
        q=room(3, 2, 128),
        k=room(4, 16, 1, 128),
        v=room(4, 16, 1, 128),
        out=room(3, 2, 128),
        cu_seqlens_q=ints(0, 2, 3),
        seqused_k=ints(4, 3),
        causal=True,
        window_size=(window_left, 0),
        **more,
    )


def test_unified_attention() -> None:
    ends = 3 * 2 * 256 * 2
    assert attention() == Cost(4 * (3 + 4 + 3) * 2 * 128, 7 * 256 * 2 + ends)
    # Of the first sequence keys 1 .. 3 are seen, two a query; of the second the last two.
    assert attention(1) == Cost(4 * (2 + 2 + 2) * 2 * 128, 5 * 256 * 2 + ends)
    assert attention(lse=room(3, 2, dtype=F32)).bytes == 7 * 256 * 2 + ends + 3 * 2 * 4


def test_unified_attention_with_heads_before_tokens() -> None:
    found = cost(
        "unified_attention",
        q=room(1, 16, 64),
        k=room(9, 8, 16, 64, dtype=FP8),
        v=room(9, 8, 16, 64, dtype=FP8),
        out=room(1, 16, 64),
        cu_seqlens_q=ints(0, 1),
        seqused_k=ints(20),
        causal=True,
        window_size=(-1, -1),
        kv_layout="HND",
    )
    assert found == Cost(4 * 20 * 16 * 64, 20 * 8 * 128 + 2 * 16 * 64 * 2)


def test_page_tables() -> None:
    call: dict[str, Any] = {
        "kv_indices": room(26, dtype=torch.int64),
        "kv_indptr": ints(0, 17, 26),
        "page_table": room(4, 10, dtype=torch.int32),
        "page_size": 16,
    }
    name, three = "ragged_kv_indices_to_page_table", 3 * 8  # 17 and 9 tokens: three pages
    assert cost(name, **call, fill_tail=True) == Cost(0, 3 * 4 + three + 2 * 10 * 4)
    assert cost(name, **call, fill_tail=False) == Cost(0, 3 * 4 + three + 3 * 4)
    window = {"swa_page_table": call["page_table"], "full_to_swa": room(64, dtype=torch.int64)}
    both = cost(name, **call, **window, fill_tail=True)
    assert both == Cost(0, 3 * 4 + three + three + 2 * 2 * 10 * 4)
    found = cost(
        "req_to_token_to_page_table",
        req_to_token=room(9, 100, dtype=torch.int32),
        req_pool_indices=ints(3, 5),
        seq_lens=ints(14, 5, dtype=torch.int64),
        page_table=call["page_table"],
        page_size=16,
        num_draft_tokens=4,
        fill_tail=True,
    )
    assert found == Cost(0, 2 * 4 + 2 * 8 + 3 * 4 + 2 * 10 * 4)


# ---- KDA


def tokens(count: int, heads: int) -> dict[str, torch.Tensor]:
    rows = {name: room(1, count, heads, 128) for name in ("q", "k", "v", "g")}
    return {**rows, "beta": room(1, count, heads)}


STATE = 128 * 128


def test_chunk_kda() -> None:
    call = {
        **tokens(8192, 32),
        "cu_seqlens": ints(0, 8000, 8192),
        "initial_state": room(2, 32, 128, 128, dtype=F32),
    }
    found = cost("chunk_kda", **call, output_final_state=True)
    assert found.flops == 8192 * 32 * (6 * 128**2 + 2 * 64 * 5 * 128)
    assert found.bytes == 8192 * 32 * 1282 + 2 * 32 * 2 * STATE * 4
    once = cost("chunk_kda", **call)
    assert found.bytes - once.bytes == 2 * 32 * STATE * 4  # nobody asked for the last states


def test_fused_recurrent_kda() -> None:
    call = {
        **tokens(4, 3),
        "cu_seqlens": ints(0, 2, 4),
        "initial_state": room(9, 3, 128, 128),
        "inplace_final_state": True,
    }
    one, row = 3 * STATE * 2, 4 * 3 * 1282
    found = cost("fused_recurrent_kda", **call, ssm_state_indices=ints(4, 2))
    assert found == Cost(4 * 6 * 3 * STATE, row + 2 * one + 2 * one)
    each = cost("fused_recurrent_kda", **call, ssm_state_indices=ints([0, 1], [2, -1]))
    assert each.bytes == row + 2 * one + 3 * one


def test_kda_packed_decode() -> None:
    found = cost(
        "kda_packed_decode",
        mixed_qkv=room(2, 384),
        a=room(2, 128),
        b=room(2, 1),
        out=room(2, 1, 1, 128),
        initial_state=room(5, 1, 128, 128, dtype=F32),
        ssm_state_indices=ints(3, -1),
    )
    assert found == Cost(6 * STATE, 2 * (384 + 128 + 1 + 128) * 2 + 2 * STATE * 4)


@pytest.mark.parametrize("operator", ["kda_gate", "kda_gate_chunk_cumsum"])
def test_kda_gates(operator: str) -> None:
    call = {"g": room(1, 10, 2, 128), "A_log": room(2, dtype=F32)}
    bias = room(256, dtype=F32)
    assert cost(operator, **call, dt_bias=bias) == Cost(0, 2560 * (2 + 4) + 8 + 1024)
    assert cost(operator, **call, output_dtype=BF16) == Cost(0, 2560 * (2 + 2) + 8)
