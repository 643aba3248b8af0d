# SPDX-License-Identifier: Apache-2.0
"""Products of Triton's interpreter whose bits do not depend on where in a tile a row lies."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")
import triton
import triton.language as tl
from triton.runtime.interpreter import InterpretedFunction

from archkey.launch import products_in_order


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
