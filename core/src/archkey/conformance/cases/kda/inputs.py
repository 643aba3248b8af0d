# SPDX-License-Identifier: Apache-2.0
"""Calls of chunk_kda and fused_recurrent_kda from metadata: what edge and random cases are made of.

What no kernel may look at is poisoned: tokens of padding and of sequences without a slot are NaN,
slots of nobody NaN or infinite (a large number would hide the errors of the other slots).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch

from archkey.conformance.case import Maker
from archkey.conformance.cases.kda.values import (
    gate_parameters,
    pool_of,
    projections,
    raw_gate,
)
from archkey.conformance.cases.spec import DTYPES
from archkey.conformance.cases.tensors import bounds, lay
from archkey.ops.kda_gate import chunk_layout

__all__ = ["ChunkKda", "Kda", "RecurrentKda"]


@dataclass(frozen=True)
class Kda:
    """What calls of chunk_kda and of fused_recurrent_kda have.

    lengths     of packed sequences; of each of `batch` sequences where that is not 0
    padding     rows past the last sequence
    heads, dims  (H, HV) and (K, V)
    dtype, g_dtype, beta_dtype   of q, k, v; of g; of beta
    lay         of q, k, v: "row" for slices of one projection row, or as `tensors.lay` says
    gate        "given": g = `low` times a number in [0, 1), or always `low` if `flat`;
                "raw": the gate of `gate_parameters`
    masked      share of the finished gates that are 0, among the others
    values      of a raw gate: as `raw_gate`
    A_log, dt_bias, bound   of the raw gate, see `gate_parameters`; bound is also lower_bound
    beta        "given", "raw" or "doubled"; `sharp` puts it at 0 and 1 in turn
    l2norm      in the kernel; "small" for keys of which its eps takes a part
    state       "" none, "fp32", "bf16": initial_state
    final       "" none, "new", "same" as initial_state, or the dtype of a buffer
    slots       "" no pool, "one" `[N]`, "column" `[N, 1]`, "tokens" `[N, 1 + S]`
    wide        slots and lengths are int64
    skipped     sequences without a slot
    in_place    of fused_recurrent_kda, whether states go back to the pool
    accepted    num_accepted_tokens: "" none, "mixed", "none" all 0, "all"
    pool_lay, out, out_lay   "v" for an out that is v; "" the default
    chunk       chunk_size; chunks: chunk_indices and chunk_offsets are given, with padding
    track, h    snapshots and states of chunks
    invariant   batch_invariant, of chunk_kda
    """

    lengths: tuple[int, ...]
    batch: int = 0
    padding: int = 0
    heads: tuple[int, int] = (1, 1)
    dims: tuple[int, int] = (128, 128)
    dtype: str = "bf16"
    g_dtype: str = "fp32"
    beta_dtype: str = "fp32"
    lay: str = "packed"
    g_lay: str = "packed"
    gate: str = "given"
    low: float = -1.0
    flat: bool = False
    masked: float = 0.0
    values: str = "normal"
    A_log: str = "normal"
    dt_bias: str = "normal"
    bound: float | None = None
    safe: bool = False
    beta: str = "given"
    sharp: bool = False
    l2norm: str = ""
    scale: float | None = None
    state: str = ""
    v_first: bool = False
    final: str = ""
    slots: str = ""
    wide: bool = False
    skipped: tuple[int, ...] = ()
    in_place: bool = False
    accepted: str = ""
    pool_lay: str = "packed"
    out: str = ""
    out_lay: str = "packed"
    cpu_lengths: bool = False
    chunk: int = 64
    chunks: bool = False
    track: bool = False
    h: bool = False
    invariant: bool = False

    def _shared(self, make: Maker) -> tuple[dict[str, Any], Any]:
        """Arguments of both operators, and slots or None."""
        values = _tokens(make, self)
        if make.poisons:
            _poison_rows(values, self)
        values |= _states(make, self)
        values |= {"scale": self.scale, "use_qk_l2norm_in_kernel": bool(self.l2norm)}
        if self.gate == "raw":
            raw = gate_parameters(make, self.heads[1], self.dims[0], self.A_log, self.dt_bias)
            values |= raw | {"use_gate_in_kernel": True}
        if self.beta != "given":
            values["use_beta_sigmoid_in_kernel"] = True
            values["allow_neg_eigval"] = self.beta == "doubled"
        values |= {"lower_bound": self.bound, "safe_gate": self.safe}
        if not self.batch:
            dtype = torch.int64 if self.wide else torch.int32
            values["cu_seqlens"] = bounds(make, self.lengths, dtype)
            if self.cpu_lengths:
                values["cu_seqlens_cpu"] = torch.tensor(list(accumulate(self.lengths, initial=0)))
        if self.out == "v":
            values["out"] = values["v"]
        elif self.out:
            like = values["v"]
            new = torch.zeros(like.shape, dtype=DTYPES[self.out], device=make.device)
            values["out"] = lay(make, new, self.out_lay)
        return values, values.pop("slots", None)


@dataclass(frozen=True)
class ChunkKda(Kda):
    """A call of chunk_kda."""

    def __call__(self, make: Maker) -> Mapping[str, Any]:
        """Keyword arguments."""
        values, slots = self._shared(make)
        k_dim, v_dim = self.dims
        shape = (self.heads[1], *((v_dim, k_dim) if self.v_first else (k_dim, v_dim)))
        if slots is not None:
            values["initial_state_indices"] = slots
        return values | _chunk_extras(make, self, shape)


@dataclass(frozen=True)
class RecurrentKda(Kda):
    """A call of fused_recurrent_kda."""

    def __call__(self, make: Maker) -> Mapping[str, Any]:
        """Keyword arguments."""
        values, slots = self._shared(make)
        if slots is not None:
            values["ssm_state_indices"] = slots
        if self.accepted:
            count, columns = slots.reshape(len(slots), -1).shape
            taken = {"none": [0] * count, "all": [columns] * count}.get(
                self.accepted, [n % (columns + 1) for n in range(count)]
            )
            for n, row in enumerate(slots.reshape(count, columns).tolist()):
                if row[max(taken[n], 1) - 1] < 0:
                    taken[n] = 1  # it starts from a slot that it has
            values["num_accepted_tokens"] = make.tensor(taken)
        return values | {"inplace_final_state": self.in_place}


def _tokens(make: Maker, spec: Kda) -> dict[str, Any]:
    """q, k, v, g and beta of all rows."""
    (h, hv), (k_dim, v_dim), dtype = spec.heads, spec.dims, DTYPES[spec.dtype]
    b, t = (spec.batch, spec.lengths[0]) if spec.batch else (1, sum(spec.lengths) + spec.padding)
    row = projections(make, (b, t), spec.heads, spec.dims, spec.l2norm).to(dtype)
    parts = row.split([h * k_dim, h * k_dim, hv * v_dim], dim=-1)
    dims = k_dim, k_dim, v_dim
    q, k, v = (x.unflatten(-1, (-1, dim)) for x, dim in zip(parts, dims, strict=True))
    if spec.lay != "row":
        q, k, v = (lay(make, x.contiguous(), spec.lay) for x in (q, k, v))
    g_dtype, shape = DTYPES[spec.g_dtype], (b, t, hv, k_dim)
    if spec.gate == "raw":
        g = raw_gate(make, shape, spec.values, g_dtype)
    else:
        g = (spec.low * (torch.ones(shape) if spec.flat else make.rand(*shape))).to(
            make.device, g_dtype
        )
        if spec.masked:
            g *= make.rand(*shape) >= spec.masked
    # A beta near 0 would make rows so small that float32's last digits count.
    beta = make.rand(b, t, hv) * 0.75 + 0.25
    if spec.sharp:
        beta = beta.round()
    if spec.beta != "given":
        beta = beta * 200 - 100 if spec.sharp else beta * 5 - 2
    return {
        "q": q,
        "k": k,
        "v": v,
        "g": lay(make, g, spec.g_lay),
        "beta": beta.to(DTYPES[spec.beta_dtype]),
    }


def _poison_rows(values: dict[str, Any], spec: Kda) -> None:
    """NaN in rows that belong to no sequence, or to one without a slot."""
    starts = list(accumulate(spec.lengths, initial=0))
    for x in (values[name] for name in ("q", "k", "v", "g", "beta")):
        x[:, spec.lengths[0] if spec.batch else starts[-1] :] = float("nan")
        for n in spec.skipped:
            (x[n] if spec.batch else x[:, starts[n] : starts[n + 1]]).fill_(float("nan"))


def _states(make: Maker, spec: Kda) -> dict[str, Any]:
    """initial_state, its slots, and where the last states go."""
    count = spec.batch or len(spec.lengths)
    (k_dim, v_dim), heads = spec.dims, spec.heads[1]
    shape = (heads, v_dim, k_dim) if spec.v_first else (heads, k_dim, v_dim)
    columns = max((1, *spec.lengths)) if spec.slots == "tokens" else 1
    dtype = DTYPES[spec.state] if spec.state else torch.float32
    pool = count * columns + 3 if spec.slots else count
    states = make.randn(pool, *shape, dtype=torch.float32).div_(8).to(dtype)
    given: dict[str, Any] = {"state_v_first": spec.v_first}
    if spec.slots:
        slots = make.permutation(pool - 1, torch.int64 if spec.wide else torch.int32)
        slots = slots[: count * columns].reshape(count, columns)
        if count:  # the last slot of the pool is in use: that one is far in a far pool
            slots[0, -1] = pool - 1
        if spec.slots == "tokens" and make.poisons:
            slots[1::2, -1] = -1  # not written
        slots[list(spec.skipped)] = -1
        states = pool_of(make, states, slots)
        given["slots"] = slots if spec.slots != "one" else slots[:, 0]
    if spec.state:
        given["initial_state"] = lay(make, states, spec.pool_lay)
    if spec.final == "new":
        given["output_final_state"] = True
    elif spec.final == "same":
        given["final_state"] = given["initial_state"]
    elif spec.final:
        buffer = torch.zeros((count, *shape), dtype=DTYPES[spec.final], device=make.device)
        given["final_state"] = lay(make, buffer, spec.pool_lay)
    return given


def _chunk_extras(make: Maker, spec: Kda, shape: tuple[int, ...]) -> dict[str, Any]:
    """What chunk_kda takes besides: chunks, snapshots, the states of chunks."""
    count = len(spec.lengths) if not spec.batch else spec.batch
    given: dict[str, Any] = {"chunk_size": spec.chunk, "return_intermediate_states": spec.h}
    if spec.invariant:
        given["batch_invariant"] = True
    if spec.chunks:
        total = sum(-(-n // spec.chunk) for n in spec.lengths)
        pair = chunk_layout(
            bounds(make, spec.lengths).cpu(), sum(spec.lengths), spec.chunk, rows=total + 2
        )
        given["chunk_indices"], given["chunk_offsets"] = (x.to(make.device) for x in pair)
    if spec.track:
        lengths = spec.lengths if not spec.batch else spec.lengths * spec.batch
        last = [-(-n // spec.chunk) - 1 for n in lengths]
        # In turn: the last chunk (of an empty sequence: none), the first, two that are not there.
        wanted = [(last[n], 0, last[n] + 1, -1)[n % 4] for n in range(count)]
        given["track_chunk_idx"] = make.tensor(wanted)
        given["track_state"] = make.randn(count, *shape, dtype=torch.float32)
    return given
