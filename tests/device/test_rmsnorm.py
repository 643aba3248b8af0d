# SPDX-License-Identifier: Apache-2.0
"""RMSNorm on the card at real widths and token counts, in units in the last place: `make gpu`.

Stricter than the exam's bounds, and larger than its cases: every element within two units, at most
one in a thousand more than one away. Times are `archkey bench rmsnorm`.
"""

from __future__ import annotations

import pytest
import torch
from tests.device._norms import agree

import archkey
from archkey.reference import rmsnorm as reference

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU that torch can use"),
]
DEVICE = "cuda"

WIDTHS = (111, 128, 200, 256, 512, 1536, 2048, 2304, 4096, 6144, 7168, 8192, 16384, 18432)
TOKENS = (1, 2, 33, 64, 132, 256, 4096, 16384)
QK = ((1536, 512), (2048, 512), (0, 512))


@pytest.fixture(autouse=True)
def fresh_numbers() -> None:
    torch.manual_seed(torch.seed() % 2**31)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("t", TOKENS)
@pytest.mark.parametrize("n", WIDTHS)
def test_norms_of_strided_rows(n: int, t: int, dtype: torch.dtype) -> None:
    x = torch.randn(t, n + 64, device=DEVICE, dtype=dtype)[:, :n]
    w = torch.randn(n, device=DEVICE, dtype=dtype)
    bias = float(torch.rand(()) > 0.5)
    out = torch.full_like(x, float("nan"))
    archkey.rmsnorm(x, w, 1e-6, out=out, weight_bias=bias)
    (want,) = reference.rmsnorm(x, w, 1e-6, bias, compute_dtype=torch.float64)
    agree(out, want)
    residual = torch.randn(t, n, device=DEVICE, dtype=dtype)
    y, total = reference.fused_add_rmsnorm(x, residual, w, 1e-6, compute_dtype=torch.float64)
    archkey.fused_add_rmsnorm(x, residual, w, 1e-6)
    agree(x, y)
    agree(residual, total)


@pytest.mark.parametrize("t", [*TOKENS, 131072])
@pytest.mark.parametrize(("nq", "nk"), QK)
def test_two_norms_in_one_launch(nq: int, nk: int, t: int) -> None:
    row = torch.randn(t, nq + nk + 64, device=DEVICE, dtype=torch.bfloat16)
    q, k = row[:, :nq] if nq else None, row[:, nq : nq + nk]
    qw, kw = (torch.randn(n, device=DEVICE).bfloat16() for n in (nq, nk))
    arguments = (q, qw if nq else None, 1e-6 if nq else None, k, kw, 1e-5)
    q_out, k_out = archkey.fused_qk_rmsnorm(*arguments)
    q_want, k_want = reference.fused_qk_rmsnorm(*arguments, compute_dtype=torch.float64)
    agree(k_out, k_want)
    assert (q_out is None) == (q_want is None) == (nq == 0)
    if q_out is not None and q_want is not None:
        agree(q_out, q_want)


def test_more_than_2_31_elements() -> None:
    """The last rows must be right, too."""
    x = torch.randn(300_001, 7168, device=DEVICE, dtype=torch.bfloat16)
    w = torch.randn(7168, device=DEVICE, dtype=torch.bfloat16)
    out = archkey.rmsnorm(x, w, 1e-6)
    (want,) = reference.rmsnorm(x[-64:], w, 1e-6, compute_dtype=torch.float64)
    agree(out[-64:], want)


def test_a_chain_of_launches_gives_the_same_bits_with_early_starts() -> None:
    x0 = torch.randn(33, 7168, device=DEVICE, dtype=torch.bfloat16)
    w = torch.randn(7168, device=DEVICE, dtype=torch.bfloat16)

    def chain(pdl: bool) -> torch.Tensor:
        x, residual = x0.clone(), x0.clone()
        for _ in range(100):
            archkey.fused_add_rmsnorm(x, residual, w, 1e-6, enable_pdl=pdl)
            archkey.rmsnorm(residual, w, 1e-6, out=residual, enable_pdl=pdl)
        return x

    with torch.cuda.stream(torch.cuda.Stream()):
        first = chain(pdl=False)
        for _ in range(5):
            assert torch.equal(chain(pdl=True), first)
    torch.cuda.synchronize()
