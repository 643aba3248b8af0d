# SPDX-License-Identifier: Apache-2.0
"""Kimi Delta Attention as Kimi-Linear (unbounded gate) and Kimi-K3 (bounded) use it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from archkey.conformance.case import Case, Maker
from archkey.conformance.cases.tensors import bounds

__all__ = ["CASES"]

DIM = 128
Inputs = Callable[[Maker], Mapping[str, Any]]


def _projections(make: Maker, tokens: int, heads: int) -> dict[str, Any]:
    """q, k, v as slices of one projection row, raw gate and raw beta of one packed batch."""
    row = make.randn(1, tokens, 3 * heads, DIM)
    q, k, v = row.split(heads, dim=2)
    return {
        "q": q,
        "k": k,
        "v": v,
        "g": make.randn(1, tokens, heads, DIM),
        "beta": make.randn(1, tokens, heads),
        # exp(A_log) in 1 .. 16 and dt in 0.001 .. 0.1, as the layer is initialised.
        "A_log": make.rand(heads) * 2.77,
        "dt_bias": make.rand(heads * DIM) * 4.6 - 6.9,
        "use_qk_l2norm_in_kernel": True,
        "use_gate_in_kernel": True,
        "use_beta_sigmoid_in_kernel": True,
    }


def _pool(make: Maker, sequences: int, heads: int, dtype: torch.dtype) -> dict[str, Any]:
    """A pool of `[V, K]` states, two slots of nobody in it."""
    return {
        "initial_state": make.randn(sequences + 2, heads, DIM, DIM, dtype=dtype) / 8,
        "initial_state_indices": make.permutation(sequences + 2)[:sequences],
        "state_v_first": True,
    }


def _prefill(
    lengths: list[int],
    heads: int,
    lower_bound: float | None = None,
    state: torch.dtype = torch.float32,
    padding: int = 0,
) -> Inputs:
    """A packed batch over the pool; its last `padding` rows belong to no sequence."""

    def inputs(make: Maker) -> Mapping[str, Any]:
        return {
            **_projections(make, sum(lengths) + padding, heads),
            **_pool(make, len(lengths), heads, state),
            "cu_seqlens": bounds(make, lengths),
            "lower_bound": lower_bound,
            "safe_gate": lower_bound is not None,
        }

    return inputs


def _checkpoints(lengths: list[int], heads: int) -> Inputs:
    """Snapshots for a prefix cache: the state before one chunk of each sequence, and h."""

    def inputs(make: Maker) -> Mapping[str, Any]:
        chosen = [n // 64 if n % 64 else -1 for n in lengths]
        snapshots = torch.zeros(len(lengths), heads, DIM, DIM, device=make.device)
        return {
            **_prefill(lengths, heads)(make),
            "track_state": snapshots,
            "track_chunk_idx": make.tensor(chosen),
            "return_intermediate_states": True,
        }

    return inputs


def _plain(length: int, heads: tuple[int, int], dim: int, gate: float) -> Inputs:
    """Activations done outside, GVA, gates down to `gate` nats a token.

    A query lies near its key, as in `values.projections`, and for the same reason.
    """

    def inputs(make: Maker) -> Mapping[str, Any]:
        k = make.randn(2, length, heads[0], dim, dtype=torch.float32)
        q = make.randn(2, length, heads[0], dim, dtype=torch.float32) / 2 + k
        return {
            "q": q.to(torch.bfloat16),
            "k": torch.nn.functional.normalize(k, dim=-1).to(torch.bfloat16),
            "v": make.randn(2, length, heads[1], dim),
            "g": gate * make.rand(2, length, heads[1], dim),
            "beta": make.rand(2, length, heads[1]),
            "initial_state": make.randn(2, heads[1], dim, dim, dtype=torch.float32) / 8,
            "output_final_state": True,
        }

    return inputs


def _decode(sequences: int, heads: int, state: torch.dtype, padding: int = 0) -> Inputs:
    """One token a sequence; the last `padding` sequences are a graph's, without a slot."""

    def inputs(make: Maker) -> Mapping[str, Any]:
        values = {
            **_prefill([1] * sequences, heads, state=state)(make),
            "inplace_final_state": True,
        }
        slots = values.pop("initial_state_indices")
        slots[sequences - padding :] = -1
        return values | {"ssm_state_indices": slots}

    return inputs


def _verify(sequences: int, heads: int, drafts: int) -> Inputs:
    """Speculative decoding: 1 + drafts tokens, each with a slot for the state after it."""

    def inputs(make: Maker) -> Mapping[str, Any]:
        tokens = 1 + drafts
        values = dict(_prefill([tokens] * sequences, heads, lower_bound=-5.0)(make))
        del values["initial_state_indices"]
        slots = make.permutation(sequences * tokens)
        pool = make.randn(sequences * tokens, heads, DIM, DIM, dtype=torch.float32) / 8
        return values | {
            "initial_state": pool,
            "ssm_state_indices": slots.reshape(sequences, tokens),
            "num_accepted_tokens": make.randint(1, tokens + 1, sequences),
            "inplace_final_state": True,
        }

    return inputs


