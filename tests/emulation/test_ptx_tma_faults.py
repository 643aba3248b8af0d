# SPDX-License-Identifier: Apache-2.0
"""Bulk copies that err, planted once each: the fault says what it was, and where."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from tests.emulation.ptx_machine import launch

from archkey.conformance.emulation.counters import counting
from archkey.conformance.emulation.faults import Fault, UnknownInstruction
from archkey.conformance.emulation.ptx.machine import Order
from archkey.conformance.emulation.ptx.parameters import Described
from archkey.conformance.emulation.ptx.tensor_maps import described

ORDERS = (Order(), Order(eager=True), Order(warps=True, seed=3))

S32, TF32 = 3, 11

# The mbarrier lies at byte 8192, a box of 8 rows of 16 numbers at 0.
_INIT = (
    *("setp.eq.s32 %p1, %r0, 0;", "add.s32 %r45, %r1, 8192;", "mov.b32 %r46, 0;"),
    *("@%p1 mbarrier.init.shared::cta.b64 [%r45], 1;", "bar.sync 0;"),
)
_EXPECT = "@%p1 mbarrier.arrive.expect_tx.shared.b64 _, [%r45], 512;"
_BOX = "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes"
_LOAD = f"@%p1 {_BOX} [%r1], [%rd40, {{%r46, %r46}}], [%r45];"
_AWAIT = (
    *("{", ".reg .pred complete;", "waitLoop:"),
    "mbarrier.try_wait.parity.shared.b64 complete, [%r45], 0;",
    *("@!complete bra.uni waitLoop;", "}"),
)
_READ = ("shl.b32 %r41, %r0, 2;", "add.s32 %r41, %r41, %r1;", "ld.shared.b32 %r50, [%r41];")
_ADD = ("add.s32 %r50, %r50, 1;", "st.shared.b32 [%r41], %r50;")
_FENCE = ("fence.proxy.async.shared::cta;", "bar.sync 0;")
_STORE = "@%p1 cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%rd41, {%r46, %r46}], [%r1];"
_COMMIT = "cp.async.bulk.commit_group;"
_DONE = "cp.async.bulk.wait_group.read 0;"
ROUND = (*_INIT, _EXPECT, _LOAD, *_AWAIT, *_READ, *_ADD, *_FENCE, _STORE, _COMMIT, _DONE)


def _map(tensor: torch.Tensor, **other: object) -> Described:
    """Of a tensor of rows of int32, in boxes of 8 rows of 16; `other` instead of what is right."""
    right = {
        **{"address": tensor.data_ptr(), "elemtype": S32, "swizzle": 0, "nan": False},
        **{"shape": tensor.shape, "strides": [4 * n for n in tensor.stride()], "box": [8, 16]},
    }
    return Described(described(**{**right, **other}), tensor)  # type: ignore[arg-type]


def _without(lines: Sequence[str], *left_out: str) -> list[str]:
    return [line for line in lines if line not in left_out]


@pytest.mark.parametrize("order", ORDERS)
def test_a_box_there_and_back(order: Order) -> None:
    """Of 6 rows of 12 numbers: what lies outside is neither read nor written."""
    x = torch.arange(96, dtype=torch.int32).view(6, 16)
    y = torch.full((6, 16), -1, dtype=torch.int32)
    with counting() as counters:
        launch(ROUND, shared=8200, order=order, maps=[_map(x[:, :12]), _map(y[:, :12])])
    assert torch.equal(y[:, :12], x[:, :12] + 1)
    assert (y[:, 12:] == -1).all()
    assert (counters.copied, counters.stored) == (6 * 12 * 4, 6 * 12 * 4)


_SWAP = "st.shared.b32 [%r41], %r0;"
PLANTED = {
    "more bytes are expected than come": (
        [line.replace("512", "640") for line in ROUND],
        "deadlock: 128 threads wait for 0 of 1 arrivals and 128 bytes in phase 0",
    ),
    "more bytes come than are expected": (
        [line.replace("512", "384") for line in ROUND],
        "deadlock: 128 threads wait for 0 of 1 arrivals and -128 bytes in phase 0",
    ),
    "nobody expects": (
        _without(ROUND, _EXPECT),
        "deadlock: 128 threads wait for 1 of 1 arrivals and -512 bytes",
    ),
    "a box at an odd place in shared memory": (
        [line.replace("[%r1], [%rd40", "[%r1+64], [%rd40") for line in ROUND],
        "a box at byte 64 of shared memory: no multiple of 128, at line .*: @%p1 cp.async.bulk",
    ),
    "a box past the end of shared memory": (
        [line.replace("[%r1], [%rd40", "[%r1+8192], [%rd40") for line in ROUND],
        "bytes at 8688 of shared memory of 8200 bytes: outside, at line .*: @%p1 cp.async.bulk",
    ),
    "one coordinate too many": (
        [
            line.replace("2d", "3d").replace("{%r46", "{%r46, %r46") if "rd40" in line else line
            for line in ROUND
        ],
        "3 coordinates in a tensor of 2 dimensions, at line",
    ),
    "a tensor map that is none": (
        [line.replace("[%rd40", "[%rd0") for line in ROUND],
        "there is no tensor map where TMA is told to find one, at line",
    ),
    "no fence between proxies": (
        _without(ROUND, _FENCE[0]),
        "asynchronous proxy after ordinary stores without fence.proxy.async, at line .*: @%p1 cp",
    ),
    "a box that is read before it has come": (
        _without(ROUND, *_AWAIT),
        "shared memory is read that nobody wrote, first at byte 0, at line .*: ld.shared",
    ),
    "a source that is overwritten before the wait": (
        [*ROUND[:-1], _SWAP, _DONE],
        "the source of a bulk store was overwritten before its wait_group.read, at line .*: cp.as",
    ),
    "a store that nobody waits for": (
        _without(ROUND, _DONE),
        "a workgroup ends with a bulk store whose source nobody waited for",
    ),
    "a store that is not committed": (
        _without(ROUND, _COMMIT),
        "a workgroup ends with a bulk store whose source nobody waited for",
    ),
    "a plain copy of odd size": (
        [
            *(*_INIT, "@%p1 cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes "),
            "[%r1], [%rd0], 40, [%r45];",
        ],
        "a bulk copy of 40 bytes, of .*: no 16s, at line",
    ),
}


@pytest.mark.parametrize("name", PLANTED)
def test_planted(name: str) -> None:
    lines, told = PLANTED[name]
    x = torch.arange(128, dtype=torch.int32).view(8, 16)
    with pytest.raises(Fault, match=told):
        launch(lines, torch.zeros(128).int(), shared=8200, maps=[_map(x), _map(x.clone())])


WRONG_MAPS = {
    "an odd address": ({"address": 4}, "a tensor map of the address .*: no multiple of 16 bytes"),
    "an odd stride": ({"strides": [60, 4]}, r"strides of \(60,\) bytes: multiples of 16"),
    "odd rows of a box": ({"box": [8, 14]}, "boxes of a tensor map have rows of 56 bytes"),
    "a box that is too long": ({"box": [512, 16]}, r"boxes of \(16, 512\), each step"),
    "an empty tensor": ({"shape": [0, 16]}, r"a tensor of \(16, 0\) elements"),
    "rows longer than the swizzle": ({"swizzle": 1}, "rows of 64 bytes in a box, longer than"),
    "more rows than there are": ({"shape": [16, 16], "box": [16, 16]}, "outside of every alloc"),
}


@pytest.mark.parametrize("name", WRONG_MAPS)
def test_maps_that_err(name: str) -> None:
    other, told = WRONG_MAPS[name]
    x = torch.arange(128, dtype=torch.int32).view(8, 16)
    if "address" in other:
        other = {"address": x.data_ptr() + 4}
    with pytest.raises(Fault, match=told):
        launch(ROUND, shared=8200, maps=[_map(x, **other), _map(x.clone())])  # type: ignore[arg-type]


def test_kinds_of_elements_that_are_not_known() -> None:
    x = torch.arange(128, dtype=torch.int32).view(8, 16)
    with pytest.raises(UnknownInstruction, match="a tensor map of elements tf32, interleave 0"):
        launch(ROUND, shared=8200, maps=[_map(x, elemtype=TF32), _map(x.clone())])
    with pytest.raises(UnknownInstruction, match="unknown instruction line .*im2col"):
        launch([f"{_BOX}.im2col [%r1], [%rd40, {{%r46, %r46}}], [%r45];"], maps=[_map(x)])


def _replaced(name: str, value: str) -> str:
    bits = 64 if name in ("global_address", "global_stride") else 32
    return f"@%p1 tensormap.replace.tile.{name}.shared::cta.b1024.b{bits} [%rd20], {value};"


_FIELDS = {
    **{"global_address": "%rd0", "rank": "1", "elemtype": "3", "interleave_layout": "0"},
    **{"swizzle_mode": "0", "fill_mode": "0", "global_stride": "0, %rd21"},
}
_DIMS = {"global_dim": (16, 8), "box_dim": (16, 8), "element_stride": (1, 1)}
_PUBLISH = (
    "@%p2 tensormap.cp_fenceproxy.global.shared::cta.tensormap::generic.release.gpu.sync.aligned "
    "[%rd40], [%rd20], 0x80;"
)
_ACQUIRE = "@%p2 fence.proxy.tensormap::generic.acquire.gpu [%rd40], 0x80;"
# Made at byte 1024 of shared memory, put to the first multiple of 128 in tensor b.
MADE = (
    *("setp.lt.u32 %p2, %r0, 32;", "setp.eq.s32 %p1, %r0, 0;", "mov.b32 %r47, 0;"),
    *("shl.b32 %r41, %r0, 2;", "add.s32 %r41, %r41, %r1;", "add.s32 %r42, %r1, 1024;"),
    *("cvt.u64.u32 %rd20, %r42;", "mov.b64 %rd21, 64;", "add.s64 %rd40, %rd1, 127;"),
    *("and.b64 %rd40, %rd40, -128;", "@%p2 st.shared.b32 [%r41+1024], %r47;"),
    *("bar.warp.sync -1;", *(_replaced(name, value) for name, value in _FIELDS.items())),
    *(_replaced(name, f"{n}, {v}") for name, pair in _DIMS.items() for n, v in enumerate(pair)),
    *(_PUBLISH, _ACQUIRE, "bar.sync 0;", *_INIT, _EXPECT, _LOAD, *_AWAIT, *_READ),
    *("add.s64 %rd10, %rd0, %rd9;", "add.s32 %r50, %r50, 1;", "st.global.b32 [%rd10], %r50;"),
)


@pytest.mark.parametrize("order", ORDERS)
def test_a_map_of_the_kernel(order: Order) -> None:
    x = torch.arange(128, dtype=torch.int32)
    launch(MADE, x, torch.zeros(64).int(), shared=8200, order=order)
    assert torch.equal(x, torch.arange(1, 129, dtype=torch.int32))


@pytest.mark.parametrize(
    ("left_out", "told"),
    [
        (_ACQUIRE, "a tensor map is used that was written without fence.proxy.tensormap since"),
        (_PUBLISH, "there is no tensor map where TMA is told to find one"),
        (_replaced("global_address", "%rd0"), "a tensor map without its global_address, at line"),
        (_replaced("box_dim", "1, 8"), "a tensor map without its box_dim, at line"),
    ],
)
def test_a_map_of_the_kernel_that_errs(left_out: str, told: str) -> None:
    with pytest.raises(Fault, match=told):
        launch(_without(MADE, left_out), torch.zeros(128).int(), torch.zeros(64).int(), shared=8200)
