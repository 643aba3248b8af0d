# SPDX-License-Identifier: Apache-2.0
"""Packed sparse-KV layouts, byte by byte, against numpy and ml_dtypes."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
import torch

from archkey.errors import UnknownName
from archkey.formats.sparse_kv import PACKED, PackedKV, empty_cache, load, packed, store

_NUMPY = {
    "float8_e4m3fn": ml_dtypes.float8_e4m3fn,
    "float8_e4m3fnuz": ml_dtypes.float8_e4m3fnuz,
    "float32": np.float32,
    "float8_e8m0fnu": ml_dtypes.float8_e8m0fnu,
}


def _offsets(name: str, t: int, p: int) -> tuple[int, int, int]:
    """First byte of latent, scales and rope of token t, within a block of p tokens."""
    return {
        "fp8_v32": (656 * t, 656 * t + 512, 656 * t + 528),
        "fp8_v32_nope": (528 * t, 528 * t + 512, 528 * t + 528),
        "fp8_model1": (576 * t, 576 * p + 8 * t, 576 * t + 448),
    }[name.removesuffix("_fnuz")]


def _modes(layout: PackedKV) -> tuple[str, ...]:
    return ("pow2",) if layout.planar else ("fp32", "pow2")


LAYOUT_MODES = [(layout, mode) for layout in PACKED.values() for mode in _modes(layout)]
IDS = [f"{layout.name}-{mode}" for layout, mode in LAYOUT_MODES]


def _rows(layout: PackedKV, n: int, seed: int) -> tuple[torch.Tensor, torch.Tensor | None]:
    generator = torch.Generator().manual_seed(seed)
    spread = torch.exp(torch.randn(n, 1, generator=generator))
    nope = (torch.randn(n, layout.nope_dim, generator=generator) * spread).bfloat16()
    rope = torch.randn(n, layout.rope_dim, generator=generator).bfloat16()
    return nope, (rope if layout.rope_dim else None)


def _filled(
    layout: PackedKV, mode: str, blocks: int, page: int, seed: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    nope, rope = _rows(layout, blocks * page, seed)
    cache = empty_cache(layout, blocks, page)
    slots = torch.arange(blocks * page)
    store(cache, slots, nope, rope, layout, mode)
    return cache, nope, rope


def _parse(
    cache: torch.Tensor, layout: PackedKV, slot: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Codes, scales and rope of one slot, read with numpy from the block's flat bytes."""
    page = cache.shape[1]
    block = cache[slot // page].reshape(-1).numpy()
    code_at, scale_at, rope_at = _offsets(layout.name, slot % page, page)
    scale_type = np.dtype(_NUMPY[layout.scale_dtype])
    codes = block[code_at : code_at + layout.nope_dim].view(_NUMPY[layout.code_dtype])
    scales = block[scale_at : scale_at + layout.tiles * scale_type.itemsize].view(scale_type)
    rope = block[rope_at : rope_at + 2 * layout.rope_dim].view(ml_dtypes.bfloat16)
    return codes.astype(np.float64), scales.astype(np.float64), rope.astype(np.float64)


@pytest.mark.parametrize(
    ("name", "row", "head_dim", "block"),
    [
        ("fp8_v32", 656, 576, 64 * 656),
        ("fp8_v32_nope", 528, 512, 64 * 528),
        ("fp8_model1", 584, 512, 65 * 576),  # 64 * 584 = 37376, padded to 37440
    ],
)
def test_sizes(name: str, row: int, head_dim: int, block: int) -> None:
    for layout in (packed(name), packed(name + "_fnuz")):
        assert (layout.row_bytes, layout.head_dim, layout.block_bytes(64)) == (row, head_dim, block)
        cache = empty_cache(layout, 3, 64)
        assert cache.shape == (3, 64, row)
        assert cache.stride() == (block, row, 1)


@pytest.mark.parametrize(("layout", "mode"), LAYOUT_MODES, ids=IDS)
def test_bytes_hold_the_rows(layout: PackedKV, mode: str) -> None:
    cache, nope, rope = _filled(layout, mode, blocks=2, page=3, seed=1)
    limit = 448.0 if layout.code_dtype == "float8_e4m3fn" else 240.0
    for slot in range(6):
        codes, scales, stored_rope = _parse(cache, layout, slot)
        tiles = nope[slot].double().numpy().reshape(layout.tiles, layout.tile)
        exact = np.abs(tiles).max(-1) / limit
        if mode == "pow2":
            exact = 2.0 ** np.ceil(np.log2(exact))
        np.testing.assert_allclose(scales, exact, rtol=1e-6)
        # Half a step of e4m3 is 1/16 of the value, and no less than half a subnormal step (2^-11).
        real = codes.reshape(tiles.shape) * scales[:, None]
        bound = np.maximum(np.abs(tiles) / 16, scales[:, None] * 2.0**-10)
        assert (np.abs(real - tiles) <= bound * (1 + 1e-6)).all()
        if rope is not None:
            np.testing.assert_array_equal(stored_rope, rope[slot].double().numpy())


@pytest.mark.parametrize(("layout", "mode"), LAYOUT_MODES, ids=IDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_load_reads_what_numpy_reads(layout: PackedKV, mode: str, dtype: torch.dtype) -> None:
    cache, _, _ = _filled(layout, mode, blocks=3, page=5, seed=2)
    slots = torch.tensor([14, 0, 7, 7])
    loaded = load(cache, slots, layout, dtype=dtype)
    assert loaded.dtype == dtype
    for row, slot in zip(loaded, slots.tolist(), strict=True):
        codes, scales, rope = _parse(cache, layout, slot)
        latent = codes.reshape(layout.tiles, layout.tile) * scales[:, None]
        expected = np.concatenate([latent.reshape(-1), rope])
        np.testing.assert_allclose(row.double().numpy(), expected, rtol=1e-7)


@pytest.mark.parametrize(("layout", "mode"), LAYOUT_MODES, ids=IDS)
def test_store_touches_only_its_slots(layout: PackedKV, mode: str) -> None:
    cache, _, _ = _filled(layout, mode, blocks=2, page=4, seed=3)
    before = load(cache, torch.arange(8), layout, dtype=torch.float64)
    nope, rope = _rows(layout, 2, seed=4)
    store(cache, torch.tensor([5, 2]), nope, rope, layout, mode)
    after = load(cache, torch.arange(8), layout, dtype=torch.float64)
    changed = (before != after).any(-1).nonzero().squeeze(1).tolist()
    assert changed == [2, 5]


@pytest.mark.parametrize(("layout", "mode"), LAYOUT_MODES, ids=IDS)
def test_all_zero_rows_come_back_as_zero(layout: PackedKV, mode: str) -> None:
    cache = empty_cache(layout, 1, 2)
    nope = torch.zeros(2, layout.nope_dim)
    nope[1, 0] = -1e-20  # underflows; the byte of -0 is NaN in fnuz
    rope = torch.zeros(2, layout.rope_dim) if layout.rope_dim else None
    store(cache, torch.arange(2), nope, rope, layout, mode)
    _, scales, _ = _parse(cache, layout, 0)
    assert (scales > 0).all()
    assert (load(cache, torch.arange(2), layout, dtype=torch.float32) == 0).all()


@pytest.mark.parametrize("exponent", range(-12, 20))
def test_pow2_scale_is_the_next_power_of_two(exponent: int) -> None:
    layout = packed("fp8_model1")
    exact = torch.full((1, layout.nope_dim), 448.0 * 2.0**exponent)
    above = exact * (1 + 2.0**-20)
    for nope, expected in ((exact, 2.0**exponent), (above, 2.0 ** (exponent + 1))):
        cache = empty_cache(layout, 1, 1)
        rope = torch.zeros(1, 64)
        store(cache, torch.zeros(1).long(), nope, rope, layout, "pow2")
        assert _parse(cache, layout, 0)[1].tolist() == [expected] * layout.tiles


def test_unknown_name_lists_the_nearest() -> None:
    with pytest.raises(UnknownName, match="fp8_v32"):
        packed("fp8_v3")
