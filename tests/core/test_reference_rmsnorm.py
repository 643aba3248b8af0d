# SPDX-License-Identifier: Apache-2.0
"""The RMSNorm references against loops in float64 numpy."""

from __future__ import annotations

import math

import ml_dtypes
import numpy as np
import pytest
import torch

from archkey import formats
from archkey.reference import rmsnorm as reference

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
QUANTS = ("fp8_tensor", "fp8_token", "fp8_group", "mxfp4", "nvfp4")


def _norm_loop(x: np.ndarray, w: np.ndarray, eps: float, bias: float = 0.0) -> np.ndarray:
    """Row by row in float64."""
    x, w = x.astype(np.float64), w.astype(np.float64)
    flat = x.reshape(-1, x.shape[-1])
    rows = [row / math.sqrt(math.fsum(row * row) / row.size + eps) * (w + bias) for row in flat]
    return np.array(rows).reshape(x.shape)


def _inputs(shape: tuple[int, ...], dtype: torch.dtype, seed: int = 0) -> list[torch.Tensor]:
    """x, residual and weight."""
    g = torch.Generator().manual_seed(seed)
    x, residual = (torch.randn(shape, generator=g).to(dtype) for _ in range(2))
    return [x, residual, torch.randn(shape[-1], generator=g).to(dtype)]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(1, 128), (33, 111), (2, 7168), (5, 3, 200)], ids=str)
@pytest.mark.parametrize("bias", [0.0, 1.0])
def test_rmsnorm_equals_a_loop(shape: tuple[int, ...], dtype: torch.dtype, bias: float) -> None:
    x, _, w = _inputs(shape, dtype)
    want = _norm_loop(x.double().numpy(), w.double().numpy(), 1e-6, bias)
    (exact,) = reference.rmsnorm(x, w, 1e-6, bias, compute_dtype=torch.float64)
    (single,) = reference.rmsnorm(x, w, 1e-6, bias)
    assert exact.dtype == torch.float64 and single.dtype == torch.float32
    np.testing.assert_allclose(exact.numpy(), want, rtol=1e-13)
    np.testing.assert_allclose(single.numpy(), want, rtol=2e-6)


def test_rmsnorm_cast_before_weight_rounds_twice() -> None:
    x, _, w = _inputs((4, 512), torch.bfloat16)
    (got,) = reference.rmsnorm(x, w, 1e-6, cast_before_weight=True, compute_dtype=torch.float64)
    once = _norm_loop(x.double().numpy(), np.ones(512), 1e-6).astype(ml_dtypes.bfloat16)
    want = once.astype(np.float64) * w.double().numpy()
    np.testing.assert_array_equal(got.numpy(), want)
    (plain,) = reference.rmsnorm(x, w, 1e-6, compute_dtype=torch.float64)
    assert not torch.equal(got, plain)


def test_rmsnorm_reads_strided_rows_and_keeps_its_arguments() -> None:
    x, _, w = _inputs((7, 2112), torch.bfloat16)
    part = x[:, 1536:2048]
    before = x.clone()
    (got,) = reference.rmsnorm(part, w[:512], 1e-6)
    assert torch.equal(got, reference.rmsnorm(part.contiguous(), w[:512], 1e-6)[0])
    assert torch.equal(x, before)


def test_rmsnorm_zero_row_is_zero_and_nan_stays_in_its_row() -> None:
    x = torch.zeros(3, 16)
    x[1, 3] = math.nan
    (got,) = reference.rmsnorm(x, torch.ones(16), 1e-6)
    assert (got[[0, 2]] == 0).all() and got[1].isnan().all()


