# SPDX-License-Identifier: Apache-2.0
"""KDA on numbers as layers have them, for level accuracy.

Tokens have the heavy tails and outlier channels of `distributions`, and values a mean. What a state
keeps of them is decided by gates and betas:

| kind | gates, nats a token | what it shows |
|---|---|---|
| outlier channels | raw, as a layer is initialised: slow and fast heads | a layer as a whole |
| long memory | -0.0002 to 0, betas to 0.01: thousands of tokens | what a state loses each time |
| forgetting | about -0.3: 20 a chunk of 64 | sums in another unit, or rounded |
| forgetting at once | about -3: 200 a chunk, past float32's exponent | e^G and e^-G apart |
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch

from archkey.conformance.accuracy import AccuracyCase
from archkey.conformance.case import Maker
from archkey.conformance.cases.distributions import activations
from archkey.conformance.cases.tensors import bounds

__all__ = ["CASES", "KINDS"]

KINDS = ("outlier channels", "long memory", "forgetting", "forgetting at once")

_DIM = 128
_GATES = {"long memory": 0.0002, "forgetting": 0.6, "forgetting at once": 6.2}
"""The steepest of finished gates, which are uniform from 0; nats."""


@dataclass(frozen=True)
class RealKda:
    """A call of either operator: packed bfloat16 sequences, float32 states with V first.

    kind  of KINDS; lengths  of the sequences; heads  of queries, keys and values
    """

    kind: str
    lengths: tuple[int, ...]
    heads: int

    def __call__(self, make: Maker) -> Mapping[str, Any]:
        """Keyword arguments."""
        tokens, heads = sum(self.lengths), self.heads
        q, k, v = (self._tokens(make, tokens) for _ in range(3))
        mean = make.randn(1, 1, heads, _DIM, dtype=torch.float32)
        states = make.randn(len(self.lengths), heads, _DIM, _DIM, dtype=torch.float32)
        return {
            "q": (q + k).bfloat16(),  # near its key: what was written is asked for
            "k": k.bfloat16(),
            "v": (v + mean).bfloat16(),
            "initial_state": states / 8,
            "output_final_state": True,
            "state_v_first": True,
            "use_qk_l2norm_in_kernel": True,
            "cu_seqlens": bounds(make, self.lengths),
            **self._memory(make, tokens),
        }

    def _tokens(self, make: Maker, tokens: int) -> torch.Tensor:
        rows = activations(make, "outlier channels", tokens * self.heads, _DIM)
        return rows.view(1, tokens, self.heads, _DIM)

    def _memory(self, make: Maker, tokens: int) -> dict[str, Any]:
        """Gates and betas."""
        shape = 1, tokens, self.heads, _DIM
        if self.kind in _GATES:
            low, high = (0.002, 0.01) if self.kind == "long memory" else (0.2, 1.0)
            return {
                "g": -_GATES[self.kind] * make.rand(*shape),
                "beta": low + (high - low) * make.rand(*shape[:3]),
            }
        return {
            "g": make.randn(*shape),
            "beta": make.randn(*shape[:3]),
            "A_log": 2.77 * make.rand(self.heads),
            "dt_bias": 4.6 * make.rand(self.heads * _DIM) - 6.9,
            "use_gate_in_kernel": True,
            "use_beta_sigmoid_in_kernel": True,
        }


# Lengths and heads: of an interpreter, of torch on a CPU, of a card.
_SIZES: Mapping[str, tuple[tuple[tuple[int, ...], int], ...]] = MappingProxyType(
    {
        "chunk_kda": (((33, 479), 1), ((2000, 63), 2), ((60000, 5536), 8)),
        "fused_recurrent_kda": (((16, 264), 1), ((2040, 8), 2), ((16384, 4, 4), 8)),
    }
)
_LONG = (8192, 63)
"""Lengths on a CPU where the memory is long."""


def _cases() -> Iterator[AccuracyCase]:
    for operator, sizes in _SIZES.items():
        for kind in KINDS:
            for number, (lengths, heads) in enumerate(sizes):
                if kind == "long memory" and (operator, number) == ("chunk_kda", 1):
                    lengths = _LONG
                told = " + ".join(map(str, lengths))
                yield AccuracyCase(
                    operator,
                    kind,
                    f"{told} tokens, H={heads}, bf16",
                    RealKda(kind, lengths, heads),
                    edge=number == 0,
                    large=number == 2,
                )


CASES = tuple(_cases())
