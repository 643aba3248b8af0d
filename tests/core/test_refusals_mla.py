# SPDX-License-Identifier: Apache-2.0
"""What MLA's public functions refuse: by metadata always, by values when asked."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.core._mla import (
    Recorder,
    call,
    check_refused,
    decode_inputs,
    ints,
    merge_inputs,
    prefill_inputs,
    randn,
)

from archkey.errors import ArgumentTypeError, ArgumentValueError, Unsupported
from archkey.ops.mla import merge_attn_states, mla_decode, mla_prefill

# What is missing, why it is not guessed, and what to pass.
SCALE_MISSING = (
    r"softmax_scale must be given, found None.* never guessed: the width of an absorbed query "
    r"\(576\) is not the width .* trained with.* \(128 \+ 64\) \*\* -0.5.* mscale \*\* 2"
)

DECODE_REFUSALS: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "scale_missing": ({"softmax_scale": None}, ArgumentValueError, SCALE_MISSING),
    "scale_twice": ({"sm_scale": 0.1}, ArgumentValueError, "sm_scale must be None"),
    "scale_tensor": ({"softmax_scale": torch.ones(())}, ArgumentTypeError, "a number"),
    "scale_zero": ({"softmax_scale": 0.0}, ArgumentValueError, "positive and finite"),
    "scale_inf": ({"softmax_scale": float("inf")}, ArgumentValueError, "positive and finite"),
    "q_list": ({"q": [1.0]}, ArgumentTypeError, "q must be a tensor, found list"),
    "q_float32": ({"q": randn(2, 1, 16, 576).float()}, ArgumentTypeError, "q must be bfloat16"),
    "q_3d": ({"q": randn(2, 16, 576)}, ArgumentValueError, r"\[B, q_len, H, d\]"),
    "q_no_heads": ({"q": randn(2, 1, 0, 576)}, ArgumentValueError, "H > 0"),
    "q_width": ({"q": randn(2, 1, 16, 192)}, ArgumentValueError, r"\(576, 512\)"),
    "q_stride": ({"q": randn(2, 1, 576, 16).mT}, ArgumentValueError, "contiguous in its last"),
    "cache_dtype": ({"kv_cache": randn(4, 64, 576).half()}, ArgumentTypeError, "kv_cache"),
    "cache_width": ({"kv_cache": randn(4, 64, 512)}, ArgumentValueError, "as wide as q's 576"),
    "cache_heads": ({"kv_cache": randn(4, 64, 2, 576)}, ArgumentValueError, "one KV head"),
    "cache_2d": ({"kv_cache": randn(4, 576)}, ArgumentValueError, "num_blocks, page_size"),
    "cache_page": ({"kv_cache": randn(4, 48, 576)}, ArgumentValueError, "page size .* found 48"),
    "cache_stride": ({"kv_cache": randn(4, 576, 64).mT}, ArgumentValueError, "last dimension"),
    "table_int64": ({"block_table": torch.zeros(2, 3).long()}, ArgumentTypeError, "int32"),
    "table_batch": ({"block_table": torch.zeros(3, 3).int()}, ArgumentValueError, r"\[2, any\]"),
    "table_meta": (
        {"block_table": torch.zeros(2, 3, dtype=torch.int32, device="meta")},
        ArgumentValueError,
        "on cpu like the first argument, found on meta",
    ),
    "table_stride": (
        {"block_table": torch.zeros(2, 6).int()[:, ::2]},
        ArgumentValueError,
        "block_table must be contiguous in its last",
    ),
    "lengths_meta": (
        {"cache_seqlens": torch.ones(2, dtype=torch.int32, device="meta")},
        ArgumentValueError,
        "cache_seqlens must be on cpu like the first argument, found on meta",
    ),
    "lengths_int64": ({"cache_seqlens": torch.ones(2).long()}, ArgumentTypeError, "int32"),
    "lengths_batch": ({"cache_seqlens": ints(1)}, ArgumentValueError, r"\[2\], found \[1\]"),
    "cu_with_4d": ({"cu_seqlens_q": ints(0, 1, 2)}, ArgumentValueError, "with cu_seqlens_q"),
    "max_q": ({"max_seqlen_q": 0}, ArgumentValueError, "max_seqlen_q must be at least 1, found 0"),
    "max_q_ragged": (
        {"q": randn(2, 16, 576), "cu_seqlens_q": ints(0, 1, 2), "max_seqlen_q": -1},
        ArgumentValueError,
        "max_seqlen_q must be at least 0, found -1",
    ),
    "v_none": ({"head_dim_v": 0}, ArgumentValueError, "between 1 and .* 576"),
    "v_wide": ({"head_dim_v": 577}, ArgumentValueError, "between 1 and .* 576"),
    "window": (
        {"q": randn(2, 2, 16, 576), "window_left": 3},
        Unsupported,
        "q_len with window_left >= 0 must be 1, found 2",
    ),
    "descale_vector": ({"q_descale": torch.ones(2)}, ArgumentValueError, "one element"),
    "descale_half": ({"kv_descale": torch.ones(1).half()}, ArgumentTypeError, "float32"),
    "descale_text": ({"kv_descale": "1"}, ArgumentTypeError, "found str"),
    "out_shape": (
        {"out": randn(2, 1, 16, 576)},
        ArgumentValueError,
        r"\[2, 1, 16, 512\], found \[2, 1, 16, 576\]",
    ),
    "out_dtype": ({"out": torch.empty(2, 1, 16, 512)}, ArgumentTypeError, "out must be bfloat16"),
    "out_stride": ({"out": randn(2, 1, 512, 16).mT}, ArgumentValueError, "out must be contig"),
    "out_overlap": (
        {"out": randn(1, 1, 16, 512).expand(2, 1, 16, 512)},
        ArgumentValueError,
        "out must be free of elements that overlap",
    ),
    "lse_overlap": ({"lse": torch.empty(16).expand(2, 16)}, ArgumentValueError, "lse .* overlap"),
    "lse_shape": ({"lse": torch.empty(16, 2)}, ArgumentValueError, "token-major"),
    "lse_dtype": ({"lse": randn(2, 16)}, ArgumentTypeError, "lse must be float32"),
    "splits_negative": ({"num_splits": -1}, ArgumentValueError, "from 0 to 1024, found -1"),
    "splits_many": ({"num_splits": 1025}, ArgumentValueError, "from 0 to 1024, found 1025"),
    "splits_invariant": (
        {"num_splits": 2, "batch_invariant": True},
        ArgumentValueError,
        "num_splits must be 0 or 1 with batch_invariant, found 2",
    ),
    "gradient": (
        {"q": randn(2, 1, 16, 576).requires_grad_()},
        ArgumentValueError,
        "for inference",
    ),
}


@pytest.mark.parametrize("name", list(DECODE_REFUSALS))
def test_decode_refuses(name: str) -> None:
    check_refused(mla_decode, decode_inputs(), *DECODE_REFUSALS[name])


PREFILL_REFUSALS: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "scale_missing": ({"softmax_scale": None}, ArgumentValueError, SCALE_MISSING),
    "widths": ({"v": randn(9, 4, 192)}, ArgumentValueError, r"\(192, 128\), .* \(192, 192\)"),
    "k_width": ({"k": randn(9, 4, 128)}, ArgumentValueError, r"k must be of shape \[9, 4, 192\]"),
    "k_heads": ({"k": randn(9, 2, 192)}, ArgumentValueError, r"k must be of shape \[9, 4, 192\]"),
    "k_tokens": ({"k": randn(8, 4, 192)}, ArgumentValueError, "k must be of shape"),
    "heads": ({"q": randn(5, 6, 192)}, ArgumentValueError, "multiple of k's 4 heads"),
    "k_dtype": ({"k": randn(9, 4, 192).half()}, ArgumentTypeError, "k must be bfloat16"),
    "q_dims": ({"q": randn(1, 5, 4, 192)}, ArgumentValueError, r"\[T, H, d\]"),
    "v_stride": ({"v": randn(9, 128, 4).mT}, ArgumentValueError, "v must be contiguous"),
    "cu_dtype": ({"cu_seqlens_q": ints(0, 5).long()}, ArgumentTypeError, "int32"),
    "cu_shape": ({"cu_seqlens_k": ints(0, 9)}, ArgumentValueError, r"\[4\], found \[2\]"),
    "cu_empty": (
        {"cu_seqlens_q": ints(), "cu_seqlens_k": ints()},
        ArgumentValueError,
        r"\[B \+ 1\]",
    ),
    "cu_meta": (
        {"cu_seqlens_q": torch.zeros(4, dtype=torch.int32, device="meta")},
        ArgumentValueError,
        "on cpu like the first argument, found on meta",
    ),
    "q_float32": ({"q": randn(5, 4, 192).float()}, ArgumentTypeError, "q must be bfloat16"),
    "no_heads": ({"q": randn(5, 0, 192)}, ArgumentValueError, "multiple of k's 4 heads"),
    "descale_vector": ({"k_descale": torch.ones(2)}, ArgumentValueError, "one element"),
    "out_shape": ({"out": randn(5, 4, 192)}, ArgumentValueError, r"\[5, 4, 128\]"),
    "out_dtype": ({"out": torch.empty(5, 4, 128)}, ArgumentTypeError, "out must be bfloat16"),
    "out_overlap": (
        {"out": randn(1, 4, 128).expand(5, 4, 128)},
        ArgumentValueError,
        "out must be free of elements that overlap",
    ),
    "lse_shape": ({"lse": torch.empty(4, 5)}, ArgumentValueError, "token-major"),
    "lse_dtype": ({"lse": randn(5, 4)}, ArgumentTypeError, "lse must be float32"),
}


@pytest.mark.parametrize("name", list(PREFILL_REFUSALS))
def test_prefill_refuses(name: str) -> None:
    check_refused(mla_prefill, prefill_inputs(), *PREFILL_REFUSALS[name])


MERGE_REFUSALS: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "dims": ({"out_a": randn(3, 512)}, ArgumentValueError, "out_a must be of shape"),
    "b_shape": ({"out_b": randn(3, 4, 64)}, ArgumentValueError, r"out_b .* \[3, 4, 128\]"),
    "b_dtype": ({"out_b": randn(3, 4, 128).half()}, ArgumentTypeError, "out_b must be bfloat16"),
    "lse_shape": ({"lse_a": torch.ones(4, 3)}, ArgumentValueError, "lse_a .* token-major"),
    "lse_dtype": ({"lse_b": randn(3, 4)}, ArgumentTypeError, "lse_b must be float32"),
    "out_overlap": ({"out": randn(3, 1, 128).expand(3, 4, 128)}, ArgumentValueError, "overlap"),
    "out_shape": ({"out": randn(3, 4, 64)}, ArgumentValueError, "out must be of shape"),
}


@pytest.mark.parametrize("name", list(MERGE_REFUSALS))
def test_merge_refuses(name: str) -> None:
    check_refused(merge_attn_states, merge_inputs(), *MERGE_REFUSALS[name])


@pytest.mark.parametrize(("flavour", "other"), [("e4m3fn", "e4m3fnuz"), ("e4m3fnuz", "e4m3fn")])
def test_the_other_fp8_is_refused(flavour: str, other: str) -> None:
    session = Recorder(fp8=flavour)
    right, wrong = (getattr(torch, f"float8_{name}") for name in (flavour, other))
    inputs = decode_inputs()
    q, cache = inputs["q"], inputs["kv_cache"]
    call(mla_decode, inputs | {"q": q.to(right), "kv_cache": cache.to(right)}, session)
    call(mla_decode, inputs | {"kv_cache": cache.to(right)}, session)
    with pytest.raises(ArgumentTypeError, match=f"kv_cache must be float8_{flavour} on this"):
        call(mla_decode, inputs | {"kv_cache": cache.to(wrong)}, session)
    with pytest.raises(ArgumentTypeError, match="q must be"):
        call(mla_decode, inputs | {"q": q.to(wrong), "kv_cache": cache.to(wrong)}, session)
    with pytest.raises(ArgumentTypeError, match=f"kv_cache must be float8_{flavour}, found bf"):
        call(mla_decode, inputs | {"q": q.to(right)}, session)
    prefill = {n: prefill_inputs()[n].to(wrong) for n in "qkv"}
    with pytest.raises(ArgumentTypeError, match=f"float8_{flavour} on this device"):
        call(mla_prefill, prefill_inputs(**prefill), session)
    with pytest.raises(Unsupported, match="a dtype that this device has"):
        call(mla_decode, inputs | {"kv_cache": cache.to(right)}, Recorder(fp8="none"))


VALUE_REFUSALS: dict[str, tuple[dict[str, Any], str]] = {
    "length": ({"cache_seqlens": ints(70, 193)}, "between 0 and 192"),
    "negative": ({"cache_seqlens": ints(70, -1)}, "cache_seqlens must be between 0"),
    "max_k": ({"max_seqlen_k": 69}, "between 0 and 69"),
    "page": ({"cache_seqlens": ints(70, 65)}, "block_table's used entries"),
    "cu_end": (
        {"q": randn(2, 16, 576), "cu_seqlens_q": ints(0, 1, 3)},
        "cu_seqlens_q must be a rising sequence from 0 to at most 2",
    ),
    "cu_max": (
        {"q": randn(2, 16, 576), "cu_seqlens_q": ints(0, 0, 2), "max_seqlen_q": 1},
        "max_seqlen of cu_seqlens_q must be at least 2, found 1",
    ),
}


@pytest.mark.parametrize("name", list(VALUE_REFUSALS))
def test_values_are_checked_when_asked(name: str) -> None:
    changes, message = VALUE_REFUSALS[name]
    with pytest.raises(ArgumentValueError, match=message):
        call(mla_decode, decode_inputs(**changes), Recorder(validate=True))


def test_valid_values_pass_the_check() -> None:
    session = Recorder(validate=True)
    call(mla_decode, decode_inputs(), session)
    table = torch.tensor([[-5, 1], [3, -7]], dtype=torch.int32)  # page 0 is behind the window
    call(mla_decode, decode_inputs(block_table=table, window_left=4), session)
    call(mla_prefill, prefill_inputs(), session)
    with pytest.raises(ArgumentValueError, match="max_seqlen of cu_seqlens_k"):
        call(mla_prefill, prefill_inputs(max_seqlen_k=3), session)
