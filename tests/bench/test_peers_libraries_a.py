# SPDX-License-Identifier: Apache-2.0
"""Adapters of libraries that are not here, over stand-ins that have their conventions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from types import ModuleType
from typing import Any

import pytest
import torch
from tests.bench import _attention_a as attention
from tests.bench import _calls as calls
from tests.bench import _libraries_a as norms
from tests.bench._calls import given, off
from tests.bench._libraries_a import libraries

from archkey.bench.entrant import NotServed

FP8_CACHE = replace(calls.RAGGED, cache="fp8", descales=(None, 0.5, 0.25), lse="")
FP8_LATENT = replace(calls.DECODE, cache="fp8", kv_descale=0.1, tensors="kv")
SINKS = replace(calls.ONE_EACH, sinks="bf16", lse="")


@pytest.fixture(scope="module")
def peers() -> Iterator[dict[str, Any]]:
    """The adapters of every library, by peer; "authors" is FlashAttention-3's own package."""
    operators = norms.vllm_operators()
    patch = pytest.MonkeyPatch()
    patch.setattr(torch.ops, "_C", operators, raising=False)
    liger = {
        "LigerRMSNormFunction": norms.Liger.Norm,
        "LigerFusedAddRMSNormFunction": norms.Liger.Add,
    }
    flashinfer = {
        "flashinfer.norm": norms.flashinfer_norms(),
        "flashinfer.cascade": {"merge_state": norms.merge_state},
        "flashinfer.mla": public(attention, "BatchMLAPagedAttentionWrapper", "MLAPlanMetadata"),
        "flashinfer.decode": public(attention, "BatchDecodeWithPagedKVCacheWrapper"),
        "flashinfer.prefill": public(
            attention, "BatchPrefillWithPagedKVCacheWrapper", "BatchPrefillWithRaggedKVCacheWrapper"
        ),
    }
    ops = "vllm.v1.attention.ops"
    vllm = {
        "vllm._C_stable_libtorch": {},
        f"{ops}.triton_decode_attention": public(attention, "decode_attention_fwd"),
        f"{ops}.triton_unified_attention": public(attention, "unified_attention", "KVQuantMode"),
    }
    schedule = public(attention, "get_scheduler_metadata")
    authors = public(attention, "flash_attn_varlen_func", "flash_attn_with_kvcache")
    copy = {"flash_attn_varlen_func": attention.flash_attn_varlen_func_of_vllm}
    worlds = {
        "liger": ("liger", {"liger_kernel.ops": liger}),
        "quack": ("quack", {"quack.rmsnorm": {"rmsnorm_fwd": norms.rmsnorm_fwd}}),
        "flashinfer": ("flashinfer", flashinfer),
        "vllm": ("vllm", vllm),
        "authors": ("fa3", {"flash_attn_interface": {**authors, **schedule}}),
        "fa3": ("fa3", {"vllm.vllm_flash_attn.flash_attn_interface": {**copy, **schedule}}),
    }
    found = {}
    for name, (module, modules) in worlds.items():
        with libraries(module, modules) as adapters:
            found[name] = adapters
    patch.setitem(found["vllm"].mla_decode.__globals__, "_processors", lambda device: 2)
    yield found
    patch.undo()


def public(module: ModuleType, *names: str) -> dict[str, Any]:
    return {name: getattr(module, name) for name in names}


