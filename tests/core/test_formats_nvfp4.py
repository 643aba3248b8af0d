# SPDX-License-Identifier: Apache-2.0
"""NVFP4 against ml_dtypes, block by block, and its swizzled scales, one by one."""

from __future__ import annotations

import math

import ml_dtypes
import numpy as np
import pytest
import torch

from archkey import formats


def _bytes(codes: torch.Tensor) -> np.ndarray:
    return codes.view(torch.uint8).numpy()


def test_nvfp4_quantize_equals_a_loop() -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 64) * 10.0 ** torch.randint(-2, 2, (3, 1))
    global_scale = x.abs().amax() / (448 * 6)
    packed, scale = formats.quantize_nvfp4(x, global_scale)
    g = global_scale.numpy()
    for t in range(3):
        codes = np.empty(64, np.uint8)
        for b in range(4):
            block = x[t, b * 16 : (b + 1) * 16].numpy()
            s = (np.abs(block).max() / np.float32(6) / g).astype(ml_dtypes.float8_e4m3fn)
            assert _bytes(scale)[t, b] == s.view(np.uint8)
            scaled = np.clip(block / (s.astype(np.float32) * g), -6, 6)
            codes[b * 16 : (b + 1) * 16] = scaled.astype(ml_dtypes.float4_e2m1fn).view(np.uint8)
        np.testing.assert_array_equal(packed[t].numpy(), codes[0::2] | codes[1::2] << 4)
    back = formats.dequantize_nvfp4(packed, scale, global_scale)
    assert ((back - x).abs().amax(-1) / x.abs().amax(-1)).max() < 0.2


def test_nvfp4_zero_tiny_and_nan_blocks() -> None:
    x = torch.zeros(1, 64)
    x[0, 16], x[0, 32], x[0, 48] = 1e-6, math.nan, 100.0
    packed, scale = formats.quantize_nvfp4(x, torch.tensor([0.1]))
    back = formats.dequantize_nvfp4(packed, scale, torch.tensor([0.1]))[0]
    assert packed[0, :16].tolist() == [0] * 16
    assert (back[:32] == 0).all() and back[32:48].isnan().all()
    assert back[48].item() == pytest.approx(100, rel=0.05)


@pytest.mark.parametrize("g", [1.0, 2.0**-7, 0.0371])
def test_nvfp4_block_scales_on_and_beside_every_tie(g: float) -> None:
    """Blocks whose amax / 6 is a value of e4m3fn, half-way between two, or next to either."""
    codes = np.arange(0x7F, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn).astype(np.float32)
    points = np.concatenate([codes, (codes[1:] + codes[:-1]) / 2, [480.0, 1e4]]).astype(np.float32)
    tops = points * np.float32(6) * np.float32(g)
    tops = np.concatenate([tops, np.nextafter(tops, np.float32(9e9)), np.nextafter(tops, -tops)])
    tops = np.abs(tops)
    x = torch.from_numpy(tops)[:, None] * torch.linspace(-1, 1, 16).float()
    packed, scale = formats.quantize_nvfp4(x, torch.tensor([g]))
    for t, block in enumerate(x.numpy()):
        exact = np.abs(block).max() / np.float32(6) / np.float32(g)
        s = np.minimum(exact, np.float32(448)).astype(ml_dtypes.float8_e4m3fn)
        assert _bytes(scale)[t, 0] == s.view(np.uint8)
        factor = s.astype(np.float32) * np.float32(g)
        scaled = block / factor if factor else np.copysign(0, block).astype(np.float32)
        want = np.clip(scaled, -6, 6).astype(ml_dtypes.float4_e2m1fn).view(np.uint8)
        np.testing.assert_array_equal(packed[t].numpy(), want[0::2] | want[1::2] << 4)


def test_nvfp4_dequantises_every_code_and_scale() -> None:
    packed = torch.arange(256, dtype=torch.uint8).repeat(256, 1)
    scale = torch.arange(256, dtype=torch.uint8)[:, None].repeat(1, 32)
    got = formats.dequantize_nvfp4(packed, scale.view(torch.float8_e4m3fn), torch.tensor([0.375]))
    codes = np.stack([packed.numpy() & 15, packed.numpy() >> 4], axis=-1).reshape(256, 512)
    values = codes.view(ml_dtypes.float4_e2m1fn).astype(np.float64)
    factors = scale.numpy().view(ml_dtypes.float8_e4m3fn).astype(np.float64) * 0.375
    np.testing.assert_array_equal(got.numpy(), values * factors.repeat(16, axis=1))


def test_nvfp4_saturates_at_infinity_and_keeps_the_sign_of_zero() -> None:
    x = torch.zeros(1, 32)
    x[0, 0], x[0, 1], x[0, 16] = -0.0, 0.0, -math.inf
    packed, scale = formats.quantize_nvfp4(x, torch.ones(1))
    assert formats.unpack_e2m1(packed)[0, :3].tolist() == [8, 0, 0]
    assert scale.float().tolist() == [[0.0, 448.0]]
    assert formats.dequantize_nvfp4(packed, scale, torch.ones(1))[0, 16] == -6 * 448


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float8_e4m3fn], ids=str)
@pytest.mark.parametrize(("rows", "blocks"), [(1, 4), (33, 7), (128, 4), (130, 448)])
def test_128x4_swizzle_places_every_scale(rows: int, blocks: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    scale = torch.randint(1, 126, (rows, blocks), dtype=torch.uint8)
    swizzled = formats.swizzle_128x4(scale.view(dtype))
    height, width = -(-rows // 128) * 128, -(-blocks // 4) * 4
    assert swizzled.shape == (height, width) and swizzled.dtype == dtype
    want = np.zeros(height * width, np.uint8)
    for m in range(rows):
        for k in range(blocks):
            tile = (m // 128) * (width // 4) + k // 4
            want[tile * 512 + (m % 32) * 16 + (m % 128 // 32) * 4 + k % 4] = scale[m, k]
    np.testing.assert_array_equal(_bytes(swizzled).flatten(), want)
    back = formats.unswizzle_128x4(swizzled, rows, blocks)
    np.testing.assert_array_equal(_bytes(back), scale.numpy())
