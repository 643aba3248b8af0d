# SPDX-License-Identifier: Apache-2.0
"""Errors that a result need not show: each is planted, and found with its instruction."""

from __future__ import annotations

import numpy as np
import pytest
from tests.emulation.programs import DATA, STORE_V1, program, start

from archkey.conformance.emulation.faults import Fault
from archkey.conformance.emulation.shadow import Lds

EXCHANGE = (
    "v_lshlrev_b32_e32 v3, 2, v0",
    "ds_write_b32 v3, v0",
    "s_waitcnt lgkmcnt(0)",
    "s_barrier",
    "v_xor_b32_e32 v4, 0x100, v3",
    "ds_read_b32 v1, v4",
)
"""Each wave reads what the other one has written."""


def test_waves_meet_at_a_barrier() -> None:
    start(program(*EXCHANGE, *STORE_V1), waves=2, lds=512)
    assert DATA.tolist() == [*range(64, 128), *range(64)]


def test_without_the_barrier_one_reads_too_early() -> None:
    """Whoever runs first reads what is not there yet."""
    without = [line for line in EXCHANGE if line != "s_barrier"]
    told = r"wave \d (reads|changes) 256 bytes of LDS, near \d+, that wave \d (writes|uses) between"
    with pytest.raises(Fault, match=told):
        start(program(*without, *STORE_V1), waves=2, lds=512)


def test_lds_that_nobody_wrote() -> None:
    """What counts is that something depends on it: pipelines of Triton may read some in vain."""
    lines = ("v_mov_b32_e32 v4, 0", "ds_read_b32 v1, v4 offset:8")
    told = (
        r"256 bytes that `global_store.* depend on LDS that nobody wrote, read by `ds_read_b32 v1"
    )
    for grid in (1, 17):
        with pytest.raises(Fault, match=told):
            start(program(*lines, *STORE_V1), grid=(grid, 1, 1), lds=64)
    start(program(*lines, "v_and_b32_e32 v1, 0, v1", *STORE_V1), lds=64)
    assert not DATA[:64].any()
    # Only the last workgroup reads it, and is none of those that run twice in any case.
    some = ("v_mov_b32_e32 v1, 0", "s_cmp_lt_i32 s2, 18", "s_cbranch_scc1 .LBB0_1", *lines)
    with pytest.raises(Fault, match="LDS that nobody wrote"):
        start(program(*some, ".LBB0_1:", *STORE_V1), grid=(19, 1, 1), lds=64)


def test_a_race_is_one_in_any_order() -> None:
    """The second exchange writes where the first may still be read."""
    again = ("ds_write_b32 v3, v1", "s_barrier", "ds_read_b32 v1, v4")
    told = r"wave \d (reads|changes) 256 bytes of LDS, near \d+, that wave \d (writes|uses) between"
    with pytest.raises(Fault, match=told):
        start(program(*EXCHANGE, *again, *STORE_V1), waves=2, lds=512)
    start(program(*EXCHANGE, "s_barrier", *again, *STORE_V1), waves=2, lds=512)
    assert DATA.tolist() == list(range(128))


BYTE = np.array([8])


def value(number: int) -> np.ndarray:
    return np.array([[number]], np.uint32)


def test_what_waves_may_do_to_one_byte() -> None:
    lds = Lds(16, shared=True)
    lds.write(0, BYTE, value(5))
    lds.write(1, BYTE, value(5))  # the same: either may be first
    assert lds.read(1, BYTE, 4, 1).item() == 5
    with pytest.raises(Fault, match="wave 2 reads 4 bytes of LDS, near 8, that wave 1 writes"):
        lds.read(2, BYTE, 4, 1)
    with pytest.raises(Fault, match="wave 1 changes 1 bytes of LDS, near 8, that wave 0 uses"):
        lds.write(1, BYTE, value(6))
    lds.barrier()
    for wave in range(4):
        assert lds.read(wave, BYTE, 4, 1).item() == 5
    with pytest.raises(Fault, match="wave 3 changes 1 bytes"):
        lds.write(3, BYTE, value(7))
    lds.barrier()
    lds.write(3, BYTE, value(7))
    lds.write(3, BYTE, value(8))
    assert lds.read(3, BYTE, 4, 1).item() == 8


def test_atomics_are_in_the_way_of_plain_accesses_alone() -> None:
    lds, at = Lds(16, shared=True), np.array([8])
    lds.write(0, at, value(5))
    with pytest.raises(Fault, match="wave 1 changes 4 bytes of LDS, near 8, that wave 0 uses"):
        lds.claim(1, at, 1)
    lds.barrier()
    for wave in range(3):
        lds.claim(wave, at, 1)
    for access in (lambda: lds.read(0, at, 4, 1), lambda: lds.write(0, at, value(6))):
        with pytest.raises(Fault, match="wave 0 changes 4 bytes of LDS, near 8, that wave . uses"):
            access()
    lds.barrier()
    assert lds.read(0, at, 4, 1).item() == 5
    assert not lds.unwritten
    lds.claim(0, at + 4, 1)
    assert lds.unwritten
    with pytest.raises(Fault, match="not aligned"):
        lds.claim(0, at + 2, 1)