FLASH = (
    ("unified_attention", calls.RAGGED),
    ("unified_attention", calls.WINDOW),
    ("unified_attention", calls.HND),
    ("mla_decode", calls.DECODE),
    ("mla_decode", calls.DECODE_RAGGED),
    ("mla_decode", replace(calls.DECODE, form="hnd", lse="")),
    ("mla_prefill", calls.PREFILL),
    ("mla_prefill", replace(calls.PREFILL, causal=False, lse="")),
)
ROUTES = (
    ("liger", "rmsnorm", calls.NORM),
    ("liger", "rmsnorm", calls.GEMMA),
    ("liger", "fused_add_rmsnorm", calls.ADD),
    ("quack", "rmsnorm", calls.GEMMA),
    ("quack", "fused_add_rmsnorm", calls.ADD),
    ("flashinfer", "rmsnorm", calls.NORM),
    ("flashinfer", "rmsnorm", calls.GEMMA),
    ("flashinfer", "fused_add_rmsnorm", calls.ADD),
    ("flashinfer", "fused_qk_rmsnorm", calls.QK),
    ("flashinfer", "fused_qk_rmsnorm", calls.K_ALONE),
    ("flashinfer", "rmsnorm_quant", calls.TENSOR),
    ("flashinfer", "rmsnorm_quant", calls.TENSOR_ADD),
    ("flashinfer", "merge_attn_states", calls.MERGE),
    ("flashinfer", "mla_decode_fa2", calls.DECODE),
    ("flashinfer", "mla_decode_fa3", calls.DECODE_RAGGED),
    ("flashinfer", "mla_decode_fa3", replace(calls.DECODE, form="nhd", lse="")),
    ("flashinfer", "mla_prefill_fa3", calls.PREFILL),
    ("flashinfer", "mla_prefill_fa3", replace(calls.PREFILL, causal=False, lse="")),
    ("flashinfer", "unified_attention_fa2", calls.RAGGED),
    ("flashinfer", "unified_attention_fa2", FP8_CACHE),
    ("flashinfer", "unified_attention_fa3", calls.WINDOW),
    ("flashinfer", "unified_attention_fa3", calls.HND),
    ("flashinfer", "unified_attention_decode", calls.ONE_EACH),
    *(("fa3", name, make) for name, make in FLASH),
    *(("authors", name, make) for name, make in FLASH),
    ("vllm", "rmsnorm", calls.NORM),
    ("vllm", "fused_add_rmsnorm", calls.ADD),
    ("vllm", "fused_qk_rmsnorm", calls.QK),
    ("vllm", "fused_qk_rmsnorm", calls.K_ALONE),
    *(
        ("vllm", "rmsnorm_quant", make)
        for make in (calls.TENSOR, calls.TENSOR_ADD, calls.TOKEN, calls.GROUP, calls.COLUMN)
    ),
    ("vllm", "merge_attn_states", calls.MERGE),
    ("vllm", "mla_decode", calls.DECODE),
    ("vllm", "mla_decode", FP8_LATENT),
    ("vllm", "unified_attention", replace(calls.RAGGED, lse="")),
    ("vllm", "unified_attention", calls.WINDOW),
    ("vllm", "unified_attention", calls.HND),
    ("vllm", "unified_attention", FP8_CACHE),
    ("vllm", "unified_attention", SINKS),
    ("vllm", "unified_attention", replace(calls.RAGGED, alibi="bf16", lse="")),
    ("vllm", "unified_attention", replace(calls.RAGGED, bias="fp32", lse="")),
)


@pytest.mark.parametrize(("peer", "function", "make"), ROUTES)
def test_computes_the_operator(peers: dict[str, Any], peer: str, function: str, make: Any) -> None:
    operator = function
    for label in ("_fa2", "_fa3", "_decode" if function.startswith("unified") else "_fa2"):
        operator = operator.removesuffix(label)
    off(operator, getattr(peers[peer], function), make)


def test_the_workspace_is_the_backends(peers: dict[str, Any]) -> None:
    assert "16 segments" in peers["vllm"].unified_attention(given(SINKS)).how
    assert not peers["vllm"].unified_attention(given(calls.WINDOW)).how
    long = replace(calls.DECODE, kv_lens=(1025,))  # two splits of 512, to a power of two
    assert "2 splits" in peers["vllm"].mla_decode(given(long)).how
    much = replace(calls.DECODE, kv_lens=(9000,))  # no more than twice the processors
    assert "4 splits" in peers["vllm"].mla_decode(given(much)).how


