# SPDX-License-Identifier: Apache-2.0
"""Kimi Delta Attention of FLA, FlashKDA, vLLM and SGLang, over stand-ins for the libraries."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
from tests.bench._peer_calls import examined, given, model, refusal, serves

OPERATORS = (
    "chunk_kda",
    "fused_recurrent_kda",
    "kda_gate",
    "kda_gate_chunk_cumsum",
    "kda_packed_decode",
)


@pytest.mark.parametrize(("entrant", "operator"), examined(*OPERATORS))
def test_serves_models_of_the_exam(adapted: Any, entrant: str, operator: str) -> None:
    serves(operator, adapted(entrant, operator))


KDA, K3 = model("chunk_kda", "TP4: 7 seq"), model("chunk_kda", "Kimi-K3")
EQUAL, GVA = model("chunk_kda", "without padding"), model("chunk_kda", "GVA")
RECURRENT, VERIFY = (model("fused_recurrent_kda", x) for x in ("TP8: B=16", "verify"))
PACKED, PACKED_BF16 = model("kda_packed_decode"), model("kda_packed_decode", "bf16")
PAST = {"cu_seqlens": torch.tensor([0, 900])}
SEVERAL = {"cu_seqlens": torch.tensor([0] * 16 + [16])}
NO_TOKEN = {"num_accepted_tokens": torch.tensor([0, 1, 1, 1, 1, 1])}
REFUSED = (
    ("fla", *KDA, {"return_intermediate_states": True}, "return_intermediate_states"),
    ("fla", *KDA, {"out": torch.ones(1)}, "out = a tensor"),
    ("fla", *KDA, PAST, "past the last sequence"),
    ("fla", *KDA, {"initial_state_indices": torch.arange(-1, 6)}, "negative slots"),
    ("fla", *RECURRENT, {"inplace_final_state": False}, "to read"),
    ("fla", *RECURRENT, SEVERAL, "one slot for several tokens"),
    ("fla", *VERIFY, NO_TOKEN, "no accepted token"),
    ("flash-kda", *KDA, {}, "lower_bound in"),
    ("flash-kda", *K3, {"use_qk_l2norm_in_kernel": False}, "use_qk_l2norm_in_kernel only"),
    ("flash-kda", *K3, {"state_v_first": False}, "V first only"),
    ("flash-kda", *K3, {"dt_bias": None}, "dt_bias"),
    ("flash-kda", *K3, {"allow_neg_eigval": True}, "allow_neg_eigval"),
    ("vllm-kda", *K3, {}, "lower_bound = -5"),
    ("vllm-kda", *KDA, {"state_v_first": False}, "V first only"),
    ("vllm-kda", *KDA, {}, "a sequence without tokens"),
    ("sglang", *KDA, {"state_v_first": False}, "V first only"),
    ("sglang", *KDA, {"chunk_size": 32}, "chunk_size = 32"),
    ("sglang", *GVA, {}, "H = HV only"),
    ("sglang", *PACKED, {"dt_bias": None}, "without dt_bias"),
    ("sglang:cuda", *PACKED, {"use_qk_l2norm_in_kernel": False}, "always normalises"),
    ("sglang:cuda", *PACKED_BF16, {}, "not covered"),
)


@pytest.mark.parametrize(("entrant", "operator", "make", "changes", "why"), REFUSED)
def test_refuses(
    adapted: Any, entrant: str, operator: str, make: Any, changes: dict[str, Any], why: str
) -> None:
    assert why in refusal(adapted(entrant, operator), make, changes)


def test_flash_kda_is_kept_out_of_fla(adapted: Any) -> None:
    adapted("fla", "chunk_kda")
    assert os.environ["FLA_FLASH_KDA"] == "0"


@pytest.mark.parametrize("entrant", ["vllm-kda", "sglang"])
def test_values_survive_a_library_that_writes_over_them(adapted: Any, entrant: str) -> None:
    values = given(EQUAL[1])
    before = values["v"].clone()
    adapted(entrant, "chunk_kda")(values).call()
    assert torch.equal(values["v"], before)


def test_states_of_sequences_go_back_to_their_slots_alone(adapted: Any) -> None:
    values = given(K3[1])
    pool, slots = values["initial_state"], values["initial_state_indices"]
    before = pool.clone()
    bound = adapted("flash-kda", "chunk_kda")(values)
    assert torch.equal(pool, before), "binding computes nothing"
    bound.call()
    changed = (pool != before).flatten(1).any(1)
    lengths = values["cu_seqlens"].diff()
    assert set(changed.nonzero().flatten().tolist()) == set(slots[lengths > 0].tolist())
    assert bound.outputs()["final_state"] is pool and pool.dtype == torch.bfloat16
