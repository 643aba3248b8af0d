# SPDX-License-Identifier: Apache-2.0
"""Copies into tensor memory and products that err; what of tensor cores is refused by name."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.emulation import test_ptx_faults as planted
from tests.emulation.ptx_machine import launch

from archkey.conformance.emulation.faults import Fault, UnknownInstruction
from archkey.conformance.emulation.ptx.machine import Order

_ALLOC, _FREE, _FENCE = planted._ALLOC, planted._FREE, planted._FENCE
# 128 rows of 16 bytes without a swizzle, eight of them 128 bytes apart from the next eight.
_BITS = 8 << 32 | 1 << 46
_DESCRIPTOR = (
    *("bfe.u32 %r40, %r1, 4, 14;", "cvt.u64.u32 %rd20, %r40;", f"or.b64 %rd20, %rd20, {_BITS};"),
    *("cvt.u64.u32 %rd22, %r1;", "add.s64 %rd22, %rd22, 8208;", "add.s32 %r45, %r1, 8208;"),
    *("@%p1 mbarrier.init.shared::cta.b64 [%r45], 1;", "bar.sync 0;"),
)
_COPY = "@%p1 tcgen05.cp.cta_group::1.128x128b [%r60 + 0], %rd20;"
_NUMBERS = (
    *("shl.b32 %r41, %r0, 4;", "add.s32 %r41, %r41, %r1;", "add.s32 %r42, %r0, 1000;"),
    "st.shared.v4.b32 [%r41], {%r0, %r42, %r42, %r42};",
)
COPIED = (
    *(*_NUMBERS, *_FENCE, *_ALLOC, *_DESCRIPTOR, _COPY, *planted._COMMIT, *planted._DONE),
    *(planted._LD, planted._WAIT_LD, *planted._STORE, *_FREE),
)


@pytest.mark.parametrize("order", planted.ORDERS)
def test_rows_become_lanes(order: Order) -> None:
    out = torch.zeros(128, dtype=torch.int32)
    launch(COPIED, out, shared=16384, target="sm_100a", order=order)
    assert out.tolist() == list(range(128))


@pytest.mark.parametrize(
    ("shape", "rows"),
    [
        ("warpx4.32x128b", lambda n: n % 32),
        ("warpx2::02_13.64x128b", lambda n: n % 64),
        ("warpx2::01_23.64x128b", lambda n: n % 32 + n // 64 * 32),
    ],
)
def test_rows_for_several_warps(shape: str, rows: object) -> None:
    out = torch.zeros(128, dtype=torch.int32)
    lines = [line.replace("128x128b", shape) for line in COPIED]
    launch(lines, out, shared=16384, target="sm_100a")
    assert out.tolist() == [rows(n) for n in range(128)]  # type: ignore[operator]


_ONE = "st.shared.b32 [%r41], %r0"
PLANTED = {
    "no fence between proxies": (
        [line for line in COPIED if line != _FENCE[0]],
        "without fence.proxy.async, in a tcgen05.cp that was issued",
    ),
    "columns freed while they are filled": (
        [*_NUMBERS, *_FENCE, *_ALLOC, *_DESCRIPTOR, _COPY, *_FREE],
        "tcgen05.dealloc while 1 operations are not complete",
    ),
    "columns that are not allocated": (
        [line.replace("[%r60 + 0], %rd20", "[%r60 + 62], %rd20") for line in COPIED],
        "tensor memory, columns 62 to 65: allocated are 64 columns at 0x0, at line .*: @%p1 tcge",
    ),
    "lanes that do not come first": (
        [line.replace("[%r60 + 0], %rd20", "[%r60 + 2097152], %rd20") for line in COPIED],
        "tcgen05.cp to lane 32: it begins at lane 0",
    ),
    "shared memory that nobody wrote": (
        [line.replace("st.shared.v4.b32 [%r41], {%r0, %r42, %r42, %r42}", _ONE) for line in COPIED],
        "read by the asynchronous proxy that nobody wrote, in a tcgen05.cp",
    ),
    "a product of two workgroups by one": (
        [line.replace("mma.cta_group::1", "mma.cta_group::2") for line in planted.BLACKWELL],
        "a product of two workgroups, not by the even one of a pair, at line .*: @%p1 tcgen05.mma",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PLANTED)
def test_planted(name: str) -> None:
    lines, told = PLANTED[name]
    with pytest.raises(Fault, match=told):
        launch(lines, torch.zeros(128, dtype=torch.int32), shared=16384, target="sm_100a")


def test_a_product_into_float16() -> None:
    """Sixteen ones and sixteen more, in the lower halves of the cells."""
    word = 1 << 4 | 1 << 7 | 1 << 10 | 1 << 17 | 8 << 24
    half = word & ~(1 << 4)
    lines = [line.replace(str(word), str(half)) for line in planted.BLACKWELL]
    out = torch.zeros(128, dtype=torch.int32)
    launch(lines, out, shared=16384, target="sm_100a")
    assert (out.numpy().view(np.float16).reshape(128, 2) == [16.0, 0.0]).all()


_REFUSED = {
    "tcgen05.mma.sp.cta_group::1.kind::f16": "[%r60], %rd20, %rd20, [%r60], %r44, %p1",
    "tcgen05.mma.ws.cta_group::1.kind::f16": "[%r60], %rd20, %rd20, %r44, %p1",
    "tcgen05.mma.cta_group::2.kind::mxf4.block_scale.block32": "[%r60], %rd20, %rd20, %r44",
    "tcgen05.shift.cta_group::1.down": "[%r60]",
    "tcgen05.cp.cta_group::1.4x256b": "[%r60], %rd20",
    "wgmma.fence.sync.aligned": "",
}
_REFUSED_90 = {
    "wgmma.mma_async.sp.sync.aligned.m64n8k32.f32.bf16.bf16": "{%r1}, %rd20, %rd20, %r1",
    "mma.sp.sync.aligned.m16n8k32.row.col.f32.bf16.bf16.f32": "{%r1}, {%r1}, {%r1}, {%r1}",
    "tcgen05.wait::ld.sync.aligned": "",
}


@pytest.mark.parametrize("name", [*_REFUSED, *_REFUSED_90])
def test_what_is_refused(name: str) -> None:
    target = "sm_90a" if name in _REFUSED_90 else "sm_100a"
    line = f"{name} {(_REFUSED | _REFUSED_90)[name]};"
    told = f"unknown instruction line .*{name}.* of {target}"
    with pytest.raises(UnknownInstruction, match=told):
        launch([line], torch.zeros(128).int(), target=target)
