# SPDX-License-Identifier: Apache-2.0
"""Assembly texts: how they are read, what is refused, and programs that err."""

from __future__ import annotations

import re

import pytest
from tests.emulation.programs import DATA, STORE_V1, program, start

from archkey.conformance.emulation import census
from archkey.conformance.emulation.dialects import dialect_of
from archkey.conformance.emulation.faults import Fault, UnknownInstruction
from archkey.conformance.emulation.operands import operand
from archkey.conformance.emulation.program import load
from archkey.conformance.emulation.text import Instruction, parse


def test_an_instruction_is_taken_apart() -> None:
    found = Instruction(3, "v_cndmask_b32_sdwa v11, -|v18|, v1, vcc dst_sel:DWORD src1_sel:WORD_1")
    assert (found.name, found.encoding) == ("v_cndmask_b32", "sdwa")
    assert found.operands == ("v11", "-|v18|", "v1", "vcc")
    assert found.modifiers == {"dst_sel": "DWORD", "src1_sel": "WORD_1"}
    found = Instruction(4, "buffer_load_dwordx4 v[2:5], v1, s[4:7], 0 offen offset:16")
    assert found.operands == ("v[2:5]", "v1", "s[4:7]", "0")
    assert found.modifiers == {"offen": "", "offset": "16"}
    found = Instruction(5, "v_mov_b32_dpp v1, v2 quad_perm:[1,0,3,2] row_mask:0xf")
    assert found.modifiers == {"quad_perm": "[1,0,3,2]", "row_mask": "0xf"}
    assert Instruction(6, "s_setreg_imm32_b32 hwreg(HW_REG_MODE, 23, 1), 1").operands[1] == "1"


@pytest.mark.parametrize(
    ("text", "file", "index", "count"),
    [
        ("v7", "v", 7, 1),
        ("v[4:7]", "v", 4, 4),
        ("a[0:15]", "v", 256, 16),
        ("s[16:17]", "s", 16, 2),
        ("vcc", "s", 106, 2),
        ("exec", "s", 126, 2),
        ("-1.0", "constant", 0, 0),
        ("0x7fff", "constant", 0, 0),
        ("off", "name", 0, 1),
    ],
)
def test_operands(text: str, file: str, index: int, count: int) -> None:
    found = operand(text)
    assert (found.file, found.index, found.count) == (file, index, count)


def test_a_program_is_read() -> None:
    found = parse(program("s_branch .LBB0_1", ".LBB0_1:", "s_nop 0 ; a remark"))
    assert (found.name, found.target, found.labels[".LBB0_1"]) == ("body", "gfx942", 1)
    assert [i.name for i in found.instructions] == ["s_branch", "s_nop", "s_endpgm"]
    assert [(a.offset, a.size) for a in found.arguments] == [(0, 8), (8, 4)]
    with pytest.raises(UnknownInstruction, match="expected the text of one AMD kernel"):
        parse("\t.target sm_90")


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("v_frobnicate_b32 v0, v1", "unknown instruction `v_frobnicate_b32 v0, v1` (line 4)"),
        ("v_add_f32_e64 v0, v1, v2 sparkle", "unknown modifier sparkle of `v_add_f32_e64"),
        ("v_mov_b32_e32 v0, src_shared_base", "'src_shared_base' where u32 is expected, in `v_mov"),
        ("v_add_f32_e64 v0, v1, v2 op_sel:[1,0,0]", "unknown modifier op_sel"),
        ("v_add_u32_e64 v0, -v1, v2", "unknown operand '-v1' where u32 is expected"),
        ("v_mov_b32_dpp v0, v1 row_share:1", "unknown DPP control"),
        ("global_load_dword v0, v[2:3], off slc", "unknown modifier slc"),
        ("v_mfma_f32_16x16x16_bf16 a[0:15], v[0:1], v[2:3], 0", "unknown operands"),
        ("v_mfma_f32_16x16x32_bf16 a[0:3], v[0:3], v[4:7], 0", "of gfx942"),
        ("s_branch .LBB0_9", "unknown label"),
        ("v_fma_f32 v0, v1, v2", "unknown operands"),
    ],
)
def test_what_is_not_known_is_never_ignored(line: str, told: str) -> None:
    with pytest.raises(UnknownInstruction, match=re.escape(told)):
        load(program(line))


