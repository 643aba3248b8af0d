# SPDX-License-Identifier: Apache-2.0
"""Kernels in Gluon that say themselves what is copied when, and wait for it."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

os.environ["TRITON_INTERPRET"] = "0"  # before triton is imported

import torch
from tests.emulation.ptx_programs import Found, Machine
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.blackwell import (
    TensorMemoryLayout,
    allocate_tensor_memory,
    tcgen05_commit,
    tcgen05_copy,
    tcgen05_mma,
)
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

try:
    from triton.experimental.gluon.language.nvidia.blackwell import get_tmem_reg_layout
except ImportError:  # from 3.9 on tensor memory knows it
    get_tmem_reg_layout = None

_KNOWS = gl.constexpr(get_tmem_reg_layout is None)
# And these are called otherwise.
_load = getattr(tma, "async_load", None) or tma.async_copy_global_to_shared
_store = getattr(tma, "async_store", None) or tma.async_copy_shared_to_global


@gluon.jit
def copy(source, sink, steps, M: gl.constexpr, N: gl.constexpr):
    """Two boxes on their way out while the next comes in."""
    tiles = gl.allocate_shared_memory(source.dtype, [3, M, N], source.layout)
    bars = gl.allocate_shared_memory(gl.int64, [3, 1], mbarrier.MBarrierLayout())
    for n in gl.static_range(3):
        mbarrier.init(bars.index(n), count=1)
    row = gl.program_id(0) * M
    for step in range(steps):
        tile, bar = tiles.index(step % 3), bars.index(step % 3)
        tma.store_wait(pendings=2)
        mbarrier.expect(bar, source.block_type.nbytes)
        _load(source, [row, step * N], bar, tile)
        mbarrier.wait(bar, phase=(step // 3) & 1)
        _store(sink, [row, step * N], tile)
    tma.store_wait(pendings=0)


@gluon.jit
def _stored(total, sink, i, j, M: gl.constexpr, N: gl.constexpr):
    tile = gl.allocate_shared_memory(sink.dtype, [M, N], sink.layout)
    tile.store(total.to(sink.dtype))
    fence_async_shared()
    _store(sink, [i, j], tile)
    tma.store_wait(pendings=0)


@gluon.jit
def on_hopper(a, b, c, K, M: gl.constexpr, N: gl.constexpr, STEP: gl.constexpr):
    lefts = gl.allocate_shared_memory(a.dtype, [2, M, STEP], a.layout)
    rights = gl.allocate_shared_memory(b.dtype, [2, STEP, N], b.layout)
    bars = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    for n in gl.static_range(2):
        mbarrier.init(bars.index(n), count=1)
    i, j = gl.program_id(0) * M, gl.program_id(1) * N
    layout: gl.constexpr = gl.NVMMADistributedLayout(
        version=[3, 0], warps_per_cta=[gl.num_warps(), 1], instr_shape=[16, N, 16]
    )
    total = gl.zeros([M, N], gl.float32, layout)
    for at in range(0, K, STEP):
        stage, phase = at // STEP % 2, at // STEP // 2 & 1
        left, right, bar = lefts.index(stage), rights.index(stage), bars.index(stage)
        mbarrier.expect(bar, a.block_type.nbytes + b.block_type.nbytes)
        _load(a, [i, at], bar, left)
        _load(b, [at, j], bar, right)
        mbarrier.wait(bar, phase)
        total = warpgroup_mma(left, right, total, is_async=True)
        total = warpgroup_mma_wait(num_outstanding=0, deps=(total,))
    _stored(total, c, i, j, M, N)


@gluon.jit
def on_blackwell(a, b, c, K, M: gl.constexpr, N: gl.constexpr, STEP: gl.constexpr):
    """Products are not waited for until their operands' place is needed."""
    lefts = gl.allocate_shared_memory(a.dtype, [2, M, STEP], a.layout)
    rights = gl.allocate_shared_memory(b.dtype, [2, STEP, N], b.layout)
    come = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    used = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    for n in gl.static_range(2):
        mbarrier.init(come.index(n), count=1)
        mbarrier.init(used.index(n), count=1)
    layout: gl.constexpr = TensorMemoryLayout([M, N], col_stride=1)
    total = allocate_tensor_memory(gl.float32, [M, N], layout)
    i, j = gl.program_id(0) * M, gl.program_id(1) * N
    for at in range(0, K, STEP):
        stage, phase = at // STEP % 2, at // STEP // 2 & 1
        left, right = lefts.index(stage), rights.index(stage)
        if at >= 2 * STEP:
            mbarrier.wait(used.index(stage), phase ^ 1)
        mbarrier.expect(come.index(stage), a.block_type.nbytes + b.block_type.nbytes)
        _load(a, [i, at], come.index(stage), left)
        _load(b, [at, j], come.index(stage), right)
        mbarrier.wait(come.index(stage), phase)
        tcgen05_mma(left, right, total, use_acc=at > 0)
        tcgen05_commit(used.index(stage))
    last = gl.cdiv(K, STEP) - 1
    mbarrier.wait(used.index(last % 2), last // 2 & 1)
    if _KNOWS:
        registers: gl.constexpr = total.get_reg_layout()
    else:
        registers: gl.constexpr = get_tmem_reg_layout(gl.float32, (M, N), layout, gl.num_warps())
    _stored(total.load(registers), c, i, j, M, N)


@gluon.jit
def through_tensor_memory(x, y, SHAPE: gl.constexpr, N: gl.constexpr):
    """In by rows of a lane, out in another shape."""
    layout: gl.constexpr = TensorMemoryLayout([128, N], col_stride=1)
    memory = allocate_tensor_memory(gl.float32, [128, N], layout)
    if _KNOWS:
        lanes: gl.constexpr = memory.get_reg_layout()
    else:
        lanes: gl.constexpr = get_tmem_reg_layout(gl.float32, (128, N), layout, gl.num_warps())
    i = gl.arange(0, 128, gl.SliceLayout(1, lanes))
    j = gl.arange(0, N, gl.SliceLayout(0, lanes))
    memory.store(gl.load(x + i[:, None] * N + j[None, :]))
    if _KNOWS:
        other: gl.constexpr = memory.get_reg_layout(instr_variant=SHAPE)
    else:
        other: gl.constexpr = get_tmem_reg_layout(
            gl.float32, (128, N), layout, gl.num_warps(), instr_variant=SHAPE
        )
    i = gl.arange(0, 128, gl.SliceLayout(1, other))
    j = gl.arange(0, N, gl.SliceLayout(0, other))
    gl.store(y + i[:, None] * N + j[None, :], memory.load(other))


@gluon.jit
def copy_into_tensor_memory(x, y, N: gl.constexpr):
    tile = gl.allocate_shared_memory(x.dtype, [128, N], x.layout)
    bars = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    for n in gl.static_range(2):
        mbarrier.init(bars.index(n), count=1)
    mbarrier.expect(bars.index(0), x.block_type.nbytes)
    _load(x, [0, 0], bars.index(0), tile)
    mbarrier.wait(bars.index(0), 0)
    layout: gl.constexpr = TensorMemoryLayout([128, N], col_stride=1)
    memory = allocate_tensor_memory(gl.float32, [128, N], layout)
    tcgen05_copy(tile, memory)
    tcgen05_commit(bars.index(1))
    mbarrier.wait(bars.index(1), 0)
    if _KNOWS:
        lanes: gl.constexpr = memory.get_reg_layout()
    else:
        lanes: gl.constexpr = get_tmem_reg_layout(gl.float32, (128, N), layout, gl.num_warps())
    i = gl.arange(0, 128, gl.SliceLayout(1, lanes))
    j = gl.arange(0, N, gl.SliceLayout(0, lanes))
    gl.store(y + i[:, None] * N + j[None, :], memory.load(lanes))


def described(tensor: torch.Tensor, box: list[int]) -> Any:
    kinds = {torch.bfloat16: gl.bfloat16, torch.float16: gl.float16, torch.float32: gl.float32}
    layout = gl.NVMMASharedLayout.get_default_for(box, kinds[tensor.dtype])
    return TensorDescriptor.from_tensor(tensor, box, layout)


def copied(on: Machine) -> Found:
    x = torch.randn(100, 296).half()
    y = torch.zeros_like(x)
    on.launch(copy, 4, described(x, [32, 64]), described(y, [32, 64]), 5, M=32, N=64)
    return Found(y, x, 0.0)


def multiplied(on: Machine) -> Found:
    a, b = torch.randn(200, 296).bfloat16(), torch.randn(296, 104).bfloat16()
    c = torch.full((200, 104), float("nan"), dtype=torch.bfloat16)
    body, m = (on_blackwell, 128) if on.target == "cuda_sm100" else (on_hopper, 64)
    boxes = ((a, [m, 64]), (b, [64, 64]), (c, [m, 64]))
    given = [described(tensor, box) for tensor, box in boxes]
    on.launch(body, (-(-200 // m), 2, 1), *given, 296, M=m, N=64, STEP=64)
    return Found(c, a.double() @ b.double(), 4e-3)


SHAPES = ("16x64b", "16x128b", "16x256b")
"""Of tcgen05.ld; the others are what Triton takes by itself."""


def through(shape: str) -> Callable[[Machine], Found]:
    def run(on: Machine) -> Found:
        x, y = torch.randn(128, 64), torch.zeros(128, 64)
        made = on.launch(through_tensor_memory, 1, x, y, SHAPE=shape, N=64)
        assert f"tcgen05.ld.sync.aligned.{shape}" in made.kernel.asm["ptx"]
        return Found(y, x, 0.0)

    return run


def copied_into_tensor_memory(on: Machine) -> Found:
    x, y = torch.randn(128, 32), torch.zeros(128, 32)
    made = on.launch(copy_into_tensor_memory, 1, described(x, [128, 32]), y, N=32)
    assert "tcgen05.cp.cta_group::1.128x256b" in made.kernel.asm["ptx"]
    return Found(y, x, 0.0)
