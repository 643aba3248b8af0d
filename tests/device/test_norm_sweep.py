# SPDX-License-Identifier: Apache-2.0
"""The RMSNorm family on the card: widths from 111 to 8192, odd ones as well, by up to 131072 rows.

Inputs and outputs are slices of wider rows, each with a pitch of its own, or in place. The float64
reference takes some rows at a time, so that it needs little memory beside the tensors themselves.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from tests.device._norms import agree

import archkey
from archkey.conformance.tolerances import bound, distance
from archkey.ops._rmsnorm_quant_kinds import KINDS
from archkey.ops.rmsnorm_quant import OPERATORS
from archkey.reference import rmsnorm as reference
from archkey.session import session_of

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU that torch can use"),
]
DEVICE = "cuda"

WIDTHS = (111, 200, 512, 513, 1536, 2048, 2305, 4096, 7168, 7169, 8192)
ROWS = (1, 33, 4096, 131072)
EXACT = torch.float64
(OPERATOR,) = OPERATORS

# What differs in the code: kind, rule of scales, layout; each by one width that is a multiple of
# all blocks and one more, odd where the kind takes it.
QUANTS: tuple[tuple[dict[str, Any], tuple[int, ...]], ...] = (
    ({"quant": "fp8_tensor"}, (7168, 7169)),
    ({"quant": "fp8_token"}, (7168, 2305)),
    ({"quant": "fp8_token", "scale_mode": "pow2"}, (512,)),
    ({"quant": "fp8_group"}, (512,)),
    ({"quant": "fp8_group", "scale_layout": "col", "scale_mode": "pow2"}, (7168,)),
    ({"quant": "mxfp4", "scale_mode": "even", "scale_layout": "shuffled_gfx950"}, (7168, 200)),
    ({"quant": "mxfp4", "scale_mode": "rceil"}, (8192,)),
    ({"quant": "nvfp4", "scale_layout": "swizzled_128x4"}, (7168, 2320)),
)


def rows(t: int, n: int, pitch: int = 0, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    """Normal numbers `[t, n]`, `pitch` elements wider from row to row."""
    return torch.randn(t, n + pitch, device=DEVICE, dtype=dtype)[:, :n]


def chunks(t: int, n: int) -> Iterator[slice]:
    """Rows of some 2^24 elements, and whole tiles of all layouts of scales."""
    step = max(2**24 // n // 256, 1) * 256
    return (slice(start, start + step) for start in range(0, t, step))


@pytest.mark.parametrize("t", ROWS)
@pytest.mark.parametrize("n", WIDTHS)
def test_norm_and_sum_of_rows_apart(n: int, t: int) -> None:
    torch.manual_seed(n)
    x, residual, w = rows(t, n, 64), rows(t, n, 3), rows(1, n)[0]
    out = rows(t, n, 32).fill_(math.nan)
    archkey.rmsnorm(x, w, 1e-6, out=out, weight_bias=1.0)
    for part in chunks(t, n):
        agree(out[part], reference.rmsnorm(x[part], w, 1e-6, 1.0, compute_dtype=EXACT)[0])
    before = x.clone(), residual.clone()
    archkey.fused_add_rmsnorm(x, residual, w, 1e-6)
    for part in chunks(t, n):
        given = (tensor[part] for tensor in before)
        y, total = reference.fused_add_rmsnorm(*given, w, 1e-6, compute_dtype=EXACT)
        agree(x[part], y)
        agree(residual[part], total)


@pytest.mark.parametrize("t", ROWS)
@pytest.mark.parametrize("n", WIDTHS)
def test_two_norms_of_one_row_in_place(n: int, t: int) -> None:
    torch.manual_seed(n)
    row = rows(t, n + 512 + 64)
    weights, before = (rows(1, n)[0], rows(1, 512)[0]), row.clone()
    q, k = row[:, :n], row[:, n : n + 512]
    archkey.fused_qk_rmsnorm(q, weights[0], 1e-6, k, weights[1], 1e-5, q_out=q, k_out=k)
    for part in chunks(t, n + 576):
        (want,) = reference.rmsnorm(before[part, :n], weights[0], 1e-6, compute_dtype=EXACT)
        agree(q[part], want)
        kv = before[part, n : n + 512]
        agree(k[part], reference.rmsnorm(kv, weights[1], 1e-5, compute_dtype=EXACT)[0])
    assert torch.equal(row[:, n + 512 :], before[:, n + 512 :]), "nobody's output"


@pytest.mark.parametrize("t", ROWS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_rounded_before_the_weight(dtype: torch.dtype, t: int) -> None:
    torch.manual_seed(t)
    x, w = rows(t, 4096, dtype=dtype), rows(1, 4096, dtype=torch.float32)[0]
    out = archkey.rmsnorm(x, w, 1e-6, cast_before_weight=True)
    for part in chunks(t, 4096):
        agree(out[part], reference.rmsnorm(x[part], w, 1e-6, 0.0, True, compute_dtype=EXACT)[0])


@pytest.mark.parametrize("t", ROWS)
@pytest.mark.parametrize(
    ("kind", "n"),
    [pytest.param(kind, n, id=f"{'-'.join(kind.values())}-{n}") for kind, ns in QUANTS for n in ns],
)
def test_quantised_norm_with_all_that_is_fused(kind: dict[str, Any], n: int, t: int) -> None:
    session = session_of(torch.device(DEVICE, 0) if DEVICE == "cuda" else torch.device(DEVICE))
    fact = session.capabilities[KINDS[kind["quant"]].capability]
    if fact.value == "none" and session.fp8 != "any":
        pytest.skip(f"{session.device.target.key} has no {fact.name}: {fact.reason}")
    torch.manual_seed(n)
    row, residual, w, w2 = rows(t, n + 512 + 64), rows(t, n, 3), rows(1, n)[0], rows(1, 512)[0]
    x, x2, y = row[:, :n], row[:, n : n + 512], rows(t, n, 32)
    given: dict[str, Any] = dict(kind)
    if KINDS[kind["quant"]].given:
        given["scale"] = torch.tensor([16 / (448 * 6)], device=DEVICE)
    before = residual.clone()
    second = {"x2": x2, "x2_weight": w2, "x2_eps": 1e-5}
    got = archkey.rmsnorm_quant(x, w, 1e-6, residual=residual, unquantized_out=y, **second, **given)
    flavour = {} if got.out.dtype == torch.uint8 else {"fp8_dtype": str(got.out.dtype)[6:]}
    scale = None if kind["quant"] == "fp8_tensor" else got.scale
    outputs = (got.out, scale, y, residual, got.x2_out)
    for part in chunks(t, n):
        want = reference.rmsnorm_quant(
            x[part], w, 1e-6, residual=before[part], compute_dtype=EXACT,
            **given | flavour | second | {"x2": x2[part]},
        )  # fmt: skip
        for name, out, other in zip(OPERATOR.outputs, outputs, want, strict=True):
            assert (out is None) == (other is None), name
            if out is not None and other is not None:
                mine = out[part.start : part.start + len(other)]  # padding of the last tiles, too
                allowed = bound(OPERATOR.name, name, out.dtype, "device").value
                assert distance(mine, other, name) <= allowed, name
