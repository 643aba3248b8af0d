# SPDX-License-Identifier: Apache-2.0
"""KDA's decode under Triton's interpreter, to the bit: what the exam's bounds do not see."""

from __future__ import annotations

from typing import Any

import pytest
import torch

pytest.importorskip("triton")

import archkey
from archkey.launch import interpreting

interpreted = pytest.mark.skipif(not interpreting(), reason="needs TRITON_INTERPRET=1")
pytestmark = interpreted

HEADS, K, V = 2, 32, 48  # three programs a state, the last of them as full as the others
BF16 = torch.bfloat16


def call(tokens: int, seed: int = 0, v_first: bool = True) -> dict[str, Any]:
    """A call of raw gates and betas, as SGLang makes it, without states."""
    gen = torch.Generator().manual_seed(seed)
    return {
        **{x: torch.randn(1, tokens, HEADS, K, generator=gen).to(BF16) for x in ("q", "k", "g")},
        "v": torch.randn(1, tokens, HEADS, V, generator=gen).to(BF16),
        "beta": torch.randn(1, tokens, HEADS, generator=gen).to(BF16),
        "A_log": torch.randn(HEADS, generator=gen),
        "dt_bias": torch.randn(HEADS * K, generator=gen),
        **dict.fromkeys(("use_qk_l2norm_in_kernel", "use_gate_in_kernel"), True),
        "use_beta_sigmoid_in_kernel": True,
        "state_v_first": v_first,
    }


def rows(given: dict[str, Any], *parts: slice) -> dict[str, Any]:
    """The same of some tokens only."""
    names = ("q", "k", "v", "g", "beta")
    return given | {x: torch.cat([given[x][:, part] for part in parts], 1) for x in names}


def pool(slots: int, dtype: torch.dtype = torch.float32, v_first: bool = True) -> torch.Tensor:
    shape = (slots, HEADS, V, K) if v_first else (slots, HEADS, K, V)
    return torch.randn(shape, generator=torch.Generator().manual_seed(7)).to(dtype)


def lengths(*counts: int) -> torch.Tensor:
    return torch.tensor([0, *counts]).cumsum(0).int()


def test_verification_with_rejected_tokens_is_the_greedy_sequence() -> None:
    """Drafts of 3, 2 and 3 tokens, of which 1, 2 and 2 stand; the rest leaves no trace."""
    session, greedy = archkey.open("cuda_sm90"), call(5)
    wrong = call(5, seed=1)
    alone = pool(1)
    wanted, _ = session.fused_recurrent_kda(
        **greedy, initial_state=alone, initial_state_indices=torch.tensor([0])
    )
    states = pool(4)
    slots = torch.tensor([[0, 3, 2]], dtype=torch.int32)
    accepted, done = torch.tensor([1], dtype=torch.int32), 0
    for good, bad in ((1, 2), (2, 0), (2, 1)):
        draft = rows(greedy, slice(done, done + good))
        if bad:
            false = rows(wrong, slice(0, bad))
            draft |= {x: torch.cat([draft[x], false[x]], 1) for x in ("q", "k", "v", "g", "beta")}
        o, _ = session.fused_recurrent_kda(
            **draft, initial_state=states, ssm_state_indices=slots, num_accepted_tokens=accepted,
            inplace_final_state=True, cu_seqlens=lengths(good + bad),
        )  # fmt: skip
        assert torch.equal(o[:, :good], wanted[:, done : done + good])
        accepted.fill_(good)
        done += good
    assert torch.equal(states[slots[0, good - 1]], alone[0])
    assert torch.equal(states[1], pool(4)[1])


@pytest.mark.parametrize("v_first", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, BF16], ids=str)
def test_a_sequence_is_the_same_alone_and_in_a_batch(dtype: torch.dtype, v_first: bool) -> None:
    """Beside an empty one, one without a slot that is NaN, and rows of nobody; v becomes o."""
    session, given = archkey.open("cuda_sm90"), call(9, v_first=v_first)
    alone = pool(3, dtype, v_first)
    wanted, _ = session.fused_recurrent_kda(
        **rows(given, slice(3, 7)), initial_state=alone, initial_state_indices=torch.tensor([2])
    )
    for x in ("q", "k", "v", "g", "beta"):
        given[x][:, 1:3] = torch.nan
        given[x][:, 7:] = torch.nan
    states, before = pool(3, dtype, v_first), pool(3, dtype, v_first)
    o, _ = session.fused_recurrent_kda(
        **given, initial_state=states, out=given["v"], cu_seqlens=lengths(1, 2, 0, 4),
        initial_state_indices=torch.tensor([0, -1, 1, 2]),
    )  # fmt: skip
    assert o is given["v"]
    assert torch.equal(o[:, 3:7], wanted)
    assert torch.equal(states[2], alone[2])
    assert torch.equal(states[1], before[1])
    assert not torch.equal(states[0], before[0])
    assert not o[:, 1:3].any()
    assert not o[:, 7:].any()


def test_packed_decode_is_the_recurrence_of_one_token() -> None:
    """Of four sequences, the same bits, in the pool as well."""
    session, given = archkey.open("cuda_sm90"), call(4)
    slots = torch.tensor([4, -1, 0, 2], dtype=torch.int32)
    states, packed = pool(5), pool(5)
    wanted, _ = session.fused_recurrent_kda(
        **given, initial_state=states, ssm_state_indices=slots, inplace_final_state=True,
        cu_seqlens=lengths(1, 1, 1, 1),
    )  # fmt: skip
    out = torch.full((4, 1, HEADS, V), torch.nan, dtype=BF16)
    session.kda_packed_decode(
        torch.cat([given[x][0].flatten(1) for x in "qkv"], 1), given["g"][0].flatten(1),
        given["beta"][0], A_log=given["A_log"], dt_bias=given["dt_bias"], scale=None,
        initial_state=packed, ssm_state_indices=slots, out=out,
    )  # fmt: skip
    assert torch.equal(out[:, 0], wanted[0])
    assert torch.equal(packed, states)


def test_gates_of_more_dimensions_than_strides() -> None:
    """`[2, 3, 2, HV, K]` with dimensions that cannot be joined, into rows that are apart."""
    session = archkey.open("cuda_sm90")
    gen = torch.Generator().manual_seed(2)
    g = torch.randn(2, 3, 2, HEADS, K, generator=gen).permute(1, 2, 0, 3, 4)
    out = torch.full((3, 2, 2, HEADS, 2 * K), torch.nan)[..., :K]
    A_log = torch.randn(HEADS, generator=gen)
    wanted = session.kda_gate(g.contiguous(), A_log)
    assert torch.equal(session.kda_gate(g, A_log, out=out), wanted)