def _packed(sequences: int, heads: int, lower_bound: float | None, state: torch.dtype) -> Inputs:
    def inputs(make: Maker) -> Mapping[str, Any]:
        pool = _pool(make, sequences, heads, state)
        slots = pool["initial_state_indices"]
        slots[-1] = -1
        return {
            "mixed_qkv": make.randn(sequences, 3 * heads * DIM),
            "a": make.randn(sequences, heads * DIM),
            "b": make.randn(sequences, heads),
            "A_log": make.rand(heads) * 2.77,
            "dt_bias": make.rand(heads * DIM) * 4.6 - 6.9,
            "scale": DIM**-0.5,
            "initial_state": pool["initial_state"],
            "ssm_state_indices": slots,
            "out": torch.empty(sequences, 1, heads, DIM, dtype=torch.bfloat16, device=make.device),
            "lower_bound": lower_bound,
        }

    return inputs


def _gate(tokens: int, heads: int, lower_bound: float | None, **more: Any) -> Inputs:
    def inputs(make: Maker) -> Mapping[str, Any]:
        values = _projections(make, tokens, heads)
        return {n: values[n] for n in ("g", "A_log", "dt_bias")} | {
            "lower_bound": lower_bound,
            **more,
        }

    return inputs


def _gate_sums(lengths: list[int], heads: int, lower_bound: float | None, unit: str) -> Inputs:
    def inputs(make: Maker) -> Mapping[str, Any]:
        return {
            **_gate(sum(lengths), heads, lower_bound)(make),
            "cu_seqlens": bounds(make, lengths),
            "unit": unit,
        }

    return inputs


F32, BF16 = torch.float32, torch.bfloat16

CASES = (
    Case(
        "chunk_kda",
        "Kimi-Linear-48B TP4",
        "7 sequences of 0-600, T=1000, H=8, D=128, fp32 pool",
        _prefill([15, 85, 200, 0, 600, 100, 0], 8),
    ),
    Case(
        "chunk_kda",
        "Kimi-Linear-48B TP8",
        "3 x 100 and padding, H=4, D=128, fp32 pool",  # 6 chunks, not ceil(300 / 64)
        _prefill([100, 100, 100], 4, padding=20),
    ),
    Case(
        "chunk_kda",
        "Kimi-Linear-48B TP8",
        "63, 64, 65, 130, H=4, snapshots and chunk states",
        _checkpoints([63, 64, 65, 130], 4),
    ),
    Case(
        "chunk_kda",
        "Kimi-K3 TP8",
        "500, 0, 300, H=12, D=128, gate in [-5, 0), bf16 pool",
        _prefill([500, 0, 300], 12, lower_bound=-5.0, state=BF16),
    ),
    Case(
        "chunk_kda",
        "GVA",
        "B=2, T=200, H=2, HV=6, D=64, gates to -20",
        _plain(200, (2, 6), 64, -20.0),
    ),
    Case(
        "chunk_kda",
        "odd width",
        "B=2, T=129, H=4, D=100, gates to -200",
        _plain(129, (4, 4), 100, -200.0),
    ),
    Case("chunk_kda", "no decay", "B=2, T=127, H=2, D=128", _plain(127, (2, 2), 128, 0.0)),
    Case(
        "fused_recurrent_kda",
        "Kimi-Linear-48B TP4",
        "B=32 decode, 3 padded, H=8, D=128, fp32 pool",
        _decode(32, 8, F32, padding=3),
    ),
    Case(
        "fused_recurrent_kda",
        "Kimi-Linear-48B TP8",
        "B=16 decode, H=4, D=128, bf16 pool",
        _decode(16, 4, BF16),
    ),
    Case(
        "fused_recurrent_kda",
        "Kimi-K3 TP8",
        "B=6 verify, 1 + 3 tokens, H=12, D=128, fp32 pool",
        _verify(6, 12, 3),
    ),
    Case(
        "fused_recurrent_kda",
        "GVA",
        "B=2, T=50, H=2, HV=6, D=64, gates to -20",
        _plain(50, (2, 6), 64, -20.0),
    ),
    Case(
        "kda_packed_decode",
        "Kimi-Linear-48B TP4",
        "B=32, H=8, D=128, fp32 pool",
        _packed(32, 8, None, F32),
    ),
    Case(
        "kda_packed_decode",
        "Kimi-K3 TP8",
        "B=16, H=12, D=128, gate in [-5, 0), bf16 pool",
        _packed(16, 12, -5.0, BF16),
    ),
    Case("kda_gate", "Kimi-Linear-48B TP4", "T=2000, H=8, D=128", _gate(2000, 8, None)),
    Case("kda_gate", "Kimi-K3 TP8", "T=1000, H=12, in [-5, 0)", _gate(1000, 12, -5.0)),
    Case(
        "kda_gate_chunk_cumsum",
        "Kimi-Linear-48B TP4",
        "15, 85, 0, 900, H=8, natural log",
        _gate_sums([15, 85, 0, 900], 8, None, "ln"),
    ),
    Case(
        "kda_gate_chunk_cumsum",
        "Kimi-K3 TP8",
        "64, 65, 700, H=12, base 2",
        _gate_sums([64, 65, 700], 12, -5.0, "log2"),
    ),
)
