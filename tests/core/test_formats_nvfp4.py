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


def test_nvfp4_refuses_a_width_of_other_than_whole_blocks() -> None:
    with pytest.raises(ValueError, match="found 200"):
        formats.quantize_nvfp4(torch.zeros(1, 200), torch.ones(1))


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
