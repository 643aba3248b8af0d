# SPDX-License-Identifier: Apache-2.0
"""Launches as users write them, on an emulator: python -m tests.emulation.driven_kernels TARGET"""

from __future__ import annotations

import json
import sys

import torch
from tests.emulation.gluon_kernels import product
from tests.emulation.small_kernels import add, matmul, softmax  # before triton is imported

from archkey.conformance.emulation.driver import driven


def main(target: str) -> None:
    torch.manual_seed(0)
    x, y, out = torch.randn(3, 1000)
    a, b = torch.randn(2, 64, 64).bfloat16()
    c, d = torch.empty(2, 64, 64)
    rows, weights = torch.randn(3, 1000), torch.empty(3, 1000)
    with driven(target):
        for _ in range(2):  # compiled, and found again
            add[(4,)](x, y, out, 1000, BLOCK=256)
        add[lambda meta: (1000 // meta["BLOCK"] + 1,)](out, y, out, 1000, BLOCK=128)
        softmax[(3,)](rows, weights, 1000, BLOCK=1024, num_warps=2)
        matmul[(1,)](a, b, c, 64, M=64, N=64, STEP=64, TURNED=False)
        if target.startswith("rocm"):
            version, k = (3, 8) if target.endswith("942") else (4, 16)
            product[(1,)](a, b, d, V=version, K=k)
    torch.testing.assert_close(out, x + 2 * y)
    torch.testing.assert_close(weights, rows.softmax(-1))
    torch.testing.assert_close(c, a.float() @ b.float())
    if target.startswith("rocm"):
        torch.testing.assert_close(d, c)
    sys.stdout.write(json.dumps("as torch") + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