LATE = {"cast_before_weight": True}
REFUSED = (
    ("liger", "rmsnorm", calls.NORM, {"x": torch.zeros(5, 512).bfloat16()[:, :256]}, "contiguous"),
    ("liger", "fused_add_rmsnorm", calls.ADD, {"residual": torch.zeros(5, 256)}, "of float32"),
    ("quack", "rmsnorm", calls.NORM, LATE, "cast_before_weight"),
    ("flashinfer", "rmsnorm", calls.NORM, LATE, "cast_before_weight"),
    ("flashinfer", "rmsnorm", calls.NORM, {"weight_bias": 0.5}, "weight_bias of 0.5"),
    ("flashinfer", "rmsnorm_quant", calls.TOKEN, {}, "a static scale only"),
    ("flashinfer", "rmsnorm_quant", replace(calls.TENSOR, y="bf16"), {}, "unquantized_out"),
    ("flashinfer", "mla_decode_fa3", calls.DECODE, {"window_left": 3}, "window_left = 3"),
    ("flashinfer", "mla_decode_fa3", calls.DECODE, {"kv_descale": 2.0}, "kv_descale"),
    ("flashinfer", "mla_decode_fa3", replace(calls.DECODE, width=512), {}, "rows of 512"),
    ("flashinfer", "mla_decode_fa3", replace(calls.DECODE, dtype="fp8"), {}, "q of float8"),
    ("flashinfer", "mla_decode_fa3", replace(calls.DECODE, kv_lens=(9, 0)), {}, "without keys"),
    ("flashinfer", "mla_prefill_fa3", replace(calls.PREFILL, spare=2), {}, "past the last"),
    ("flashinfer", "unified_attention_fa2", SINKS, {}, "sinks"),
    ("flashinfer", "unified_attention_fa3", FP8_CACHE, {}, "a cache of torch.float8_e4m3fn"),
    ("flashinfer", "unified_attention_decode", calls.WINDOW, {}, "more than one query"),
    ("fa3", "unified_attention", FP8_CACHE, {}, "k of float8_e4m3fn beside bfloat16"),
    ("fa3", "unified_attention", calls.RAGGED, {"alibi_slopes": torch.ones(8)}, "alibi_slopes"),
    ("authors", "unified_attention", SINKS, {}, "sinks"),
    ("fa3", "mla_decode", FP8_LATENT, {}, "kv_descale = a tensor"),
    ("fa3", "mla_decode", calls.DECODE, {"head_dim_v": 448}, "head_dim_v = 448"),
    ("vllm", "rmsnorm", calls.GEMMA, {}, "weight_bias = 1.0"),
    ("vllm", "rmsnorm_quant", replace(calls.GROUP, mode="pow2"), {}, "scale_mode = 'pow2'"),
    ("vllm", "rmsnorm_quant", replace(calls.TOKEN, x2=(0, 128)), {}, "x2 = a tensor"),
    ("vllm", "mla_decode", calls.DECODE_RAGGED, {}, "more than one query"),
    ("vllm", "mla_decode", replace(calls.DECODE, page=1), {}, "pages of 1"),
    ("vllm", "unified_attention", calls.RAGGED, {}, "lse = a tensor"),
    ("vllm", "unified_attention", replace(SINKS, alibi="bf16"), {}, "ALiBi with sinks"),
    ("vllm", "unified_attention", replace(FP8_CACHE, kinds=("number", "per_head", "number")), {},
     "k_descale of shape [3, 2]"),
)  # fmt: skip


@pytest.mark.parametrize(("peer", "function", "make", "changes", "why"), REFUSED)
def test_refuses(
    peers: dict[str, Any], peer: str, function: str, make: Any, changes: dict[str, Any], why: str
) -> None:
    with pytest.raises(NotServed) as refused:
        getattr(peers[peer], function)(given(make, **changes))
    assert why in str(refused.value)
