# SPDX-License-Identifier: Apache-2.0
"""What a program must not do, planted once each: the fault says what it was, and where."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from tests.emulation.ptx_machine import launch

from archkey.conformance.emulation.faults import Fault
from archkey.conformance.emulation.ptx.machine import Order

ORDERS = (Order(), Order(eager=True), Order(warps=True, seed=3))

# Descriptors of 64 x 16 bfloat16 at byte 0 and of 8 x 16 at byte 2048, rows of 32 bytes swizzled.
_WGMMA = (
    *("bfe.u32 %r40, %r1, 4, 14;", "cvt.u64.u32 %rd20, %r40;", "add.s64 %rd21, %rd20, 128;"),
    f"or.b64 %rd20, %rd20, {16 << 32 | 3 << 62};",
    f"or.b64 %rd21, %rd21, {16 << 32 | 3 << 62};",
    *(f"mov.b32 %r{n}, 0;" for n in (50, 51, 52, 53)),
    "wgmma.fence.sync.aligned;",
    "wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {%r50, %r51, %r52, %r53}, "
    "%rd20, %rd21, 1, 1, 1, 0, 0;",
    "wgmma.commit_group.sync.aligned;",
)
# 128 threads fill 4096 bytes with ones.
_FILL = (
    *("shl.b32 %r41, %r0, 4;", "add.s32 %r41, %r41, %r1;", "mov.b32 %r42, 0x3F803F80;"),
    "st.shared.v4.b32 [%r41], {%r42, %r42, %r42, %r42};",
    "st.shared.v4.b32 [%r41+2048], {%r42, %r42, %r42, %r42};",
)
_FENCE = ("fence.proxy.async.shared::cta;", "bar.sync 0;")
_WAIT = ("wgmma.wait_group.sync.aligned 0;",)
_STORE = ("add.s64 %rd10, %rd0, %rd9;", "st.global.b32 [%rd10], %r50;")

_INIT = ("setp.eq.s32 %p1, %r0, 0;", "@%p1 mbarrier.init.shared::cta.b64 [%r1], 1;", "bar.sync 0;")
_AWAIT = (
    *("{", ".reg .pred complete;", "waitLoop:"),
    "mbarrier.try_wait.parity.shared.b64 complete, [%r1], 0;",
    *("@!complete bra.uni waitLoop;", "}"),
)
_ALLOC = (
    *("setp.lt.u32 %p2, %r0, 32;", "setp.eq.s32 %p1, %r0, 0;"),
    "@%p2 tcgen05.alloc.cta_group::1.sync.aligned.shared::cta.b32 [%r1+8192], 64;",
    *("bar.sync 0;", "ld.shared.b32 %r60, [%r1+8192];"),
    # Each warp has the 32 lanes of its place.
    *("and.b32 %r61, %r0, 96;", "shl.b32 %r61, %r61, 16;", "add.s32 %r62, %r60, %r61;"),
)
_FREE = (
    "bar.sync 0;",
    "@%p2 tcgen05.dealloc.cta_group::1.sync.aligned.b32 %r60, 64;",
)
_ST = "tcgen05.st.sync.aligned.32x32b.x1.b32 [%r62 + 0], {%r0};"
_LD = "tcgen05.ld.sync.aligned.32x32b.x1.b32 {%r50}, [%r62 + 0];"
_WAIT_ST, _WAIT_LD = "tcgen05.wait::st.sync.aligned;", "tcgen05.wait::ld.sync.aligned;"
# 128 x 8 x 16 of bfloat16: A at byte 0, B at byte 4096.
_BITS = 16 << 32 | 1 << 46 | 6 << 61
_MMA = (
    *("bfe.u32 %r40, %r1, 4, 14;", "cvt.u64.u32 %rd20, %r40;", "add.s64 %rd21, %rd20, 256;"),
    *(f"or.b64 %rd20, %rd20, {_BITS};", f"or.b64 %rd21, %rd21, {_BITS};"),
    f"mov.b32 %r44, {1 << 4 | 1 << 7 | 1 << 10 | 1 << 17 | 8 << 24};",
    *("setp.ne.b32 %p3, 0, 0;", "cvt.u64.u32 %rd22, %r1;", "add.s64 %rd22, %rd22, 8208;"),
    "add.s32 %r45, %r1, 8208;",
    *("@%p1 mbarrier.init.shared::cta.b64 [%r45], 1;", "bar.sync 0;"),
    "@%p1 tcgen05.mma.cta_group::1.kind::f16 [ %r60 + 0 ], %rd20, %rd21, %r44, %p3;",
)
_COMMIT = ("@%p1 tcgen05.commit.cta_group::1.mbarrier::arrive::one.b64 [%rd22];",)
_DONE = tuple(line.replace("[%r1]", "[%r45]") for line in _AWAIT)
_FILL_8K = (
    *_FILL,
    *(line.replace("2048", "4096").replace("[%r41]", "[%r41+6144]") for line in _FILL[3:]),
)


def _without(lines: Sequence[str], left_out: Sequence[str]) -> list[str]:
    return [line for line in lines if line not in left_out]


HOPPER = (*_FILL, *_FENCE, *_WGMMA, *_WAIT, *_STORE)
BLACKWELL = (
    *(*_FILL_8K, *_FENCE, *_ALLOC, *_MMA, *_COMMIT, *_DONE),
    *(_LD, _WAIT_LD, *_STORE, *_FREE),
)
MOVED = (*_ALLOC, _ST, _WAIT_ST, _LD, _WAIT_LD, *_STORE, *_FREE)
# As LLVM packs what is loaded, before the wait for it.
_PACK, _UNPACK = "cvt.u64.u32 %rd30, %r50;", "cvt.u32.u64 %r50, %rd30;"
PACKED = (*_ALLOC, _ST, _WAIT_ST, _LD, _PACK, _WAIT_LD, _UNPACK, *_STORE, *_FREE)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(
    ("lines", "target", "want"),
    [
        *((HOPPER, "sm_90a", 16.0), (BLACKWELL, "sm_100a", 16.0)),
        *((MOVED, "sm_100a", None), (PACKED, "sm_100a", None)),
    ],
)
def test_sound_programs_run(
    lines: Sequence[str], target: str, want: float | None, order: Order
) -> None:
    """A product of ones; and each thread's number through tensor memory and back."""
    out = torch.zeros(128, dtype=torch.int32)
    launch(lines, out, shared=16384, target=target, order=order)
    if want is None:
        assert out.tolist() == list(range(128))
    else:
        assert (out.numpy().view(np.float32) == want).all()


