# SPDX-License-Identifier: Apache-2.0
"""What sparse MLA's public functions refuse: by metadata always, by values when asked."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.core._mla import (
    Recorder,
    call,
    check_refused,
    ints,
    packed_pool,
    randn,
    sparse_decode_inputs,
    sparse_prefill_inputs,
)

from archkey.errors import ArgumentTypeError, ArgumentValueError, Unsupported
from archkey.ops.sparse_kv import (
    dequantize_sparse_kv,
    logical_to_physical_indices,
    quantize_sparse_kv,
)
from archkey.ops.sparse_mla import sparse_mla_decode, sparse_mla_prefill

Refusals = dict[str, tuple[dict[str, Any], type[Exception], str]]

PREFILL_REFUSALS: Refusals = {
    "scale_missing": ({"softmax_scale": None}, ArgumentValueError, "never guessed"),
    "q_dtype": ({"q": randn(3, 16, 576).half()}, ArgumentTypeError, "q must be bfloat16"),
    "q_width": ({"q": randn(3, 16, 500)}, ArgumentValueError, r"\(576, 512\)"),
    "kv_heads": ({"kv": randn(8, 2, 576)}, ArgumentValueError, "Latent keys have one head"),
    "kv_width": ({"kv": randn(8, 512)}, ArgumentValueError, "as wide as q's 576"),
    "kv_bytes_as_bf16": (
        {"kv": torch.zeros(8, 1, 656, dtype=torch.uint8)},
        ArgumentTypeError,
        'kv must be bfloat16 with kv_format="bf16", found uint8. Name the packed format',
    ),
    "kv_fp8_as_bf16": (
        {"kv": randn(8, 576).to(torch.float8_e4m3fn)},
        ArgumentTypeError,
        "found float8_e4m3fn. Name the packed format",
    ),
    "format": (
        {"kv_format": "fp8_v3"},
        ArgumentValueError,
        "one of fp8_v32, .* found 'fp8_v3'. did you mean 'fp8_v32'",
    ),
    "indices_int64": ({"indices": ints([0], [0], [0]).long()}, ArgumentTypeError, "int32"),
    "indices_list": ({"indices": [[0]]}, ArgumentTypeError, "indices must be a tensor, found list"),
    "indices_rows": ({"indices": ints([0], [0])}, ArgumentValueError, r"\[3, any\]"),
    "indices_k0": ({"indices": ints([], [], [])}, ArgumentValueError, "at least one entry"),
    "indices_stride": ({"indices": ints([0] * 3, [0] * 3).T}, ArgumentValueError, "contiguous"),
    "length_shape": ({"topk_length": ints(1, 1)}, ArgumentValueError, r"\[3\], found \[2\]"),
    "length_dtype": ({"topk_length": torch.ones(3).long()}, ArgumentTypeError, "int32"),
    "sink_dtype": ({"attn_sink": randn(16)}, ArgumentTypeError, "attn_sink must be float32"),
    "sink_shape": ({"attn_sink": torch.zeros(8)}, ArgumentValueError, r"\[16\], found \[8\]"),
    "max_logits": ({"max_logits": torch.empty(16, 3)}, ArgumentValueError, "max_logits"),
    "one_stat_for_both": (
        dict.fromkeys(("lse", "max_logits"), torch.empty(3, 16)),
        ArgumentValueError,
        "max_logits must be another tensor than lse",
    ),
    "out_overlap": ({"out": randn(1, 16, 512).expand(3, 16, 512)}, ArgumentValueError, "overlap"),
    "v_wide": ({"head_dim_v": 600}, ArgumentValueError, "between 1 and"),
}


@pytest.mark.parametrize("name", list(PREFILL_REFUSALS))
def test_prefill_refuses(name: str) -> None:
    check_refused(sparse_mla_prefill, sparse_prefill_inputs(), *PREFILL_REFUSALS[name])


DECODE_REFUSALS: Refusals = {
    "scale_missing": ({"softmax_scale": None}, ArgumentValueError, "never guessed"),
    "q_3d": ({"q": randn(2, 16, 576)}, ArgumentValueError, r"\[B, q_len, H, d\]"),
    "d_of_format": (
        {"kv_cache": packed_pool("fp8_model1", 3, 4), "kv_format": "fp8_model1"},
        ArgumentValueError,
        "d must be 512 for kv_format fp8_model1, found 576 in q",
    ),
    "row_bytes": (
        {"kv_cache": torch.zeros(3, 4, 584, dtype=torch.uint8)},
        ArgumentValueError,
        "656 bytes a token for fp8_v32, found 584",
    ),
    "cache_dtype": ({"kv_cache": randn(3, 4, 656)}, ArgumentTypeError, "uint8 or int8 or float8"),
    "cache_flavour": (
        {"kv_cache": packed_pool("fp8_v32", 3, 4).view(torch.float8_e4m3fnuz)},
        ArgumentTypeError,
        "float8_e4m3fn, found float8_e4m3fnuz",
    ),
    "rows_apart": (
        {"kv_cache": torch.zeros(3, 4, 700, dtype=torch.uint8)[..., :656]},
        ArgumentValueError,
        r"contiguous within a block: strides \[any, 656, 1\]",
    ),
    "indices_2d": ({"indices": ints([0], [0])}, ArgumentValueError, r"\[2, 1, any\]"),
    "length_shape": (
        {"topk_length": ints(1, 2, 3)},
        ArgumentValueError,
        r"of shape \[2\], found \[3\]",
    ),
    "extra_cache_alone": (
        {"extra_kv_cache": packed_pool("fp8_v32", 1, 4)},
        ArgumentValueError,
        "together or not at all, found only extra_kv_cache",
    ),
    "extra_indices_alone": (
        {"extra_indices": ints([[0]], [[0]]), "extra_topk_length": ints(1, 1)},
        ArgumentValueError,
        "found only extra_indices, extra_topk_length",
    ),
    "extra_format": (
        {"extra_kv_cache": randn(1, 4, 576), "extra_indices": ints([[0]], [[0]])},
        ArgumentTypeError,
        "extra_kv_cache must be uint8",
    ),
}


@pytest.mark.parametrize("name", list(DECODE_REFUSALS))
def test_decode_refuses(name: str) -> None:
    check_refused(sparse_mla_decode, sparse_decode_inputs(), *DECODE_REFUSALS[name])


@pytest.mark.parametrize("stride", [2336, 2888], ids=["unpadded", "oddly_padded"])
def test_decode_refuses_planar_blocks_at_other_distances(stride: int) -> None:
    blocks = torch.zeros(3, stride, dtype=torch.uint8)
    inputs = sparse_decode_inputs(
        q=randn(2, 1, 16, 512),
        kv_cache=blocks[:, : 4 * 584].view(3, 4, 584),
        kv_format="fp8_model1",
    )
    message = f"blocks 2880 bytes apart or more, a multiple of 576, found {stride} bytes"
    with pytest.raises(ArgumentValueError, match=message):
        call(sparse_mla_decode, inputs)


def test_decode_has_no_default_format() -> None:
    inputs = sparse_decode_inputs()
    del inputs["kv_format"]
    with pytest.raises(TypeError, match="kv_format"):
        call(sparse_mla_decode, inputs)


QUANTIZE_REFUSALS: Refusals = {
    "format": ({"format": "bf16"}, ArgumentValueError, "format must be one of fp8_v32"),
    "mode": ({"scale_mode": "ue8m0"}, ArgumentValueError, "scale_mode must be one of"),
    "ue8m0_fp32": (
        {"format": "fp8_model1", "k_nope": randn(3, 448)},
        ArgumentValueError,
        "'pow2' for fp8_model1, found 'fp32'. An exponent byte",
    ),
    "nope_width": ({"k_nope": randn(3, 448)}, ArgumentValueError, r"\[T, 512\]"),
    "rope_missing": ({"k_rope": None}, ArgumentValueError, "of width 64 for fp8_v32, found None"),
    "rope_unwanted": (
        {"format": "fp8_v32_nope"},
        ArgumentValueError,
        r"k_rope must be None for fp8_v32_nope, found \[3, 64\]",
    ),
    "rope_dtype": ({"k_rope": randn(3, 64).half()}, ArgumentTypeError, "bfloat16 like k_nope"),
    "rope_rows": ({"k_rope": randn(2, 64)}, ArgumentValueError, r"leading shape \[3\]"),
    "no_out": ({"slot_mapping": torch.arange(3)}, ArgumentValueError, "out must be given with"),
    "slots": (
        {"slot_mapping": torch.arange(2), "out": packed_pool("fp8_v32", 1, 4)},
        ArgumentValueError,
        r"slot_mapping must be of shape \[3\]",
    ),
    "slots_float": (
        {"slot_mapping": torch.ones(3), "out": packed_pool("fp8_v32", 1, 4)},
        ArgumentTypeError,
        "int32 or int64",
    ),
    "small": ({"out": packed_pool("fp8_v32", 1, 2)}, ArgumentValueError, "of at least 3 slots"),
    "out_bytes": (
        {"out": packed_pool("fp8_v32_nope", 1, 4)},
        ArgumentValueError,
        "656 bytes a token",
    ),
}


@pytest.mark.parametrize("name", list(QUANTIZE_REFUSALS))
def test_quantize_refuses(name: str) -> None:
    inputs = {"k_nope": randn(3, 512), "k_rope": randn(3, 64)}
    check_refused(quantize_sparse_kv, inputs, *QUANTIZE_REFUSALS[name])


def test_dequantize_and_indices_refuse() -> None:
    cache = packed_pool("fp8_v32", 1, 4)
    with pytest.raises(ArgumentValueError, match=r"contiguous, of shape \[1, 4, 576\]"):
        call(dequantize_sparse_kv, {"kv_cache": cache, "out": randn(4, 576)})
    with pytest.raises(ArgumentValueError, match=r"slot_mapping must be of shape \[T\]"):
        call(dequantize_sparse_kv, {"kv_cache": cache, "slot_mapping": ints([1])})
    inputs = {"indices": ints([1, 2]), "block_table": ints([3]), "page_size": 0}
    with pytest.raises(ArgumentValueError, match="page_size must be at least 1"):
        call(logical_to_physical_indices, inputs)
    with pytest.raises(ArgumentValueError, match=r"block_table must be of shape \[1, any\]"):
        call(logical_to_physical_indices, inputs | {"block_table": ints([3], [3])})
    with pytest.raises(ArgumentValueError, match=r"\[B, q_len, k\]"):
        call(logical_to_physical_indices, inputs | {"indices": ints(1, 2)})


@pytest.mark.parametrize(
    ("flavour", "right", "wrong"),
    [("e4m3fn", "fp8_v32", "fp8_v32_fnuz"), ("e4m3fnuz", "fp8_v32_fnuz", "fp8_v32")],
)
def test_the_other_fp8_is_refused(flavour: str, right: str, wrong: str) -> None:
    session = Recorder(fp8=flavour)
    rows = {"k_nope": randn(12, 512), "k_rope": randn(12, 64)}
    message = f"must be {right} on this device, whose FP8 is float8_{flavour}, found {wrong}"
    with pytest.raises(ArgumentTypeError, match=f"format {message}"):
        call(quantize_sparse_kv, rows | {"format": wrong}, session)
    good = sparse_decode_inputs(kv_cache=packed_pool(right, 3, 4), kv_format=right)
    call(sparse_mla_decode, good, session)
    with pytest.raises(ArgumentTypeError, match=f"kv_format {message}"):
        call(sparse_mla_decode, good | {"kv_format": wrong}, session)
    with pytest.raises(Unsupported, match="a format that this device has"):
        call(sparse_mla_decode, good, Recorder(fp8="none"))


def test_values_are_checked_when_asked() -> None:
    session = Recorder(validate=True)
    with pytest.raises(ArgumentValueError, match="topk_length must be between 0 and 4"):
        call(sparse_mla_decode, sparse_decode_inputs(topk_length=ints(4, 5)), session)
    with pytest.raises(ArgumentValueError, match="topk_length must be between 0 and 4"):
        call(sparse_mla_prefill, sparse_prefill_inputs(topk_length=ints(4, -1, 0)), session)
    rows = {"k_nope": randn(3, 512), "k_rope": randn(3, 64), "out": packed_pool("fp8_v32", 1, 4)}
    with pytest.raises(ArgumentValueError, match="free of duplicates"):
        call(quantize_sparse_kv, rows | {"slot_mapping": ints(1, 2, 1)}, session)
    call(quantize_sparse_kv, rows | {"slot_mapping": ints(1, -1, -1)}, session)
    call(sparse_mla_decode, sparse_decode_inputs(topk_length=ints(4, 0)), session)
