# SPDX-License-Identifier: Apache-2.0
"""Small Triton bodies whose machine code shows what a target can do; nobody launches them.

`archkey.conformance.probes` compiles them and looks for the instructions.
"""

from __future__ import annotations

import triton
import triton.language as tl

__all__ = ["copy_body", "dependent_body", "descriptor_body", "product_body", "scaled_body"]


@triton.jit
def copy_body(x, y, N: tl.constexpr):
    """y = x, [N]."""
    at = tl.arange(0, N)
    tl.store(y + at, tl.load(x + at))


@triton.jit
def dependent_body(x, y, N: tl.constexpr):
    """The same after the kernel before, and with the next one started."""
    tl.extra.cuda.gdc_wait()
    at = tl.arange(0, N)
    value = tl.load(x + at)
    tl.extra.cuda.gdc_launch_dependents()
    tl.store(y + at, value)


@triton.jit
def descriptor_body(x, y, N: tl.constexpr):
    """The second of four tiles of x to the first of y, [2 N, 2 N] each, by tensor descriptors."""
    source = tl.make_tensor_descriptor(x, [2 * N, 2 * N], [2 * N, 1], [N, N])
    sink = tl.make_tensor_descriptor(y, [2 * N, 2 * N], [2 * N, 1], [N, N])
    sink.store([0, 0], source.load([N, 0]))


@triton.jit
def product_body(
    x,  # [M, K]
    y,  # [K, N]
    out,  # [M, N]
    M: tl.constexpr,
    N: tl.constexpr,
    K: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """out = x @ y, rows contiguous, so that y has to be turned on its way."""
    m, n, k = tl.arange(0, M)[:, None], tl.arange(0, N)[None, :], tl.arange(0, K)
    a = tl.load(x + m * K + k[None, :])
    b = tl.load(y + k[:, None] * N + n)
    tl.store(out + m * N + n, tl.dot(a, b, input_precision=PRECISION))


@triton.jit
def scaled_body(
    x,  # [M, K / 2], two e2m1 a byte
    x_scale,  # [M, K / GROUP]
    y,  # [N, K / 2], used as its transpose
    y_scale,  # [N, K / GROUP]
    out,  # [M, N]
    M: tl.constexpr,
    N: tl.constexpr,
    K: tl.constexpr,
    GROUP: tl.constexpr,
):
    """out = x @ y of 4-bit floats, GROUP of which share a scale."""
    m, n = tl.arange(0, M)[:, None], tl.arange(0, N)
    k, group = tl.arange(0, K // 2), tl.arange(0, K // GROUP)[None, :]
    a = tl.load(x + m * (K // 2) + k[None, :])
    b = tl.load(y + k[:, None] + n[None, :] * (K // 2))
    a_scale = tl.load(x_scale + m * (K // GROUP) + group)
    b_scale = tl.load(y_scale + n[:, None] * (K // GROUP) + group)
    product = tl.dot_scaled(a, a_scale, "e2m1", b, b_scale, "e2m1")
    tl.store(out + m * N + n[None, :], product)