PLANTED = {
    "past the end of a tensor": (
        [*_STORE[:1], "st.global.b32 [%rd10+512], %r0;"],
        r"first 0x\w+: 4 bytes past the end of the storage of a \(512 bytes\), at line \d+: st.glo",
    ),
    "before a tensor": (
        [*_STORE[:1], "ld.global.b32 %r50, [%rd10+-4];"],
        "1 lanes access 4 bytes outside .*, at line .*: ld.global.b32",
    ),
    "misaligned in global memory": (
        [*_STORE[:1], "ld.global.b32 %r50, [%rd10+2];"],
        "global memory is accessed at no multiple of 4 bytes, at line",
    ),
    "misaligned vector in shared memory": (
        ["ld.shared.v4.b32 {%r50, %r51, %r52, %r53}, [%r1+8];"],
        "shared memory is accessed at no multiple of 16 bytes, at line",
    ),
    "outside of shared memory": (
        ["st.shared.b32 [%r1+16384], %r0;"],
        "4 bytes at 16384 of shared memory of 16384 bytes: outside, at line .*: st.shared",
    ),
    "shared memory that nobody wrote": (
        ["ld.shared.b32 %r50, [%r1+64];"],
        "shared memory is read that nobody wrote, first at byte 64, at line",
    ),
    "a copy that is not waited for": (
        [
            *("mov.b32 %r46, 4;", "shl.b32 %r47, %r0, 2;", "add.s32 %r47, %r47, %r1;"),
            *_STORE[:1],
            "cp.async.ca.shared.global [ %r47 + 0 ], [ %rd10 + 0 ], 0x4, %r46;",
            *("cp.async.commit_group;", "ld.shared.b32 %r50, [%r47];"),
        ],
        "shared memory is read that nobody wrote, first at byte 0",
    ),
    "an mbarrier that is none": (
        ["mbarrier.arrive.shared::cta.b64 _, [%r1];"],
        "there is no initialised mbarrier at byte 0 of shared memory, at line",
    ),
    "an mbarrier that is overwritten": (
        [*_INIT, "st.shared.b32 [%r1], %r0;", *_AWAIT],
        "there is no initialised mbarrier at byte 0",
    ),
    "more arrivals than are expected": (
        [*_INIT, "setp.lt.s32 %p2, %r0, 3;", "mbarrier.arrive.shared::cta.b64 _, [%r1], 2;"],
        "the mbarrier at 0 gets 2 arrivals, it expects 1 more of 1",
    ),
    "an mbarrier twice": (
        [*_INIT, "@%p1 mbarrier.arrive.shared::cta.b64 _, [%r1];", *_INIT],
        "the mbarrier at 0 is initialised again without mbarrier.inval",
    ),
    "an arrival that never comes": (
        [*_INIT, *_AWAIT],
        "deadlock: 128 threads wait for 1 of 1 arrivals and 0 bytes in phase 0, at line .*try_wait",
    ),
    "bytes that never come": (
        [*_INIT, "@%p1 mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r1], 64;", *_AWAIT],
        "deadlock: 128 threads wait for 0 of 1 arrivals and 64 bytes",
    ),
    "a barrier that others do not reach": (
        ["setp.lt.u32 %p1, %r0, 32;", "@%p1 bra OUT;", "bar.sync 0;", "OUT:"],
        "deadlock: 96 of 128 threads at barrier 0, at line .*: bar.sync 0",
    ),
    "lanes of a warp that are elsewhere": (
        [
            *("setp.lt.u32 %p1, %r0, 16;", "@%p1 bra OUT;"),
            *("shfl.sync.bfly.b32 %r2, %r0, 1, 31, -1;", "OUT:"),
        ],
        "lanes of a warp are elsewhere at an instruction of the whole warp, at line .*: shfl",
    ),
    "no fence between proxies": (
        _without(HOPPER, _FENCE[:1]),
        "asynchronous proxy after ordinary stores without fence.proxy.async, at line .*: wgmma.mma",
    ),
    "an operand that is overwritten before the wait": (
        [*HOPPER[:-3], "mov.b32 %r42, 0;", *_FILL[3:], *_WAIT, *_STORE],
        "an operand of wgmma in shared memory was overwritten before its wait, at line",
    ),
    "wgmma that is not waited for": (
        _without(HOPPER, _WAIT),
        "a workgroup ends with wgmma that nobody waited for",
    ),
    "wgmma without its warp group": (
        ["setp.lt.u32 %p1, %r0, 64;", "@%p1 bra OUT;", *HOPPER[-7:-4], "OUT:"],
        "wgmma without all 128 threads of its warp group",
    ),
    "setmaxnreg by half of a warp group": (
        [
            *("setp.lt.u32 %p1, %r0, 64;", "@%p1 bra OUT;"),
            *("setmaxnreg.dec.sync.aligned.u32 40;", "OUT:"),
        ],
        r"warps 0 to 3 end after setmaxnreg to \[\[\], \[\], \[40\], \[40\]\]",
    ),
}

