# SPDX-License-Identifier: Apache-2.0
"""Gluon for AMD, on the emulator: python -m tests.emulation.gluon_kernels TARGET"""

from __future__ import annotations

import json
import sys
from typing import Any

import torch
from tests.emulation.small_kernels import Machine, error  # before triton is imported
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.amd import AMDMFMALayout, cdna3, cdna4

SIZE = 64


@gluon.jit
def product(a, b, c, V: gl.constexpr, K: gl.constexpr):
    """c = a b of 64 x 64 with buffer loads, LDS in between, and 32 x 32 matrix instructions."""
    rows: gl.constexpr = gl.BlockedLayout([1, 8], [8, 8], [4, 1], [1, 0])
    mfma: gl.constexpr = AMDMFMALayout(V, [32, 32, K], False, [2, 2])
    held: gl.constexpr = gl.SwizzledSharedLayout(8, 1, 8, [1, 0])
    at = gl.arange(0, 64, gl.SliceLayout(1, rows))[:, None] * 64
    at += gl.arange(0, 64, gl.SliceLayout(0, rows))[None, :]
    left = gl.allocate_shared_memory(gl.bfloat16, [64, 64], held, cdna3.buffer_load(a, at))
    right = gl.allocate_shared_memory(gl.bfloat16, [64, 64], held, cdna3.buffer_load(b, at))
    one = left.load(gl.DotOperandLayout(0, mfma, 8))
    two = right.load(gl.DotOperandLayout(1, mfma, 8))
    total = cdna3.mfma(one, two, gl.zeros([64, 64], gl.float32, mfma))
    out = gl.arange(0, 64, gl.SliceLayout(1, mfma))[:, None] * 64
    out += gl.arange(0, 64, gl.SliceLayout(0, mfma))[None, :]
    cdna3.buffer_store(total, c, out)


@gluon.jit
def turned(x, out):
    """64 x 64 float32 straight into LDS, asynchronously, and out of it the other way round."""
    rows: gl.constexpr = gl.BlockedLayout([1, 4], [4, 16], [4, 1], [1, 0])
    held: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [1, 0])
    at = gl.arange(0, 64, gl.SliceLayout(1, rows))[:, None] * 64
    at += gl.arange(0, 64, gl.SliceLayout(0, rows))[None, :]
    tile = gl.allocate_shared_memory(gl.float32, [64, 64], held)
    cdna4.async_copy.buffer_load_to_shared(tile, x, at)
    cdna4.async_copy.commit_group()
    cdna4.async_copy.wait_group(0)
    cdna3.buffer_store(tile.permute([1, 0]).load(rows), out, at)


def check_product(on: Machine) -> tuple[float, float, Any]:
    a, b = torch.randn(2, SIZE, SIZE).bfloat16()
    c = torch.empty(SIZE, SIZE)
    version, k = {"rocm_gfx942": (3, 8), "rocm_gfx950": (4, 16)}[on.target]
    compiled = on.launch(product, 1, a, b, c, V=version, K=k)
    return error(c, a.double() @ b.double()), 1e-6, compiled


def check_turned(on: Machine) -> tuple[float, float, Any]:
    x, out = torch.randn(SIZE, SIZE), torch.empty(SIZE, SIZE)
    compiled = on.launch(turned, 1, x, out)
    return error(out, x.T), 0.0, compiled


def main(target: str) -> None:
    torch.set_num_threads(1)
    on = Machine(target)
    checks = {"product": (check_product, "v_mfma_f32_32x32x")}
    if target == "rocm_gfx950":
        checks["turned"] = (check_turned, " lds")
    for name, (check, instruction) in checks.items():
        torch.manual_seed(0)
        found, allowed, compiled = check(on)
        assert instruction in compiled.kernel.asm["amdgcn"], name
        sys.stdout.write(json.dumps({"name": name, "error": found, "allowed": allowed}) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
