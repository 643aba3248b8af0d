# SPDX-License-Identifier: Apache-2.0
"""Builder of chunk_kda with a body of its own for chunks; states are walked by the shared one."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from archkey.kernels.kda_chunk import run_of
from archkey.kernels.kda_chunk_programs import chunk_program
from archkey_cuda_sm90.kernels.kda_chunk_body import kda_chunk_body

if TYPE_CHECKING:
    from archkey.kernel import Run
    from archkey.launch import Build
    from archkey.ops._kda_contract import ChunkKdaProblem

__all__ = ["build_chunk_kda"]

_WARPS = 4
"""As the body's layouts have it."""


def build_chunk_kda(problem: ChunkKdaProblem, build: Build) -> Run:
    """`run(q, k, v, .., track_state)`, in the order of the operator's inputs and outputs."""
    tuning = build.tuning(problem)
    program = chunk_program(problem, tuning)
    taken = set(kda_chunk_body.arg_names)
    constants = {name: value for name, value in program.constants.items() if name in taken}
    warps = {"num_warps": _WARPS}
    program = replace(program, body=kda_chunk_body, constants=constants, options=warps)
    return run_of(problem, build, tuning, program)
