# SPDX-License-Identifier: Apache-2.0
"""Workloads of Kimi Delta Attention: prefill by chunks, decode, verification, and the gates alone.

As Kimi-Linear (softplus gate) and Kimi-K3 (gate of -5 and above) call it: K = V = 128, raw gate
and beta, norms of q and k in the kernel, states V first. The bounded gate is measured at
Kimi-Linear's heads as well, since some libraries have no other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

from archkey.bench.workload import Cost, Workload
from archkey.bench.workloads._counts import KILO, short, size
from archkey.conformance.cases.kda.inputs import ChunkKda, RecurrentKda
from archkey.conformance.cases.kda.inputs_decode import Gate, Packed

__all__ = ["COSTS", "WORKLOADS"]

_UNEVEN = (
    *(1300, 547, 2048, 963, 271, 3063, 4096, 129),
    *(1024, 777, 5000, 2222, 64, 3333, 4480, 3451),
)
"""Prompts of one batch, 32768 tokens together."""

_HEADS = {"Kimi-Linear": 32, "Kimi-K3": 96, "64 heads": 64}
"""Of the whole model; tensor parallelism divides them. No model has 64, two libraries' bars do."""

# Model, TP, thousands of tokens.
_PREFILL = (
    ("Kimi-Linear", 8, (2, 8, 32, 64)),
    ("Kimi-Linear", 2, (2, 8, 32, 64)),
    ("Kimi-Linear", 1, (2, 8, 32, 64)),
    ("64 heads", 1, (8,)),
    ("Kimi-K3", 1, (8,)),
    ("Kimi-K3", 8, (8,)),
)
_QUICK = {("Kimi-Linear", 1, 8), ("Kimi-Linear", 8, 8)}

_BOUNDS = {"bounded gate": -5.0, "softplus gate": None}
_BOUNDED, _SOFTPLUS = _BOUNDS

_TOKENS: dict[str, Any] = {
    "g_dtype": "bf16",
    "beta_dtype": "bf16",
    "gate": "raw",
    "beta": "raw",
    "l2norm": "unit",
    "v_first": True,
}


def _gated(gate: str) -> dict[str, Any]:
    bound = _BOUNDS[gate]
    return {"bound": bound, "safe": bound is not None}


def _chunks(
    model: str,
    tp: int,
    sizes: str,
    lengths: tuple[int, ...],
    gate: str = _BOUNDED,
    quick: bool = False,
    **more: Any,
) -> Workload:
    heads = _HEADS[model] // tp
    states: dict[str, Any] = more or {"state": "fp32", "final": "new"}
    inputs = ChunkKda(lengths, heads=(heads, heads), **_TOKENS, **_gated(gate), **states)
    about = gate + (", pool" if more else "")
    return Workload("chunk_kda", model, tp, sizes, inputs, about, quick)


def _prefills() -> Iterator[Workload]:
    for model, tp, sizes in _PREFILL:
        for n in sizes:
            yield _chunks(model, tp, f"t{n}k", (n * KILO,), quick=(model, tp, n) in _QUICK)
    uneven = "16 uneven, t32k"
    yield _chunks("Kimi-Linear", 1, uneven, _UNEVEN, quick=True)
    yield _chunks("64 heads", 1, uneven, _UNEVEN)
    for n in (2, 8, 32):
        yield _chunks("Kimi-Linear", 1, f"t{n}k", (n * KILO,), _SOFTPLUS)
    pool: dict[str, Any] = {"state": "fp32", "slots": "one"}
    yield _chunks("Kimi-Linear", 8, uneven, _UNEVEN, _SOFTPLUS, **pool)


# Model, TP, sequences, dtype of the states, gate.
_DECODE = (
    *(("Kimi-Linear", 1, batch, "fp32", _BOUNDED) for batch in (1, 32, 256)),
    *(("Kimi-Linear", 1, batch, "bf16", _BOUNDED) for batch in (32, 256)),
    ("Kimi-Linear", 1, 32, "fp32", _SOFTPLUS),
    ("Kimi-Linear", 8, 256, "fp32", _SOFTPLUS),
    ("Kimi-K3", 8, 64, "fp32", _BOUNDED),
)
_QUICK_DECODE = {(1, 32, "fp32", _BOUNDED), (1, 256, "fp32", _BOUNDED)}


