# SPDX-License-Identifier: Apache-2.0
"""Calls of attention and KDA whose metadata is known: what was accepted must not open the door.

A call is checked once and then remembered by its metadata; whatever the checks look at must
therefore tell remembered calls apart.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.core import _attention, _kda
from tests.core._kda import BF16, BOTH, CU, states, tokens

from archkey.errors import ArgumentTypeError, ArgumentValueError
from archkey.ops import attention, kda, kda_gate, page_table

REFUSED = (ArgumentTypeError, ArgumentValueError)


def attention_call() -> dict[str, Any]:
    return _attention.call_inputs(
        sinks=torch.zeros(4),
        alibi_slopes=torch.zeros(4),
        qq_bias=torch.zeros(3, 3),
        k_descale=torch.ones(2, 2),
        v_descale=torch.ones(1),
        softmax_segm_output=torch.zeros(8, 4, 16, 32),
        softmax_segm_max=torch.zeros(8, 4, 16),
        softmax_segm_expsum=torch.zeros(8, 4, 16),
    )


def kda_call() -> dict[str, Any]:
    return tokens(
        use_gate_in_kernel=True,
        A_log=torch.zeros(4),
        dt_bias=torch.zeros(4, 16),
        cu_seqlens=CU,
        initial_state=states(5),
        initial_state_indices=torch.tensor([4, 0, 1]),
        out=torch.zeros(1, 70, 4, 8, dtype=BF16),
    )


def chunk_call() -> dict[str, Any]:
    layout = kda_gate.chunk_layout(CU, 70)
    track = {"track_state": states(3), "track_chunk_idx": torch.zeros(3, dtype=torch.int32)}
    names = ("chunk_indices", "chunk_offsets")
    return kda_call() | track | dict(zip(names, layout, strict=True)) | {"cu_seqlens_cpu": CU}


def recurrent_call() -> dict[str, Any]:
    values = kda_call()
    del values["initial_state_indices"]
    slots = torch.arange(3 * 40, dtype=torch.int32).reshape(3, 40)
    many = {"initial_state": states(120), "ssm_state_indices": slots}
    return values | many | {"num_accepted_tokens": torch.ones(3, dtype=torch.int32)}


def packed_call() -> dict[str, Any]:
    return {
        "mixed_qkv": torch.zeros(3, 96),
        "a": torch.zeros(3, 64),
        "b": torch.zeros(3, 4),
        "A_log": torch.zeros(4),
        "dt_bias": torch.zeros(64),
        "scale": None,
        "initial_state": states(5, v_first=True),
        "ssm_state_indices": torch.tensor([0, 1, 2]),
        "out": torch.zeros(3, 1, 4, 8),
    }


def gate_call() -> dict[str, Any]:
    g = torch.zeros(1, 70, 4, 16)
    return {"g": g, "A_log": torch.zeros(4), "dt_bias": torch.zeros(64), "out": g.clone()}


def sums_call() -> dict[str, Any]:
    pairs, _ = kda_gate.chunk_layout(CU, 70)
    return gate_call() | {"cu_seqlens": CU, "chunk_indices": pairs}


CALLS = {
    "unified_attention": (attention.unified_attention, attention_call()),
    "ragged_kv_indices": (page_table.ragged_kv_indices_to_page_table, _attention.table_inputs()),
    "req_to_token": (page_table.req_to_token_to_page_table, _attention.request_inputs()),
    "chunk_kda": (kda.chunk_kda, chunk_call()),
    "fused_recurrent_kda": (kda.fused_recurrent_kda, recurrent_call()),
    "kda_packed_decode": (kda.kda_packed_decode, packed_call()),
    "kda_gate": (kda_gate.kda_gate, gate_call()),
    "kda_gate_chunk_cumsum": (kda_gate.kda_gate_chunk_cumsum, sums_call()),
}
CHANGES = {
    "device": lambda x: x.to("meta"),
    "dtype": lambda x: x.double(),
    "stride": lambda x: x.repeat_interleave(2, -1)[..., ::2],
    "rank": lambda x: x[None, None],
    "list": lambda x: x.tolist(),
}
ALLOWED = {
    ("k_descale", "stride"),  # vLLM expands one number
    ("v_descale", "stride"),
    ("v_descale", "rank"),
    ("cu_seqlens_cpu", "stride"),  # read here only
    ("A_log", "rank"),
    ("dt_bias", "rank"),
}
CASES = [
    pytest.param(function, values, name, change, id=f"{operator}-{name}-{change}")
    for operator, (function, values) in CALLS.items()
    for name, value in values.items()
    for change in CHANGES
    if isinstance(value, torch.Tensor) and (name, change) not in ALLOWED
]


@pytest.mark.parametrize(("function", "values", "name", "change"), CASES)
def test_a_known_call_admits_no_other(function: Any, values: Any, name: str, change: str) -> None:
    session = _attention.Recorder()
    function.__wrapped__(session, **values)
    accepted, session.arguments = session.problem, ()
    for _ in range(2):
        with pytest.raises(REFUSED):
            function.__wrapped__(session, **(values | {name: CHANGES[change](values[name])}))
    assert session.arguments == () and len(session.problems) == 1
    function.__wrapped__(session, **values)
    assert session.problem is accepted and session.arguments


NUMBERS: dict[str, list[dict[str, Any]]] = {
    "unified_attention": [
        {"max_seqlen_q": 1},
        {"max_seqlen_q": 4},  # more than qq_bias has
        {"max_seqlen_k": 33},
        {"softmax_scale": 0.0},
        {"softcap": 2.0},
        {"softcap": -1.0},
        {"window_size": (3, 0)},
        {"causal": False},
        {"kv_layout": "HND"},
        {"seq_threshold_3D": 3},
        {"num_par_softmax_segments": 8},
        {"k_descale": None},
        {"v_descale": 0.5},
        {"output_scale": 2.0},
        {"sinks": None},
    ],
    "ragged_kv_indices": [{"page_size": 8}, {"page_size": 3}, {"fill_tail": False}],
    "req_to_token": [{"page_size": 8}, {"fill_tail": False}, {"num_draft_tokens": -1}],
    "chunk_kda": [
        {"chunk_size": 32},
        {"chunk_size": 16},
        {"return_intermediate_states": True},
        {"initial_state": None, "initial_state_indices": None},
        {"initial_state": None, "initial_state_indices": None, "output_final_state": True},
    ],
    "fused_recurrent_kda": [
        {"inplace_final_state": True},
        {"output_final_state": True},
        {"num_accepted_tokens": None},
    ],
    "kda_packed_decode": [
        {"lower_bound": -5.0},
        {"lower_bound": -6.0},
        {"lower_bound": 1.0},
        {"A_log": None},
        {"use_qk_l2norm_in_kernel": False},
        {"scale": "1"},
    ],
    "kda_gate": [{"lower_bound": -5.0}, {"lower_bound": 1.0}, {"output_dtype": BF16}],
    "kda_gate_chunk_cumsum": [
        {"chunk_size": 32},
        {"chunk_size": 16},
        {"unit": "log2"},
        {"unit": "e"},
        {"out": None, "output_dtype": BF16},
    ],
}
BOTH_KDA: list[dict[str, Any]] = [
    {"lower_bound": -5.0},
    {"lower_bound": -6.0},
    {"lower_bound": 1.0},
    {"lower_bound": -5.0, "safe_gate": True},
    {"safe_gate": True},
    {"A_log": None},
    {"scale": "1"},
    {"state_v_first": True},
    {"use_qk_l2norm_in_kernel": True},
    {"use_gate_in_kernel": False},
    {"use_beta_sigmoid_in_kernel": True},
    {"allow_neg_eigval": True},
    {"use_beta_sigmoid_in_kernel": True, "allow_neg_eigval": True},
]


def outcome(session: Any, function: Any, values: dict[str, Any]) -> Any:
    try:
        function.__wrapped__(session, **values)
    except REFUSED as error:
        return str(error)
    return session.problem


@pytest.mark.parametrize("operator", CALLS)
def test_a_known_call_comes_to_what_a_new_one_does(operator: str) -> None:
    function, base = CALLS[operator]
    session, plain = _attention.Recorder(), outcome(_attention.Recorder(), function, base)
    more = BOTH_KDA if operator in ("chunk_kda", "fused_recurrent_kda") else []
    for changes in NUMBERS[operator] + more:
        values = base | changes
        want = outcome(_attention.Recorder(), function, values)
        assert want != plain, changes
        for _ in range(2):
            assert outcome(session, function, base) == plain
            assert outcome(session, function, values) == want, changes


def test_unaligned_lengths_do_not_stand_for_an_unaligned_query() -> None:
    session = _attention.Recorder()
    odd = torch.tensor([9, 0, 3, 4], dtype=torch.int32)[1:]
    values = _attention.call_inputs(cu_seqlens_q=odd)
    attention.unified_attention.__wrapped__(session, **values)
    assert session.problem.aligned
    values["q"] = torch.zeros(4 * 4 * 32 + 1, dtype=BF16)[1:].view(4, 4, 32)
    attention.unified_attention.__wrapped__(session, **values)
    assert not session.problem.aligned


@BOTH
def test_outputs_made_here_count_for_alignment(function: Any) -> None:
    session = _kda.Recorder()
    wide = torch.zeros(1, 70, 4, 16, dtype=BF16)
    x = tokens(v=wide[..., :9])
    function.__wrapped__(session, **x, out=wide.clone()[..., :9])
    assert session.problem.aligned
    function.__wrapped__(session, **x)
    assert not session.problem.aligned


@BOTH
def test_a_pool_is_the_same_tensor_not_one_like_it(function: Any) -> None:
    session, pool = _kda.Recorder(), states(5)
    call = tokens(initial_state=pool, initial_state_indices=torch.tensor([3]))
    function.__wrapped__(session, **call, final_state=pool)
    with pytest.raises(ArgumentValueError, match="final_state must be None, or initial_state"):
        function.__wrapped__(session, **call, final_state=pool.clone())


def test_a_number_does_not_stand_for_a_tensor_of_it() -> None:
    session = _attention.Recorder()
    for value, kind in ((1.0, "number"), (torch.tensor(1.0), "tensor"), (None, "none")):
        for _ in range(2):
            values = _attention.call_inputs(k_descale=value)
            attention.unified_attention.__wrapped__(session, **values)
            assert session.problem.k_descale == kind
