# SPDX-License-Identifier: Apache-2.0
"""LDS, global memory, buffers and scratch: what is moved, and what is outside."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from tests.emulation.machine import LANE, run, wave

from archkey.conformance.emulation.faults import Fault, UnknownInstruction
from archkey.conformance.emulation.lds import transposed
from archkey.conformance.emulation.memory import Room

DATA = np.random.default_rng(5).integers(0, 256, 4096, dtype=np.uint8)


def room(data: np.ndarray) -> Room:
    return Room.at("data", data.ctypes.data, data.nbytes)


def address(data: np.ndarray, offsets: np.ndarray) -> dict[str, np.ndarray]:
    """v2 and v3: 64-bit addresses."""
    at = data.ctypes.data + offsets.astype(np.int64)
    return {"v2": (at & 0xFFFFFFFF).astype(np.uint32), "v3": (at >> 32).astype(np.uint32)}


@pytest.mark.parametrize(
    ("name", "want"),
    [
        ("ubyte", lambda at: DATA[at].astype(np.uint32)),
        ("sbyte", lambda at: DATA[at].view(np.int8).astype(np.int32).view(np.uint32)),
        ("ushort", lambda at: DATA[at] | DATA[at + 1].astype(np.uint32) << 8),
        (
            "short_d16_hi",
            lambda at: 7 | DATA[at].astype("u4") << 16 | DATA[at + 1].astype("u4") << 24,
        ),
        ("dword", lambda at: DATA[at[:, None] + np.arange(4)].view(np.uint32)[:, 0]),
    ],
)
@pytest.mark.parametrize("step", [4, 7])
def test_global_loads(name: str, want: Callable[[np.ndarray], np.ndarray], step: int) -> None:
    """Also where they are not aligned."""
    at = LANE * step
    on = wave(rooms=(room(DATA),), v0=7, **address(DATA, at))
    run(on, f"global_load_{name} v0, v[2:3], off offset:16")
    np.testing.assert_array_equal(on.u32[0], want(at + 16))


def test_wide_loads_and_stores_with_a_scalar_base() -> None:
    out = np.zeros(2048, np.uint8)
    base = out.ctypes.data
    on = wave(
        rooms=(room(DATA), room(out)),
        **{"v8": LANE * 16, "s4": base & 0xFFFFFFFF, "s5": base >> 32},
        **address(DATA, LANE * 16),
    )
    run(on, "global_load_dwordx4 v[4:7], v[2:3], off sc0 nt")
    run(on, "global_store_dwordx4 v8, v[4:7], s[4:5] offset:1024")
    np.testing.assert_array_equal(out[1024:], DATA[:1024])


def test_only_working_lanes_move() -> None:
    out = np.zeros(256, np.uint8)
    on = wave(exec_mask=0xF, rooms=(room(out),), v0=0x01020304, **address(out, LANE * 4))
    run(on, "global_store_dword v[2:3], v0, off")
    assert out.view(np.uint32)[:5].tolist() == [0x01020304] * 4 + [0]
    on.set_exec(0)
    run(on, "global_store_dword v[2:3], v0, off")


def test_an_access_outside_names_the_nearest_allocation() -> None:
    on = wave(rooms=(room(DATA),), **address(DATA, 4096 - 64 * 4 + 4 * (LANE + 1)))
    with pytest.raises(Fault, match=r"1 lanes access 4 bytes outside .*: 4 bytes past .* data"):
        run(on, "global_load_dword v0, v[2:3], off")
    on = wave(rooms=(room(DATA),), **address(DATA, LANE - 1))
    with pytest.raises(Fault, match="1 bytes before data"):
        run(on, "global_store_byte v[2:3], v0, off")


def resource(data: np.ndarray, size: int) -> dict[str, int]:
    base = data.ctypes.data
    return {"s4": base & 0xFFFFFFFF, "s5": base >> 32, "s6": size, "s7": 0x27000}


def test_buffers_check_their_range() -> None:
    """Elements past num_records read as 0 and are not written."""
    on = wave(rooms=(room(DATA),), v2=LANE * 8, s8=8, **resource(DATA, 500))
    run(on, "buffer_load_dwordx2 v[0:1], v2, s[4:7], s8 offen offset:8")
    at = LANE * 8 + 16
    words = np.where(
        at[:, None] + [4, 8] <= 500, DATA.view(np.uint32)[at[:, None] // 4 + [0, 1]], 0
    )
    np.testing.assert_array_equal(on.u32[0], words[:, 0])
    np.testing.assert_array_equal(on.u32[1], words[:, 1])
    out = np.zeros(1024, np.uint8)
    on = wave(rooms=(room(out),), v0=5, v1=6, v2=LANE * 8, **resource(out, 12))
    run(on, "buffer_store_dwordx2 v[0:1], v2, s[4:7], 0 offen")
    assert out.view(np.uint32)[:4].tolist() == [5, 6, 5, 0]


def test_a_masked_buffer_access_touches_nothing() -> None:
    """Triton masks with an offset of 2^31, past any num_records."""
    on = wave(rooms=(room(DATA),), v2=0x80000000, **resource(DATA, 0x7FFFFFFE))
    run(on, "buffer_load_dword v0, v2, s[4:7], 0 offen")
    assert not on.u32[0].any()


def test_a_buffer_with_a_stride_is_refused() -> None:
    on = wave(v2=0, **{**resource(DATA, 64), "s5": 4 << 16})
    with pytest.raises(UnknownInstruction, match="stride"):
        run(on, "buffer_load_dword v0, v2, s[4:7], 0 offen")


def test_lds() -> None:
    values = np.arange(64, dtype=np.uint32) * 0x01010101
    on = wave(v0=LANE * 8, v1=values, v2=values[::-1])
    run(on, "ds_write_b64 v0, v[1:2]", "ds_read2_b32 v[4:5], v0 offset1:1")
    np.testing.assert_array_equal(on.u32[4], values)
    np.testing.assert_array_equal(on.u32[5], values[::-1])
    run(on, "ds_read_u8 v6, v0 offset:1", "ds_write_b16_d16_hi v0, v1", "ds_read_i16 v7, v0")
    np.testing.assert_array_equal(on.u32[6], values & 0xFF)
    np.testing.assert_array_equal(on.i32[7], (values >> 16).astype(np.int16))
    on = wave(lds=4096, v0=LANE * 4, v1=values, v2=values[::-1])
    run(on, "ds_write2st64_b32 v0, v1, v2 offset0:2 offset1:5", "ds_read_b32 v3, v0 offset:1280")
    np.testing.assert_array_equal(on.u32[3], values[::-1])


def test_an_address_in_lds_wraps_at_32_bits() -> None:
    """A negative base and an offset."""
    on = wave(v0=LANE * 4 - 512 & 0xFFFFFFFF, v1=LANE)
    run(on, "ds_write_b32 v0, v1 offset:768", "ds_read2st64_b32 v[2:3], v0 offset0:3 offset1:3")
    np.testing.assert_array_equal(on.u32[2], LANE)


def test_lds_has_an_end() -> None:
    on = wave(lds=256, v0=LANE * 4)
    run(on, "ds_write_b32 v0, v0", "ds_read_b32 v1, v0")
    with pytest.raises(Fault, match="byte 259 of an LDS of 256 bytes"):
        run(on, "ds_read_b32 v1, v0 offset:4")
    with pytest.raises(Fault, match="LDS of 256 bytes"):
        run(on, "ds_write_b64 v0, v[2:3]")


def test_scratch() -> None:
    on = wave(v1=LANE, v2=LANE[::-1], s32=16)
    run(
        on,
        "scratch_store_dwordx2 off, v[1:2], s32 offset:8",
        "scratch_load_dword v3, off, s32 offset:12",
    )
    np.testing.assert_array_equal(on.u32[3], LANE[::-1])
    with pytest.raises(Fault, match="256 bytes of scratch"):
        run(on, "scratch_load_dword v3, off, s32 offset:240")


@pytest.mark.parametrize("size", [4, 8, 16])
def test_transposing_loads(size: int) -> None:
    """Each 16 lanes hold rows of 16 elements; afterwards lane n holds column n."""
    rows = 64 // size
    tile = np.random.default_rng(2).integers(0, 1 << size, (4, rows, 16))

    def packed(values: np.ndarray) -> np.ndarray:
        """[64, rows] elements as the 8 bytes of each lane."""
        whole = [sum(int(v) << size * n for n, v in enumerate(row)) for row in values]
        return np.array(whole, np.uint64)[:, None].view(np.uint8)

    found = transposed(packed(tile.reshape(64, rows)), size)
    np.testing.assert_array_equal(found, packed(tile.transpose(0, 2, 1).reshape(64, rows)))


def test_scalar_loads() -> None:
    base = DATA.ctypes.data
    on = wave(rooms=(room(DATA),), s0=base & 0xFFFFFFFF, s1=base >> 32, s2=8)
    run(on, "s_load_dwordx4 s[4:7], s[0:1], 0x10", "s_load_dword s8, s[0:1], s2")
    assert on.s[4:8] == DATA.view(np.uint32)[4:8].tolist()
    assert on.s[8] == int(DATA.view(np.uint32)[2])
    with pytest.raises(Fault, match="past the end of data"):
        run(on, "s_load_dwordx2 s[4:5], s[0:1], 0xffc")


def test_loads_into_lds() -> None:
    """Lane after lane from M0 on; the offset counts on both sides."""
    words = DATA.view(np.uint32)
    on = wave(exec_mask=0xFF, rooms=(room(DATA),), **address(DATA, LANE * 8))
    on.s[124] = 32
    run(on, "global_load_lds_dword v[2:3], off offset:4")
    held = on.group.lds.read(0, LANE[9:17] * 4, 4, 1)[0]
    assert held.tolist() == words[1:17:2].tolist()
    assert not on.group.lds.unwritten
    held = on.group.lds.read(0, LANE * 4, 4, 1)[0]
    assert on.group.lds.unwritten
    assert (np.delete(held, range(9, 17)) == 0xFFFFFFFF).all()
    on = wave(rooms=(room(DATA),), v2=LANE * 16, **resource(DATA, 512))
    on.s[124] = 0
    run(on, "buffer_load_dwordx4 v2, s[4:7], 0 offen lds", target="gfx950")
    held = on.group.lds.read(0, LANE * 16, 4, 4).T.reshape(-1)
    assert held.tolist() == [*words[:128].tolist(), *[0] * 128]
    on.s[124] = 4
    with pytest.raises(Fault, match="byte 1027 of an LDS of 1024 bytes"):
        run(on, "buffer_load_dwordx4 v2, s[4:7], 0 offen lds", target="gfx950")
