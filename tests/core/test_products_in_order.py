# SPDX-License-Identifier: Apache-2.0
"""What Triton's interpreter does otherwise than a GPU, and is made to do alike: order, rounding."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")
import triton
import triton.language as tl
from triton.runtime.interpreter import InterpretedFunction

from archkey.launch import products_in_order, rounded_to_nearest


@triton.jit
def body(a, b, out, M: tl.constexpr, K: tl.constexpr, N: tl.constexpr):
    """out [M, N] = a [M, K] @ b [K, N]."""
    m, k, n = tl.arange(0, M)[:, None], tl.arange(0, K), tl.arange(0, N)[None, :]
    total = tl.dot(tl.load(a + m * K + k[None, :]), tl.load(b + k[:, None] * N + n))
    tl.store(out + m * N + n, total)


@pytest.mark.skipif(not isinstance(body, InterpretedFunction), reason="of the interpreter alone")
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_equal_rows_have_equal_products(dtype: torch.dtype) -> None:
    random = torch.Generator().manual_seed(0)
    row = torch.randn(1, 64, generator=random).to(dtype)
    b = torch.randn(64, 32, generator=random).to(dtype)
    out = torch.full((16, 32), torch.nan)
    with products_in_order():
        body[(1,)](row.repeat(16, 1), b, out, 16, 64, 32)
    assert torch.equal(out, out[:1].expand(16, 32))
    torch.testing.assert_close(out[:1].double(), row.double() @ b.double(), rtol=1e-4, atol=1e-4)


@triton.jit
def narrowed(x, y, z, N: tl.constexpr):
    """y in bfloat16 is x in float32, and z in float32 is y again."""
    at = tl.arange(0, N)
    half = tl.load(x + at).to(tl.bfloat16)
    tl.store(y + at, half)
    tl.store(z + at, half.to(tl.float32))


@pytest.mark.skipif(not isinstance(body, InterpretedFunction), reason="of the interpreter alone")
def test_bfloat16_is_rounded_to_nearest_even() -> None:
    """Ties, carries into the exponent, both zeros, subnormals, what overflows, and no numbers."""
    special = [0.0, -0.0, 1.00390625, 1.01171875, -1.998046875, 3.4e38, 1e-40, 2e-45, -1e-38]
    special += [float("inf"), -float("inf"), float("nan")]
    x = torch.randn(256, generator=torch.Generator().manual_seed(0)) * 1e3
    x[: len(special)] = torch.tensor(special)
    x[12:13] = torch.tensor([0x7F800001], dtype=torch.int32).view(torch.float32)  # a NaN, cut: inf
    y, z = torch.empty(256, dtype=torch.bfloat16), torch.empty(256)
    with rounded_to_nearest():
        narrowed[(1,)](x, y, z, 256)
    torch.testing.assert_close(y, x.bfloat16(), rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(z, y.float(), rtol=0, atol=0, equal_nan=True)
