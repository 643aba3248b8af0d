# SPDX-License-Identifier: Apache-2.0
"""KDA as sound kernels on a GPU compute it, in plain torch, and what others lose.

Chunks of 64: operands of products are bfloat16, sums and the state float32; the diagonal blocks of
16 tokens, the gates' sums and the inverse are float32. Decode is float32 throughout. A `Loss` is
one step of that, done worse.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from tests.conformance._gpu_arithmetic import bfloat16, cut_to_bfloat16
from tests.conformance._wrong import Right, Values, Wrong

from archkey.reference._kda_layout import Tokens, prepare
from archkey.reference.kda_gate import spans

__all__ = ["LOSSES", "SOUND", "Loss", "chunk", "recurrent"]

Change = Callable[[torch.Tensor], torch.Tensor]
CHUNK, BLOCK = 64, 16


def same(x: torch.Tensor) -> torch.Tensor:
    return x


@dataclass(frozen=True)
class Loss:
    """One step of a kernel that loses something. Without any, a sound kernel.

    gates, betas  as they are read; sums  of gates in a chunk
    decay   the exponent by which a state decays over a chunk, or of a token; state  after either
    apart   e^G and e^-G of a whole chunk are factors by themselves
    """

    gates: Change = same
    betas: Change = same
    sums: Change = same
    decay: Change = same
    state: Change = same
    out: Change = same
    apart: bool = False


def tokens(inputs: Values) -> Tokens:
    """What the recurrence reads, float32, heads first."""
    names = ("q", "k", "v", "g", "beta", "A_log", "dt_bias", "scale", "lower_bound")
    flags = ("use_qk_l2norm_in_kernel", "use_gate_in_kernel", "use_beta_sigmoid_in_kernel")
    given = [inputs[name] for name in (*names, *flags, "allow_neg_eigval")]
    return prepare(*given, torch.float32)


def chunk(loss: Loss) -> Wrong:
    """chunk_kda over packed sequences, each with a state of its own, V first."""

    def kernel(right: Right, inputs: Values, outputs: Values) -> Values:
        x, states = tokens(inputs), inputs["initial_state"].mT.float().clone()
        x = x._replace(g=loss.gates(x.g), beta=loss.betas(x.beta))
        o = torch.zeros_like(x.v)
        for n, (start, stop) in enumerate(spans(inputs["q"], inputs["cu_seqlens"])):
            for first in range(start, stop, CHUNK):
                rows = slice(first, min(first + CHUNK, stop))
                o[:, rows], states[n] = _one(loss, x.part(rows), states[n])
        return {"o": loss.out(o).transpose(0, 1)[None], "final_state": states.mT}

    return kernel


def _one(loss: Loss, x: Tokens, state: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(o, the next state) of a chunk."""
    q, k, v, g, beta = x
    length = v.shape[1]
    sums = loss.sums(g.cumsum(1))
    kk, qk = (_pairs(loss, y, k, sums) for y in (k, q))
    lower = (beta * kk).tril(-1)
    eye = torch.eye(length)
    inverse = torch.linalg.solve_triangular(eye + lower, eye.expand_as(lower), upper=False)
    solved, old = bfloat16(inverse), bfloat16(state)
    w = solved @ bfloat16(beta * k * sums.exp())
    values = solved @ bfloat16(beta * v) - bfloat16(w) @ old
    o = bfloat16(q * sums.exp()) @ old + bfloat16(qk.tril()) @ bfloat16(values)
    last = sums[:, -1:]
    kept = bfloat16(k * (last - sums).exp())
    state = loss.decay(last).exp().mT * state + kept.mT @ bfloat16(values)
    return o, loss.state(state)


def _pairs(loss: Loss, x: torch.Tensor, k: torch.Tensor, sums: torch.Tensor) -> torch.Tensor:
    """sum_d x_i k_j e^(G_i - G_j), right for j <= i; no exponent is positive."""
    if loss.apart:
        return bfloat16(x * sums.exp()) @ bfloat16(k * (-sums).exp()).mT
    length = x.shape[1]
    table = torch.zeros(x.shape[0], length, length)
    for first in range(0, length, BLOCK):
        rows = slice(first, min(first + BLOCK, length))
        here = sums[:, rows]
        inside = (here[:, :, None] - here[:, None]).clamp_max(0).exp()
        table[:, rows, rows] = torch.einsum("hid,hjd,hijd->hij", x[:, rows], k[:, rows], inside)
        if first:
            before = sums[:, first - 1 : first]
            a = bfloat16(x[:, rows] * (here - before).exp())
            b = bfloat16(k[:, :first] * (before - sums[:, :first]).exp())
            table[:, rows, :first] = a @ b.mT
    return table


def recurrent(loss: Loss) -> Wrong:
    """fused_recurrent_kda over packed sequences, each with a state of its own, V first."""

    def kernel(right: Right, inputs: Values, outputs: Values) -> Values:
        x, states = tokens(inputs), inputs["initial_state"].mT.float().clone()
        x = x._replace(g=loss.decay(loss.gates(x.g)), beta=loss.betas(x.beta))
        o = torch.zeros_like(x.v)
        for n, (start, stop) in enumerate(spans(inputs["q"], inputs["cu_seqlens"])):
            for t in range(start, stop):
                q, k, v, g, beta = x.part(slice(t, t + 1))
                state = g.exp().mT * states[n]
                states[n] = loss.state(state + k.mT @ (beta * (v - k @ state)))
                o[:, t : t + 1] = q @ states[n]
        return {"o": loss.out(o).transpose(0, 1)[None], "final_state": states.mT}

    return kernel


SOUND = Loss()

LOSSES = {
    "state in bfloat16": Loss(state=bfloat16),
    "gates to base 2 as if to base e": Loss(gates=lambda g: g / math.log(2)),
    "a state's decay without ln 2": Loss(decay=lambda g: g * math.log(2)),
    "a state's decay in bfloat16": Loss(decay=lambda g: bfloat16(g.exp()).log()),
    "gates cut off to bfloat16": Loss(gates=cut_to_bfloat16),
    "sums of gates in bfloat16": Loss(sums=bfloat16),
    "betas cut off to bfloat16": Loss(betas=cut_to_bfloat16),
    "e^G apart from e^-G": Loss(apart=True),
    "0.3 % too small": Loss(out=lambda o: o * 0.997),
}