def _decodes() -> Iterator[Workload]:
    for model, tp, batch, state, gate in _DECODE:
        heads = (_HEADS[model] // tp,) * 2
        about, quick = f"{gate}, {state} states", (tp, batch, state, gate) in _QUICK_DECODE
        one: dict[str, Any] = {"slots": "one", "in_place": True, "state": state}
        tokens = RecurrentKda((1,) * batch, heads=heads, **one, **_TOKENS, **_gated(gate))
        packed = Packed(batch, heads, bound=_BOUNDS[gate], state=state)
        for operator, inputs in (("fused_recurrent_kda", tokens), ("kda_packed_decode", packed)):
            yield Workload(operator, model, tp, f"b{batch}", inputs, about, quick)
    each: dict[str, Any] = {"slots": "tokens", "in_place": True, "state": "fp32"}
    verify = RecurrentKda(
        (4,) * 64, heads=(32, 32), accepted="all", **each, **_TOKENS, **_gated(_BOUNDED)
    )
    about = f"{_BOUNDED}, a state for each token"
    yield Workload("fused_recurrent_kda", "Kimi-Linear", 1, "b64 verify q4", verify, about)


def _gates() -> Iterator[Workload]:
    for model, tp, gate in (
        ("Kimi-Linear", 1, _SOFTPLUS),
        ("Kimi-Linear", 8, _SOFTPLUS),
        ("Kimi-K3", 8, _BOUNDED),
    ):
        heads, bound = _HEADS[model] // tp, _BOUNDS[gate]
        for tokens in (64, 8 * KILO, 32 * KILO):
            lengths = _UNEVEN if tokens > 8 * KILO else (tokens,)
            shape, quick = (1, sum(lengths)), (tp, tokens) == (1, 8 * KILO)
            sizes = f"t{short(tokens)}"
            alone = Gate(shape, heads, bound=bound)
            sums = Gate(shape, heads, bound=bound, chunk=64, lengths=lengths)
            yield Workload("kda_gate", model, tp, sizes, alone, gate, quick)
            sizes = f"16 uneven, {sizes}" if len(lengths) > 1 else sizes
            yield Workload("kda_gate_chunk_cumsum", model, tp, sizes, sums, gate, quick)


WORKLOADS = (*_prefills(), *_decodes(), *_gates())


def _tokens(call: Mapping[str, Any]) -> tuple[int, int]:
    """Tokens of the sequences, and how many sequences there are."""
    cu_seqlens, q = call.get("cu_seqlens"), call["q"]
    if cu_seqlens is None:
        return q.shape[0] * q.shape[1], q.shape[0]
    return int(cu_seqlens[-1]), len(cu_seqlens) - 1


def _row_bytes(call: Mapping[str, Any]) -> int:
    """Bytes of a token: q, k, v, g and beta in, o out."""
    rows: list[torch.Tensor] = [call[name] for name in ("q", "k", "v", "g", "beta")]
    rows.append(rows[2] if call.get("out") is None else call["out"])
    return sum(x.shape[2:].numel() * x.element_size() for x in rows)


def _state_bytes(call: Mapping[str, Any]) -> tuple[int, int, int]:
    """Bytes of a state where it is read and where it is written (0: nowhere), and its numbers."""
    q, v = call["q"], call["v"]
    numbers = v.shape[2] * q.shape[3] * v.shape[3]
    start, final = call.get("initial_state"), call.get("final_state")
    read = 0 if start is None else start.element_size() * numbers
    slots = call.get("initial_state_indices")
    if slots is not None or (call.get("inplace_final_state") and start is not None):
        return read, read, numbers
    if final is not None:
        return read, final.element_size() * numbers, numbers
    return read, 4 * numbers if call.get("output_final_state") else 0, numbers


def _chunk_cost(call: Mapping[str, Any]) -> Cost:
    """`T HV (6 K V + 2 C (3 K + 2 V))` operations: the walk over chunks of C tokens.

    Per chunk three products with the state (its part of o, of what the keys hold already, and its
    update), and C x C ones: of q and of k with k, of the solved triangle with k and with v, and of
    the attention with v. Bytes of the tokens, and of a state a sequence, read and written.
    """
    tokens, sequences = _tokens(call)
    read, written, numbers = _state_bytes(call)
    k_dim, v_dim = call["q"].shape[3], call["v"].shape[3]
    inside = 2 * call.get("chunk_size", 64) * (3 * k_dim + 2 * v_dim) * call["v"].shape[2]
    moved = tokens * _row_bytes(call) + sequences * (read + written)
    return Cost(tokens * (6 * numbers + inside), moved)


def _recurrent_cost(call: Mapping[str, Any]) -> Cost:
    """`6 T HV K V` operations; a state a sequence read, and one written, or one a token.

    Three products with the state for each token: what the key holds already, the update, and o.
    """
    tokens, sequences = _tokens(call)
    read, written, numbers = _state_bytes(call)
    slots = call.get("ssm_state_indices")
    states = sequences
    if slots is not None and slots.dim() == 2 and slots.shape[1] > 1:
        states = int((slots >= 0).sum())
    moved = tokens * _row_bytes(call) + sequences * read + states * written
    return Cost(6 * tokens * numbers, moved)


def _packed_cost(call: Mapping[str, Any]) -> Cost:
    """As of the recurrence: rows in, o out, and the states of sequences with a slot both ways."""
    pool, slots = call["initial_state"], call["ssm_state_indices"]
    active = int((slots >= 0).sum())
    numbers = pool[0].numel()
    moved = size(call["mixed_qkv"], call["a"], call["b"], call["out"])
    return Cost(6 * active * numbers, moved + 2 * active * numbers * pool.element_size())


def _gate_cost(call: Mapping[str, Any]) -> Cost:
    """g and its parameters in, as many numbers out: float32 unless the call says else."""
    g, out = call["g"], call.get("out")
    dtype = call.get("output_dtype") or torch.float32
    itemsize = dtype.itemsize if out is None else out.element_size()
    return Cost(0, size(g, call["A_log"], call.get("dt_bias")) + g.numel() * itemsize)


COSTS: Mapping[str, Callable[[Mapping[str, Any]], Cost]] = {
    "chunk_kda": _chunk_cost,
    "fused_recurrent_kda": _recurrent_cost,
    "kda_packed_decode": _packed_cost,
    "kda_gate": _gate_cost,
    "kda_gate_chunk_cumsum": _gate_cost,
}
