# SPDX-License-Identifier: Apache-2.0
"""MLA and sparse MLA remember the problem of a call by its metadata: never a wrong one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.core._mla import (
    SCALE,
    Recorder,
    call,
    decode_inputs,
    ints,
    merge_inputs,
    packed_pool,
    prefill_inputs,
    randn,
    sparse_decode_inputs,
    sparse_prefill_inputs,
)

from archkey.ops.mla import merge_attn_states, mla_decode, mla_prefill
from archkey.ops.sparse_kv import (
    dequantize_sparse_kv,
    logical_to_physical_indices,
    quantize_sparse_kv,
)
from archkey.ops.sparse_mla import sparse_mla_decode, sparse_mla_prefill

Variants = list[dict[str, Any]]


def off(tensor: torch.Tensor) -> torch.Tensor:
    """The same numbers, shape and strides at an address that is no multiple of 16 bytes."""
    flat = torch.empty(tensor.numel() + 1, dtype=tensor.dtype)
    moved = flat[1:].as_strided(tensor.shape, tensor.stride())
    assert moved.data_ptr() % 16
    return moved.copy_(tensor)


DECODE = decode_inputs()
PREFILL = prefill_inputs()
MERGE = merge_inputs()
SPARSE_PREFILL = sparse_prefill_inputs()
SPARSE_DECODE = sparse_decode_inputs()
POOL = packed_pool("fp8_v32", 3, 4)

CALLS: dict[str, tuple[Any, dict[str, Any], Variants]] = {
    "mla_decode": (
        mla_decode,
        DECODE,
        [
            {"block_table": off(DECODE["block_table"])},
            {"q": off(DECODE["q"])},
            {"kv_cache": off(DECODE["kv_cache"])},
            {"kv_cache": randn(8, 32, 576), "block_table": ints([2, 1, 7], [3, 0, 0])},
            {"kv_cache": DECODE["kv_cache"][:, None]},
            {"q": DECODE["q"].half(), "kv_cache": DECODE["kv_cache"].half()},
            {"q": randn(2, 1, 16, 640)[..., :576]},
            {"q": randn(2, 1, 8, 576)},
            {"q": randn(2, 3, 16, 576)},
            {"q": randn(2, 3, 16, 576), "causal": False},
            {"q": randn(5, 16, 576), "cu_seqlens_q": ints(0, 3, 5)},
            {"q": randn(5, 16, 576), "cu_seqlens_q": ints(0, 3, 5), "max_seqlen_q": 3},
            {"head_dim_v": 256},
            {"window_left": 4},
            {"enable_pdl": False},
            {"return_lse": True},
            {"lse": torch.empty(2, 16)},
            {"out": randn(2, 1, 16, 512)},
            {"out": off(randn(2, 1, 16, 512))},
            {"out": randn(2, 1, 16, 512, dtype=torch.float16)},
            {"q_descale": 2.0},
            {"q_descale": torch.ones(1)},
            {"kv_descale": 2},
            {"num_splits": 3},
            {"batch_invariant": True},
        ],
    ),
    "mla_prefill": (
        mla_prefill,
        PREFILL,
        [
            {"cu_seqlens_q": off(PREFILL["cu_seqlens_q"])},
            {"k": off(PREFILL["k"])},
            {"v": randn(9, 4, 136)[..., :128]},
            {"q": randn(5, 8, 192)},
            {"causal": False},
            {"return_lse": True},
            {"enable_pdl": False},
            {"v_descale": 2.0},
            {"k_descale": 2.0},
            {"k_descale": torch.ones(())},
            {"batch_invariant": True},
        ],
    ),
    "merge_attn_states": (
        merge_attn_states,
        MERGE,
        [
            {"lse_a": off(MERGE["lse_a"])},
            {"out_b": off(MERGE["out_b"])},
            {"out": torch.empty(3, 4, 128)},
            {name: randn(3, 8, 128) for name in ("out_a", "out_b")}
            | {name: torch.ones(3, 8) for name in ("lse_a", "lse_b")},
        ],
    ),
    "sparse_mla_prefill": (
        sparse_mla_prefill,
        SPARSE_PREFILL,
        [
            {"indices": off(SPARSE_PREFILL["indices"])},
            {"q": off(SPARSE_PREFILL["q"])},
            {"kv": SPARSE_PREFILL["kv"].view(2, 4, 1, 576)},
            {"kv": POOL[:, :, None], "kv_format": "fp8_v32"},
            {"kv": POOL[:, :, None], "kv_format": "fp8_v32_fnuz"},
            {"topk_length": ints(1, 2, 3)},
            {"attn_sink": torch.zeros(16)},
            {"lse": torch.empty(3, 16)},
            {"max_logits": torch.empty(3, 16)},
            {"return_lse": True},
            {"head_dim_v": 256},
            {"batch_invariant": True},
        ],
    ),
    "sparse_mla_decode": (
        sparse_mla_decode,
        SPARSE_DECODE,
        [
            {"indices": off(SPARSE_DECODE["indices"])},
            {"q": off(SPARSE_DECODE["q"])},
            {"kv_cache": SPARSE_DECODE["kv_cache"][:, None]},
            {"kv_format": "fp8_v32_fnuz"},
            {"topk_length": ints(1, 2)},
            {"attn_sink": torch.zeros(16)},
            {"extra_kv_cache": POOL, "extra_indices": ints([[1]], [[2]])},
            {"extra_kv_cache": POOL, "extra_indices": ints([[1, 2]], [[2, 0]])},
            {"return_lse": True},
            {"batch_invariant": True},
        ],
    ),
    "quantize_sparse_kv": (
        quantize_sparse_kv,
        {"k_nope": randn(12, 512), "k_rope": randn(12, 64)},
        [
            {"k_nope": off(randn(12, 512))},
            {"k_nope": randn(3, 4, 512), "k_rope": randn(3, 4, 64)},
            {"scale_mode": "pow2"},
            {"format": "fp8_v32_fnuz"},
            {"out": POOL},
            {"out": POOL, "slot_mapping": torch.arange(12)},
            {"out": POOL, "slot_mapping": torch.arange(12, dtype=torch.int32)},
        ],
    ),
    "dequantize_sparse_kv": (
        dequantize_sparse_kv,
        {"kv_cache": POOL},
        [
            {"format": "fp8_v32_fnuz"},
            {"slot_mapping": ints(1, 2)},
            {"slot_mapping": torch.tensor([1, 2])},
            {"out": torch.empty(3, 4, 576, dtype=torch.float16)},
            {"out": off(randn(3, 4, 576))},
        ],
    ),
    "logical_to_physical_indices": (
        logical_to_physical_indices,
        {"indices": ints([1, 2]), "block_table": ints([3]), "page_size": 16},
        [{"page_size": 32}, {"indices": ints([1, 2, 3])}, {"indices": ints([[1, 2]])}],
    ),
}


@pytest.mark.parametrize("name", list(CALLS))
def test_a_remembered_problem_is_the_one_of_a_new_session(name: str) -> None:
    """Whatever was called before, in whatever order."""
    function, inputs, changes = CALLS[name]
    variants: Variants = [{}, *changes]
    session = Recorder(pdl=True)
    for variant in (*variants, *reversed(variants)):
        fresh = Recorder(pdl=True)
        call(function, inputs | variant, fresh)
        call(function, inputs | variant, session)
        assert session.problem == fresh.problem, variant
    assert len(session.problems) <= len(variants)


def test_other_tensors_with_the_same_metadata_are_not_checked_again() -> None:
    session = Recorder()
    expected = call(mla_decode, decode_inputs())
    for scale in (SCALE, 2 * SCALE):  # a number decides nothing
        out = call(mla_decode, decode_inputs(softmax_scale=scale), session)
        assert torch.equal(out, expected) == (scale == SCALE)
    assert len(session.problems) == 1


def test_values_are_checked_on_every_call() -> None:
    """ARCHKEY_VALIDATE=1 looks at the values of calls whose metadata passed."""
    session = Recorder(validate=True)
    call(mla_decode, decode_inputs(), session)
    with pytest.raises(ValueError, match="cache_seqlens must be between 0 and 192"):
        call(mla_decode, decode_inputs(cache_seqlens=ints(70, 193)), session)
    call(sparse_mla_decode, sparse_decode_inputs(topk_length=ints(4, 4)), session)
    with pytest.raises(ValueError, match="topk_length must be between 0 and 4"):
        call(sparse_mla_decode, sparse_decode_inputs(topk_length=ints(4, 5)), session)
    assert session.launches == 2
