# SPDX-License-Identifier: Apache-2.0
"""What unified_attention refuses: by metadata always, by values when asked."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tests.core._attention import BF16, TYPE, VALUE, Recorder, call_inputs, fp8

from archkey.errors import ArgumentValueError, Unsupported
from archkey.ops.attention import unified_attention


def caches(*shape: int, dtype: torch.dtype = BF16) -> dict[str, torch.Tensor]:
    return {"k": torch.zeros(shape).to(dtype), "v": torch.zeros(shape).to(dtype)}


FN, FNUZ = torch.float8_e4m3fn, torch.float8_e4m3fnuz
FP8_Q = {"q": torch.zeros(4, 4, 32).to(FN)}
WIDE = {"q": torch.zeros(4, 4, 576, dtype=BF16), "out": torch.zeros(4, 4, 512, dtype=BF16)}
NEEDS_GRAD = {"q": torch.zeros(4, 4, 32, dtype=BF16, requires_grad=True)}

REFUSALS: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "not causal": ({"causal": False}, VALUE, "causal must be True"),
    "H % Hk": (caches(5, 16, 3, 32), VALUE, "q's heads must be a multiple of k's 3, found 4"),
    "sinks shape": ({"sinks": torch.zeros(5)}, VALUE, "sinks must be of shape [4]"),
    "sinks dtype": ({"sinks": torch.zeros(4).int()}, TYPE, "sinks must be bfloat16"),
    "window right": ({"window_size": (4, 1)}, VALUE, "window_size[1] must be 0 or -1"),
    "window int": ({"window_size": 4}, VALUE, "window_size must be a pair"),
    "page 0": (caches(5, 0, 2, 32), VALUE, "page size must be 1 or more, found 0"),
    "D 576": (WIDE | caches(5, 16, 1, 576), VALUE, "1 to 512, found 576. The latent cache of MLA"),
    "k width": (caches(5, 16, 2, 64), VALUE, "k must be 32 wide like q, found [5, 16, 2, 64]"),
    "q fp8 without descale": (
        FP8_Q | caches(5, 16, 2, 32, dtype=FN),
        VALUE,
        "q_descale must be given",
    ),
    "q fp8, k bf16": (FP8_Q | {"q_descale": 1.0}, TYPE, "k must be float8_e4m3fn"),
    "q bf16, k fp16": (caches(5, 16, 2, 32, dtype=torch.float16), TYPE, "k must be bfloat16"),
    "k and v differ": (
        {"v": fp8(torch.zeros(5, 16, 2, 32))},
        TYPE,
        "v must be bfloat16, found float8_e4m3fn",
    ),
    "fp8 of another arch": (
        caches(5, 16, 2, 32, dtype=FNUZ),
        TYPE,
        "k must be float8_e4m3fn on this device",
    ),
    "cu int64": (
        {"cu_seqlens_q": torch.tensor([0, 3, 4])},
        TYPE,
        "cu_seqlens_q must be int32, found int64",
    ),
    "cu length": (
        {"cu_seqlens_q": torch.zeros(2).int()},
        VALUE,
        "cu_seqlens_q must be of shape [3]",
    ),
    "seqused int64": ({"seqused_k": torch.tensor([20, 7])}, TYPE, "seqused_k must be int32"),
    "table int64": ({"block_table": torch.zeros(2, 2).long()}, TYPE, "block_table must be int32"),
    "table narrow": ({"max_seqlen_k": 33}, VALUE, "block_table must be of shape at least [2, 3]"),
    "table rows": ({"block_table": torch.zeros(1, 2).int()}, VALUE, "of shape at least [2, 2]"),
    "out width": (
        {"out": torch.zeros(4, 4, 16, dtype=BF16)},
        VALUE,
        "out must be of shape [4, 4, 32]",
    ),
    "out overlaps": (
        {"out": torch.zeros(4, 1, 32, dtype=BF16).expand(4, 4, 32)},
        VALUE,
        "out must be free of elements that overlap",
    ),
    "lse overlaps": (
        {"lse": torch.zeros(4, 1).expand(4, 4)},
        VALUE,
        "lse must be free of elements that overlap",
    ),
    "out fp8 unscaled": ({"out": fp8(torch.zeros(4, 4, 32))}, VALUE, "output_scale must be given"),
    "q strided": (
        {"q": torch.zeros(4, 4, 64, dtype=BF16)[..., ::2]},
        VALUE,
        "q must be contiguous in its last dimension",
    ),
    "q_descale shape": (
        {"q_descale": torch.ones(2)},
        VALUE,
        "q_descale must be a tensor of one element or [2, 2], found [2]",
    ),
    "k_descale dtype": (
        {"k_descale": torch.ones(1, dtype=BF16)},
        TYPE,
        "k_descale must be float32",
    ),
    "bias too small": ({"qq_bias": torch.zeros(2, 2)}, VALUE, "qq_bias must be of shape"),
    "scale tensor": ({"softmax_scale": torch.tensor(1.0)}, TYPE, "softmax_scale must be a number"),
    "scale 0": ({"softmax_scale": 0.0}, VALUE, "softmax_scale must be positive"),
    "softcap negative": ({"softcap": -1.0}, VALUE, "softcap must be 0"),
    "lse shape": ({"lse": torch.zeros(4)}, VALUE, "lse must be of shape [4, 4]"),
    "lse dtype": ({"lse": torch.zeros(4, 4, dtype=BF16)}, TYPE, "lse must be float32"),
    "layout": ({"kv_layout": "NDH"}, VALUE, "kv_layout must be 'NHD' or 'HND'"),
    "shuffled 5-D": (
        {"k": torch.zeros(5, 2, 4, 16, 8, dtype=BF16)},
        VALUE,
        "k must be of shape [any, any, any, any]",
    ),
    "gradient": (NEEDS_GRAD, VALUE, "free of gradients"),
    "int8 cache": ({"kv_quant_mode": 2}, Unsupported, "kv_quant_mode must be off, found 2"),
    "image ranges": ({"mm_prefix_range": torch.zeros(1)}, Unsupported, "mm_prefix_range must be"),
    "shuffled": ({"shuffled_kv_cache": True}, Unsupported, "shuffled_kv_cache must be off"),
    "tree": ({"topk": 4}, Unsupported, "topk must be off, found 4"),
    "typo": ({"sink": torch.zeros(4)}, TYPE, "known keywords only, found sink"),
    "plan of another problem": (
        {"plan": SimpleNamespace(problem=None)},
        VALUE,
        "plan must be a plan for this call's problem",
    ),
}


@pytest.mark.parametrize(("changes", "error", "text"), REFUSALS.values(), ids=REFUSALS)
def test_refusals_name_what_was_found(
    changes: dict[str, Any], error: type[Exception], text: str
) -> None:
    session = Recorder()
    unified_attention.__wrapped__(session, **call_inputs())
    session.arguments = ()
    for _ in range(2):  # neither the good call nor the bad one is an excuse
        with pytest.raises(error, match=re.escape(text)):
            unified_attention.__wrapped__(session, **call_inputs(**changes))
    assert session.arguments == ()


def test_extras_that_are_off_pass() -> None:
    off = {
        "mm_prefix_range": None,
        "use_alibi_sqrt": False,
        "kv_quant_mode": 1,  # vLLM's mode of a cache with descales
        "q_scales": None,
        "k_scale_cache": None,
        "shuffled_kv_cache": False,
        "topk": 1,
    }
    want = unified_attention(**call_inputs())
    assert torch.equal(unified_attention(**call_inputs(), **off), want)


BAD_VALUES: dict[str, tuple[dict[str, Any], str]] = {
    "cu falls": ({"cu_seqlens_q": [0, 4, 3]}, "cu_seqlens_q must be rising"),
    "cu past the tokens": ({"cu_seqlens_q": [0, 3, 5]}, "cu_seqlens_q must be rising"),
    "longer than max_seqlen_q": ({"cu_seqlens_q": [0, 4, 4]}, "max_seqlen_q must be 4 or more"),
    "longer than max_seqlen_k": ({"seqused_k": [21, 7]}, "seqused_k must be between 0 and"),
    "page outside": ({"block_table": [[4, 5], [0, 0]]}, "block_table must be pages of the cache"),
}


@pytest.mark.parametrize(("changes", "text"), BAD_VALUES.values(), ids=BAD_VALUES)
def test_values_are_checked_only_when_asked(changes: dict[str, Any], text: str) -> None:
    changes = {k: torch.tensor(v, dtype=torch.int32) for k, v in changes.items()}
    unified_attention.__wrapped__(Recorder(), **call_inputs(**changes))
    with pytest.raises(ArgumentValueError, match=re.escape(text)):
        unified_attention.__wrapped__(Recorder(validate=True), **call_inputs(**changes))


def test_validation_accepts_freed_pages_outside_the_window() -> None:
    values = call_inputs(block_table=torch.tensor([[-1, 1], [2, 99]], dtype=torch.int32))
    session = Recorder(validate=True)
    unified_attention.__wrapped__(session, **(values | {"window_size": (1, 0)}))
    with pytest.raises(ArgumentValueError, match="block_table"):
        unified_attention.__wrapped__(session, **(values | {"window_size": (2, 0)}))