def test_neighbours_of_a_byte_are_others() -> None:
    """Halves of a word that two waves write; and a word of which a byte is missing."""
    lds = Lds(16, shared=True)
    lds.write(0, BYTE, np.array([[1]], np.uint16))
    lds.write(1, BYTE + 2, np.array([[2]], np.uint8))
    lds.barrier()
    lds.read(0, BYTE, 2, 1)
    assert not lds.unwritten
    assert lds.read(0, BYTE, 4, 1).item() == 0xFF020001
    assert lds.unwritten
    lds.barrier()
    lds.write(1, BYTE + 3, np.array([[0]], np.uint8))
    lds.barrier()
    assert lds.read(0, BYTE, 4, 1).item() == 0x00020001
    assert lds.read(0, BYTE + 1, 2, 1).item() == 0x0200  # not aligned


def test_registers_that_nobody_wrote() -> None:
    """They may be read, if nothing that is stored depends on it."""
    told = r"256 bytes that `global_store_dword v2, v1.*depend on registers or scratch"
    with pytest.raises(Fault, match=told):
        start(program("v_add_f32_e32 v1, v9, v9", *STORE_V1))
    with pytest.raises(Fault, match=told):
        start(program("s_add_i32 s6, s7, 1", "v_mov_b32_e32 v1, s6", *STORE_V1))
    start(program("v_and_b32_e32 v1, 0, v9", *STORE_V1))
    assert not DATA[:64].any()


def test_a_maximum_does_not_hide_them() -> None:
    """NaN alone would: the maximum with it is the other number."""
    lines = ("v_max_f32_e32 v1, 0.5, v9", *STORE_V1)
    with pytest.raises(Fault, match="depend on registers"):
        start(program(*lines))


def test_scratch_that_nobody_wrote() -> None:
    lines = ("scratch_load_dword v1, off, off offset:4", *STORE_V1)
    with pytest.raises(Fault, match="depend on registers or scratch"):
        start(program(*lines, private_segment_fixed_size=16))


def test_branches_and_addresses_on_what_nobody_wrote() -> None:
    lines = ("v_mov_b32_e32 v1, 1", "s_cmp_lt_i32 s9, 0x50000000", "s_cbranch_scc1 .LBB0_1")
    with pytest.raises(Fault, match="256 bytes that `global_store_dword.* depend on registers"):
        start(program(*lines, *STORE_V1, ".LBB0_1:"))
    DATA[:] = 0
    lines = (
        *("v_mov_b32_e32 v1, 1", "v_lshrrev_b32_e32 v2, 30, v9", "v_lshlrev_b32_e32 v2, 2, v2"),
        *("s_load_dwordx2 s[4:5], s[0:1], 0x0", "global_store_dword v2, v1, s[4:5]"),
    )
    with pytest.raises(Fault, match="that `global_store_dword.* depend on registers"):
        start(program(*lines))
    lines = (
        *(
            "v_lshrrev_b32_e32 v9, 24, v9",
            "v_sub_u32_e32 v9, 0x7f, v9",
            "v_lshlrev_b32_e32 v9, 2, v9",
        ),
        "ds_write_b32 v9, v0",
    )
    with pytest.raises(Fault, match="in a second run, with other bits"):
        start(program(*lines), lds=64)


def test_an_order_of_waves_that_shows() -> None:
    """All waves write their number into one place of global memory."""
    lines = (
        *("v_lshrrev_b32_e32 v1, 6, v0", "v_mov_b32_e32 v2, 0"),
        *("s_load_dwordx2 s[4:5], s[0:1], 0x0", "global_store_dword v2, v1, s[4:5]"),
    )
    with pytest.raises(Fault, match="that `global_store.* depend on the order of waves"):
        start(program(*lines), waves=4)


def test_the_first_run_is_what_counts() -> None:
    """The second one reads what was there before, and is not counted."""
    DATA[:] = 5
    lines = (
        *("s_load_dwordx2 s[4:5], s[0:1], 0x0", "v_lshlrev_b32_e32 v2, 2, v0"),
        *("global_load_dword v1, v2, s[4:5]", "s_waitcnt vmcnt(0)", "v_add_u32_e32 v1, 1, v1"),
    )
    done = start(program(*lines, *STORE_V1))
    assert DATA.tolist() == [6] * 64 + [5] * 64
    assert (done.loaded, done.stored) == (256, 256)
