# SPDX-License-Identifier: Apache-2.0
"""Instructions of which the ISA reference has no pseudocode, or none that can be run."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.emulation.machine import LANE, bits, numbers, one, one_float, run, wave
from tests.emulation.programs import DATA, STORE_V1, program, start

from archkey.conformance.emulation.memory import Room

VALUE = np.random.default_rng(8).integers(0, 1 << 32, 64, dtype=np.uint64).astype(np.uint32)
OTHER = VALUE[::-1] ^ np.uint32(0x5A5A5A5A)
HALF = 0x00FF_0F0F_FFFF_0000


def test_accumulator_registers() -> None:
    on = run(
        wave(exec_mask=HALF, v0=5, v1=VALUE, a0=7, a1=9),
        "v_accvgpr_write_b32 a0, v1",
        "v_accvgpr_mov_b32 a1, a0",
        "v_accvgpr_read_b32 v0, a1",
    )
    works = HALF >> LANE.astype(object) & 1 == 1
    np.testing.assert_array_equal(on.u32[0], np.where(works, VALUE, 5))
    np.testing.assert_array_equal(on.u32[257], np.where(works, VALUE, 9))


def test_registers_change_places() -> None:
    on = run(wave(exec_mask=HALF, v0=VALUE, v1=OTHER), "v_swap_b32 v0, v1")
    works = HALF >> LANE.astype(object) & 1 == 1
    np.testing.assert_array_equal(on.u32[0], np.where(works, OTHER, VALUE))
    np.testing.assert_array_equal(on.u32[1], np.where(works, VALUE, OTHER))


@pytest.mark.parametrize(
    ("branch", "before", "taken"),
    [
        ("s_branch", "s_nop 0", True),
        ("s_cbranch_scc0", "s_cmp_eq_u32 0, 1", True),
        ("s_cbranch_scc0", "s_cmp_eq_u32 1, 1", False),
        ("s_cbranch_scc1", "s_cmp_eq_u32 1, 1", True),
        ("s_cbranch_scc1", "s_cmp_eq_u32 0, 1", False),
        ("s_cbranch_vccz", "s_mov_b64 vcc, 0", True),
        ("s_cbranch_vccz", "s_mov_b64 vcc, 2", False),
        ("s_cbranch_vccnz", "s_mov_b64 vcc, 2", True),
        ("s_cbranch_vccnz", "s_mov_b64 vcc, 0", False),
        ("s_cbranch_execz", "s_mov_b64 exec, 0", True),
        ("s_cbranch_execz", "s_mov_b64 exec, 4", False),
        ("s_cbranch_execnz", "s_mov_b64 exec, 4", True),
        ("s_cbranch_execnz", "s_mov_b64 exec, 0", False),
    ],
)
def test_branches(branch: str, before: str, taken: bool) -> None:
    lines = ("v_mov_b32_e32 v1, 1", before, f"{branch} .LBB0_1", "s_mov_b64 exec, -1")
    lines += ("v_mov_b32_e32 v1, 2", ".LBB0_1:", "s_mov_b64 exec, -1")
    start(program(*lines, *STORE_V1))
    assert set(DATA[:64].tolist()) == {1 if taken else 2}


@pytest.mark.parametrize(("first", "second"), [(5, 6), (6, 5), (5, 5), (1 << 63, 1), (1, 1 << 63)])
def test_scalar_comparisons_of_64_bits(first: int, second: int) -> None:
    for name, want in (
        ("gt", first > second),
        ("ge", first >= second),
        ("lt", first < second),
        ("le", first <= second),
    ):
        halves = {"s0": first, "s1": first >> 32, "s2": second, "s3": second >> 32}
        on = run(wave(**halves), f"s_cmp_{name}_u64 s[0:1], s[2:3]")
        assert on.scc == want


def test_exponents() -> None:
    """Against numpy's; of 0, infinity and NaN 0."""
    values = np.concatenate([numbers(4, 30)[:58], np.float32([0, -0.0, np.inf, np.nan, 1e-44, 1])])
    found = one("v_frexp_exp_i32_f32_e32 v0, v1", v1=values).view(np.int32)
    want = np.where(np.isfinite(values), np.frexp(values)[1], 0)
    np.testing.assert_array_equal(found, want)


def test_mixed_products_into_halves() -> None:
    """v_fma_mixlo and v_fma_mixhi: a float16 into one half, the other one stays."""
    a, b, c = numbers(7), numbers(8), numbers(9).astype(np.float16)
    want = (a.astype("f8") * b + c).astype(np.float16).view(np.uint16).astype(np.uint32)
    given = {"v0": VALUE, "v1": a, "v2": b, "v3": bits(c)}
    low = one("v_fma_mixlo_f16 v0, v1, v2, v3 op_sel_hi:[0,0,1]", **given)
    high = one("v_fma_mixhi_f16 v0, v1, v2, v3 op_sel_hi:[0,0,1]", **given)
    np.testing.assert_array_equal(low, VALUE & 0xFFFF0000 | want)
    np.testing.assert_array_equal(high, VALUE & 0xFFFF | want << 16)


