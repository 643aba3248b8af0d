# SPDX-License-Identifier: Apache-2.0
"""What every body of KDA does with a token's numbers: the gate, beta, and the norms of q and k."""

from __future__ import annotations

import triton
import triton.language as tl

L2_EPS: tl.constexpr = tl.constexpr(1e-6)
"""As flash-linear-attention: `x / sqrt(sum x^2 + eps)`."""


@triton.jit
def log_gate(x, rate, lower_bound, GATE: tl.constexpr):
    """The log gate in nats of a float32 x that holds its bias; rate is `exp(A_log)`.

    GATE  "given": x is it; "softplus"; "sigmoid": between lower_bound and 0
    """
    if GATE == "softplus":
        grown = tl.exp(tl.minimum(x, 20.0))
        # 1 + y loses what y is when y is small, and a slow gate is made of nothing else.
        small = grown * (1.0 - grown * (0.5 - grown * (1.0 / 3.0)))
        soft = tl.where(grown < 0.01, small, tl.log(1.0 + grown))
        x = -rate * tl.where(x > 20.0, x, soft)
    elif GATE == "sigmoid":
        x = lower_bound * tl.sigmoid(rate * x)
    return x


@triton.jit
def step_size(beta, BETA: tl.constexpr):
    """beta in float32: "given", "sigmoid" of it, or "2sigmoid"."""
    if BETA == "sigmoid":
        beta = tl.sigmoid(beta)
    elif BETA == "2sigmoid":
        beta = 2.0 * tl.sigmoid(beta)
    return beta
