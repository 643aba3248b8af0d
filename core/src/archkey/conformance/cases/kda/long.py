# SPDX-License-Identifier: Apache-2.0
"""Long sequences of KDA: what a state loses with each token, it has lost after tens of thousands.

The judge measures them by 256 tokens too. Few heads: the float64 truth goes token by token. They
are for a card, and for torch on a CPU.
"""

from __future__ import annotations

from typing import Any

from archkey.conformance.case import Case
from archkey.conformance.cases.kda.inputs import ChunkKda, RecurrentKda
from archkey.conformance.cases.spec import describe

__all__ = ["CASES"]

_LONG: dict[str, Any] = {"lengths": (65536,), "heads": (2, 2), "state": "fp32", "final": "new"}
_POOL: dict[str, Any] = {"final": "", "v_first": True, "slots": "one"}
# As a layer hands them over: raw gates and betas, q and k not yet of unit length.
_RAW: dict[str, Any] = {
    "gate": "raw",
    "g_dtype": "bf16",
    "beta": "raw",
    "beta_dtype": "bf16",
    "l2norm": "unit",
}

_CHUNK: tuple[dict[str, Any], ...] = (
    _LONG | {"low": -0.001},  # a token is remembered for some thousand others
    _LONG | {"low": 0.0, "heads": (1, 2), "dims": (64, 64)},
    _LONG | {"low": -3.2, "flat": True, "heads": (1, 2), "masked": 0.5},
    _LONG | _RAW | _POOL | {"lengths": (40000, 0, 63, 25473), "A_log": "mixed"},
    _LONG | _RAW | _POOL | {"bound": -5.0, "safe": True, "state": "bf16", "dt_bias": "extreme"},
)

# Of a length that verification never has: each token goes through the state by itself.
_RECURRENT: tuple[dict[str, Any], ...] = (
    _LONG | {"lengths": (16384,), "low": -0.001},
    _LONG | _RAW | {"lengths": (9000, 0, 7384), "A_log": "mixed", "v_first": True},
)


def _case(operator: str, call: ChunkKda | RecurrentKda) -> Case:
    tokens = sum(call.lengths)
    return Case(operator, f"{tokens} tokens", describe(call), call, large=True)


CASES = (
    *(_case("chunk_kda", ChunkKda(**fields)) for fields in _CHUNK),
    *(_case("fused_recurrent_kda", RecurrentKda(**fields)) for fields in _RECURRENT),
)
