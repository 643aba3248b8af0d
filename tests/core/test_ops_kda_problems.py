# SPDX-License-Identifier: Apache-2.0
"""The problems and arguments that kernels of the KDA family get."""

from __future__ import annotations

from typing import Any

import torch
from tests.core._kda import BF16, BOTH, CU, Recorder, states, tokens

from archkey.ops.kda import chunk_kda, fused_recurrent_kda


@BOTH
def test_problem_holds_what_is_known_before_the_numbers(function: Any) -> None:
    session = Recorder()

    def problem(**options: Any) -> Any:
        x = tokens(**{n: options.pop(n) for n in ("g", "beta", "q", "v") if n in options})
        function.__wrapped__(session, **x, **options)
        return session.problem

    plain = problem()
    assert plain[:7] == ("bfloat16", "float32", "float32", 2, 4, 16, 8)
    assert (plain.gate, plain.beta, plain.state_dtype, plain.final_dtype) == (
        *("given", "given", "none", "none"),
    )
    raw = {"use_gate_in_kernel": True, "A_log": torch.zeros(4)}
    pool = {"initial_state": states(9, BF16), "initial_state_indices": torch.tensor([1])}
    soft = {"gate": "softplus", "A_log": "float32"}
    changes: list[tuple[dict[str, Any], dict[str, Any]]] = [
        ({"g": torch.zeros(1, 70, 4, 16).to(BF16)}, {"g_dtype": "bfloat16"}),
        ({"use_qk_l2norm_in_kernel": True}, {"l2norm": True}),
        (raw, soft),
        (raw | {"dt_bias": torch.zeros(64)}, soft | {"dt_bias": "float32"}),
        (raw | {"lower_bound": -5}, {"gate": "sigmoid", "A_log": "float32", "bounded": True}),
        (raw | {"lower_bound": -9.0}, {"gate": "sigmoid", "A_log": "float32"}),
        ({"safe_gate": True, "lower_bound": -5}, {"bounded": True}),
        ({"safe_gate": True}, {"bounded": True}),
        ({"use_beta_sigmoid_in_kernel": True}, {"beta": "sigmoid"}),
        ({"use_beta_sigmoid_in_kernel": True, "allow_neg_eigval": True}, {"beta": "2sigmoid"}),
        ({"cu_seqlens": CU}, {"cu_seqlens": "int64"}),
        ({"state_v_first": True}, {"state_v_first": True}),
        ({"transpose_state_layout": True}, {"state_v_first": True}),
        ({"output_final_state": True}, {"final_dtype": "float32"}),
        ({"initial_state": states(1)}, {"state_dtype": "float32"}),
        (pool, {"state_dtype": "bfloat16", "final_dtype": "bfloat16", "state_indices": "int64"}
            | ({"in_place": True} if function is fused_recurrent_kda else {})),
        ({"out": torch.empty(1, 70, 4, 8)}, {"out_dtype": "float32"}),
        ({"q": torch.zeros(1, 70, 2, 17, dtype=BF16)[..., 1:]}, {"aligned": False}),
        ({"initial_state": states(1)[..., :7].repeat(1, 1, 1, 2)[..., :8]}, {
            "state_dtype": "float32", "aligned": False}),
    ]  # fmt: skip
    for options, fields in changes:
        assert problem(**options) == plain._replace(**fields), options
    function.__wrapped__(session, **tokens(1, 71))
    assert session.problem == plain and hash(session.problem) == hash(plain)


def test_chunk_problem_and_launch() -> None:
    session = Recorder()
    chunk_kda.__wrapped__(session, **tokens(1, 64 * 64))
    assert session.problem.small_grid  # 64 chunks of 4 heads
    chunk_kda.__wrapped__(session, **tokens(1, 64 * 64 + 1), chunk_size=64)
    assert not session.problem.small_grid
    named = session.named()
    assert named["chunk_indices"] is None and named["scale"] == 0.25 and named["h"] is None
    chunk_kda.__wrapped__(session, **tokens(), cu_seqlens=CU, chunk_size=32)
    assert session.named()["chunk_indices"] is None  # only the chunks of h have to be numbered
    assert session.problem.small_grid
    options = {"cu_seqlens": CU, "chunk_size": 32, "return_intermediate_states": True}
    chunk_kda.__wrapped__(session, **tokens(), **options)
    named = session.named()
    assert named["chunk_indices"].tolist() == [[0, 0], [2, 0], [2, 1]]
    assert named["chunk_offsets"].tolist() == [0, 1, 1, 3]
    assert session.problem.chunk_size == 32


def test_chunks_are_counted_by_sequence() -> None:
    """Of packed sequences the list counts, not the tokens: 129 of one token are 129 chunks."""
    session = Recorder()
    cu_seqlens = torch.arange(130, dtype=torch.int32)
    chunk_kda.__wrapped__(session, **tokens(1, 129), cu_seqlens=cu_seqlens)
    assert not session.problem.small_grid
    chunk_kda.__wrapped__(session, **tokens(1, 129), cu_seqlens=cu_seqlens[[0, -1]].contiguous())
    assert session.problem.small_grid


def test_slots_reach_the_kernel_as_given() -> None:
    session = Recorder()
    table = torch.arange(12, dtype=torch.int32).reshape(3, 4)
    for slots, many in ((table[:, 0].contiguous(), False), (table, True), (table[:, :1], False)):
        fused_recurrent_kda.__wrapped__(
            session, **tokens(), initial_state=states(12), ssm_state_indices=slots, cu_seqlens=CU
        )
        assert session.named()["state_indices"] is slots
        assert session.problem.per_token is many


def test_positions_are_those_of_flash_linear_attention() -> None:
    """So that only the import of a caller changes."""
    session, x = Recorder(), tokens()
    pool, a_log, bias = states(1), torch.zeros(4), torch.zeros(64)
    chunk_kda.__wrapped__(
        session, *x.values(), 0.5, pool, True, True, True, True, True, True, -5.0, False, True,
        False, CU[::3].contiguous(), None, A_log=a_log, dt_bias=bias,
    )  # fmt: skip
    named = session.named()
    assert named["scale"] == 0.5 and named["lower_bound"] == -5.0
    assert named["return_intermediate_states"] and named["cu_seqlens"].tolist() == [0, 66]
    fused_recurrent_kda.__wrapped__(
        session, *x.values(), a_log, bias, 0.5, pool, True, True, True, True, True, -5.0, False,
        CU[::3].contiguous(),
    )  # fmt: skip
    named = session.named()
    assert named["A_log"] is a_log and named["dt_bias"] is bias and named["scale"] == 0.5
    assert named["lower_bound"] == -5.0 and named["cu_seqlens"].tolist() == [0, 66]
