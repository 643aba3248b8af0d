# SPDX-License-Identifier: Apache-2.0
"""Calls of the sample: sizes of real models and times of the size that an H200 takes.

Numbers to draw a page with, not results: nobody measured archkey's here.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

FA3, TRITON, OPS = "vllm:fa3", "vllm:triton", "vllm:ops"
FI2, FI3 = "flashinfer:fa2", "flashinfer:fa3"


class Row(NamedTuple):
    """One call; times in us by entrant, `ours` among them as "archkey"."""

    operator: str
    model: str
    tp: int
    sizes: str
    about: str
    flops: float
    bytes: float
    times: dict[str, float]


def rows() -> Iterator[Row]:
    yield from _mla()
    yield from _sparse()
    yield from _norms()
    yield from _attention()
    yield from _kda()


def _mla() -> Iterator[Row]:
    table = (
        (128, 1, 1, 42.7, 26.2, 27.0, 65.9, 49.3, 21.4),
        (128, 16, 8, 87.5, 79.2, 79.8, 602, 654, 77.0),
        (128, 128, 8, 511, 530, 538, 4987, 4299, 561),
        (128, 128, 32, 1934, 2099, 2196, 19415, 17553, 2180),
        (64, 64, 8, 186, 174, 170, 1263, 1043, 171),
        (16, 1, 32, 66.2, 34.5, 53.0, 86.8, 130, 38.1),
        (16, 128, 8, 325, 299, 312, 768, 775, 294),
        (16, 128, 32, 1173, 1118, 1253, 2747, 2971, 1109),
    )
    for h, b, kv, mla, fa3, fi, triton, sglang, ours in table:
        tokens = b * kv * 1024
        times = {"flashmla": mla, FA3: fa3, FI3: fi, TRITON: triton, "sglang": sglang}
        yield Row(
            "mla_decode", "DeepSeek-V3", 128 // h, f"b{b} kv{kv}k", "page 64",
            2.0 * h * tokens * 1088, tokens * 1152 + b * h * 2176, {**times, "archkey": ours},
        )  # fmt: skip
    for h, t, fa3, fi, ours in (
        (16, 4, 137, 158, 4210),
        (16, 16, 1944, 1998, 61000),
        (128, 8, 4024, 4307, 135000),
    ):
        n = t * 1024
        yield Row(
            "mla_prefill", "DeepSeek-V3", 128 // h, f"T{t}k", "causal",
            320.0 * h * n * n, n * h * 1280, {FA3: fa3, FI3: fi, "archkey": ours},
        )  # fmt: skip
    for b, fi, ours in ((128, 12.1, 11.8), (4096, 214, 198)):
        size = b * 16 * (3 * 1024 + 12)
        yield Row(
            "merge_attn_states", "DeepSeek-V3", 1, f"T{b}", "two states", 0, size,
            {FI2: fi, OPS: fi * 1.1, "archkey": ours},
        )  # fmt: skip


def _sparse() -> Iterator[Row]:
    table = ((128, 1, 23.1, 18.3, 19.9), (128, 64, 111, 651, 98), (64, 64, 80.8, None, 61))
    for h, b, mla, sglang, ours in (*table, (64, 128, 121, None, 118)):
        times = {"flashmla": mla, "archkey": ours} | ({"sglang": sglang} if sglang else {})
        flops, size = 2.0 * b * h * 2048 * 1088, b * 2048 * 656
        sizes = f"b{b} topk 2048"
        yield Row("sparse_mla_decode", "DeepSeek-V3.2", 128 // h, sizes, "fp8", flops, size, times)
    for h, kv, mla, sglang, ours in ((128, 8, 4190, 35477, 4302), (64, 32, 2321, 5058, 2240)):
        yield Row(
            "sparse_mla_prefill", "DeepSeek-V3.2", 128 // h, f"T4k kv{kv}k", "topk 2048",
            2.0 * 4096 * h * 2048 * 1088, kv * 1024 * 1152 + 4096 * h * 2176,
            {"flashmla": mla, "sglang": sglang, "archkey": ours},
        )  # fmt: skip
    for operator in ("quantize_sparse_kv", "dequantize_sparse_kv", "logical_to_physical_indices"):
        for tokens, peer in ((128, 3.4), (16384, 21.0)):
            yield Row(
                operator, "DeepSeek-V3.2", 1, f"T{tokens}", "", 0, tokens * 1808,
                {"sglang": peer, "archkey": peer * 0.97},
            )  # fmt: skip


def _norms() -> Iterator[Row]:
    for operator, width, table in (
        ("rmsnorm", 7168, ((64, 2.0, 2.5, 2.1), (16384, 181, 125, 113))),
        ("fused_add_rmsnorm", 14336, ((64, 2.5, 2.8, 2.4), (16384, 239, 232, 226))),
        ("fused_qk_rmsnorm", 2048, ((64, 3.2, 3.8, 2.2), (16384, 58.0, 47.8, 33.1))),
        ("rmsnorm_quant", 5376, ((64, 3.1, 5.0, 88), (16384, 169, 369, 4410))),
    ):
        for tokens, fi, ops, ours in table:
            yield Row(
                operator, "DeepSeek-V3", 8, f"T{tokens}", f"width {width}", 0, tokens * width * 4,
                {FI2: fi, OPS: ops, "archkey": ours},
            )  # fmt: skip


def _attention() -> Iterator[Row]:
    for b, kv, fa3, fi, triton, sglang, ours in (
        (128, 8, 975, 987, 1163, 1764, 969),
        (16, 8, 142, 144, 241, 302, 141),
        (1, 32, 54.4, 53.2, 180, 206, 41.0),
    ):
        tokens = b * kv * 1024
        yield Row(
            "unified_attention", "Llama-3-70B", 1, f"decode b{b} kv{kv}k", "page 16",
            4.0 * tokens * 8192, tokens * 4096,
            {FA3: fa3, FI2: fi, TRITON: triton, "sglang": sglang, "archkey": ours},
        )  # fmt: skip
    for sizes, flops, size, fa3, fi, triton, ours in (
        ("prefill 8 x 4k", 2.2e12, 1.2e9, 3891, 6372, 27806, 5330),
        ("mixed 4 x 2k + 124 x 8k", 1.6e12, 4.6e9, 2655, 4112, 11560, 2610),
    ):
        times = {FA3: fa3, FI2: fi, TRITON: triton, "archkey": ours}
        yield Row("unified_attention", "Llama-3-70B", 1, sizes, "page 16", flops, size, times)
    for operator in ("ragged_kv_indices_to_page_table", "req_to_token_to_page_table"):
        yield Row(operator, "Llama-3-70B", 1, "b128 kv8k", "page 16", 0, 9e6, {"archkey": 7.4})


def _kda() -> Iterator[Row]:
    for h, t, fla, flashkda, sglang, ours in (
        (4, 64, 2446, 6145, 2828, 671),
        (16, 8, 582, 878, 702, 402),
        (32, 8, 952, 977, 1045, 590),
        (32, 32, 3533, 1840, 3703, 1902),
    ):
        tokens = t * 1024 * h
        yield Row(
            "chunk_kda", "Kimi-Linear-48B", 32 // h, f"T{t}k", "head 128", tokens * 180224.0,
            tokens * 1282, {"fla": fla, "flashkda": flashkda, "sglang": sglang, "archkey": ours},
        )  # fmt: skip
    for operator in ("fused_recurrent_kda", "kda_packed_decode"):
        for b, fla, sglang in ((1, 4.5, 4.7), (32, 50.5, 43.0), (256, 374, 283)):
            work = b * 32 * 128 * 128
            yield Row(
                operator, "Kimi-Linear-48B", 1, f"b{b}", "fp32 state", work * 6.0, work * 8.0,
                {"fla": fla, "sglang": sglang, "archkey": min(fla, sglang) * 1.02},
            )  # fmt: skip
    for operator in ("kda_gate", "kda_gate_chunk_cumsum"):
        for t, fla in ((1, 8.8), (8, 61)):
            work = t * 1024 * 4096 * 6
            yield Row(
                operator,
                "Kimi-Linear-48B",
                1,
                f"T{t}k",
                "H32",
                0,
                work,
                {"fla": fla, "archkey": fla * 0.83},
            )
