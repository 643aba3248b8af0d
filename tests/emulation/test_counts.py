# SPDX-License-Identifier: Apache-2.0
"""What is counted of launches on AMD's emulator, where arithmetic says what it must be."""

from __future__ import annotations

import pytest
from tests.emulation.programs import STORE_V1, program, start

from archkey.conformance.emulation.classes import class_of, flops_of
from archkey.conformance.emulation.counters import Counters, counting, places
from archkey.conformance.emulation.text import Instruction


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("v_mfma_f32_16x16x16_bf16 a[0:3], v[0:1], v[2:3], 0", "matrix"),
        ("global_atomic_add_f32 v0, v1, s[0:1]", "atomics"),
        ("ds_add_u32 v0, v1", "atomics"),
        ("ds_pk_add_rtn_bf16 v0, v1, v2", "atomics"),
        ("global_load_lds_dwordx4 v[0:1], off", "copies to LDS"),
        ("buffer_load_dword v0, s[4:7], 0 offen lds", "copies to LDS"),
        ("buffer_load_dword v0, v1, s[4:7], 0 offen", "global"),
        ("global_store_short v[0:1], v2, off", "global"),
        ("scratch_load_dword v0, off, s0", "scratch"),
        ("ds_bpermute_b32 v0, v1, v2", "lanes"),
        ("v_permlane32_swap_b32 v0, v1", "lanes"),
        ("ds_read_b64_tr_b16 v[0:1], v2", "LDS"),
        ("s_load_dwordx2 s[0:1], s[2:3], 0x0", "scalar loads"),
        ("s_waitcnt lgkmcnt(0)", "barriers and waits"),
        ("buffer_inv sc1", "barriers and waits"),
        ("s_cbranch_execz .LBB0_1", "branches"),
        ("s_and_saveexec_b64 s[0:1], vcc", "scalar"),
        ("v_accvgpr_read_b32 v0, a0", "accumulator moves"),
        ("v_exp_f32_e32 v0, v1", "special functions"),
        ("v_cvt_pk_bf16_f32 v0, v1, v2", "conversions"),
        ("v_pk_fma_f32 v[0:1], v[2:3], v[4:5], v[6:7]", "floats"),
        ("v_add_f32_dpp v0, v1, v2 row_shr:1", "floats"),
        ("v_lshl_add_u64 v[0:1], v[2:3], 0, v[4:5]", "integers"),
        ("v_mov_b32_sdwa v0, v1 src0_sel:BYTE_0", "integers"),
    ],
)
def test_each_instruction_has_its_class(line: str, name: str) -> None:
    assert class_of(Instruction(1, line)) == name


@pytest.mark.parametrize(
    ("name", "flops"),
    [
        ("v_mfma_f32_16x16x16_bf16", 2 * 16 * 16 * 16),
        ("v_mfma_f32_32x32x8_bf16_1k", 2 * 32 * 32 * 8),
        ("v_mfma_f32_32x32x16_fp8_fp8", 2 * 32 * 32 * 16),
        ("v_mfma_f32_4x4x4_16b_f16", 2 * 4 * 4 * 4 * 16),
        ("v_mfma_scale_f32_16x16x128_f8f6f4", 2 * 16 * 16 * 128),
        ("v_fma_f32", 0),
    ],
)
def test_matrix_products_have_the_operations_of_their_shape(name: str, flops: int) -> None:
    assert flops_of(name) == flops


def test_bytes_are_those_of_working_lanes() -> None:
    lines = (
        *("s_mov_b64 exec, 0xffff", "v_mov_b32_e32 v1, 1", *STORE_V1),
        *("global_load_dwordx4 v[4:7], v2, s[4:5]", "s_load_dwordx4 s[8:11], s[4:5], 0x0"),
        *("ds_write_b64 v2, v[4:5]", "ds_read_b32 v8, v2"),
    )
    done = start(program(*lines), lds=512)
    # The arguments are no memory that counts; a scalar load of data is one for the whole wave.
    assert (done.loaded, done.stored) == (16 * 16 + 16, 16 * 4)
    assert (done.lds_loaded, done.lds_stored) == (16 * 4, 16 * 8)
    assert done.instructions == {
        **{"scalar": 1, "integers": 2, "scalar loads": 2},
        **{"global": 2, "LDS": 2, "branches": 1},
    }


def test_elements_out_of_a_buffers_range_are_not_moved() -> None:
    lines = (
        *("s_load_dwordx2 s[4:5], s[0:1], 0x0", "s_mov_b32 s6, 40", "s_mov_b32 s7, 0x27000"),
        *("v_lshlrev_b32_e32 v2, 3, v0", "buffer_load_dwordx2 v[4:5], v2, s[4:7], 0 offen"),
    )
    assert start(program(*lines)).loaded == 40


def test_copies_into_lds_are_counted_as_such() -> None:
    lines = ("s_load_dwordx2 s[4:5], s[0:1], 0x0", "v_lshlrev_b32_e32 v2, 2, v0", "s_mov_b32 m0, 0")
    done = start(program(*lines, "global_load_lds_dword v2, s[4:5]"), lds=256)
    assert (done.loaded, done.copied, done.lds_stored) == (0, 256, 256)


def test_a_matrix_product() -> None:
    line = "v_mfma_f32_16x16x16_bf16 v[4:7], v[0:1], v[2:3], 0"
    done = start(program(line, line), grid=(3, 1, 1), waves=2)
    assert done.flops == 2 * 3 * 2 * 8192
    assert done.instructions["matrix"] == 12


def test_a_sample_stands_for_all() -> None:
    lines = ("v_mov_b32_e32 v1, v0", *STORE_V1)
    whole, part = (start(program(*lines), (2, 5, 3), 2, sample=n) for n in (0, 4))
    assert whole == part
    assert whole.stored == 30 * 2 * 64 * 4
    with counting(4):
        found = places((2, 5, 3))
    assert list(found.chosen) == [(0, 0, 0), (0, 4, 0), (0, 3, 1), (0, 2, 2)]
    assert found.times == 30 / 4


def test_counts_of_several_launches_add_up() -> None:
    total = Counters()
    total.add(Counters(loaded=3, lds_loaded=5))
    total.add(Counters(loaded=4), 2.5)
    assert (total.loaded, total.lds_loaded, total.lds_stored) == (13, 5, None)