def test_rmsnorm_of_no_tokens_is_empty() -> None:
    (got,) = reference.rmsnorm(torch.empty(0, 8), torch.ones(8), 1e-6)
    assert got.shape == (0, 8)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_fused_add_norms_the_sum_before_it_is_rounded(dtype: torch.dtype) -> None:
    x, residual, w = _inputs((33, 200), dtype)
    y, total = reference.fused_add_rmsnorm(x, residual, w, 1e-5, 1.0, compute_dtype=torch.float64)
    want = x.double().numpy() + residual.double().numpy()
    np.testing.assert_array_equal(total.numpy(), want)
    np.testing.assert_allclose(
        y.numpy(), _norm_loop(want, w.double().numpy(), 1e-5, 1.0), rtol=1e-13
    )
    single = reference.fused_add_rmsnorm(x, residual, w, 1e-5, 1.0)
    torch.testing.assert_close(single, (y.float(), total.float()), rtol=2e-6, atol=1e-7)


def test_fused_add_takes_a_residual_of_another_dtype() -> None:
    x, residual, w = _inputs((4, 64), torch.bfloat16)
    wide = residual.float() + 2.0**-12
    _, total = reference.fused_add_rmsnorm(x, wide, w, 1e-6)
    assert torch.equal(total, x.float() + wide)


def test_fused_qk_norms_each_half_with_its_own_weight_and_eps() -> None:
    row, _, w = _inputs((9, 2112), torch.bfloat16)
    q, k = row[:, :1536], row[:, 1536:2048]
    q_out, k_out = reference.fused_qk_rmsnorm(
        q, w[:1536], 1e-6, k, w[1536:2048], 0.5, compute_dtype=torch.float64
    )
    assert q_out is not None
    want_q = _norm_loop(q.double().numpy(), w[:1536].double().numpy(), 1e-6)
    want_k = _norm_loop(k.double().numpy(), w[1536:2048].double().numpy(), 0.5)
    np.testing.assert_allclose(q_out.numpy(), want_q, rtol=1e-13)
    np.testing.assert_allclose(k_out.numpy(), want_k, rtol=1e-13)


def test_fused_qk_without_q_is_k_alone() -> None:
    k, _, w = _inputs((9, 512), torch.bfloat16)
    q_out, k_out = reference.fused_qk_rmsnorm(None, None, None, k, w, 1e-6, 1.0)
    assert q_out is None
    assert torch.equal(k_out, reference.rmsnorm(k, w, 1e-6, 1.0)[0])


