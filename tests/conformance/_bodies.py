# SPDX-License-Identifier: Apache-2.0
"""Triton bodies whose machine code is known: one that spills and one that does not.

Imported in a process that compiles; see tests/conftest.py.
"""

from __future__ import annotations

import triton
import triton.language as tl

from archkey.launch import Compiled, Program, compile_for
from archkey.probe import Device


@triton.jit
def hungry(x, y, N: tl.constexpr):
    """A row held in registers while its largest element is found: more than there are."""
    at = tl.arange(0, N)
    row = tl.load(x + at)
    tl.store(y + at, row - tl.max(row, 0))


@triton.jit
def waiting(x, y, N: tl.constexpr):
    """The same after the kernel before, and with the next one started."""
    tl.extra.cuda.gdc_wait()
    tl.extra.cuda.gdc_launch_dependents()
    at = tl.arange(0, N)
    tl.store(y + at, tl.load(x + at) + 1)


RATION = {"cuda": {"maxnreg": 64}, "hip": {"waves_per_eu": 4}}
"""Few registers a thread, since a body that fills all of them takes the compilers a minute: 64, and
512 shared by four waves."""


def compiled(device: Device, spilling: bool, pdl: bool = False) -> Compiled:
    """256 elements a thread, or four."""
    assert device.target.triton_backend is not None
    platform, _, lanes = device.target.triton_backend
    options = {"num_warps": 1, **RATION[platform], **({"launch_pdl": True} if pdl else {})}
    constants = {"N": lanes * (256 if spilling else 4)}
    body = waiting if pdl else hungry
    program = Program(body, {"x": "*fp32", "y": "*fp32"}, constants, frozenset("xy"), options)
    return compile_for(program, device)