PLANTED_100 = {
    "no fence between proxies": (
        _without(BLACKWELL, _FENCE[:1]),
        "without fence.proxy.async, in a tcgen05.mma that was issued",
    ),
    "no commit": (_without(BLACKWELL, _COMMIT), "deadlock: 128 threads wait for 1 of 1 arrivals"),
    "no wait for tcgen05.st": (
        _without(MOVED, [_WAIT_ST]),
        "read after tcgen05.st without tcgen05.wait::st, at line .*: tcgen05.ld",
    ),
    "no wait for tcgen05.ld": (
        _without(MOVED, [_WAIT_LD]),
        "what tcgen05.ld loads is read before tcgen05.wait::ld, at line .*: st.global",
    ),
    "no wait for what is packed": (
        _without(PACKED, [_WAIT_LD]),
        "what tcgen05.ld loads is read before tcgen05.wait::ld, at line .*: st.global",
    ),
    "columns that are kept": (
        _without(MOVED, _FREE),
        "a workgroup ends and keeps tensor memory: allocated are 64 columns at 0x0",
    ),
    "columns freed twice": (
        [*MOVED, _FREE[1]],
        "tcgen05.dealloc of 64 columns at 0x0: allocated are none",
    ),
    "columns freed while a product runs": (
        [*_FILL_8K, *_FENCE, *_ALLOC, *_MMA, *_FREE],
        "tcgen05.dealloc while 1 operations are not complete",
    ),
    "columns that are not allocated": (
        [*_ALLOC, _ST.replace("+ 0", "+ 64"), *_FREE],
        "tensor memory, columns 64 to 64: allocated are 64 columns at 0x0, at line",
    ),
    "lanes of another warp": (
        [*_ALLOC, _ST.replace("%r62", "%r60"), *_FREE],
        "are not those of warps",
    ),
    "an accumulator that nobody wrote": (
        [line.replace("setp.ne.b32", "setp.eq.b32") for line in BLACKWELL],
        "tensor memory is read that nobody wrote, in a tcgen05.mma",
    ),
    "more columns than there are": (
        [*_ALLOC[:2], *([_ALLOC[2].replace("64", "512")] * 2)],
        "tcgen05.alloc of 512 columns waits for ever: allocated are 512 columns",
    ),
}


@pytest.mark.parametrize("name", PLANTED)
def test_planted_on_hopper(name: str) -> None:
    lines, told = PLANTED[name]
    with pytest.raises(Fault, match=told):
        launch(lines, torch.zeros(128, dtype=torch.int32), shared=16384)


@pytest.mark.parametrize("name", PLANTED_100)
def test_planted_on_blackwell(name: str) -> None:
    lines, told = PLANTED_100[name]
    with pytest.raises(Fault, match=told):
        launch(lines, torch.zeros(128, dtype=torch.int32), shared=16384, target="sm_100a")


_EXCHANGE = (
    *("shl.b32 %r41, %r0, 2;", "add.s32 %r41, %r41, %r1;", "st.shared.b32 [%r41], %r0;"),
    *("bar.sync 0;", "xor.b32 %r42, %r41, 128;", "ld.shared.b32 %r50, [%r42];", *_STORE),
)


def test_a_missing_barrier_shows_when_warps_go_alone() -> None:
    """Each thread reads what its neighbour warp stored."""
    out = torch.zeros(128, dtype=torch.int32)
    for order in ORDERS:
        launch(_EXCHANGE, out, shared=512, order=order)
        assert out.tolist() == [n ^ 32 for n in range(128)]
    with pytest.raises(Fault, match="shared memory is read that nobody wrote"):
        launch(_without(_EXCHANGE, ["bar.sync 0;"]), out, shared=512, order=ORDERS[2])