def _quant(quant: str, **more: object) -> tuple[torch.Tensor | None, ...]:
    x, residual, w = _inputs((5, 256), torch.bfloat16)
    scale = torch.tensor([0.013]) if quant in ("fp8_tensor", "nvfp4") else None
    arguments = {"quant": quant, "scale": scale, "residual": residual, **more}
    return reference.rmsnorm_quant(x, w, 1e-6, **arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize("fp8_dtype", formats.FP8_MAX)
def test_quant_fp8_tensor_divides_by_the_scale(fp8_dtype: str) -> None:
    out, scale, y, _, _ = _quant("fp8_tensor", fp8_dtype=fp8_dtype)
    assert out is not None and y is not None and scale is None
    limit = formats.fp8_max(fp8_dtype)
    clipped = np.clip(y.numpy() / np.float32(0.013), -limit, limit)
    want = clipped.astype(getattr(ml_dtypes, fp8_dtype)).view(np.uint8)
    np.testing.assert_array_equal(out.view(torch.uint8).numpy(), want)


@pytest.mark.parametrize(
    ("quant", "more", "tolerance"),
    [
        ("fp8_token", {}, 2**-4),
        ("fp8_token", {"fp8_dtype": "float8_e4m3fnuz"}, 2**-4),
        ("fp8_token", {"scale_mode": "pow2"}, 2**-4),
        ("fp8_group", {"group_size": 64}, 2**-4),
        ("mxfp4", {}, 0.2),
        ("mxfp4", {"scale_mode": "even"}, 0.2),
        ("nvfp4", {}, 0.2),
    ],
    ids=str,
)
def test_quant_dequantises_to_the_norm(
    quant: str, more: dict[str, object], tolerance: float
) -> None:
    out, scale, y, total, _ = _quant(quant, **more)
    assert out is not None and scale is not None and y is not None
    if quant == "mxfp4":
        back = formats.dequantize_mxfp4(out, scale)
    elif quant == "nvfp4":
        back = formats.dequantize_nvfp4(out, scale, torch.tensor([0.013]))
    else:
        back = formats.dequantize_fp8(out, scale)
    assert ((back - y).abs().amax() / y.abs().amax()) <= tolerance
    assert (back - y).abs().mean() / y.abs().mean() <= tolerance
    x, residual, w = _inputs((5, 256), torch.bfloat16)
    torch.testing.assert_close(
        (y, total), reference.fused_add_rmsnorm(x, residual, w, 1e-6), rtol=0, atol=0
    )


@pytest.mark.parametrize("quant", QUANTS)
def test_quant_codes_do_not_depend_on_compute_dtype(quant: str) -> None:
    single, exact = _quant(quant), _quant(quant, compute_dtype=torch.float64)
    for a, b in zip(single[:2], exact[:2], strict=True):
        assert (a is None and b is None) or torch.equal(a.view(torch.uint8), b.view(torch.uint8))
    assert exact[2].dtype == exact[3].dtype == torch.float64
    assert not torch.equal(single[2].double(), exact[2])


def test_quant_col_layout_has_tokens_next_to_each_other() -> None:
    row, col = (_quant("fp8_group", scale_layout=layout)[1] for layout in ("row", "col"))
    assert row is not None and col is not None
    assert torch.equal(row, col) and row.stride() == (2, 1) and col.stride() == (1, 5)


@pytest.mark.parametrize(
    ("quant", "layout", "undo"),
    [
        ("mxfp4", "shuffled_gfx950", formats.unshuffle_gfx950),
        ("nvfp4", "swizzled_128x4", formats.unswizzle_128x4),
    ],
)
def test_quant_padded_layouts_hold_the_row_scales(quant: str, layout: str, undo: object) -> None:
    row, padded = (_quant(quant, scale_layout=name)[1] for name in ("row", layout))
    back = undo(padded, *row.shape)  # type: ignore[operator]
    assert torch.equal(back.view(torch.uint8), row.view(torch.uint8))


def test_quant_second_norm_is_not_quantised() -> None:
    x2, _, w2 = _inputs((5, 64), torch.bfloat16, seed=1)
    y2 = _quant("mxfp4", x2=x2, x2_weight=w2, x2_eps=0.1)[4]
    assert y2 is not None and torch.equal(y2, reference.rmsnorm(x2, w2, 0.1)[0])


@pytest.mark.parametrize("quant", QUANTS)
def test_quant_of_zero_and_nan_rows(quant: str) -> None:
    x = torch.zeros(2, 64)
    x[1] = math.nan
    given = torch.ones(1) if quant in ("fp8_tensor", "nvfp4") else None
    out, scale, *_ = reference.rmsnorm_quant(x, torch.ones(64), 1e-6, quant, given, group_size=32)
    if quant == "mxfp4":
        back = formats.dequantize_mxfp4(out, scale)
    elif quant == "nvfp4":
        back = formats.dequantize_nvfp4(out, scale, given)
    else:
        back = formats.dequantize_fp8(out, given if scale is None else scale)
    assert (back[0] == 0).all() and back[1].isnan().all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"quant": "int8"}, "found 'int8'"),
        ({"quant": "fp8_tensor"}, "needs a float32 tensor"),
        ({"quant": "fp8_token", "scale_layout": "col"}, "fp8_token has no layout 'col'"),
        ({"quant": "fp8_group", "group_size": 48}, "divisor of 64, found 48"),
    ],
    ids=str,
)
def test_quant_refuses(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        reference.rmsnorm_quant(torch.ones(1, 64), torch.ones(64), 1e-6, **arguments)  # type: ignore[arg-type]
