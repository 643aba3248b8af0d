# SPDX-License-Identifier: Apache-2.0
"""What the KDA operators refuse: by metadata always, by values when asked."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from tests.core._kda import BF16, BOTH, CU, TYPE, VALUE, Recorder, states, tokens

from archkey.errors import ArgumentValueError, Unsupported
from archkey.ops.kda import chunk_kda, fused_recurrent_kda, kda_packed_decode

SLOT = torch.tensor([0])
RAW = {"use_gate_in_kernel": True}
REFUSALS: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "k shape": ({"k": torch.zeros(1, 70, 2, 8, dtype=BF16)}, VALUE, "k must be of shape [1, 70, 2"),
    "k dtype": ({"k": torch.zeros(1, 70, 2, 16)}, TYPE, "k must be bfloat16, found float32"),
    "HV % H": (
        {"q": torch.zeros(1, 70, 3, 16, dtype=BF16), "k": torch.zeros(1, 70, 3, 16, dtype=BF16)},
        VALUE,
        "v's heads must be a multiple of q's 3, found 4",
    ),
    "K 257": (
        {"q": torch.zeros(1, 70, 2, 257, dtype=BF16), "k": torch.zeros(1, 70, 2, 257, dtype=BF16)},
        VALUE,
        "head dims must be 1 to 256",
    ),
    "g shape": ({"g": torch.zeros(1, 70, 2, 16)}, VALUE, "g must be of shape [1, 70, 4, 16]"),
    "beta shape": ({"beta": torch.zeros(1, 70, 2)}, VALUE, "beta must be of shape [1, 70, 4]"),
    "v strided": (
        {"v": torch.zeros(1, 70, 4, 16, dtype=BF16)[..., ::2]},
        VALUE,
        "v must be contiguous in its last",
    ),
    "batch 2 packed": (tokens(2, 70) | {"cu_seqlens": CU}, VALUE, "q must be of batch 1"),
    "state count": ({"initial_state": states(2)}, VALUE, "initial_state must be of shape [1, 4"),
    "state layout": ({"initial_state": states(1, v_first=True)}, VALUE, "[1, 4, 16, 8]"),
    "state fp16": (
        {"initial_state": states(1).half()},
        TYPE,
        "initial_state must be float32 or bf",
    ),
    "final shape": (
        {"final_state": states(3)},
        VALUE,
        "final_state must be of shape [1, 4, 16, 8]",
    ),
    "safe without bound": (
        RAW | {"safe_gate": True, "A_log": torch.zeros(4)},
        VALUE,
        "lower_bound must be in [-5.0, 0) with safe",
    ),
    "safe below -5": (
        {"safe_gate": True, "lower_bound": -5.1},
        VALUE,
        "lower_bound must be in [-5.0, 0) with safe_gate, found -5.1",
    ),
    "bound 0": ({"lower_bound": 0.0}, VALUE, "lower_bound must be below 0"),
    "gate of nothing": (RAW, VALUE, "A_log must be given with use_gate_in_kernel, or lower_bound"),
    "A_log size": (RAW | {"A_log": torch.zeros(2)}, VALUE, "A_log must be contiguous with 4"),
    "dt_bias size": (
        RAW | {"A_log": torch.zeros(4), "dt_bias": torch.zeros(4)},
        VALUE,
        "dt_bias must be contiguous with 64",
    ),
    "A_log unused": ({"A_log": torch.zeros(4)}, VALUE, "A_log must be None without use_gate"),
    "negative eigenvalues": ({"allow_neg_eigval": True}, VALUE, "allow_neg_eigval must be False"),
    "two layouts": (
        {"state_v_first": True, "transpose_state_layout": False},
        VALUE,
        "transpose_state_layout must be absent with state_v_first",
    ),
    "slots without states": (
        {"initial_state_indices": SLOT},
        VALUE,
        "initial_state_indices must be None without initial_state",
    ),
    "slots 2-D": (
        {"initial_state": states(2), "initial_state_indices": torch.zeros(1, 2).int()},
        VALUE,
        "initial_state_indices must be of shape [1] or [1, 1]",
    ),
    "slots float": (
        {"initial_state": states(2), "initial_state_indices": torch.zeros(1)},
        TYPE,
        "initial_state_indices must be int32 or int64",
    ),
    "pool and buffer": (
        {"initial_state": states(2), "initial_state_indices": SLOT, "final_state": states(1)},
        VALUE,
        "final_state must be None, or initial_state itself",
    ),
    "out shape": ({"out": torch.zeros(1, 70, 2, 8)}, VALUE, "out must be of shape [1, 70, 4, 8]"),
    "scale tensor": ({"scale": torch.tensor(1.0)}, TYPE, "scale must be None or a number"),
    "cu 2-D": ({"cu_seqlens": CU[None]}, VALUE, "cu_seqlens must be of shape"),
    "gradient": ({"g": torch.zeros(1, 70, 4, 16, requires_grad=True)}, VALUE, "free of gradients"),
    "context parallel": ({"cp_context": object()}, Unsupported, "cp_context must be off"),
    "typo": ({"use_l2norm": True}, TYPE, "known keywords only, found use_l2norm"),
}
CHUNK_REFUSALS: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "chunk 128": ({"chunk_size": 128}, VALUE, "chunk_size must be 32 or 64, found 128"),
    "half a layout": (
        {"cu_seqlens": CU, "chunk_indices": torch.zeros(2, 2).int()},
        VALUE,
        "chunk_offsets must be given",
    ),
    "layout of nothing": (
        {"chunk_indices": torch.zeros(2, 2).int(), "chunk_offsets": torch.zeros(4).int()},
        VALUE,
        "chunk_indices must be None without cu_seqlens",
    ),
    "layout shape": (
        {
            "cu_seqlens": CU,
            "chunk_indices": torch.zeros(2).int(),
            "chunk_offsets": torch.zeros(4).int(),
        },
        VALUE,
        "chunk_indices must be of shape [any, 2]",
    ),
    "half a snapshot": ({"track_state": states(1)}, VALUE, "track_chunk_idx must be given"),
    "snapshot bf16": (
        {"track_state": states(1, BF16), "track_chunk_idx": SLOT.int()},
        TYPE,
        "track_state must be float32",
    ),
}
RECURRENT_REFUSALS: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "two kinds of slots": (
        {"initial_state": states(2), "initial_state_indices": SLOT, "ssm_state_indices": SLOT},
        VALUE,
        "ssm_state_indices must be None with initial_state_indices",
    ),
    "in place of nothing": (
        {"inplace_final_state": True},
        VALUE,
        "inplace_final_state must be False without initial_state",
    ),
    "accepted without slots": (
        {"num_accepted_tokens": SLOT},
        VALUE,
        "num_accepted_tokens must be None without ssm_state_indices",
    ),
    "accepted shape": (
        {
            "initial_state": states(2),
            "ssm_state_indices": SLOT,
            "num_accepted_tokens": torch.zeros(2).int(),
        },
        VALUE,
        "num_accepted_tokens must be of shape [1]",
    ),
    "states of chunks": ({"return_intermediate_states": True}, Unsupported, "use chunk_kda"),
}


def refused(function: Any, changes: dict[str, Any], error: type[Exception], text: str) -> None:
    session = Recorder()
    function.__wrapped__(session, **tokens())
    session.arguments = ()
    for _ in range(2):  # neither the good call nor the bad one is an excuse
        with pytest.raises(error, match=re.escape(text)):
            function.__wrapped__(session, **(tokens() | changes))
    assert session.arguments == ()


@BOTH
@pytest.mark.parametrize(("changes", "error", "text"), REFUSALS.values(), ids=REFUSALS)
def test_refusals(function: Any, changes: Any, error: type[Exception], text: str) -> None:
    refused(function, changes, error, text)


@pytest.mark.parametrize(("changes", "error", "text"), CHUNK_REFUSALS.values(), ids=CHUNK_REFUSALS)
def test_chunk_refusals(changes: Any, error: type[Exception], text: str) -> None:
    refused(chunk_kda, changes, error, text)


@pytest.mark.parametrize(
    ("changes", "error", "text"), RECURRENT_REFUSALS.values(), ids=RECURRENT_REFUSALS
)
def test_recurrent_refusals(changes: Any, error: type[Exception], text: str) -> None:
    refused(fused_recurrent_kda, changes, error, text)


def test_names_of_chunk_kda_pass_where_they_change_nothing() -> None:
    x = tokens()
    want = fused_recurrent_kda(**x)[0]
    off = {"chunk_size": 64, "chunk_indices": None, "track_state": None, "cp_context": None}
    assert torch.equal(fused_recurrent_kda(**x, **off, use_graph=True)[0], want)


POOL = {"initial_state": states(4), "cu_seqlens": CU}
BAD_VALUES: dict[str, tuple[dict[str, Any], str]] = {
    "cu falls": ({"cu_seqlens": torch.tensor([0, 40, 30])}, "cu_seqlens must be rising"),
    "cu past the end": ({"cu_seqlens": torch.tensor([0, 71])}, "cu_seqlens must be rising"),
    "host lengths differ": (
        {"cu_seqlens": CU, "cu_seqlens_cpu": torch.tensor([0, 30, 31, 66])},
        "cu_seqlens_cpu must be equal",
    ),
    "slot outside": (
        POOL | {"initial_state_indices": torch.tensor([0, 4, 1])},
        "slots of the pool",
    ),
    "slot twice": (POOL | {"initial_state_indices": torch.tensor([2, 0, 2])}, "without duplicates"),
    "growing": ({"g": torch.full((1, 70, 4, 16), 0.1)}, "g must be <= 0"),
    "below -5": ({"g": torch.full((1, 70, 4, 16), -6.0), "safe_gate": True}, ">= lower_bound = -5"),
    "below the bound": (
        {"g": torch.full((1, 70, 4, 16), -2.0), "safe_gate": True, "lower_bound": -1.0},
        "g must be >= lower_bound",
    ),
}


@BOTH
@pytest.mark.parametrize(("changes", "text"), BAD_VALUES.values(), ids=BAD_VALUES)
def test_values_are_checked_only_when_asked(function: Any, changes: Any, text: str) -> None:
    function.__wrapped__(Recorder(), **(tokens() | changes))
    with pytest.raises(ArgumentValueError, match=re.escape(text)):
        function.__wrapped__(Recorder(validate=True), **(tokens() | changes))


def test_validation_of_accepted_tokens() -> None:
    slots = torch.arange(4).reshape(1, 4)
    x = tokens(1, 4) | {"initial_state": states(4), "ssm_state_indices": slots}
    for number in (0, 4):
        fused_recurrent_kda.__wrapped__(
            Recorder(validate=True), **x, num_accepted_tokens=torch.tensor([number])
        )
    x["num_accepted_tokens"] = torch.tensor([5])
    fused_recurrent_kda.__wrapped__(Recorder(), **x)
    with pytest.raises(ArgumentValueError, match="num_accepted_tokens must be at most 4"):
        fused_recurrent_kda.__wrapped__(Recorder(validate=True), **x)


def test_validation_accepts_padding_slots() -> None:
    slots = torch.tensor([-1, 2, -1])
    x = tokens() | POOL | {"initial_state_indices": slots}
    chunk_kda.__wrapped__(Recorder(validate=True), **x)
    many = torch.tensor([[0, 1], [2, -1], [3, -1]])
    with pytest.raises(ArgumentValueError, match="of 36 columns"):
        fused_recurrent_kda.__wrapped__(
            Recorder(validate=True), **tokens(), **POOL, ssm_state_indices=many
        )


PACKED: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "width": ({"mixed_qkv": torch.zeros(3, 97)}, VALUE, "mixed_qkv must be 2 H 16 + 4 8 wide"),
    "a": ({"a": torch.zeros(3, 32)}, VALUE, "a must be of shape [3, 64]"),
    "b": ({"b": torch.zeros(3, 8)}, VALUE, "b must be of shape [3, 4]"),
    "no slots": ({"ssm_state_indices": None}, VALUE, "ssm_state_indices must be a tensor of slots"),
    "out": ({"out": torch.zeros(3, 4, 8)}, VALUE, "out must be of shape [3, 1, 4, 8]"),
    "pool fp16": ({"initial_state": states(5, v_first=True).half()}, TYPE, "initial_state must be"),
    "no gate": ({"A_log": None}, VALUE, "A_log must be given"),
}


@pytest.mark.parametrize(("changes", "error", "text"), PACKED.values(), ids=PACKED)
def test_packed_decode_refusals(changes: Any, error: type[Exception], text: str) -> None:
    values = {
        "mixed_qkv": torch.zeros(3, 96),
        "a": torch.zeros(3, 64),
        "b": torch.zeros(3, 4),
        "A_log": torch.zeros(4),
        "dt_bias": None,
        "scale": None,
        "initial_state": states(5, v_first=True),
        "ssm_state_indices": torch.tensor([0, 1, 2]),
        "out": torch.zeros(3, 1, 4, 8),
    }
    session = Recorder()
    kda_packed_decode.__wrapped__(session, **values)
    assert session.problem[:7] == ("float32", "float32", "float32", 2, 4, 16, 8)
    with pytest.raises(error, match=re.escape(text)):
        kda_packed_decode.__wrapped__(session, **(values | changes))