def test_the_target_as_llvm_writes_it() -> None:
    """Newer versions of it put another in front."""
    text = program("s_nop 0")
    newer = text.replace("amdgcn-amd-amdhsa--", "amdgpu9.42-amd-amdhsa-unknown-")
    assert parse(newer).target == "gfx942"
    with_features = text.replace("--gfx942", "--gfx950:sramecc+:xnack-")
    assert parse(with_features).target == "gfx950"


def test_work_items_know_their_place_in_y_and_z() -> None:
    """They are 0 and share a register with x."""
    DATA[:] = 1
    start(program("v_mov_b32_e32 v1, v0", *STORE_V1, system_vgpr_workitem_id=2), waves=2)
    assert DATA.tolist() == list(range(128))


def test_another_machine_is_refused() -> None:
    with pytest.raises(UnknownInstruction, match=".amdhsa_float_denorm_mode_32 0: only 3"):
        start(program(float_denorm_mode_32=0))


def test_workgroups_know_their_place() -> None:
    DATA[:] = 0
    line = (
        *("s_lshl_b32 s6, s3, 8", "s_or_b32 s6, s6, s2", "v_mov_b32_e32 v1, s6"),
        *("s_cmp_lg_u32 s6, 0x201", "s_cbranch_scc1 .LBB0_1", *STORE_V1, ".LBB0_1:"),
    )
    start(program(*line), grid=(2, 3, 1))
    assert DATA.tolist() == [0x201] * 64 + [0] * 64


def test_a_loop_counts_its_instructions() -> None:
    lines = ("s_movk_i32 s6, 3", ".LBB0_1:", "s_sub_i32 s6, s6, 1", "s_cmp_lg_u32 s6, 0")
    done = start(program(*lines, "s_cbranch_scc1 .LBB0_1"))
    assert done.instructions == {"scalar": 1 + 2 * 3, "branches": 3 + 1}


def test_faults_name_the_instruction() -> None:
    line = "v_mov_b32_e32 v4, 0x1000", "ds_read_b32 v1, v4"
    told = r"byte 4099 of an LDS of 64 bytes, at `ds_read_b32 v1, v4` \(line 5\) of body"
    with pytest.raises(Fault, match=told):
        start(program(*line), lds=64)
    line = (*STORE_V1[:2], "global_store_dword v2, v1, s[4:5] offset:512")
    told = r"4 bytes past the end of data \(512 bytes\), at `global_store"
    with pytest.raises(Fault, match=told):
        start(program(*line))


def test_waves_that_disagree_about_a_barrier() -> None:
    lines = (
        *("v_readfirstlane_b32 s6, v0", "s_cmp_lg_u32 s6, 0", "s_cbranch_scc1 .LBB0_1"),
        *("s_barrier", "s_endpgm", ".LBB0_1:"),
    )
    with pytest.raises(Fault, match="waves wait at different barriers: .*s_barrier.*, the end for"):
        start(program(*lines), waves=2)
    with pytest.raises(Fault, match=r"line 10\) for 2 waves, .*line 7\) for 1 waves"):
        start(program(*lines, "s_barrier"), waves=3)


def test_the_census_says_what_is_unknown() -> None:
    text = program("v_mov_b32_e32 v0, v1", "v_mov_b32_e64 v0, v1", "v_frobnicate_b32 v0")
    found = census.count([text], dialect_of("rocm_gfx942"))
    assert found["v_mov_b32"] == census.Seen(2, known=True)
    assert found["v_frobnicate_b32"] == census.Seen(1, known=False)