def test_a_fused_product_of_halves() -> None:
    a, b, c = (numbers(n).astype(np.float16) for n in (1, 2, 3))
    found = one("v_fmac_f16_e32 v0, v1, v2", v0=bits(c), v1=bits(a), v2=bits(b))
    want = (a.astype("f8") * b + c).astype(np.float16)
    np.testing.assert_array_equal((found & 0xFFFF).astype(np.uint16).view(np.float16), want)


@pytest.mark.parametrize(("size", "rows"), [(4, 16), (8, 8), (16, 4)])
def test_a_transposing_load_from_lds(size: int, rows: int) -> None:
    """Of the 16 lanes of a row, lane n ends with element n of each of the 16 rows that they read.

    Element (row, n) of the tile is at `rows` elements a lane; written and read as single elements.
    """
    codes = np.random.default_rng(size).integers(0, 1 << size, (4, rows, 16))
    packed = np.zeros((4, rows * 16 * size // 8), np.uint8)
    for block in range(4):
        flat = codes[block].reshape(-1)
        if size == 4:
            packed[block] = flat[::2] | flat[1::2] << 4
        else:
            packed[block] = flat.astype(f"u{size // 8}").view(np.uint8)
    words = packed.reshape(64, 8).view(np.uint32)
    on = wave(v2=words[:, 0].copy(), v3=words[:, 1].copy(), v4=LANE * 8)
    run(on, "ds_write_b64 v4, v[2:3]", f"ds_read_b64_tr_b{size} v[0:1], v4", target="gfx950")
    got = np.stack([on.u32[0], on.u32[1]], 1)
    for lane in range(64):
        whole = int(got[lane, 0]) | int(got[lane, 1]) << 32
        column = [whole >> size * n & (1 << size) - 1 for n in range(rows)]
        assert column == codes[lane // 16, :, lane % 16].tolist()


def test_loads_of_three_words_into_lds() -> None:
    data = np.arange(256, dtype=np.uint32)
    own = Room.at("data", data.ctypes.data, data.nbytes)
    at = data.ctypes.data + LANE * 16
    on = wave(rooms=(own,), v2=(at & 0xFFFFFFFF).astype("u4"), v3=(at >> 32).astype("u4"))
    on.s[124] = 0
    run(on, "global_load_lds_dwordx3 v[2:3], off", target="gfx950")
    held = on.group.lds.read(0, LANE * 12, 4, 3).T
    np.testing.assert_array_equal(held, data.reshape(64, 4)[:, :3])


@pytest.mark.parametrize(
    ("target", "kind"), [("gfx942", torch.float8_e5m2fnuz), ("gfx950", torch.float8_e5m2)]
)
def test_to_bf8(target: str, kind: torch.dtype) -> None:
    values = numbers(2, 12)
    want = torch.from_numpy(values).to(kind).view(torch.uint8).numpy().astype(np.uint32)
    found = one("v_cvt_pk_bf8_f32 v0, v1, v2", target=target, v0=0x12340000, v1=values, v2=0)
    np.testing.assert_array_equal(found, 0x12340000 | want)


SMALL = {"fp8": torch.float8_e4m3fn, "bf8": torch.float8_e5m2}
WIDE = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}


@pytest.mark.parametrize("wide", WIDE)
@pytest.mark.parametrize("small", SMALL)
def test_every_conversion_with_a_scale(small: str, wide: str) -> None:
    """Down, divided by 4; and up again, multiplied by it, which is exact."""
    values = torch.from_numpy(np.clip(numbers(3, 3), -8, 8)).to(WIDE[wide])
    codes = (values.double() / 4).to(SMALL[small])
    want = codes.view(torch.uint8).numpy().astype(np.uint32)
    if wide == "f32":
        given, sources = {"v1": values.numpy(), "v2": values.numpy()}, "v1, v2"
    else:
        half = values.view(torch.uint16).numpy().astype(np.uint32)
        given, sources = {"v1": half | half << 16}, "v1"
    down = f"v_cvt_scalef32_pk_{small}_{wide} v0, {sources}, 4.0"
    found = one(down, target="gfx950", v0=0, **given)
    np.testing.assert_array_equal(found, want | want << 8)
    to = "v[0:1]" if wide == "f32" else "v0"
    up = f"v_cvt_scalef32_pk_{wide}_{small} {to}, v2, 4.0"
    exact = (4 * codes.double()).to(WIDE[wide])
    if wide == "f32":
        np.testing.assert_array_equal(one_float(up, target="gfx950", v2=found), exact.numpy())
    else:
        pair = exact.view(torch.uint16).numpy().astype(np.uint32)
        np.testing.assert_array_equal(one(up, target="gfx950", v2=found), pair | pair << 16)
